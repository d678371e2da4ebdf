use std::net::{Ipv4Addr, Ipv6Addr};

use ipnetwork::{Ipv4Network, Ipv6Network};
use proptest::prelude::*;

use super::*;
use crate::{
    lease::LeaseSubnet,
    values::{Family, Mac},
};

fn attrs(json: &str) -> LeaseAttrs {
    LeaseAttrs::from_json(json.as_bytes()).unwrap()
}

fn subnet(v4: &str, v6: &str) -> LeaseSubnet {
    let parsed = |text: &str| (!text.is_empty()).then_some(text.to_owned());
    LeaseSubnet {
        v4: parsed(v4).map(|text| text.parse().unwrap()),
        v6: parsed(v6).map(|text| text.parse().unwrap()),
    }
}

/// Values as real flanneld wrote them.
const SAMPLES: [&str; 6] = [
    r#"{"PublicIP":"192.168.77.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"92:20:ce:6c:29:8b"}}"#,
    r#"{"PublicIP":"1.2.3.4","PublicIPv6":null}"#,
    r#"{"PublicIP":"192.168.77.1","PublicIPv6":null,"BackendType":"host-gw"}"#,
    r#"{"PublicIP":"192.168.77.1","PublicIPv6":null,"BackendType":"extension","BackendData":"a \u003c b"}"#,
    r#"{"PublicIP":"10.0.0.1","PublicIPv6":"fd00:77::1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"92:20:ce:6c:29:8b"},"BackendV6Data":{"VNI":1,"VtepMAC":"92:20:ce:6c:29:8c"}}"#,
    r#"{"PublicIP":"0.0.0.0","PublicIPv6":"fd00:77::1","BackendType":"wireguard","BackendData":{"PublicKey":"b64=","Port":51820}}"#,
];

#[test]
fn samples_round_trip() {
    for sample in SAMPLES {
        assert_eq!(attrs(sample).to_json(), sample);
    }
}

#[test]
fn vxlan_attrs_are_written_as_upstream_writes_them() {
    let data = VxlanData { vni: 1, vtep_mac: Some("92:20:CE:6c:29:8b".parse().unwrap()) };
    let attrs = LeaseAttrs::vxlan_v4(Ipv4Addr::new(192, 168, 77, 1), data);
    assert_eq!(attrs.to_json(), SAMPLES[0]);
    assert_eq!(attrs.vxlan(Family::V4).unwrap(), data);
}

#[test]
fn unknown_fields_any_case_and_null_data() {
    let lease = attrs(
        r#"{ "publicip":"1.2.3.4", "Fast":{"a":[1]}, "BackendType":"vxlan", "BackendData": null,
             "backenddata":{"New":true,"vni":70000,"vtepmac":"0e:00:00:00:00:01"}, "BackendV6Data":null }"#,
    );
    assert_eq!(lease.public_ipv6, None);
    assert_eq!(lease.backend_v6_data, None);
    let data = lease.vxlan(Family::V4).unwrap();
    assert_eq!((data.vni, data.vtep_mac.unwrap().to_string().as_str()), (70000, "0e:00:00:00:00:01"));
}

#[test]
fn data_of_unknown_backends_is_kept_as_it_is() {
    let lease = attrs(r#"{"PublicIP":"1.2.3.4","BackendType":"new","BackendData":{ "b" : [1, 2.50] }}"#);
    assert_eq!(lease.backend_data.as_ref().unwrap().as_str(), r#"{ "b" : [1, 2.50] }"#);
    assert!(lease.vxlan(Family::V4).unwrap_err().to_string().starts_with("BackendType: \"new\""));
}

#[test]
fn old_nodes_publish_no_vni() {
    let lease = attrs(
        r#"{"PublicIP":"1.2.3.4","BackendType":"vxlan","BackendData":{"VtepMAC":"0e:00:00:00:00:01"}}"#,
    );
    assert_eq!(lease.vxlan(Family::V4).unwrap().vni, 0);
    let lease = attrs(r#"{"PublicIP":"1.2.3.4","BackendType":"vxlan","BackendData":{"VNI":1}}"#);
    assert_eq!(lease.vxlan(Family::V4).unwrap(), VxlanData { vni: 1, vtep_mac: None });
}

#[test]
fn undecodable_attrs_name_the_field() {
    for (json, start) in [
        ("", "the lease is not a JSON object"),
        ("[]", "the lease is not a JSON object"),
        ("{}", "PublicIP: absent"),
        ("null", "PublicIP: absent"),
        (r#"{"PublicIP":null}"#, "PublicIP: expected an IPv4 address"),
        (r#"{"PublicIP":""}"#, "PublicIP: expected an IPv4 address"),
        (r#"{"PublicIP":"1.2.3.4.5"}"#, "PublicIP: expected an IPv4 address"),
        (r#"{"PublicIP":"1.2.3.4","PublicIPv6":"1.2.3.4"}"#, "PublicIPv6: expected an IPv6 address"),
        (r#"{"PublicIP":"1.2.3.4","BackendType":{}}"#, "BackendType: expected a string"),
    ] {
        let error = LeaseAttrs::from_json(json.as_bytes()).unwrap_err().to_string();
        assert!(error.starts_with(start), "{json}: {error}");
    }
    for (data, start) in [
        (r#""x""#, "BackendData: expected an object"),
        (r#"{"VNI":"1"}"#, "BackendData.VNI: expected a number"),
        (r#"{"VNI":4294967296}"#, "BackendData.VNI: expected a number"),
        (r#"{"VNI":1,"VtepMAC":"zz"}"#, "BackendData.VtepMAC: expected a MAC address"),
        (r#"{"VNI":1,"VtepMAC":null}"#, "BackendData.VtepMAC: expected a MAC address"),
    ] {
        let json = format!(r#"{{"PublicIP":"1.2.3.4","BackendType":"vxlan","BackendData":{data}}}"#);
        let error = attrs(&json).vxlan(Family::V4).unwrap_err().to_string();
        assert!(error.starts_with(start), "{json}: {error}");
    }
}

#[test]
fn subnet_node_v4() {
    let lease = subnet("10.12.13.0/24", "");
    assert_eq!(lease_key(&lease), "10.12.13.0-24");
    assert_eq!(parse_lease_key("10.12.13.0-24").unwrap(), lease);
    assert_eq!(parse_lease_key("/coreos.com/network/subnets/10.12.13.0-24").unwrap(), lease);
    assert_eq!(parse_lease_key("/subnets-x/1.10.12.13.0-24").unwrap(), lease, "open at the left");
    assert_eq!(parse_lease_key("10.12.13.0-0024").unwrap(), lease, "as Go reads numbers");
}

#[test]
fn subnet_node_v6() {
    let lease = subnet("10.12.13.0/24", "fd00:12:13::/56");
    assert_eq!(lease_key(&lease), "10.12.13.0-24&fd00:12:13::-56");
    assert_eq!(parse_lease_key("x/10.12.13.0-24&fd00:12:13::-56").unwrap(), lease);
    let lease = subnet("10.244.57.0/24", "fd00:10:244:29::/64");
    assert_eq!(lease_key(&lease), "10.244.57.0-24&fd00:10:244:29::-64");
    let only = subnet("", "fd00:10:244:29::/64");
    assert_eq!(lease_key(&only), "0.0.0.0-0&fd00:10:244:29::-64");
    assert_eq!(parse_lease_key(&lease_key(&only)).unwrap(), only);
}

#[test]
fn subnet_node_invalid() {
    for key in [
        "",
        "10",
        "10.12.13.0",
        "10.12.13-24",
        "10.12.13.300-24",
        "1110.12.13.0-24",
        "10.12x13y0-24",
        "10.12.13.0-24 hi",
        "10.12.13.0-24hi",
        "10.12.13.0-",
        "10.12.13.0-32",
        "10.12.13.0--24",
        "10.12.13.00-24",
        "0.0.0.0-0",
        "10.0.0.0-0",
        "10.12.13.1-24",
        "&2001::-56",
        "10.12.13.0-24&",
        "10.12.13.0-24&-56",
        "10.12.13.0-24&2001::",
        "10.12.13.0-24&2001::-",
        "10.12.13.0-24&2001::-128",
        "10.12.13.0-24&2001::1-56",
        "10.12.13.0-24&20012::-56",
        "10.12.13.0-24&FD00::-56",
        "10.12.13.0-24&hi-56",
        "10.12.13.0-24&2001::-56hi",
        "10.12.13.0&2001::-56",
    ] {
        assert!(parse_lease_key(key).is_err(), "{key:?}");
    }
}

prop_compose! {
    fn any_subnet()(
        v4 in proptest::option::of((any::<u32>(), 1u8..=31)),
        v6 in proptest::option::of((any::<u128>(), 0u8..=127)),
        spare in any::<u8>(),
    ) -> LeaseSubnet {
        let v4 = if v6.is_none() && v4.is_none() { Some((u32::from(spare) << 24, 8)) } else { v4 };
        LeaseSubnet {
            v4: v4.map(|(a, len)| {
                let network = Ipv4Network::new(a.into(), len).unwrap();
                Ipv4Network::new(network.network(), len).unwrap()
            }),
            v6: v6.map(|(a, len)| {
                let network = Ipv6Network::new(a.into(), len).unwrap();
                Ipv6Network::new(network.network(), len).unwrap()
            }),
        }
    }
}

proptest! {
    #[test]
    fn keys_round_trip(lease in any_subnet(), before in "[/a-z]{0,20}/") {
        // An address of the mapped range has dots in its text, which no key can have: upstream neither.
        prop_assume!(lease.v6.is_none_or(|v6| v6.ip().to_ipv4_mapped().is_none()));
        prop_assert_eq!(parse_lease_key(&format!("{before}{}", lease_key(&lease))).unwrap(), lease);
    }

    #[test]
    fn keys_never_panic(key in "\\PC{0,40}|[0-9.&:a-f/-]{0,60}") {
        let _ = parse_lease_key(&key);
    }

    #[test]
    fn attrs_round_trip(
        ip in any::<u32>(), v6 in proptest::option::of(any::<u128>()), kind in "[a-z-]{0,12}",
        vni in any::<u32>(), mac in any::<[u8; 6]>(), v6_data in any::<bool>(),
    ) {
        let data = VxlanData { vni, vtep_mac: Some(Mac(mac)) };
        let mut attrs = LeaseAttrs::vxlan_v4(ip.into(), data);
        attrs.public_ipv6 = v6.map(Ipv6Addr::from);
        attrs.backend_v6_data = if v6_data { attrs.backend_data.clone() } else { None };
        prop_assert_eq!(attrs.vxlan(Family::V4).unwrap(), data);
        attrs.backend_type = kind;
        prop_assert_eq!(LeaseAttrs::from_json(attrs.to_json().as_bytes()).unwrap(), attrs);
    }

    #[test]
    fn attrs_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(attrs) = LeaseAttrs::from_json(&bytes) {
            let _ = attrs.vxlan(Family::V4);
        }
    }

    #[test]
    fn damaged_attrs_never_panic(at in 0usize..200, byte in any::<u8>(), which in 0usize..6) {
        let mut bytes = SAMPLES[which].as_bytes().to_vec();
        let at = at % bytes.len();
        bytes[at] = byte;
        if let Ok(attrs) = LeaseAttrs::from_json(&bytes) {
            let _ = attrs.vxlan(Family::V4);
            prop_assert!(LeaseAttrs::from_json(attrs.to_json().as_bytes()).is_ok());
        }
    }
}
