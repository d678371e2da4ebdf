//! The choice of the external interface against a real kernel. The names that begin with `lookup_ext_iface` are
//! those of upstream's TestLookupExtIface: one interface with four addresses.

use flannel_agent::{
    netlink::Netlink,
    node::interface::{ExternalInterface, InterfaceChoice, Stack},
};
use regex::Regex;

use super::namespace::*;

fn by_iface(values: &[&str]) -> InterfaceChoice {
    InterfaceChoice {
        iface: values.iter().map(|value| (*value).to_owned()).collect(),
        ..InterfaceChoice::default()
    }
}

fn by_regex(pattern: &str) -> InterfaceChoice {
    InterfaceChoice { iface_regex: vec![Regex::new(pattern).unwrap()], ..InterfaceChoice::default() }
}

fn reaching(target: &str) -> InterfaceChoice {
    InterfaceChoice { can_reach: Some(target.parse().unwrap()), ..InterfaceChoice::default() }
}

async fn choose(choice: InterfaceChoice) -> Result<ExternalInterface, String> {
    ExternalInterface::choose(&mut Netlink::open().unwrap(), &choice).await.map_err(|error| error.to_string())
}

/// Runs `test` beside an interface `dummy0` as upstream's test makes it.
fn lookup_ext_iface(choice: InterfaceChoice, address: &'static str) {
    with_namespace(move || async move {
        link("dummy0", "");
        for address in ["1.10.100.1", "192.168.200.128", "172.16.30.18", "172.16.31.200"] {
            ip(&format!("address add {address} dev dummy0"));
        }
        let chosen = choose(choice).await.unwrap();
        assert_eq!((chosen.name.as_str(), chosen.address.to_string().as_str()), ("dummy0", address));
        assert_eq!((chosen.index, chosen.mtu, chosen.address_v6), (index_of("dummy0"), 1500, None));
    });
}

#[test]
fn lookup_ext_iface_by_if_regex_for_ipv4() {
    lookup_ext_iface(by_regex(r"192\.168\.200\.\d+"), "192.168.200.128");
}

#[test]
fn lookup_ext_iface_by_if_regex_for_name() {
    lookup_ext_iface(by_regex(r"dummy\d+"), "1.10.100.1");
}

#[test]
fn lookup_ext_iface_by_name() {
    lookup_ext_iface(by_iface(&["dummy0"]), "1.10.100.1");
}

#[test]
fn lookup_ext_iface_by_ipv4() {
    lookup_ext_iface(by_iface(&["172.16.30.18"]), "172.16.30.18");
}

/// The public address is another than the one that was matched, which stays the local address.
#[test]
fn lookup_ext_iface_by_if_regex_match_public_ipv4() {
    let choice = InterfaceChoice {
        public_ip: Some("172.16.31.200".parse().unwrap()),
        ..by_regex(r"172\.16\.30\.\d+")
    };
    lookup_ext_iface(choice, "172.16.30.18");
}

#[test]
fn lookup_ext_iface_by_ipv4_dual_stack() {
    with_namespace(|| async {
        link("dummy0", "");
        ip("address add 172.16.30.18/24 dev dummy0");
        for address in ["2001:db8:30::18/64", "2001:db8:30::19/64"] {
            ip(&format!("address add {address} dev dummy0 nodad"));
        }
        ip("address add 2001:db8::1/64 dev eth0 nodad");
        let dual = |choice| InterfaceChoice { stack: Stack::Dual, ..choice };
        let both = |chosen: ExternalInterface| {
            format!("{} {} {}", chosen.name, chosen.address, chosen.address_v6.unwrap())
        };
        let chosen = choose(dual(by_iface(&["172.16.30.18"]))).await.unwrap();
        assert!(both(chosen.clone()).starts_with("dummy0 172.16.30.18 2001:db8:30::1"), "{chosen:?}");
        let public = InterfaceChoice {
            public_ipv6: Some("2001:db8:30::19".parse().unwrap()),
            ..dual(by_iface(&["172.16.30.18"]))
        };
        assert_eq!(both(choose(public).await.unwrap()), "dummy0 172.16.30.18 2001:db8:30::19");
        let elsewhere = InterfaceChoice {
            public_ipv6: Some("2001:db8::1".parse().unwrap()),
            ..dual(by_iface(&["172.16.30.18"]))
        };
        let error = choose(elsewhere).await.unwrap_err();
        assert!(error.contains("v6 interface eth0 must be the same with v4 interface dummy0"), "{error}");
        let regex = dual(by_regex(r"172\.16\.30|db8:30::18"));
        assert_eq!(both(choose(regex).await.unwrap()), "dummy0 172.16.30.18 2001:db8:30::18");

        // By the default routes, which have to agree.
        let error = choose(dual(InterfaceChoice::default())).await.unwrap_err();
        assert!(error.contains("there is no IPv6 default route"), "{error}");
        ip("-6 route add default via 2001:db8:30::1 dev dummy0 metric 10");
        let error = choose(dual(InterfaceChoice::default())).await.unwrap_err();
        assert!(error.contains("v6 default route interface dummy0 must be the same with v4"), "{error}");
        ip("-6 route add default via 2001:db8::ffff dev eth0 metric 1");
        let chosen = choose(dual(InterfaceChoice::default())).await.unwrap();
        assert_eq!(both(chosen), "eth0 192.0.2.1 2001:db8::1");
        let only = InterfaceChoice { stack: Stack::V6, ..by_iface(&["dummy0"]) };
        let chosen = choose(only).await.unwrap();
        assert_eq!((chosen.address.is_unspecified(), chosen.address_v6.is_some()), (true, true));
    });
}

#[test]
fn lookup_ext_iface_by_if_can_reach() {
    with_namespace(|| async {
        link("dummy0", "mtu 9000");
        for address in ["1.10.100.1", "172.16.30.18/24", "172.16.30.19/24"] {
            ip(&format!("address add {address} dev dummy0"));
        }
        ip("address add 2001:db8:30::18/64 dev dummy0 nodad");
        ip("route add 203.0.113.0/24 via 172.16.30.254 src 172.16.30.19");
        ip("route add blackhole 198.51.100.0/24");
        for (target, name, address) in [
            ("172.16.30.77", "dummy0", "172.16.30.18"),
            ("203.0.113.9", "dummy0", "172.16.30.19"),
            ("8.8.8.8", "eth0", "192.0.2.1"),
            // Its IPv4 address is left open: the single one before it is hardly the node's own.
            ("2001:db8:30::77", "dummy0", "172.16.30.18"),
        ] {
            let chosen = choose(reaching(target)).await.unwrap();
            assert_eq!(
                (chosen.name.as_str(), chosen.address.to_string().as_str()),
                (name, address),
                "{target}"
            );
        }
        let dual = InterfaceChoice { stack: Stack::Dual, ..reaching("2001:db8:30::77") };
        assert_eq!(choose(dual).await.unwrap().address_v6, Some("2001:db8:30::18".parse().unwrap()));
        for (target, reason) in [
            ("198.51.100.1", "--iface-can-reach=198.51.100.1: there is no route to it"),
            ("172.16.30.18", "--iface-can-reach=172.16.30.18: it is an address of this node"),
            ("2001:db8:99::1", "--iface-can-reach=2001:db8:99::1: there is no route to it"),
        ] {
            let error = choose(reaching(target)).await.unwrap_err();
            assert!(error.contains(reason), "{target}: {error}");
        }
        // What comes before it wins, what fits nothing is passed over.
        let both =
            InterfaceChoice { can_reach: reaching("8.8.8.8").can_reach, ..by_iface(&["nope", "dummy0"]) };
        assert_eq!(choose(both).await.unwrap().name, "dummy0");
        let fallback = InterfaceChoice { can_reach: reaching("8.8.8.8").can_reach, ..by_iface(&["nope"]) };
        assert_eq!(choose(fallback).await.unwrap().name, "eth0");
    });
}

#[test]
fn without_flags_the_public_address_or_the_default_route_decides() {
    with_namespace(|| async {
        link("eth1", "mtu 9000");
        ip("address add 198.51.100.3/24 dev eth1");
        let by_default = choose(InterfaceChoice::default()).await.unwrap();
        assert_eq!((by_default.name.as_str(), by_default.index, by_default.mtu), ("eth0", ETH0, 1500));
        assert_eq!(by_default.address.to_string(), "192.0.2.1");
        let public = |address: &str| InterfaceChoice {
            public_ip: Some(address.parse().unwrap()),
            ..InterfaceChoice::default()
        };
        let by_address = choose(public("198.51.100.3")).await.unwrap();
        assert_eq!((by_address.name.as_str(), by_address.mtu), ("eth1", 9000));
        let error = choose(public("203.0.113.1")).await.unwrap_err();
        assert!(error.contains("--public-ip=203.0.113.1: no interface holds this address"), "{error}");

        ip("route delete default");
        let error = choose(InterfaceChoice::default()).await.unwrap_err();
        assert!(error.contains("--iface") && error.contains("eth1 (198.51.100.3)"), "{error}");
        ip("route add default nexthop via 192.0.2.254 nexthop via 198.51.100.1");
        assert_eq!(choose(InterfaceChoice::default()).await.unwrap().name, "eth0");
    });
}

/// A node publishes the address it will still have tomorrow.
#[test]
fn lasting_addresses_are_taken_before_those_that_go() {
    with_namespace(|| async {
        link("eth1", "");
        ip("address add 169.254.7.7/16 dev eth1");
        ip("address add 198.51.100.9/24 valid_lft 3600 preferred_lft 3600 dev eth1");
        ip("address add 198.51.100.10/24 valid_lft 3600 preferred_lft 0 dev eth1");
        let v4 = async || choose(by_iface(&["eth1"])).await.unwrap().address.to_string();
        assert_eq!(v4().await, "198.51.100.9", "global before link-local, and not what is deprecated");
        ip("address add 203.0.113.9/24 dev eth1");
        assert_eq!(v4().await, "203.0.113.9", "permanent before dynamic");
        let v6 = async || {
            let only = InterfaceChoice { stack: Stack::V6, ..by_iface(&["eth1"]) };
            choose(only).await.unwrap().address_v6.unwrap()
        };
        assert!(v6().await.is_unicast_link_local(), "better than none");
        ip("address add 2001:db8::a/64 valid_lft 3600 preferred_lft 3600 dev eth1 nodad");
        assert_eq!(v6().await.to_string(), "2001:db8::a");
        ip("address add 2001:db8::b/64 valid_lft 3600 preferred_lft 0 dev eth1 nodad");
        ip("address add 2001:db8::c/64 dev eth1 nodad");
        assert_eq!(v6().await.to_string(), "2001:db8::c");
    });
}
