//! Leases of dual-stack and IPv6-only clusters.

use std::{collections::BTreeSet, net::Ipv6Addr};

use flannel_agent::lease::etcd::AcquireError;

use super::*;

fn dual() -> NetworkConfig {
    NetworkConfig::parse(
        br#"{"Network":"10.3.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10::/48","Backend":{"Type":"alloc"}}"#,
    )
    .unwrap()
}

fn six() -> NetworkConfig {
    NetworkConfig::parse(
        br#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:10::/48","Backend":{"Type":"alloc"}}"#,
    )
    .unwrap()
}

fn node_with(v4: Option<u8>, v6: u16) -> LeaseAttrs {
    LeaseAttrs {
        public_ip: v4.map_or(Ipv4Addr::UNSPECIFIED, |number| Ipv4Addr::new(192, 0, 2, number)),
        public_ipv6: Some(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, v6)),
        backend_type: "alloc".to_owned(),
        backend_data: None,
        backend_v6_data: None,
    }
}

#[tokio::test]
async fn a_dual_stack_lease_is_one_key_with_both_subnets() {
    let etcd = Etcd::start().unwrap();
    let store = store(&etcd);
    let previous = LeaseSubnet { v6: Some("fd00:10:0:29::/64".parse().unwrap()), ..subnet("10.3.57.0/24") };
    let own = store.acquire_lease(&dual(), &node_with(Some(1), 1), Some(previous)).await.unwrap();
    assert_eq!(own.subnet, previous);
    assert_eq!(etcd.keys(PREFIX).unwrap(), [key("10.3.57.0-24&fd00:10:0:29::-64")]);
    assert_eq!(
        etcd.get(&key("10.3.57.0-24&fd00:10:0:29::-64")).unwrap().unwrap(),
        r#"{"PublicIP":"192.0.2.1","PublicIPv6":"fd77::1","BackendType":"alloc"}"#
    );
    let again = store.acquire_lease(&dual(), &node_with(Some(1), 1), None).await.unwrap();
    assert_eq!(again.subnet, previous, "own lease first");
    let other = store.acquire_lease(&dual(), &node_with(Some(2), 2), Some(previous)).await.unwrap();
    assert!(other.subnet.v4 != previous.v4 && other.subnet.v6 != previous.v6, "{}", other.subnet);
    // Back to IPv4, with the pods' addresses.
    let back = store.acquire_lease(&network(), &node(1), Some(previous)).await.unwrap();
    assert_eq!(back.subnet, subnet("10.3.57.0/24"));
    assert_eq!(etcd.get(&key("10.3.57.0-24&fd00:10:0:29::-64")).unwrap(), None);
}

/// The keys of two nodes can differ in one family while the other is the same: that must not happen.
#[tokio::test(flavor = "multi_thread")]
async fn simultaneous_dual_stack_starts_overlap_in_neither_family() {
    let etcd = Etcd::start().unwrap();
    let config = NetworkConfig::parse(
        br#"{"Network":"10.3.0.0/16","SubnetMin":"10.3.1.0","SubnetMax":"10.3.12.0","EnableIPv6":true,
             "IPv6Network":"fd00:10::/48","IPv6SubnetMin":"fd00:10:0:1::","IPv6SubnetMax":"fd00:10:0:c::"}"#,
    )
    .unwrap();
    let mut starts = tokio::task::JoinSet::new();
    for number in 1..=12 {
        let (store, config) = (store(&etcd), config.clone());
        let attrs = node_with(Some(number), number.into());
        starts.spawn(async move { store.acquire_lease(&config, &attrs, None).await.unwrap().subnet });
    }
    let all = starts.join_all().await;
    assert_eq!(all.iter().map(|subnet| subnet.v4.unwrap()).collect::<BTreeSet<_>>().len(), 12);
    assert_eq!(all.iter().map(|subnet| subnet.v6.unwrap()).collect::<BTreeSet<_>>().len(), 12);
    assert_eq!(etcd.keys(&key("")).unwrap().len(), 12);
}

/// All upstream's IPv6-only nodes have the PublicIP 0.0.0.0, match each other by it, and share one lease.
#[tokio::test]
async fn ipv6_only_nodes_have_a_lease_each() {
    let etcd = Etcd::start().unwrap();
    let store = store(&etcd);
    let first = store.acquire_lease(&six(), &node_with(None, 1), None).await.unwrap();
    let second = store.acquire_lease(&six(), &node_with(None, 2), None).await.unwrap();
    assert_ne!(first.subnet, second.subnet);
    let v6 = first.subnet.v6.unwrap();
    let name = format!("0.0.0.0-0&{}-{}", v6.ip(), v6.prefix());
    let value = r#"{"PublicIP":"0.0.0.0","PublicIPv6":"fd77::1","BackendType":"alloc"}"#;
    assert_eq!(etcd.get(&key(&name)).unwrap().unwrap(), value);
    assert_eq!(store.acquire_lease(&six(), &node_with(None, 1), None).await.unwrap().subnet, first.subnet);
    let mut watch = store.watch(first.subnet);
    let LeaseEvent::Snapshot(others) = next(&mut watch).await else { panic!("no snapshot") };
    assert_eq!(others.iter().map(|lease| lease.subnet).collect::<Vec<_>>(), [second.subnet]);
    let mut keeper = store.keep_lease(first);
    etcd.delete(&key(&name)).unwrap();
    tokio::time::timeout(SOON, keeper.report()).await.unwrap();
    assert_eq!(etcd.get(&key(&name)).unwrap().unwrap(), value, "taken back");
}

#[tokio::test]
async fn a_node_without_the_address_of_a_family_is_told_the_flag() {
    let etcd = Etcd::start().unwrap();
    let store = store(&etcd);
    let error = store.acquire_lease(&dual(), &node(1), None).await.unwrap_err();
    assert!(matches!(error, AcquireError::NoPublicIpv6) && error.to_string().starts_with("--public-ipv6: "));
    let error = store.acquire_lease(&dual(), &node_with(None, 1), None).await.unwrap_err();
    assert!(matches!(error, AcquireError::NoPublicIp) && error.to_string().starts_with("--public-ip: "));
    assert_eq!(etcd.keys(PREFIX).unwrap().len(), 0);
}
