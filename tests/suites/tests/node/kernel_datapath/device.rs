//! The VXLAN device.

use std::collections::BTreeMap;

use flannel_agent::{
    datapath::Datapath,
    netlink::Netlink,
    plan::{Change, VxlanDevice},
    values::Family,
};

use super::namespace::*;

fn only(device: VxlanDevice) -> BTreeMap<Family, VxlanDevice> {
    BTreeMap::from([(device.family(), device)])
}

async fn put(device: VxlanDevice) -> Result<(), String> {
    let mut datapath = datapath();
    let results = datapath.apply(&[Change::PutDevice(device)]).await;
    assert_eq!(results.len(), 1);
    results.into_iter().next().unwrap().map_err(|error| error.to_string())
}

#[test]
fn has_the_attributes_of_stock_flannel() {
    with_namespace(|| async {
        put(device()).await.unwrap();
        let shown = &ip_json("-d link show flannel.1")[0];
        assert_eq!(shown["address"], mac(0xffff).to_string());
        assert_eq!(shown["mtu"], 1450);
        assert!(shown["flags"].as_array().unwrap().contains(&"UP".into()), "{shown}");
        let info = &shown["linkinfo"];
        assert_eq!(info["info_kind"], "vxlan");
        let data = info["info_data"].as_object().unwrap();
        for (name, value) in [
            ("id", 1.into()),
            ("local", "192.0.2.1".into()),
            ("link", "eth0".into()),
            ("port", 8472.into()),
            ("learning", false.into()),
            ("ageing", 300.into()),
            ("udp_csum", true.into()),
            ("udp_zero_csum6_tx", false.into()),
            ("udp_zero_csum6_rx", false.into()),
        ] {
            assert_eq!(data.get(name), Some(&value), "{name} in {data:?}");
        }
        assert_eq!(data["port_range"], serde_json::json!({"low": 0, "high": 0}));
        for absent in ["group", "remote", "proxy", "l2miss", "l3miss", "rsc", "gbp", "external"] {
            let value = data.get(absent);
            assert!(value.is_none() || value == Some(&false.into()), "{absent} in {data:?}");
        }
        assert_eq!(data.get("ttl").and_then(|ttl| ttl.as_u64()).unwrap_or(0), 0, "{data:?}");
        let accept_ra = "/proc/sys/net/ipv6/conf/flannel.1/accept_ra";
        if let Ok(value) = std::fs::read_to_string(accept_ra) {
            assert_eq!(value.trim(), "0");
        }
        assert_eq!(datapath().observe().await.unwrap().devices, only(device()));
    });
}

#[test]
fn is_adopted_with_its_mac_if_it_fits() {
    with_namespace(|| async {
        ip("link add flannel.1 address 0e:00:00:00:00:77 mtu 1450 type vxlan id 1 dev eth0 \
            local 192.0.2.1 dstport 8472 nolearning");
        let before = index_of("flannel.1");
        let found = Netlink::open().unwrap().link("flannel.1").await.unwrap().unwrap();
        let found = found.as_vxlan_device().unwrap();
        assert!(device().is_compatible(&found));
        // Down it forwards nothing, so it does not count.
        assert_eq!(datapath().observe().await.unwrap().devices, BTreeMap::new());
        let wanted = VxlanDevice { mac: found.mac, ..device() };
        put(wanted.clone()).await.unwrap();
        assert_eq!(index_of("flannel.1"), before);
        assert_eq!(datapath().observe().await.unwrap().devices, only(wanted));
    });
}

#[test]
fn mtu_and_mac_are_changed_in_place() {
    with_namespace(|| async {
        put(VxlanDevice { mtu: 1400, mac: mac(1), ..device() }).await.unwrap();
        let before = index_of("flannel.1");
        put(device()).await.unwrap();
        assert_eq!(index_of("flannel.1"), before);
        assert_eq!(datapath().observe().await.unwrap().devices, only(device()));
    });
}

#[test]
fn learning_is_changed_in_place_and_gbp_takes_a_new_device() {
    with_namespace(|| async {
        let shown = || ip_json("-d link show flannel.1")[0]["linkinfo"]["info_data"].clone();
        put(device()).await.unwrap();
        let before = index_of("flannel.1");
        let learning = VxlanDevice { learning: true, ..device() };
        put(learning.clone()).await.unwrap();
        assert_eq!(index_of("flannel.1"), before);
        assert_eq!(shown()["learning"], true);
        assert_eq!(datapath().observe().await.unwrap().devices, only(learning));
        put(device()).await.unwrap();
        assert_eq!((index_of("flannel.1"), &shown()["learning"]), (before, &false.into()));

        let gbp = VxlanDevice { gbp: true, ..device() };
        put(gbp.clone()).await.unwrap();
        assert_ne!(index_of("flannel.1"), before);
        assert_eq!(shown()["gbp"], true);
        let with_gbp = index_of("flannel.1");
        assert_eq!(datapath().observe().await.unwrap().devices, only(gbp.clone()));
        put(gbp).await.unwrap();
        assert_eq!(index_of("flannel.1"), with_gbp);
    });
}

#[test]
fn is_replaced_if_it_cannot_become_what_is_wanted() {
    with_namespace(|| async {
        for other in [
            "type vxlan id 2 dev eth0 local 192.0.2.1 dstport 8472",
            "type vxlan id 1 dev eth0 local 192.0.2.1 dstport 4789",
            "type vxlan id 1 dev eth0 local 192.0.2.9 dstport 8472",
            "type vxlan id 1 local 192.0.2.1 dstport 8472",
            "type vxlan id 1 dev eth0 local 192.0.2.1 dstport 8472 group 239.1.1.1",
            "type vxlan id 1 dev eth0 local 192.0.2.1 dstport 8472 gbp",
            "type vxlan id 1 dev eth0 local 192.0.2.1 dstport 8472 l2miss",
            "type bridge",
        ] {
            ip(&format!("link add flannel.1 {other}"));
            let before = index_of("flannel.1");
            put(device()).await.unwrap();
            assert_ne!(index_of("flannel.1"), before, "{other}");
            assert_eq!(datapath().observe().await.unwrap().devices, only(device()), "{other}");
            ip("link delete flannel.1");
        }
    });
}

#[test]
fn says_who_is_in_its_way() {
    with_namespace(|| async {
        ip("link add vx0 type vxlan id 1 dev eth0 local 192.0.2.1 dstport 8472");
        let error = put(device()).await.unwrap_err();
        assert!(error.contains("taken by device vx0") && error.contains("ip link delete vx0"), "{error}");

        let error = put(VxlanDevice { underlay_ifindex: 99, ..device() }).await.unwrap_err();
        assert!(!error.is_empty());
        eprintln!("without an underlay: {error}");
    });
}
