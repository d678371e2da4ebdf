//! TLS with client certificates: good, wrong, expired and renewed.

use std::{fs, path::PathBuf};

use flannel_lab::etcd::{Authority, KeyAndCertificate};

use super::{
    connect::{refused, with_config},
    *,
};

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
    store.acquire_lease(&network(), &node(1), None).await.unwrap();
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

/// etcd's own: it goes on serving, and its clients have to say what is wrong.
#[tokio::test]
async fn tls_to_a_server_whose_certificate_has_expired() {
    let mut tls = Tls::start();
    let address = tls.etcd.address().ip();
    let expired = tls.etcd.authority().unwrap().expired_server(address).unwrap();
    expired.write_to(&tls.etcd.path("server")).unwrap();
    tls.etcd.stop();
    tls.etcd.start_again().unwrap();
    let error = tls.error(&tls.options).await;
    assert!(error.contains("etcd's own certificate has expired: renew it"), "{error}");
}

/// Go's library takes them, and so does stock flannel: a certificate for any use, and one that is its own CA if it is the very one
/// that is trusted.
#[tokio::test]
async fn certificates_that_stock_flannel_takes_are_taken() {
    let mut tls = Tls::start();
    let address = tls.etcd.address().ip();
    let any_use = tls.etcd.authority().unwrap().server_for_any_use(address).unwrap();
    let own = KeyAndCertificate::self_signed_server(address).unwrap();
    let anothers = KeyAndCertificate::self_signed_server(address).unwrap();
    let elsewhere = KeyAndCertificate::self_signed_server("192.0.2.1".parse().unwrap()).unwrap();
    let own_file = tls.file("own.pem", &own.certificate);
    let elsewhere_file = tls.file("elsewhere.pem", &elsewhere.certificate);
    let trusting = |cafile| EtcdOptions { cafile, ..tls.options.clone() };
    let (trusts_ca, trusts_own) = (tls.options.clone(), trusting(own_file));
    let trusts_elsewhere = trusting(elsewhere_file);
    for (server, options, refused) in [
        (&any_use, &trusts_ca, ""),
        (&any_use, &trusts_own, "not signed by the CA of --etcd-cafile"),
        (&own, &trusts_own, ""),
        (&own, &trusts_ca, "put that very certificate into --etcd-cafile"),
        (&anothers, &trusts_own, "put that very certificate into --etcd-cafile"),
        (&elsewhere, &trusts_elsewhere, "for another name"),
    ] {
        server.write_to(&tls.etcd.path("server")).unwrap();
        tls.etcd.stop();
        tls.etcd.start_again().unwrap();
        for api in [EtcdApi::V3, EtcdApi::V2] {
            let options = EtcdOptions { api, ..options.clone() };
            let answer = EtcdStore::connect(&options).unwrap().try_network_config().await;
            match (answer.map_err(|error| error.to_string()), refused) {
                (Ok(_), "") => {}
                // It has none: this etcd serves v3 alone.
                (Err(error), "") if api == EtcdApi::V2 => assert!(!error.contains("ertificate"), "{error}"),
                (Err(error), refused) if !refused.is_empty() => assert!(error.contains(refused), "{error}"),
                (answer, refused) => panic!("{api:?}: {answer:?} where {refused:?} was expected"),
            }
        }
    }
}

/// As upstream's client does: whoever renews certificates need not restart the agents.
#[tokio::test]
async fn a_certificate_renewed_on_disk_is_used_from_the_next_connection_on() {
    let mut tls = Tls::start();
    let (log, _guard) = Log::capture();
    let store = EtcdStore::connect(&tls.options).unwrap();
    let own = store.acquire_lease(&network(), &node(1), Some(subnet("10.3.1.0/24"))).await.unwrap();
    let mut watch = store.watch(own.subnet);
    assert_eq!(next(&mut watch).await, LeaseEvent::Snapshot(Vec::new()));
    // For etcdctl, which reads `client.pem`, the good one stays.
    let (cert, key_file) = (tls.etcd.path("node.pem"), tls.etcd.path("node.key"));
    let good = tls.etcd.authority().unwrap().client().unwrap();
    good.write_to(&tls.etcd.path("node")).unwrap();
    let options = EtcdOptions { certfile: Some(cert), keyfile: Some(key_file), ..tls.options.clone() };
    let store = EtcdStore::connect(&options).unwrap();
    let mut watch_renewed = store.watch(own.subnet);
    assert_eq!(next(&mut watch_renewed).await, LeaseEvent::Snapshot(Vec::new()));

    let expired = tls.etcd.authority().unwrap().expired_client().unwrap();
    expired.write_to(&tls.etcd.path("node")).unwrap();
    store.try_network_config().await.expect("what is connected stays connected");
    tls.etcd.stop();
    tls.etcd.start_again().unwrap();
    // The first request finds that the old connection is gone, the next makes one.
    let _ = store.try_network_config().await.unwrap_err();
    let error = store.try_network_config().await.unwrap_err().to_string();
    for part in ["--etcd-certfile", "node.pem: the certificate expired on 2021-01-01", "it is read again"] {
        assert!(error.contains(part), "{error}");
    }
    let renewed = tls.etcd.authority().unwrap().client().unwrap();
    renewed.write_to(&tls.etcd.path("node")).unwrap();
    store.try_network_config().await.unwrap();
    tls.etcd.put(&key("10.3.2.0-24"), &node(2).to_json()).unwrap();
    assert_eq!(next(&mut watch_renewed).await, LeaseEvent::Upsert(lease("10.3.2.0/24", 2)), "{}", log.text());
    assert_eq!(next(&mut watch).await, LeaseEvent::Upsert(lease("10.3.2.0/24", 2)));
}
