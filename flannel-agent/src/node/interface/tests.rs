use super::*;
use crate::netlink::LinkKind;

fn address(ifindex: u32, ip: &str) -> InterfaceAddress {
    InterfaceAddress {
        ifindex,
        ip: ip.parse().unwrap(),
        deprecated: false,
        permanent: true,
        temporary: false,
        secondary: false,
        alone: false,
    }
}

fn host() -> HostInterfaces {
    let link = |index, name: &str, mtu| Link::plain(index, name, LinkKind::Other, mtu);
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
        default_v4: vec![2],
        default_v6: vec![2],
        sources: BTreeSet::new(),
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
    let without = HostInterfaces { default_v4: vec![], ..host() };
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
    let apart = HostInterfaces { default_v6: vec![3], ..host() };
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
    let without = HostInterfaces { default_v6: vec![], ..host() };
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

/// Virtual addresses beside the node's own, as they are added.
#[test]
fn an_address_that_is_hardly_the_nodes_own_comes_last() {
    let own = InterfaceAddress { permanent: false, ..address(4, "192.0.2.4") };
    let by_order = |others: &[InterfaceAddress], sources: &[&str]| {
        let all = others.iter().chain([&own]).copied().collect();
        let sources = sources.iter().map(|text| text.parse().unwrap()).collect();
        let host = HostInterfaces { addresses: all, sources, ..host() };
        text(&host, &asked(&["bare"], &[], None))
    };
    let found_own = found("bare 192.0.2.4");
    let alone = InterfaceAddress { alone: true, ..address(4, "192.0.2.200") };
    let secondary = InterfaceAddress { secondary: true, ..address(4, "192.0.2.200") };
    assert_eq!(by_order(&[alone, secondary], &[]), found_own);
    assert_eq!(
        by_order(&[address(4, "192.0.2.200")], &["192.0.2.4"]),
        found_own,
        "no route uses it as a source"
    );
    // Where nothing tells, the choice is upstream's.
    assert_eq!(by_order(&[address(4, "192.0.2.200")], &[]), found("bare 192.0.2.200"));
    let all_alone =
        HostInterfaces { addresses: vec![alone, InterfaceAddress { alone: true, ..own }], ..host() };
    assert_eq!(text(&all_alone, &asked(&["bare"], &[], None)), found("bare 192.0.2.200"));
}

#[test]
fn the_address_in_use_has_rivals_unless_it_was_asked_for() {
    let external = |v4: &str| ExternalInterface {
        name: "eth0".to_owned(),
        index: 2,
        mtu: 1500,
        address: v4.parse().unwrap(),
        address_v6: None,
    };
    let rivals = |own: &str, choice: &InterfaceChoice| host().rivals(&external(own), choice);
    let nothing = InterfaceChoice::default();
    assert_eq!(rivals("192.0.2.2", &nothing), ["192.0.2.20".parse::<IpAddr>().unwrap()]);
    assert!(rivals("192.0.2.2", &asked(&["192.0.2.2"], &[], None)).is_empty());
    assert!(rivals("192.0.2.2", &asked(&[], &[], Some("192.0.2.2"))).is_empty());
    let mut alone = host();
    alone
        .addresses
        .iter_mut()
        .filter(|held| held.ip.to_string() == "192.0.2.20")
        .for_each(|held| held.alone = true);
    assert!(alone.rivals(&external("192.0.2.2"), &nothing).is_empty(), "a single address is none");
}

/// What a DHCP client makes of a node when it takes the overlay and the pods' bridge for network cards.
fn taken_by_dhcp() -> HostInterfaces {
    let mut host = host();
    let link = |index, name: &str, kind| Link { index, name: name.to_owned(), kind, ..host.links[1].clone() };
    let veth = Link { master: Some(12), ..link(13, "veth1", LinkKind::Veth) };
    let port = Link { master: Some(14), ..link(15, "eth2", LinkKind::Other) };
    let more = [
        link(11, "flannel.1", LinkKind::Vxlan(crate::netlink::Vxlan::default())),
        link(12, "cni0", LinkKind::Bridge),
        veth,
        link(14, "br0", LinkKind::Bridge),
        port,
    ];
    host.links.extend(more);
    let addresses = ["10.244.1.0", "169.254.33.7", "192.0.2.2"].map(|ip| address(11, ip));
    host.addresses.splice(0..0, addresses);
    host.addresses.extend([address(12, "10.244.1.1"), address(14, "10.244.200.14")]);
    host.default_v4 = vec![11, 12, 2];
    host
}

#[test]
fn neither_the_overlay_nor_a_bridge_of_pods_is_the_external_interface() {
    let host = taken_by_dhcp();
    let of_cluster = |choice| InterfaceChoice { networks: vec!["10.244.0.0/16".parse().unwrap()], ..choice };
    let chosen = host.choose(&of_cluster(InterfaceChoice::default())).unwrap();
    assert_eq!(
        (chosen.interface.name.as_str(), chosen.interface.address.to_string().as_str()),
        ("eth0", "192.0.2.2")
    );
    let passed_over = chosen.passed_over.join("\n");
    assert!(passed_over.contains("flannel.1 is a device of flannel's overlay"), "{passed_over}");
    assert!(
        passed_over.contains("cni0 is a bridge with address 10.244.1.1 of the pods' network"),
        "{passed_over}"
    );

    for (choice, expected) in [
        (asked(&["192.0.2.2"], &[], None), "eth0 192.0.2.2"),
        (asked(&[], &[], Some("192.0.2.2")), "eth0 192.0.2.2"),
        (asked(&["flannel.1", "cni0", "eth0"], &[], None), "eth0 192.0.2.2"),
        (asked(&[], &[r"^10\.244\.1\.", "eth0"], None), "eth0 192.0.2.2"),
        // The underlay may well be a bridge, even where the pods' network takes in the nodes.
        (asked(&["br0"], &[], None), "br0 10.244.200.14"),
    ] {
        assert_eq!(text(&host, &of_cluster(choice)), found(expected));
    }

    let reach = Reach { ifindex: 11, source: None };
    let only = HostInterfaces { default_v4: vec![11, 12], reach: Some(Ok(reach)), ..host };
    let can_reach =
        InterfaceChoice { can_reach: Some("203.0.113.1".parse().unwrap()), ..InterfaceChoice::default() };
    for choice in [InterfaceChoice::default(), can_reach, asked(&["flannel.1"], &[], None)] {
        let error = text(&only, &of_cluster(choice)).unwrap_err();
        assert!(error.contains("flannel.1 is a device of flannel's overlay"), "{error}");
        assert!(error.contains("--iface"), "{error}");
    }
}
