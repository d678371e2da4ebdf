use proptest::prelude::*;

use super::*;

fn parse(json: &str) -> Result<NetworkConfig, ConfigError> {
    NetworkConfig::parse(json.as_bytes())
}

fn v4(json: &str) -> PoolV4 {
    parse(json).unwrap().ipv4.unwrap()
}

fn message(json: &str) -> String {
    parse(json).unwrap_err().to_string()
}

#[test]
fn config_defaults() {
    let pool = v4(r#"{"network":"10.3.0.0/16"}"#);
    assert_eq!(pool.network.to_string(), "10.3.0.0/16");
    assert_eq!(pool.subnet_min.to_string(), "10.3.1.0");
    assert_eq!(pool.subnet_max.to_string(), "10.3.255.0");
    assert_eq!(pool.subnet_len, 24);
}

#[test]
fn ipv6_config_defaults() {
    let config = parse(r#"{"enableIPv6":true,"enableIPv4":false,"ipv6Network":"fc00::/48"}"#).unwrap();
    assert_eq!(config.ipv4, None);
    let pool = config.ipv6.unwrap();
    assert_eq!(pool.network.to_string(), "fc00::/48");
    assert_eq!(pool.subnet_min.to_string(), "fc00:0:0:1::");
    assert_eq!(pool.subnet_max.to_string(), "fc00:0:0:ffff::");
    assert_eq!(pool.subnet_len, 64);
}

#[test]
fn config_overrides() {
    let pool =
        v4(r#"{"Network":"10.3.0.0/16","SubnetMin":"10.3.5.0","SubnetMax":"10.3.8.0","SubnetLen":28}"#);
    assert_eq!(pool.subnet_min.to_string(), "10.3.5.0");
    assert_eq!(pool.subnet_max.to_string(), "10.3.8.0");
    assert_eq!(pool.subnet_len, 28);
}

#[test]
fn ipv6_config_overrides() {
    let config = parse(
        r#"{"EnableIPv6":true,"EnableIPv4":false,"IPv6Network":"fc00::/48","IPv6SubnetMin":"fc00:0:0:5::",
            "IPv6SubnetMax":"fc00:0:0:8::","IPv6SubnetLen":124}"#,
    );
    let pool = config.unwrap().ipv6.unwrap();
    assert_eq!(pool.subnet_min.to_string(), "fc00:0:0:5::");
    assert_eq!(pool.subnet_max.to_string(), "fc00:0:0:8::");
    assert_eq!(pool.subnet_len, 124);
}

#[test]
fn lengths_by_default() {
    let len = |network: &str| v4(&format!(r#"{{"Network":"{network}"}}"#)).subnet_len;
    assert_eq!(
        [len("10.0.0.0/8"), len("10.0.0.0/22"), len("10.0.0.0/23"), len("10.0.0.0/28")],
        [24, 24, 25, 30]
    );
}

#[test]
fn a_network_is_masked_and_may_end_the_address_space() {
    assert_eq!(v4(r#"{"Network":"10.3.7.9/16"}"#).network.to_string(), "10.3.0.0/16");
    let pool = v4(r#"{"Network":"255.255.0.0/16"}"#);
    assert_eq!(pool.subnet_max.to_string(), "255.255.255.0");
    assert_eq!(v4(r#"{"Network":"128.0.0.0/1"}"#).subnet_max.to_string(), "255.255.255.0");
}

#[test]
fn upstreams_messages() {
    let no_network = "please define a correct Network parameter in the flannel config";
    assert_eq!(message("{}"), no_network);
    assert_eq!(message("null"), no_network);
    assert_eq!(message(r#"{"Network":"0.0.0.0/0"}"#), no_network);
    let with = |more: &str| message(&format!(r#"{{"Network":"10.3.0.0/16",{more}}}"#));
    assert_eq!(with(r#""SubnetLen":31"#), "SubnetLen must be less than /31");
    assert_eq!(with(r#""SubnetLen":4294967320"#), "SubnetLen must be less than /31");
    assert_eq!(with(r#""SubnetLen":17"#), "network must be able to accommodate at least four subnets");
    assert_eq!(
        message(r#"{"Network":"10.3.0.0/29"}"#),
        "network is too small. Minimum useful network prefix is /28"
    );
    assert_eq!(with(r#""SubnetMin":"10.4.0.0""#), "SubnetMin is not in the range of the Network");
    assert_eq!(with(r#""SubnetMax":"10.4.0.0""#), "SubnetMax is not in the range of the Network");
    assert_eq!(with(r#""SubnetMin":"10.3.1.1""#), "SubnetMin is not on a SubnetLen boundary: 10.3.1.1");
    assert_eq!(with(r#""SubnetMax":"10.3.9.128""#), "SubnetMax is not on a SubnetLen boundary: 10.3.9.128");
    assert!(with(r#""EnableIPv4":false"#).starts_with("none defined stack"));
    let unknown = with(r#""Backend":{"Type":"geneve"}"#);
    let start = "unknown backend type: geneve; set Backend.Type to \"vxlan\", \"host-gw\", ";
    assert!(unknown.starts_with(start) && unknown.contains(" or \""), "{unknown}");

    let with = |more: &str| message(&format!(r#"{{"EnableIPv4":false,"EnableIPv6":true,{more}}}"#));
    assert_eq!(with(r#""X":1"#), "please define a correct IPv6Network parameter in the flannel config");
    assert_eq!(with(r#""IPv6Network":"fc00::/48","IPv6SubnetLen":127"#), "SubnetLen must be less than /127");
    assert_eq!(
        with(r#""IPv6Network":"fc00::/125""#),
        "IPv6Network is too small. Minimum useful network prefix is /124"
    );
    assert_eq!(
        with(r#""IPv6Network":"fc00::/48","IPv6SubnetMin":"fd00::""#),
        "IPv6SubnetMin is not in the range of the IPv6Network"
    );
    assert_eq!(
        with(r#""IPv6Network":"fc00::/48","IPv6SubnetMax":"fc00::1""#),
        "IPv6SubnetMax is not on a SubnetLen boundary: fc00::1"
    );
}

#[test]
fn the_log_has_it_in_short() {
    let text = |json: &str| NetworkConfig::parse(json.as_bytes()).unwrap().to_string();
    assert_eq!(
        text(r#"{"Network":"10.3.0.0/16","Backend":{"Type":"vxlan"}}"#),
        "vxlan over 10.3.0.0/16 in /24"
    );
    let both = r#"{"Network":"10.3.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48","Backend":{"Type":"host-gw"}}"#;
    assert_eq!(text(both), "host-gw over 10.3.0.0/16 in /24 over fc00::/48 in /64");
}

#[test]
fn limits_in_reverse_leave_nothing() {
    let error = message(r#"{"Network":"10.3.0.0/16","SubnetMin":"10.3.9.0","SubnetMax":"10.3.8.0"}"#);
    assert!(error.contains("SubnetMin 10.3.9.0 is above SubnetMax 10.3.8.0"), "{error}");
}

#[test]
fn wrong_types_name_the_field() {
    for (json, start) in [
        (r#"{"Network":null}"#, "Network: expected an IPv4 network"),
        (r#"{"Network":16}"#, "Network: expected an IPv4 network"),
        (r#"{"Network":"10.3.0.0"}"#, "Network: expected an IPv4 network"),
        (r#"{"Network":"10.3.0.0/255.255.0.0"}"#, "Network: expected an IPv4 network"),
        (r#"{"Network":"10.3.0.0/+16"}"#, "Network: expected an IPv4 network"),
        (r#"{"Network":"fc00::/48"}"#, "Network: expected an IPv4 network"),
        (
            r#"{"Network":"10.3.0.0/16","subnetLen":"24"}"#,
            r#"SubnetLen: expected a prefix length, as 24, found "24""#,
        ),
        (r#"{"Network":"10.3.0.0/16","SubnetLen":-1}"#, "SubnetLen: expected a prefix length"),
        (r#"{"Network":"10.3.0.0/16","SubnetLen":24.5}"#, "SubnetLen: expected a prefix length"),
        (r#"{"Network":"10.3.0.0/16","SubnetMin":null}"#, "SubnetMin: expected an IPv4 address"),
        (r#"{"Network":"10.3.0.0/16","IPv6SubnetMin":"x"}"#, "IPv6SubnetMin: expected an IPv6 address"),
        (r#"{"Network":"10.3.0.0/16","EnableIPv4":"yes"}"#, "EnableIPv4: expected true or false"),
        (r#"{"Network":"10.3.0.0/16","EnableNFTables":1}"#, "EnableNFTables: expected true or false"),
        (r#"{"Network":"10.3.0.0/16","Backend":"vxlan"}"#, "Backend: expected an object"),
        (r#"{"Network":"10.3.0.0/16","Backend":{"Type":1}}"#, "Backend.Type: expected a string"),
        (
            r#"{"Network":"10.3.0.0/16","Backend":{"Type":"vxlan","VNI":"1"}}"#,
            "Backend.VNI: expected a whole number",
        ),
        (
            r#"{"Network":"10.3.0.0/16","Backend":{"Type":"vxlan","Port":-1}}"#,
            "Backend.Port: expected a whole",
        ),
        (
            r#"{"Network":"10.3.0.0/16","Backend":{"Type":"vxlan","GBP":0}}"#,
            "Backend.GBP: expected true or false",
        ),
        (r#"["Network"]"#, "the network config is not a JSON object"),
        ("", "the network config is not a JSON object"),
    ] {
        let error = message(json);
        assert!(error.starts_with(start), "{json}: {error}");
    }
    assert!(NetworkConfig::parse(b"{\"Network\":\"\xff\"}").is_err());
}

fn backend(json: &str) -> NetworkConfig {
    parse(&format!(r#"{{"Network":"10.3.0.0/16","Backend":{json}}}"#)).unwrap()
}

fn options_of(config: &NetworkConfig) -> Vec<String> {
    let values = config.built().unwrap().0.values();
    values.into_iter().map(|value| format!("{value:?}").replace("Backend.", "")).collect()
}

#[test]
fn backends_are_known_by_name_in_any_case() {
    let built = |json: &str| backend(json).built().unwrap().0.kind();
    assert_eq!(built(r#"{"Type":"Host-GW","VNI":"of no use here"}"#), "host-gw");
    assert_eq!(built(r#"{"type":"ALLOC"}"#), "alloc");
    assert_eq!(built(r#"{"Type":"Vxlan","GBP":true,"Learning":true}"#), "vxlan");
}

#[test]
fn vxlan_options() {
    let default =
        ["VNI: 1", "Port: unset", "MTU: unset", "GBP: false", "Learning: false", "DirectRouting: false"];
    let config = backend(r#"{"type":"VXLAN"}"#);
    assert_eq!(options_of(&config), default);
    let config = backend(r#"{"Type":"vxlan","vni":7,"Port":4789,"MTU":9000,"MacPrefix":"0E-2A"}"#);
    assert_eq!(options_of(&config)[..3], ["VNI: 7", "Port: 4789", "MTU: 9000"]);
    let config = backend(r#"{"Type":"vxlan","VNI":null,"Port":0,"MTU":0}"#);
    assert_eq!(options_of(&config), default);
}

#[test]
fn vxlan_options_out_of_range() {
    for (options, start) in [
        (r#""VNI":16777216"#, "Backend.VNI: 16777216 does not fit into 24 bit"),
        (r#""VNI":16777215"#, "Backend.VNI: 16777215 makes the device name"),
        (r#""Port":65536"#, "Backend.Port: 65536 is not a UDP port"),
        (r#""MTU":117"#, "Backend.MTU: 117 is not an MTU"),
        (r#""MTU":65536"#, "Backend.MTU: 65536 is not an MTU"),
    ] {
        let error =
            message(&format!(r#"{{"Network":"10.3.0.0/16","Backend":{{"Type":"vxlan",{options}}}}}"#));
        assert!(error.starts_with(start), "{error}");
    }
}

#[test]
fn what_is_not_built_yet_says_so() {
    let refused = |config: NetworkConfig| config.built().unwrap_err().to_string();
    for (json, start) in [
        (
            r#"{"Type":"Ali-VPC"}"#,
            "Backend.Type: \"ali-vpc\" is not supported: use \"vxlan\", or \"alloc\" and make the routes yourself",
        ),
        (
            r#"{"Type":"tencent-vpc"}"#,
            "Backend.Type: \"tencent-vpc\" is not supported: use \"vxlan\", or \"alloc\"",
        ),
    ] {
        let error = refused(backend(json));
        assert!(error.starts_with(start), "{error}");
    }
}

#[test]
fn ipv6_takes_a_shorter_name_and_a_larger_mtu() {
    let with = |more: &str| {
        let json = format!(
            r#"{{"Network":"10.3.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48","Backend":{{"Type":"vxlan",{more}}}}}"#
        );
        parse(&json).map_err(|error| error.to_string())
    };
    assert!(with(r#""VNI":9999,"MTU":1350"#).is_ok());
    assert!(
        with(r#""VNI":10000"#)
            .unwrap_err()
            .starts_with("Backend.VNI: 10000 makes the device name flannel-v6.")
    );
    assert!(
        with(r#""MTU":1349"#).unwrap_err().starts_with("Backend.MTU: 1349 leaves IPv6 less than 1280 bytes")
    );
    assert!(backend(r#"{"Type":"vxlan","VNI":10000,"MTU":1349}"#).built().is_ok(), "IPv4 has room");
}

#[test]
fn pools_are_those_of_the_families_that_are_on() {
    let pools = |json: &str| -> Vec<String> {
        let pools = parse(json).unwrap().pools();
        pools.iter().map(|(family, pool)| format!("{family} {}", pool.network())).collect()
    };
    let dual = r#"{"Network":"10.3.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48"}"#;
    assert_eq!(pools(dual), ["IPv4 10.3.0.0/16", "IPv6 fc00::/48"]);
    assert_eq!(
        pools(r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/48"}"#),
        ["IPv6 fc00::/48"]
    );
    assert_eq!(pools(r#"{"Network":"10.3.0.0/16","IPv6Network":"fc00::/48"}"#), ["IPv4 10.3.0.0/16"]);
    let pool = parse(dual).unwrap().pools()[&Family::V6];
    for (subnet, allowed) in [("fc00:0:0:1::/64", true), ("fc00:0:0:1::/65", false), ("10.3.1.0/24", false)] {
        assert_eq!(pool.allows(subnet.parse().unwrap()), allowed, "{subnet}");
    }
}

proptest! {
    #[test]
    fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = NetworkConfig::parse(&bytes);
    }

    #[test]
    fn never_panics_on_fields(
        a in any::<u32>(), prefix in 0u8..=40, len in 0u64..=140, min in any::<u32>(), max in any::<u32>(),
        b in any::<u128>(), prefix6 in 0u8..=130, min6 in any::<u128>(), max6 in any::<u128>(),
    ) {
        use std::net::{Ipv4Addr, Ipv6Addr};
        let (a, min, max) = (Ipv4Addr::from(a), Ipv4Addr::from(min), Ipv4Addr::from(max));
        let (b, min6, max6) = (Ipv6Addr::from(b), Ipv6Addr::from(min6), Ipv6Addr::from(max6));
        for limits in ["".to_owned(), format!(r#","SubnetMin":"{min}","SubnetMax":"{max}""#)] {
            let _ = parse(&format!(r#"{{"Network":"{a}/{prefix}","SubnetLen":{len}{limits}}}"#));
        }
        for limits in ["".to_owned(), format!(r#","IPv6SubnetMin":"{min6}","IPv6SubnetMax":"{max6}""#)] {
            let network = format!(r#""IPv6Network":"{b}/{prefix6}","IPv6SubnetLen":{len}"#);
            let _ = parse(&format!(r#"{{"EnableIPv4":false,"EnableIPv6":true,{network}{limits}}}"#));
        }
    }

    #[test]
    fn a_pool_lies_in_its_network(a in any::<u32>(), prefix in 1u8..=28) {
        let network = Ipv4Network::new(a.into(), prefix).unwrap();
        let pool = v4(&format!(r#"{{"Network":"{network}"}}"#));
        prop_assert!(pool.network.contains(pool.subnet_min) && pool.network.contains(pool.subnet_max));
        prop_assert!(pool.subnet_min <= pool.subnet_max && pool.subnet_min != pool.network.ip());
        for base in [pool.subnet_min, pool.subnet_max] {
            let subnet = Ipv4Network::new(base, pool.subnet_len).unwrap();
            prop_assert_eq!(subnet.network(), base);
            prop_assert!(pool.allows(subnet));
        }
    }
}
