use std::{net::TcpListener, time::Instant};

use super::*;

const CONFIG: &str = r#"{"Network":"10.3.0.0/16"}"#;

pub(crate) fn with_config(etcd: &Etcd) {
    etcd.put(&format!("{PREFIX}/config"), CONFIG).unwrap();
}

pub(crate) fn refused(options: &EtcdOptions) -> String {
    match EtcdStore::connect(options) {
        Ok(_) => panic!("accepted"),
        Err(error) => error.to_string(),
    }
}

/// A port where nobody listens.
fn dead() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

#[tokio::test]
async fn one_of_several_endpoints_is_dead() {
    let etcd = Etcd::start().unwrap();
    with_config(&etcd);
    for endpoints in
        [format!("{},{}", dead(), etcd.endpoint()), format!("{},{},{}", etcd.endpoint(), dead(), dead())]
    {
        // Where a node begins is random.
        for _ in 0..8 {
            let options = EtcdOptions { endpoints: endpoints.clone(), ..EtcdOptions::default() };
            let store = EtcdStore::connect(&options).unwrap();
            store.try_network_config().await.unwrap();
            store.acquire_lease(&network(), &node(1), None).await.unwrap();
            let mut watch = store.watch(subnet("10.3.1.0/24"));
            assert!(matches!(next(&mut watch).await, LeaseEvent::Snapshot(_)));
        }
    }
}

/// It accepts connections and says nothing: only a limit of time helps.
#[tokio::test]
async fn one_of_several_endpoints_hangs() {
    let etcd = Etcd::start().unwrap();
    with_config(&etcd);
    let hanging = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoints = format!("http://{},{}", hanging.local_addr().unwrap(), etcd.endpoint());
    for _ in 0..3 {
        let options = EtcdOptions { endpoints: endpoints.clone(), ..EtcdOptions::default() };
        let store = EtcdStore::connect(&options).unwrap();
        store.try_network_config().await.unwrap();
        let begun = Instant::now();
        store.try_network_config().await.unwrap();
        // The other one costs the five seconds that are given to an answer.
        assert!(begun.elapsed() < Duration::from_secs(4), "the one that answered is asked first");
    }
}

#[tokio::test]
async fn all_endpoints_dead() {
    let (first, second) = (dead(), dead());
    let options = EtcdOptions { endpoints: format!("{first},{second}"), ..EtcdOptions::default() };
    let error = EtcdStore::connect(&options).unwrap().try_network_config().await.unwrap_err().to_string();
    for part in [&first, &second, "Connection refused", "--etcd-endpoints"] {
        assert!(error.contains(part), "{error}");
    }
}

#[tokio::test]
async fn endpoints_are_checked() {
    let options = EtcdOptions { endpoints: "etcd".to_owned(), ..EtcdOptions::default() };
    assert_eq!(refused(&options), r#"--etcd-endpoints: "etcd" has no port: append one, as :2379"#);
}

#[tokio::test]
async fn a_ca_alone_means_http() {
    let etcd = Etcd::start().unwrap();
    with_config(&etcd);
    let (log, _guard) = Log::capture();
    let options = EtcdOptions { cafile: Some("/nonexistent".into()), ..options(&etcd) };
    EtcdStore::connect(&options).unwrap().try_network_config().await.unwrap();
    assert_eq!(log.count("so connecting to etcd with http"), 1, "{}", log.text());
}

#[tokio::test]
async fn user_and_password() {
    let mut etcd = Etcd::start().unwrap();
    with_config(&etcd);
    let with = |user: &str, password: &str| {
        let (username, password) = (Some(user.to_owned()), Some(password.to_owned()));
        EtcdStore::connect(&EtcdOptions { username, password, ..options(&etcd) }).unwrap()
    };
    let early = with("node", "secret");
    early.try_network_config().await.expect("credentials before etcd asks for any");
    let (store, wrong) = (with("node", "secret"), with("node", "wrong"));
    let anonymous = self::store(&etcd);
    etcd.require_users("node", "secret", PREFIX).unwrap();

    early.try_network_config().await.expect("etcd asks for them from now on");
    store.try_network_config().await.unwrap();
    let own = store.acquire_lease(&network(), &node(1), None).await.unwrap();
    let mut watch = store.watch(own.subnet);
    assert_eq!(next(&mut watch).await, LeaseEvent::Snapshot(Vec::new()));

    let error = wrong.try_network_config().await.unwrap_err().to_string();
    assert!(error.contains("--etcd-username") && !error.contains("wrong"), "{error}");
    let error = anonymous.try_network_config().await.unwrap_err().to_string();
    assert!(error.contains("--etcd-username"), "{error}");

    // Tokens do not outlive etcd: both the watch and requests have to log in again.
    etcd.stop();
    etcd.start_again().unwrap();
    etcd.put(&key("10.3.250.0-24"), &node(2).to_json()).unwrap();
    assert_eq!(next(&mut watch).await, LeaseEvent::Upsert(lease("10.3.250.0/24", 2)));
    store.acquire_lease(&network(), &node(1), None).await.unwrap();
}

#[tokio::test]
async fn a_user_without_permission() {
    let mut etcd = Etcd::start().unwrap();
    with_config(&etcd);
    let (username, password) = (Some("node".to_owned()), Some("secret".to_owned()));
    let options = EtcdOptions { username, password, ..options(&etcd) };
    etcd.require_users("node", "secret", "/elsewhere").unwrap();
    let error = EtcdStore::connect(&options).unwrap().try_network_config().await.unwrap_err().to_string();
    assert!(error.contains("permission denied") && error.contains("--etcd-prefix"), "{error}");
}
