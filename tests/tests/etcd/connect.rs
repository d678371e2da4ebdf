use std::{fs, net::TcpListener, path::PathBuf, time::Instant};

use flannel_tests::etcd::Authority;

use super::*;

const CONFIG: &str = r#"{"Network":"10.3.0.0/16"}"#;

fn with_config(etcd: &Etcd) {
    etcd.put(&format!("{PREFIX}/config"), CONFIG).unwrap();
}

fn refused(options: &EtcdOptions) -> String {
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
            store.acquire(&network(), &node(1), None).await.unwrap();
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
        assert!(begun.elapsed() < Duration::from_secs(1), "the one that answered is asked first");
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

struct Tls {
    etcd: Etcd,
    options: EtcdOptions,
}

impl Tls {
    fn start() -> Self {
        let etcd = Etcd::start_with_tls().unwrap();
        with_config(&etcd);
        let options = EtcdOptions {
            endpoints: etcd.endpoint(),
            cafile: Some(etcd.path("ca.pem")),
            certfile: Some(etcd.path("client.pem")),
            keyfile: Some(etcd.path("client.key")),
            ..EtcdOptions::default()
        };
        Self { etcd, options }
    }

    async fn error(&self, options: &EtcdOptions) -> String {
        EtcdStore::connect(options).unwrap().try_network_config().await.unwrap_err().to_string()
    }

    fn file(&self, name: &str, text: &str) -> Option<PathBuf> {
        let path = self.etcd.path(name);
        fs::write(&path, text).unwrap();
        Some(path)
    }
}

#[tokio::test]
async fn tls_with_client_certificates() {
    let tls = Tls::start();
    let store = EtcdStore::connect(&tls.options).unwrap();
    store.try_network_config().await.unwrap();
    store.acquire(&network(), &node(1), None).await.unwrap();
    let mut watch = store.watch(subnet("10.3.1.0/24"));
    assert!(matches!(next(&mut watch).await, LeaseEvent::Snapshot(_)));
    // Without a scheme, the certificates say that TLS is meant.
    let endpoints = tls.etcd.address().to_string();
    let options = EtcdOptions { endpoints, ..tls.options.clone() };
    EtcdStore::connect(&options).unwrap().try_network_config().await.unwrap();
}

#[tokio::test]
async fn tls_without_a_client_certificate() {
    let tls = Tls::start();
    let error = tls.error(&EtcdOptions { certfile: None, keyfile: None, ..tls.options.clone() }).await;
    assert!(error.contains("--etcd-certfile"), "{error}");
    let (log, _guard) = Log::capture();
    let error = tls.error(&EtcdOptions { keyfile: None, ..tls.options.clone() }).await;
    assert!(error.contains("--etcd-certfile"), "{error}");
    assert_eq!(
        log.count("--etcd-certfile is not used, because --etcd-keyfile is not given"),
        1,
        "{}",
        log.text()
    );
}

#[tokio::test]
async fn tls_with_the_wrong_ca() {
    let tls = Tls::start();
    let other = Authority::new("another CA").unwrap();
    let path = tls.etcd.path("other-ca.pem");
    other.write_to(&path).unwrap();
    let error = tls.error(&EtcdOptions { cafile: Some(path), ..tls.options.clone() }).await;
    assert!(error.contains("--etcd-cafile"), "{error}");
}

#[tokio::test]
async fn tls_with_a_client_certificate_of_the_wrong_ca() {
    let tls = Tls::start();
    let other = Authority::new("another CA").unwrap();
    other.client().unwrap().write_to(&tls.etcd.path("foreign")).unwrap();
    let (cert, key) = (tls.etcd.path("foreign.pem"), tls.etcd.path("foreign.key"));
    let error =
        tls.error(&EtcdOptions { certfile: Some(cert), keyfile: Some(key), ..tls.options.clone() }).await;
    assert!(error.contains("--etcd-certfile"), "{error}");
}

/// How the server ends such a connection depends on which of its bytes come first, so the telling error may
/// be that of a later attempt; the agent makes one every second.
async fn says(tls: &Tls, options: &EtcdOptions, words: &str) {
    let mut error = String::new();
    for _ in 0..5 {
        error = tls.error(options).await;
        if error.contains(words) {
            return;
        }
    }
    panic!("not {words:?} in five attempts: {error}");
}

#[tokio::test]
async fn tls_to_a_server_that_speaks_none() {
    let (plain, tls) = (Etcd::start().unwrap(), Tls::start());
    let endpoints = plain.endpoint().replace("http:", "https:");
    says(&tls, &EtcdOptions { endpoints, ..tls.options.clone() }, "write http://").await;
    let endpoints = tls.etcd.endpoint().replace("https:", "http:");
    says(&tls, &EtcdOptions { endpoints, ..EtcdOptions::default() }, "write https://").await;
}

#[tokio::test]
async fn certificates_are_checked_before_they_are_used() {
    let tls = Tls::start();
    let good = || tls.options.clone();
    let named = |options: EtcdOptions, start: &str, part: &str| {
        let error = refused(&options);
        assert!(error.starts_with(start) && error.contains(part), "{error}");
    };
    tls.etcd.authority().unwrap().expired_client().unwrap().write_to(&tls.etcd.path("expired")).unwrap();
    let (cert, key) = (Some(tls.etcd.path("expired.pem")), Some(tls.etcd.path("expired.key")));
    let expired = EtcdOptions { certfile: cert, keyfile: key, ..good() };
    named(
        expired,
        "--etcd-certfile ",
        "expired.pem: the certificate expired on 2021-01-01T00:00:00Z: renew it",
    );

    let absent = || Some(tls.etcd.path("absent"));
    named(
        EtcdOptions { cafile: absent(), ..good() },
        "--etcd-cafile ",
        "absent: cannot be read: No such file",
    );
    named(
        EtcdOptions { certfile: absent(), ..good() },
        "--etcd-certfile ",
        "absent: cannot be read: No such file",
    );
    named(
        EtcdOptions { keyfile: absent(), ..good() },
        "--etcd-keyfile ",
        "absent: cannot be read: No such file",
    );

    let nonsense = || tls.file("nonsense", "nonsense");
    named(
        EtcdOptions { cafile: nonsense(), ..good() },
        "--etcd-cafile ",
        "nonsense: holds no certificate: give",
    );
    named(
        EtcdOptions { certfile: nonsense(), ..good() },
        "--etcd-certfile ",
        "holds no certificate: give a PEM",
    );
    named(
        EtcdOptions { keyfile: nonsense(), ..good() },
        "--etcd-keyfile ",
        "nonsense: holds no private key (",
    );

    let damaged = tls.file("damaged", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    named(EtcdOptions { certfile: damaged.clone(), ..good() }, "--etcd-certfile ", "is not X.509 version 3");
    named(EtcdOptions { cafile: damaged, ..good() }, "--etcd-cafile ", "cannot be a CA's");
    let other_key = Some(tls.etcd.path("server.key"));
    named(
        EtcdOptions { keyfile: other_key, ..good() },
        "--etcd-keyfile ",
        "cannot be used with --etcd-certfile",
    );
    let server_only = tls.etcd.authority().unwrap().server_only().unwrap();
    server_only.write_to(&tls.etcd.path("server-only")).unwrap();
    let (cert, key) = (Some(tls.etcd.path("server-only.pem")), Some(tls.etcd.path("server-only.key")));
    named(EtcdOptions { certfile: cert, keyfile: key, ..good() }, "--etcd-certfile ", "is not for clients");
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
    let own = store.acquire(&network(), &node(1), None).await.unwrap();
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
    store.acquire(&network(), &node(1), None).await.unwrap();
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
