//! Which leases are followed.

use super::*;

#[test]
fn leases_that_cannot_be_followed_are_skipped_with_the_reason() {
    let mut other = lease("10.2.0.0/24", "192.0.2.2", mac(2));
    other.attrs.backend_type = "host-gw".into();
    let mut unreadable = lease("10.3.0.0/24", "192.0.2.3", mac(3));
    unreadable.attrs.backend_data = Some(RawJson::parse("[1]").unwrap());
    let mut no_mac = lease("10.4.0.0/24", "192.0.2.4", mac(4));
    no_mac.attrs.backend_data = Some(RawJson::parse("{\"VNI\":1}").unwrap());
    let mut v6_only = lease("10.5.0.0/24", "192.0.2.5", mac(5));
    v6_only.subnet = LeaseSubnet { v4: None, v6: Some("fd00::/64".parse().unwrap()) };
    let all = leases([
        other,
        unreadable,
        no_mac,
        v6_only,
        lease("10.6.0.0/24", "192.0.2.1", mac(6)),
        lease("10.1.0.128/25", "192.0.2.7", mac(7)),
        lease("192.0.0.0/16", "192.0.2.8", mac(8)),
        lease("10.9.0.0/24", "192.0.2.9", Mac([0; 6])),
        lease("10.10.0.0/24", "192.0.2.10", Mac([1, 0, 0, 0, 0, 1])),
        lease("10.11.0.0/24", "192.0.2.11", mac(11)),
        lease("10.12.0.0/24", "224.0.0.5", mac(12)),
        lease("10.13.0.0/24", "127.0.0.1", mac(13)),
        lease("10.14.0.0/24", "0.0.0.0", mac(14)),
        lease("10.15.0.0/24", "255.255.255.255", mac(15)),
    ]);
    let plan = planned(FastPath::All, &all);
    assert_eq!(plan.peers.keys().copied().collect::<Vec<_>>(), [net("10.11.0.0/24")]);
    let skips = skips(&plan);
    assert_eq!(skips.len(), 13, "{skips:#?}");
    for (subnet, part) in [
        ("10.2.0.0/24", "\"host-gw\""),
        ("10.3.0.0/24", "BackendData"),
        ("10.4.0.0/24", "VtepMAC: absent"),
        ("fd00::/64", "no IPv4"),
        ("10.6.0.0/24", "192.0.2.1 is our own"),
        ("10.1.0.128/25", "covers 10.1.0.0/24, which is ours"),
        ("192.0.0.0/16", "covers 192.0.2.1/32, which is ours"),
        ("10.9.0.0/24", "00:00:00:00:00:00"),
        ("10.10.0.0/24", "01:00:00:00:00:01"),
        ("10.12.0.0/24", "PublicIP: expected the address of a node, found 224.0.0.5"),
        ("10.13.0.0/24", "127.0.0.1"),
        ("10.14.0.0/24", "0.0.0.0"),
        ("10.15.0.0/24", "255.255.255.255"),
    ] {
        assert!(skips[subnet].contains(part), "{subnet}: {part:?} is missing in {:?}", skips[subnet]);
    }
    let faults = plan.skipped.values().filter(|skip| skip.is_fault()).count();
    assert_eq!(faults, 11);
}

#[test]
fn of_leases_that_exclude_each_other_the_more_recent_is_followed() {
    let later = |mut lease: Lease| {
        lease.expiration = lease.expiration.map(|end| end + Duration::from_secs(1));
        lease
    };
    let stale = lease("10.2.0.0/24", "192.0.2.2", mac(2));
    let moved = later(lease("10.3.0.0/24", "198.51.100.3", mac(2)));
    let first = lease("10.8.0.0/24", "192.0.2.8", mac(8));
    let second = later(lease("10.9.0.0/24", "192.0.2.8", mac(8)));
    let plan = planned(FastPath::All, &leases([stale, moved, first, second]));
    let followed: Vec<_> = plan.peers.keys().map(IpNetwork::to_string).collect();
    assert_eq!(followed, ["10.3.0.0/24", "10.8.0.0/24", "10.9.0.0/24"]);
    assert_eq!(plan.state.fdb[&(Family::V4, mac(2))], ip("198.51.100.3"));
    // One node with two leases: both are reached, the source check knows the later.
    assert_eq!(plan.state.bpf.v4.vteps[&[192, 0, 2, 8]].subnet, subnet_key(net4("10.9.0.0/24")));
    let skips = skips(&plan);
    assert!(skips["10.2.0.0/24"].contains("10.3.0.0/24"), "{skips:?}");

    // A reservation outlasts every lease; of equals the lower subnet is followed.
    let reserved = Lease { expiration: None, ..lease("10.2.0.0/24", "192.0.2.2", mac(2)) };
    let moved = later(lease("10.3.0.0/24", "198.51.100.3", mac(2)));
    let plan = planned(FastPath::All, &leases([reserved, moved]));
    assert_eq!(plan.state.fdb[&(Family::V4, mac(2))], ip("192.0.2.2"));
    let equals = [lease("10.3.0.0/24", "192.0.2.3", mac(2)), lease("10.2.0.0/24", "192.0.2.2", mac(2))];
    assert_eq!(planned(FastPath::All, &leases(equals)).state.fdb[&(Family::V4, mac(2))], ip("192.0.2.2"));
}

/// As in etcd and in Kubernetes, where the ends of others' leases are not told.
#[test]
fn a_clone_takes_no_packets_from_the_node_that_was_there_first() {
    let made = |made, lease: Lease| Lease { expiration: None, made, ..lease };
    let first = made(Some(7), lease("10.3.0.0/24", "192.0.2.3", mac(2)));
    let clone = made(Some(9), lease("10.2.0.0/24", "192.0.2.2", mac(2)));
    let undated = made(None, lease("10.1.9.0/24", "192.0.2.9", mac(2)));
    let plan = planned(FastPath::All, &leases([clone, first.clone(), undated]));
    assert_eq!(plan.state.fdb[&(Family::V4, mac(2))], ip("192.0.2.3"));
    let skips = skips(&plan);
    let followed = "is also that of 10.3.0.0/24, which is followed: that of node 192.0.2.3";
    assert!(skips.len() == 2 && skips.values().all(|why| why.contains(followed)), "{skips:?}");

    // One node that was added again: both are reached, and it is known by the newer.
    for mac in [mac(2), mac(3)] {
        let again = made(Some(9), lease("10.4.0.0/24", "192.0.2.3", mac));
        let plan = planned(FastPath::All, &leases([first.clone(), again]));
        assert_eq!(plan.peers.len(), 2);
        assert_eq!(plan.state.bpf.v4.vteps[&[192, 0, 2, 3]].subnet, subnet_key(net4("10.4.0.0/24")));
        assert_eq!(plan.state.fdb[&(Family::V4, mac)], ip("192.0.2.3"));
    }
}

#[test]
fn a_wide_lease_takes_nothing_from_those_within_it() {
    let of = |subnet: &str, n: u8| lease(subnet, &format!("192.0.2.{n}"), mac(n));
    let narrow = [of("10.4.1.0/24", 4), of("10.4.2.0/24", 5), of("10.5.0.0/24", 6)];
    let alone = planned(FastPath::All, &leases(narrow.clone())).state;
    // Its first address is nobody's, or another's; in the last, its own node's.
    for (wide, followed) in
        [(of("10.4.0.0/21", 9), true), (of("10.5.0.0/20", 9), false), (of("10.5.0.0/20", 6), true)]
    {
        let plan = planned(FastPath::All, &leases(narrow.iter().cloned().chain([wide.clone()])));
        let subnet = wide.subnet.of(Family::V4).unwrap();
        assert_eq!(plan.peers.contains_key(&subnet), followed, "{subnet}");
        assert_eq!(plan.state.routes.contains_key(&subnet), followed, "{subnet}");
        assert_eq!(skips(&plan).contains_key(&subnet.to_string()), !followed, "{subnet}");
        for (destination, via) in &alone.routes {
            assert_eq!(plan.state.routes[destination], *via);
            assert_eq!(plan.state.neighbours[via], alone.neighbours[via]);
        }
        for (key, peer) in &alone.bpf.v4.routes {
            assert_eq!(plan.state.bpf.v4.routes[key], *peer);
        }
        assert!(alone.fdb.iter().all(|(mac, node)| plan.state.fdb[mac] == *node));
    }
}
