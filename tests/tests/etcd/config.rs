use std::time::Duration;

use super::*;

#[tokio::test]
async fn the_config_is_read() {
    let etcd = Etcd::start().unwrap();
    etcd.put(&format!("{PREFIX}/config"), r#"{"network":"10.3.0.0/16","Backend":{"Type":"VXLAN","VNI":7}}"#)
        .unwrap();
    let config = store(&etcd).network_config().await;
    let BuiltBackend::Vxlan(options) = config.over_ipv4().unwrap().1 else { panic!("{config:?}") };
    assert_eq!(options.vni, 7);
}

/// The first part of upstream's TestEtcdRegistry.
#[tokio::test]
async fn etcd_registry_missing_config() {
    let etcd = Etcd::start().unwrap();
    let error = store(&etcd).try_network_config().await.unwrap_err().to_string();
    assert_eq!(error, "flannel config not found in etcd store. Did you create your config using etcdv3 API?");
}

#[tokio::test]
async fn the_config_is_waited_for_and_each_reason_logged_once() {
    let mut etcd = Etcd::start().unwrap();
    let (log, _guard) = Log::capture();
    etcd.stop();
    let store = store(&etcd);
    let config = tokio::spawn(async move { store.network_config().await });
    tokio::time::sleep(Duration::from_millis(2500)).await;
    etcd.start_again().unwrap();
    tokio::time::sleep(Duration::from_millis(2500)).await;
    etcd.put(&format!("{PREFIX}/config"), r#"{"Network":"10.3.0.0/16","SubnetLen":"24"}"#).unwrap();
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(!config.is_finished());
    etcd.put(&format!("{PREFIX}/config"), r#"{"Network":"10.3.0.0/16","SubnetLen":25}"#).unwrap();
    let config = tokio::time::timeout(SOON, config).await.unwrap().unwrap();
    assert_eq!(config.ipv4.unwrap().subnet_len, 25);
    let text = log.text();
    assert_eq!(log.count("flannel config not found in etcd store"), 1, "{text}");
    assert_eq!(log.count("/coreos.com/network/config: SubnetLen: expected a prefix length"), 1, "{text}");
    assert_eq!(log.count("is etcd running, and is --etcd-endpoints right?"), 1, "{text}");
}
