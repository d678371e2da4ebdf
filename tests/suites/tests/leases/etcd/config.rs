use std::{process::Command, time::Duration};

use flannel_lab::{command::run, etcd::Options};

use super::*;

#[tokio::test]
async fn the_config_is_read() {
    let etcd = Etcd::start().unwrap();
    etcd.put(&format!("{PREFIX}/config"), r#"{"network":"10.3.0.0/16","Backend":{"Type":"VXLAN","VNI":7}}"#)
        .unwrap();
    let config = store(&etcd).wait_for_network_config().await.unwrap();
    let options = config.built().unwrap();
    assert_eq!(options.0.kind(), "vxlan");
    assert!(format!("{options:?}").contains("Backend.VNI: 7"), "{options:?}");
}

/// The first part of upstream's TestEtcdRegistry.
#[tokio::test]
async fn etcd_registry_missing_config() {
    let etcd = Etcd::with(Options { v2: true, ..Options::default() }).unwrap();
    let old = r#"{"Network":"10.99.0.0/16"}"#;
    etcd.ctl_v2(&["set", &format!("{PREFIX}/config"), old]).unwrap();
    let store = EtcdStore::connect(&EtcdOptions { api: EtcdApi::V3, ..options(&etcd) }).unwrap();
    let error = store.try_network_config().await.unwrap_err().to_string();
    let words = "flannel config not found in etcd store. Did you create your config using etcdv3 API?";
    assert!(error.starts_with(words), "{error}");
    // As an operator types what it says.
    let (_, put) = error.split_once("Write it by: ").unwrap();
    run(Command::new("sh").args(["-c", put.split_once(". Or").unwrap().0])).unwrap();
    assert_eq!(store.try_network_config().await.unwrap().network_v4().unwrap().to_string(), "10.244.0.0/16");
}

/// What upstream exits over, it does not wait for to be corrected.
#[tokio::test]
async fn an_unknown_backend_and_no_stack_are_not_waited_for() {
    let etcd = Etcd::start().unwrap();
    let store = store(&etcd);
    for (config, words) in [
        (r#"{"Network":"10.3.0.0/16","Backend":{"Type":"geneve"}}"#, "unknown backend type: geneve"),
        (r#"{"Network":"10.3.0.0/16","EnableIPv4":false}"#, "none defined stack"),
    ] {
        etcd.put(&format!("{PREFIX}/config"), config).unwrap();
        let error = tokio::time::timeout(SOON, store.wait_for_network_config()).await.unwrap().unwrap_err();
        assert!(error.to_string().starts_with(&format!("{PREFIX}/config: {words}")), "{error}");
    }
}

#[tokio::test]
async fn the_config_is_waited_for_and_each_reason_logged_once() {
    let mut etcd = Etcd::start().unwrap();
    let (log, _guard) = Log::capture();
    etcd.stop();
    let store = store(&etcd);
    let config = tokio::spawn(async move { store.wait_for_network_config().await });
    // Each is said, and then tried again a few times without another word.
    let said = async |words: &str| {
        log.await_words(words, 1).await;
        tokio::time::sleep(Duration::from_millis(2500)).await;
    };
    said("is etcd running, and is --etcd-endpoints right?").await;
    etcd.start_again().unwrap();
    said("flannel config not found in etcd store").await;
    etcd.put(&format!("{PREFIX}/config"), r#"{"Network":"10.3.0.0/16","SubnetLen":"24"}"#).unwrap();
    said("/coreos.com/network/config: SubnetLen: expected a prefix length").await;
    assert!(!config.is_finished());
    etcd.put(&format!("{PREFIX}/config"), r#"{"Network":"10.3.0.0/16","SubnetLen":25}"#).unwrap();
    let config = tokio::time::timeout(SOON, config).await.unwrap().unwrap().unwrap();
    assert_eq!(config.ipv4.unwrap().subnet_len, 25);
    let text = log.text();
    assert_eq!(log.count("flannel config not found in etcd store"), 1, "{text}");
    assert_eq!(log.count("/coreos.com/network/config: SubnetLen: expected a prefix length"), 1, "{text}");
    assert_eq!(log.count("is etcd running, and is --etcd-endpoints right?"), 1, "{text}");
}

/// Nothing but the log shows it: a network is not changed under running pods.
#[tokio::test]
async fn changes_while_running_are_said_once() {
    let etcd = Etcd::start().unwrap();
    let config = format!("{PREFIX}/config");
    let put = |json: &str| etcd.put(&config, json).unwrap();
    let as_started = r#"{"Network":"10.3.0.0/16","Backend":{"Type":"vxlan"}}"#;
    put(as_started);
    let (log, _guard) = Log::capture();
    let store = store(&etcd);
    let reports = tokio::spawn(async move { store.watch_network_config(network()).await });
    let says = async |words: &str, times: usize| {
        log.await_words(words, times).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(log.count(words), times, "{}", log.text());
    };
    let other = r#"{"Network":"10.4.0.0/16","EnableNFTables":true,"Backend":{"Type":"vxlan","VNI":2}}"#;
    put(other);
    says("this node keeps the one it was started with. Restart", 1).await;
    says("Network: 10.3.0.0/16 -> 10.4.0.0/16", 1).await;
    says("EnableNFTables: false -> true, Backend.VNI: 1 -> 2", 1).await;
    put(other);
    says("Restart", 1).await;
    put(r#"{"Network":"10.4.0.0/16","SubnetLen":31}"#);
    says("cannot be used", 1).await;
    says("SubnetLen must be less than /31", 1).await;
    etcd.delete(&config).unwrap();
    says("the network config was deleted", 1).await;
    put(as_started);
    says("the network config is again the one this node runs with", 1).await;
    put(r#"{ "network": "10.3.0.0/16", "SubnetLen": 24, "Backend": {"Type": "VXLAN"} }"#);
    says("again the one", 1).await;
    put(other);
    says("Restart", 2).await;
    assert!(!reports.is_finished());
}

#[tokio::test]
async fn a_change_between_the_start_and_the_watch_is_said() {
    let etcd = Etcd::start().unwrap();
    let (log, _guard) = Log::capture();
    etcd.put(&format!("{PREFIX}/config"), r#"{"Network":"10.3.0.0/16","Backend":{"Type":"host-gw"}}"#)
        .unwrap();
    let store = store(&etcd);
    let reports = tokio::spawn(async move { store.watch_network_config(network()).await });
    log.await_words("Backend.Type: vxlan -> host-gw", 1).await;
    assert_eq!(log.count("Backend.Type: vxlan -> host-gw"), 1, "{}", log.text());
    assert!(!reports.is_finished());
}
