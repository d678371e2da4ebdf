use super::*;
use crate::netlink::LinkKind;

fn address(ifindex: u32, ip: &str) -> InterfaceAddress {
    InterfaceAddress {
        ifindex,
        ip: ip.parse().unwrap(),
        deprecated: false,
        permanent: true,
        temporary: false,
    }
}

fn host() -> HostInterfaces {
    let link = |index, name: &str, mtu| Link {
        index,
        name: name.to_owned(),
        kind: LinkKind::Other,
        mtu,
        mac: None,
        up: true,
        carrier: true,
        blocked: false,
        master: None,
        peer: None,
        xdp: false,
        closed_port: false,
        vlan_filtering: false,
    };
    HostInterfaces {
        links: vec![
            link(1, "lo", 65536),
            link(2, "eth0", 1500),
            link(3, "eth1", 9000),
            link(4, "bare", 1500),
            link(5, "null", 0),
        ],
        addresses: vec![
            address(1, "127.0.0.1"),
            address(2, "169.254.3.4"),
            InterfaceAddress { permanent: false, ..address(2, "192.0.2.20") },
            address(2, "192.0.2.2"),
            address(3, "198.51.100.3"),
            address(5, "203.0.113.5"),
            address(1, "::1"),
            address(2, "fe80::2"),
            InterfaceAddress { permanent: false, temporary: true, ..address(2, "2001:db8::beef") },
            InterfaceAddress { permanent: false, ..address(2, "2001:db8::2") },
            InterfaceAddress { deprecated: true, ..address(3, "2001:db8:1::dead") },
            address(3, "2001:db8:1::3"),
            address(5, "2001:db8:2::5"),
        ],
        default_v4: Some(2),
        default_v6: Some(2),
        reach: None,
    }
}

fn asked(iface: &[&str], regexes: &[&str], public_ip: Option<&str>) -> InterfaceChoice {
    InterfaceChoice {
        iface: iface.iter().map(|&value| value.to_owned()).collect(),
        iface_regex: regexes.iter().map(|text| Regex::new(text).unwrap()).collect(),
        public_ip: public_ip.map(|text| text.parse().unwrap()),
        ..InterfaceChoice::default()
    }
}

/// Name and addresses, as `eth0 192.0.2.2` or with IPv6 `eth0 192.0.2.2 2001:db8::2`.
fn text(host: &HostInterfaces, choice: &InterfaceChoice) -> Result<String, String> {
    let chosen = host.choose(choice).map_err(|error| error.to_string())?.interface;
    let v6 = chosen.address_v6.map(|v6| format!(" {v6}")).unwrap_or_default();
    Ok(format!("{} {}{v6}", chosen.name, chosen.address))
}

fn choose(iface: &[&str], public_ip: Option<&str>) -> Result<String, String> {
    text(&host(), &asked(iface, &[], public_ip))
}

fn found(what: &str) -> Result<String, String> {
    Ok(what.to_owned())
}

#[test]
fn the_default_route_decides_when_nothing_is_asked_for() {
    assert_eq!(choose(&[], None), found("eth0 192.0.2.2"));
    let without = HostInterfaces { default_v4: None, ..host() };
    let error = text(&without, &InterfaceChoice::default()).unwrap_err();
    assert!(error.contains("no IPv4 default route") && error.contains("--iface=NAME"), "{error}");
    assert!(error.contains("eth1 (198.51.100.3)") && error.contains("bare (no usable address)"), "{error}");
    let chosen = host().choose(&InterfaceChoice::default()).unwrap();
    assert_eq!(chosen.because, "the default route uses it");
}

#[test]
fn iface_is_a_name_or_an_address_and_the_first_that_fits_is_taken() {
    assert_eq!(choose(&["eth1"], None), found("eth1 198.51.100.3"));
    assert_eq!(choose(&["192.0.2.20"], None), found("eth0 192.0.2.20"));
    assert_eq!(choose(&["nope", "bare", "eth1", "eth0"], None), found("eth1 198.51.100.3"));
    assert_eq!(choose(&["eth1"], Some("203.0.113.99")), found("eth1 198.51.100.3"));
    assert_eq!(choose(&["2001:db8:1::3"], None), found("eth1 198.51.100.3"), "an IPv6 address names it, too");
    let chosen = host().choose(&asked(&["nope", "eth1"], &[], None)).unwrap();
    assert_eq!(chosen.because, "--iface=eth1 names it");
    assert_eq!(chosen.passed_over, ["--iface=nope: there is no interface nope"]);
}

#[test]
fn iface_that_does_not_fit_is_named_with_its_remedy() {
    let error = choose(&["nope", "192.0.2.9", "bare", "null", "lo"], None).unwrap_err();
    for part in [
        "Failed to find interface to use that matches the interfaces and/or regexes provided",
        "--iface=nope: there is no interface nope",
        "--iface=192.0.2.9: no interface holds 192.0.2.9",
        "--iface=bare: failed to find IPv4 address for interface bare",
        "--iface=null: failed to determine MTU for interface null: it is 0",
        "--iface=lo: failed to find IPv4 address for interface lo",
        "Give --iface the name of an interface",
        "eth0 (192.0.2.2 192.0.2.20 169.254.3.4)",
    ] {
        assert!(error.contains(part), "{part:?} is missing in {error:?}");
    }
}

#[test]
fn public_ip_alone_names_the_interface_that_holds_it() {
    assert_eq!(choose(&[], Some("198.51.100.3")), found("eth1 198.51.100.3"));
    let error = choose(&[], Some("203.0.113.99")).unwrap_err();
    assert!(error.starts_with("--public-ip=203.0.113.99: no interface holds this address"), "{error}");
}

#[test]
fn regexes_match_addresses_before_names_and_come_after_iface() {
    let by = |iface: &[&str], regexes: &[&str]| text(&host(), &asked(iface, regexes, None));
    assert_eq!(by(&[], &[r"198\.51\..*"]), found("eth1 198.51.100.3"));
    assert_eq!(by(&[], &["^eth"]), found("eth0 192.0.2.2"), "a name, with its best address");
    assert_eq!(by(&[], &[r"\.20$"]), found("eth0 192.0.2.20"), "the very address that matches");
    assert_eq!(by(&["nope"], &["nor this", "eth1"]), found("eth1 198.51.100.3"));
    assert_eq!(by(&["eth0"], &["eth1"]), found("eth0 192.0.2.2"));
    // `1` is in an address of eth0; the name eth1 comes only after all addresses.
    assert_eq!(by(&[], &["1"]), found("eth0 192.0.2.2"));
    assert_eq!(by(&[], &["bare|null|th1"]), found("eth1 198.51.100.3"), "the first that will do");
    let error = by(&[], &["bare"]).unwrap_err();
    assert!(error.contains("failed to find IPv4 address for interface bare"), "{error}");
    let error = by(&[], &["nothing", r"2001:db8:1::3"]).unwrap_err();
    let part = "Could not match pattern nothing to any of the available network interfaces";
    assert!(error.contains(part) && error.contains("--iface-regex=2001:db8:1::3"), "{error}");
}

#[test]
fn the_route_to_can_reach_is_tried_last() {
    let reach = Reach { ifindex: 3, source: Some("198.51.100.33".parse().unwrap()) };
    let host = HostInterfaces { reach: Some(Ok(reach)), ..host() };
    let asked = |iface: &[&str]| InterfaceChoice {
        can_reach: Some("203.0.113.1".parse().unwrap()),
        ..asked(iface, &["no such"], None)
    };
    assert_eq!(text(&host, &asked(&["eth0"])), found("eth0 192.0.2.2"));
    assert_eq!(text(&host, &asked(&["nope"])), found("eth1 198.51.100.33"), "with the route's source");
    let unreachable = HostInterfaces { reach: Some(Err("there is no route to it".to_owned())), ..host };
    let error = text(&unreachable, &asked(&[])).unwrap_err();
    assert!(error.contains("--iface-can-reach=203.0.113.1: there is no route to it"), "{error}");
}

fn with(stack: Stack, choice: InterfaceChoice) -> Result<String, String> {
    text(&host(), &InterfaceChoice { stack, ..choice })
}

#[test]
fn dual_stack_takes_both_addresses_of_one_interface() {
    let dual = |choice| with(Stack::Dual, choice);
    let nothing = InterfaceChoice::default;
    assert_eq!(dual(nothing()), found("eth0 192.0.2.2 2001:db8::2"));
    assert_eq!(dual(asked(&["eth1"], &[], None)), found("eth1 198.51.100.3 2001:db8:1::3"));
    assert_eq!(dual(asked(&["2001:db8::beef"], &[], None)), found("eth0 192.0.2.2 2001:db8::beef"));
    assert_eq!(dual(asked(&[], &["51|1::3"], None)), found("eth1 198.51.100.3 2001:db8:1::3"));
    assert!(dual(asked(&[], &[r"192\.0"], None)).unwrap_err().contains("Could not match"));
    let public = |v4: &str, v6: &str| InterfaceChoice {
        public_ip: Some(v4.parse().unwrap()),
        public_ipv6: Some(v6.parse().unwrap()),
        ..nothing()
    };
    assert_eq!(dual(public("192.0.2.20", "2001:db8::beef")), found("eth0 192.0.2.20 2001:db8::beef"));
    let error = dual(public("192.0.2.20", "2001:db8:1::3")).unwrap_err();
    assert!(error.starts_with("v6 interface eth1 must be the same with v4 interface eth0"), "{error}");
    let apart = HostInterfaces { default_v6: Some(3), ..host() };
    let error = text(&apart, &InterfaceChoice { stack: Stack::Dual, ..nothing() }).unwrap_err();
    let start = "v6 default route interface eth1 must be the same with v4 default route interface eth0";
    assert!(error.starts_with(start), "{error}");
}

#[test]
fn ipv6_only_needs_no_ipv4() {
    let only = |choice| with(Stack::V6, choice);
    assert_eq!(only(InterfaceChoice::default()), found("eth0 0.0.0.0 2001:db8::2"));
    assert_eq!(only(asked(&["eth1"], &[], None)), found("eth1 0.0.0.0 2001:db8:1::3"));
    assert_eq!(only(asked(&[], &["db8:1:"], None)), found("eth1 0.0.0.0 2001:db8:1::3"));
    let public = InterfaceChoice {
        public_ip: Some("203.0.113.99".parse().unwrap()),
        public_ipv6: Some("2001:db8:1::3".parse().unwrap()),
        ..InterfaceChoice::default()
    };
    assert_eq!(only(public), found("eth1 0.0.0.0 2001:db8:1::3"));
    let without = HostInterfaces { default_v6: None, ..host() };
    let error =
        text(&without, &InterfaceChoice { stack: Stack::V6, ..InterfaceChoice::default() }).unwrap_err();
    assert!(error.contains("no IPv6 default route") && error.contains("eth1 (2001:db8:1::3)"), "{error}");
}

#[test]
fn of_several_addresses_global_permanent_and_lasting_ones_come_first() {
    let dynamic = |ip| InterfaceAddress { permanent: false, ..address(4, ip) };
    let mut all = vec![
        address(4, "fe80::4"),
        InterfaceAddress { temporary: true, ..dynamic("2001:db8::4:1") },
        dynamic("2001:db8::4:2"),
        address(4, "2001:db8::4:3"),
        InterfaceAddress { deprecated: true, ..address(4, "2001:db8::4:4") },
    ];
    let mut order = Vec::new();
    while let Some(best) = {
        let host = HostInterfaces { addresses: all.clone(), ..host() };
        let choice = InterfaceChoice { stack: Stack::V6, ..asked(&["bare"], &[], None) };
        host.choose(&choice).ok().and_then(|chosen| chosen.interface.address_v6)
    } {
        order.push(best.to_string());
        all.retain(|held| held.ip != best);
    }
    assert_eq!(order, ["2001:db8::4:3", "2001:db8::4:2", "2001:db8::4:1", "fe80::4"]);
    assert_eq!(all.len(), 1, "what is deprecated is never taken");
}
