use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::{lease::wire::VxlanData, values::Mac};

const BOTH: Families = Families { v4: true, v6: true };
const V4: Families = Families { v4: true, v6: false };
const DATA: &str = r#"{"VNI":1,"VtepMAC":"5e:60:bd:18:41:f3"}"#;

fn prefix() -> AnnotationPrefix {
    AnnotationPrefix::new("flannel.alpha.coreos.com").unwrap()
}

/// A node with pod CIDRs and flannel's annotations, by their last parts.
fn node(cidrs: &[&str], annotations: &[(&str, &str)]) -> NodeRecord {
    let annotations: serde_json::Map<String, Value> =
        annotations.iter().map(|(name, value)| (prefix().of(name), Value::from(*value))).collect();
    NodeRecord::from_json(&json!({
        "metadata": {"name": "a", "uid": "1", "resourceVersion": "1", "annotations": annotations},
        "spec": {"podCIDRs": cidrs},
    }))
}

const STOCK: [(&str, &str); 4] =
    [(MANAGED, "true"), (BACKEND_TYPE, "vxlan"), (BACKEND_DATA, DATA), (PUBLIC_IP, "192.0.2.1")];

fn with(changes: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
    let kept = STOCK.into_iter().filter(|(name, _)| changes.iter().all(|(other, _)| other != name));
    kept.chain(changes.iter().copied()).collect()
}

fn lease(node: &NodeRecord, families: Families) -> Result<Lease, NoLease> {
    lease_of(node, &prefix(), families)
}

fn ours() -> LeaseAttrs {
    let mac = Some(Mac([0x5e, 0x60, 0xbd, 0x18, 0x41, 0xf3]));
    LeaseAttrs::vxlan_v4(Ipv4Addr::new(192, 0, 2, 1), VxlanData { vni: 1, vtep_mac: mac })
}

#[test]
fn a_stock_node_has_the_lease_it_would_have_in_etcd() {
    let lease = lease(&node(&["10.244.1.0/24"], &STOCK), V4).unwrap();
    assert_eq!(lease.subnet.to_string(), "10.244.1.0/24");
    assert_eq!(lease.attrs, ours());
    assert_eq!(
        lease.attrs.to_json(),
        r#"{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"5e:60:bd:18:41:f3"}}"#
    );
}

#[test]
fn a_node_of_both_families_has_one_lease() {
    let annotations = with(&[(PUBLIC_IPV6, "2001:db8::1"), (BACKEND_V6_DATA, DATA)]);
    let both = node(&["fd00:1::/64", "10.244.1.0/24"], &annotations);
    let found = lease(&both, BOTH).unwrap();
    assert_eq!(found.subnet.to_string(), "10.244.1.0/24&fd00:1::/64");
    assert_eq!(found.attrs.public_ipv6, Some("2001:db8::1".parse().unwrap()));
    assert_eq!(found.attrs.backend_v6_data.as_ref().map(RawJson::as_str), Some(DATA));
    let found = lease(&both, V4).unwrap();
    assert_eq!((found.subnet.to_string().as_str(), &found.attrs), ("10.244.1.0/24", &ours()));
    let found = lease(&both, Families { v4: false, v6: true }).unwrap();
    assert_eq!(found.subnet.to_string(), "fd00:1::/64");
}

#[test]
fn a_node_of_one_family_among_nodes_of_two_is_reached_over_it() {
    let found = lease(&node(&["10.244.1.0/24"], &STOCK), BOTH).unwrap();
    assert_eq!(found.subnet.to_string(), "10.244.1.0/24");
    let found = lease(&node(&["10.244.1.0/24", "fd00:1::/64"], &STOCK), BOTH).unwrap();
    assert_eq!(found.subnet.to_string(), "10.244.1.0/24", "it does not say where its IPv6 pods are");
}

#[test]
fn host_gw_has_no_data() {
    let found =
        lease(&node(&["10.244.1.0/24"], &with(&[(BACKEND_TYPE, "host-gw"), (BACKEND_DATA, "null")])), V4);
    assert_eq!(found.unwrap().attrs, LeaseAttrs::plain_v4(Ipv4Addr::new(192, 0, 2, 1), "host-gw"));
}

#[test]
fn what_is_no_lease_says_why() {
    let why = |node: &NodeRecord| lease(node, V4).unwrap_err();
    assert_eq!(why(&node(&["10.244.1.0/24"], &[])), NoLease::NotManaged);
    assert_eq!(why(&node(&["10.244.1.0/24"], &with(&[(MANAGED, "false")]))), NoLease::NotManaged);
    assert_eq!(why(&node(&[], &STOCK)), NoLease::NoPodCidr);
    assert_eq!(why(&node(&["fd00:1::/64"], &STOCK)), NoLease::NoPodCidr);
    assert!(matches!(why(&node(&["nonsense"], &STOCK)), NoLease::PodCidr(_)));
    for (name, value) in [
        (PUBLIC_IP, "nonsense"),
        (PUBLIC_IP, "2001:db8::1"),
        (PUBLIC_IP, ""),
        (BACKEND_DATA, "nonsense"),
        (BACKEND_DATA, "null"),
        (BACKEND_DATA, r#"{"VNI":1}"#),
        (BACKEND_DATA, r#"{"VNI":1,"VtepMAC":"nonsense"}"#),
        (BACKEND_DATA, r#"{"VNI":1,"VtepMAC":"ff:ff:ff:ff:ff:ff"}"#),
        (BACKEND_DATA, r#"{"VNI":"1","VtepMAC":"5e:60:bd:18:41:f3"}"#),
    ] {
        let error = why(&node(&["10.244.1.0/24"], &with(&[(name, value)])));
        let NoLease::Unusable(text) = &error else { panic!("{name}={value}: {error:?}") };
        assert!(!text.is_empty(), "{name}={value}");
    }
}

#[test]
fn a_bare_node_gets_upstreams_annotations_and_a_done_one_none() {
    let names = |missing: Vec<(String, String)>| -> Vec<String> {
        missing
            .into_iter()
            .map(|(name, value)| format!("{}={value}", name.rsplit('/').next().unwrap()))
            .collect()
    };
    let bare = node(&["10.244.1.0/24"], &[]);
    assert_eq!(
        names(to_annotate(&bare, &prefix(), &ours())),
        [
            "kube-subnet-manager=true",
            "backend-type=vxlan",
            r#"backend-data={"VNI":1,"VtepMAC":"5e:60:bd:18:41:f3"}"#,
            "public-ip=192.0.2.1",
        ]
    );
    assert_eq!(names(to_annotate(&node(&["10.244.1.0/24"], &STOCK), &prefix(), &ours())), [""; 0]);
    let v6 = LeaseAttrs { public_ipv6: Some("2001:db8::1".parse().unwrap()), ..ours() };
    assert_eq!(
        names(to_annotate(&node(&[], &STOCK), &prefix(), &v6)),
        [""; 0],
        "no IPv6 data, no IPv6 annotations"
    );
    let host_gw = LeaseAttrs {
        public_ipv6: Some("2001:db8::1".parse().unwrap()),
        ..LeaseAttrs::plain_v4(Ipv4Addr::new(192, 0, 2, 1), "host-gw")
    };
    assert_eq!(
        names(to_annotate(&node(&[], &STOCK), &prefix(), &host_gw)),
        ["backend-type=host-gw", "backend-data=null", "backend-v6-data=null", "public-ipv6=2001:db8::1"]
    );
}

#[test]
fn an_operators_address_is_published_instead_of_ours() {
    let changed = node(&[], &with(&[(PUBLIC_IP_OVERWRITE, "172.18.0.2")]));
    let missing = to_annotate(&changed, &prefix(), &ours());
    assert_eq!(missing, [(prefix().of(PUBLIC_IP), "172.18.0.2".to_owned())]);
    let garbage = node(&[], &with(&[(PUBLIC_IP_OVERWRITE, "nonsense")]));
    assert_eq!(to_annotate(&garbage, &prefix(), &ours()), []);
    let problems = unusable_overwrites(&garbage, &prefix());
    assert!(problems[0].contains("public-ip-overwrite: \"nonsense\""), "{problems:?}");
}

#[test]
fn the_mac_before_is_read_back() {
    let before = published(&node(&[], &STOCK), &prefix()).unwrap();
    assert_eq!(before.vxlan(Family::V4).unwrap().vtep_mac, ours().vxlan(Family::V4).unwrap().vtep_mac);
    assert_eq!(published(&node(&[], &[]), &prefix()), None);
}

/// Upstream's way to read our MAC back: flanneld splits the annotation at `:"` and takes the second of two parts.
#[test]
fn stock_flannel_finds_the_mac_in_what_we_write() {
    for (name, value) in to_annotate(&node(&[], &[]), &prefix(), &ours()) {
        if name == prefix().of(BACKEND_DATA) {
            let parts: Vec<&str> = value.split(":\"").collect();
            assert_eq!(parts.len(), 2);
            assert_eq!(parts[1].trim_end_matches("\"}"), "5e:60:bd:18:41:f3");
        }
    }
}

proptest! {
    /// Upstream's FuzzNodeToLease: whatever is written to a node, reading it does not panic.
    #[test]
    fn whatever_a_node_says_is_read(
        cidrs in prop::collection::vec("\\PC{0,12}|10\\.[0-9]{1,3}\\.0\\.0/[0-9]{1,3}|[0-9a-f:]{0,20}/[0-9]{1,3}", 0..4),
        public_ip in "\\PC{0,12}|[0-9.]{0,16}",
        data in "\\PC{0,40}|\\{\"VNI\":[0-9]{0,12},\"VtepMAC\":\"[0-9a-f:]{0,20}\"\\}",
        kind in "vxlan|host-gw|\\PC{0,6}",
        v4: bool,
        v6: bool,
    ) {
        let cidrs: Vec<&str> = cidrs.iter().map(String::as_str).collect();
        let annotations =
            [(MANAGED, "true"), (BACKEND_TYPE, kind.as_str()), (BACKEND_DATA, data.as_str()), (PUBLIC_IP, public_ip.as_str()),
             (PUBLIC_IPV6, public_ip.as_str()), (BACKEND_V6_DATA, data.as_str()), (PUBLIC_IP_OVERWRITE, public_ip.as_str())];
        let node = node(&cidrs, &annotations);
        if let Ok(lease) = lease(&node, Families { v4, v6 }) {
            prop_assert!(lease.subnet.v4.is_some() || lease.subnet.v6.is_some());
            prop_assert!((v4 || lease.subnet.v4.is_none()) && (v6 || lease.subnet.v6.is_none()));
        }
        let _ = (published(&node, &prefix()), to_annotate(&node, &prefix(), &ours()), unusable_overwrites(&node, &prefix()));
    }
}
