use std::{
    net::{Ipv4Addr, Ipv6Addr},
    time::{Duration, SystemTime},
};

use flannel_common::{
    family::V4,
    layout::{Exempt, PodPlace, RouteKind, SubnetV4},
};
use ipnetwork::{Ipv4Network, Ipv6Network};
use proptest::prelude::*;

use super::*;
use crate::{
    datapath::{Datapath, memory::MemoryDatapath},
    lease::{
        self, Lease, LeaseAttrs, LeaseEvent,
        wire::{RawJson, VxlanData},
    },
    values::{IpFamily, Mac, overlap},
};

mod backends;
mod families;
mod hooks;
mod inherited;
mod patch;

const OUR_MAC: Mac = Mac([0x0e, 0, 0, 0, 0, 0xff]);
const OUR_MAC_V6: Mac = Mac([0x0e, 0, 0, 0, 0, 0xf6]);

fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

fn net4(text: &str) -> Ipv4Network {
    text.parse().unwrap()
}

fn subnet_key(network: Ipv4Network) -> SubnetV4 {
    V4::subnet_key(network.into()).unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn ip4(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

fn mac(n: u8) -> Mac {
    Mac([0x0e, 0, 0, 0, 0, n])
}

fn local(fast_path: FastPath) -> Local {
    Local {
        stacks: BTreeMap::from([(Family::V4, stack())]),
        underlay_ifindex: 2,
        backend: Backend::Vxlan,
        direct_routing: false,
        fast_path,
        xdp: Xdp::OFF,
        flow_refresh: FlowRefresh::of(Duration::from_secs(30)),
        source_ports: 32768..60999,
    }
}

fn stack() -> LocalStack {
    LocalStack {
        network: net("10.0.0.0/8"),
        subnet: net("10.1.0.0/24"),
        public_ip: ip("192.0.2.1"),
        address: ip("192.0.2.1"),
        device: Some(device()),
    }
}

fn stack_v6() -> LocalStack {
    let device = VxlanDevice {
        name: "flannel-v6.1".into(),
        local: ip("2001:db8::1"),
        mac: OUR_MAC_V6,
        mtu: 1430,
        ..device()
    };
    LocalStack {
        network: net("fd00:10::/32"),
        subnet: net("fd00:10:0:1::/64"),
        public_ip: ip("2001:db8::1"),
        address: ip("2001:db8::1"),
        device: Some(device),
    }
}

fn stack_of(family: Family) -> LocalStack {
    match family {
        Family::V4 => stack(),
        Family::V6 => stack_v6(),
    }
}

/// The node of some backend in a cluster of `families`.
fn local_with(backend: Backend, fast_path: FastPath, families: &[Family]) -> Local {
    let stack = |family| {
        let stack = stack_of(family);
        LocalStack { device: stack.device.clone().filter(|_| backend == Backend::Vxlan), ..stack }
    };
    let stacks = families.iter().map(|family| (*family, stack(*family))).collect();
    Local { stacks, backend, ..local(fast_path) }
}

fn local_by(backend: Backend, fast_path: FastPath) -> Local {
    local_with(backend, fast_path, &[Family::V4])
}

fn device() -> VxlanDevice {
    VxlanDevice {
        name: "flannel.1".into(),
        vni: 1,
        port: 8472,
        underlay_ifindex: 2,
        local: ip("192.0.2.1"),
        mac: OUR_MAC,
        mtu: 1450,
        learning: false,
        gbp: false,
    }
}

fn lease(subnet: &str, public_ip: &str, vtep_mac: Mac) -> Lease {
    let data = VxlanData { vni: 7, vtep_mac: Some(vtep_mac) };
    Lease {
        subnet: LeaseSubnet { v4: Some(net4(subnet)), v6: None },
        attrs: LeaseAttrs::vxlan_v4(ip4(public_ip), data),
        expiration: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1000)),
    }
}

fn leases(all: impl IntoIterator<Item = Lease>) -> Leases {
    all.into_iter().map(|lease| (lease.subnet, lease)).collect()
}

fn hop(n: u8) -> NextHop {
    NextHop { ifindex: 2, address: Ipv4Addr::new(192, 0, 2, n).into(), mtu: 1500 }
}

/// How peer n is reached: on the link, behind a gateway, over another interface, or only by the kernel.
fn hops_of(n: u8) -> Result<NextHop, NoHop> {
    match n {
        1..=4 => Ok(hop(n)),
        5 | 6 => Ok(hop(254)),
        7 => Ok(NextHop { ifindex: 3, ..hop(n) }),
        _ => Err(NoHop::Multipath),
    }
}

/// The same of a peer's address in either family.
fn hops_in(family: Family, n: u8) -> Result<NextHop, NoHop> {
    let found = hops_of(n);
    match family {
        Family::V4 => found,
        Family::V6 if found == Ok(hop(254)) => Ok(NextHop { address: ip("fe80::1"), ..hop(254) }),
        Family::V6 => found.map(|hop| NextHop { address: node(family, n), ..hop }),
    }
}

/// A pod at 10.1.0.n behind each link n.
fn pods(links: impl IntoIterator<Item = u8>) -> Pods {
    let place = |n: u8| PodPlace { ifindex: n.into(), mac: [n; 6], gateway_mac: [0xee; 6] };
    let places: BTreeMap<_, _> =
        links.into_iter().map(|n| (Ipv4Addr::new(10, 1, 0, n).into(), place(n))).collect();
    Pods { links: places.values().map(|place| place.ifindex).collect(), places, ..Pods::default() }
}

fn planned(fast_path: FastPath, leases: &Leases) -> Plan {
    planned_for(&local(fast_path), leases)
}

fn planned_for(local: &Local, leases: &Leases) -> Plan {
    let next_hops = BTreeMap::from([(ip("192.0.2.2"), Ok(hop(2))), (ip("198.51.100.3"), Ok(hop(254)))]);
    plan_by(local, leases, &next_hops)
}

fn plan_by(local: &Local, leases: &Leases, next_hops: &NextHops) -> Plan {
    plan(&Inputs {
        policies: &[],
        local,
        leases,
        next_hops,
        pods: &pods([11, 12]),
        overlays: &BTreeMap::from([(Family::V4, 5)]),
        foreign: &Foreign::default(),
        exemptions: &Exemptions::default(),
    })
}

/// The reason each lease is skipped for, by subnet.
fn skips(plan: &Plan) -> BTreeMap<String, String> {
    plan.skipped.iter().map(|((subnet, _), skip)| (subnet.to_string(), skip.to_string())).collect()
}

#[test]
fn a_peer_becomes_what_stock_flannel_programs_for_it() {
    let plan = planned(FastPath::Off, &leases([lease("10.2.0.0/24", "192.0.2.2", mac(2))]));
    let state = plan.state;
    assert_eq!(state.devices, BTreeMap::from([(Family::V4, device())]));
    assert_eq!(state.addresses, BTreeSet::from([net("10.1.0.0/32")]));
    assert_eq!(state.neighbours, BTreeMap::from([(ip("10.2.0.0"), mac(2))]));
    assert_eq!(state.fdb, BTreeMap::from([((Family::V4, mac(2)), ip("192.0.2.2"))]));
    assert_eq!(state.routes, BTreeMap::from([(net("10.2.0.0/24"), ip("10.2.0.0"))]));
    assert_eq!(state.bpf, BpfState::default());
}

#[test]
fn the_fast_path_has_the_next_hop_or_leaves_the_peer_to_the_kernel() {
    let all = leases([
        lease("10.2.0.0/24", "192.0.2.2", mac(2)),
        lease("10.3.0.0/25", "198.51.100.3", mac(3)),
        lease("10.4.0.0/16", "203.0.113.4", mac(4)),
    ]);
    let bpf = planned(FastPath::All, &all).state.bpf;
    let config = bpf.v4.config.unwrap();
    assert_eq!(config.prefix_lengths[..4], [25, 24, 16, 0]);
    assert_eq!(config.network, subnet_key(net4("10.0.0.0/8")));
    assert_eq!((config.vni, config.port), (1, 8472));
    assert_eq!((config.source_port_min, config.source_port_max), (32768, 60999));
    assert_eq!(config.subnet, subnet_key(net4("10.1.0.0/24")));

    let direct = bpf.v4.routes[&subnet_key(net4("10.2.0.0/24"))];
    assert_eq!((direct.kind, direct.next_hop, direct.vni), (RouteKind::Vxlan, [192, 0, 2, 2], 1));
    assert_eq!((direct.vtep_mac, direct.local_mac), (mac(2).0, OUR_MAC.0));
    let routed = bpf.v4.routes[&subnet_key(net4("10.3.0.0/25"))];
    assert_eq!((routed.kind, routed.next_hop, routed.mtu), (RouteKind::Vxlan, [192, 0, 2, 254], 1500));
    let lost = bpf.v4.routes[&subnet_key(net4("10.4.0.0/16"))];
    assert_eq!((lost.kind, lost.ifindex), (RouteKind::Kernel, 0));

    assert_eq!(bpf.v4.vteps.len(), 3);
    assert_eq!(bpf.v4.vteps[&[203, 0, 113, 4]].subnet, subnet_key(net4("10.4.0.0/16")));
}

#[test]
fn hooks_are_those_of_the_fast_path() {
    let hooks = |fast_path| planned(fast_path, &Leases::new()).state.bpf.hooks;
    assert!(hooks(FastPath::Off).is_empty());
    assert_eq!(
        hooks(FastPath::Overlay),
        BTreeSet::from([
            (5, Hook::ToOverlay),
            (2, Hook::FromUnderlay),
            (2, Hook::ToUnderlay),
            (11, Hook::FromPod),
            (12, Hook::FromPod),
        ])
    );
    assert_eq!(
        hooks(FastPath::All),
        BTreeSet::from([
            (5, Hook::ToOverlay),
            (5, Hook::FromOverlay),
            (2, Hook::FromUnderlay),
            (2, Hook::ToUnderlay),
            (11, Hook::FromPod),
            (12, Hook::FromPod),
        ])
    );
    // Flows are learned at both ends of the kernel's path.
    let learning = BTreeSet::from([(11, Hook::ToPod), (12, Hook::ToPod)]);
    assert_eq!(hooks(FastPath::Flow), &hooks(FastPath::All) | &learning);
}

#[test]
fn pods_are_known_to_the_programs_that_serve_them() {
    let pods = |fast_path| planned(fast_path, &Leases::new()).state.bpf.v4.pods.len();
    assert_eq!(FAST_PATHS.map(pods), [0, 0, 2, 2]);
    let config = planned(FastPath::Flow, &Leases::new()).state.bpf.v4.config.unwrap();
    assert_eq!((config.fast_path, config.tcp_refresh, config.udp_refresh), (FastPath::Flow, 30_000, 30_000));
}

const FAST_PATHS: [FastPath; 4] = [FastPath::Off, FastPath::Overlay, FastPath::Flow, FastPath::All];

#[test]
fn exempt_are_the_network_what_the_operator_names_and_nodes_if_asked_for() {
    let mut skipped = lease("10.3.0.0/24", "192.0.2.3", mac(3));
    skipped.attrs.backend_type = "host-gw".into();
    // Before it had our address, another node did.
    let ours = lease("10.4.0.0/24", "192.0.2.1", mac(4));
    let all = leases([lease("10.2.0.0/24", "192.0.2.2", mac(2)), skipped, ours]);
    let exempt = |fast_path, prefixes: &[&str], nodes| -> Vec<(String, Exempt)> {
        let exemptions = Exemptions { prefixes: prefixes.iter().map(|prefix| net(prefix)).collect(), nodes };
        let plan = plan(&Inputs {
            policies: &[],
            local: &local(fast_path),
            leases: &all,
            next_hops: &BTreeMap::new(),
            pods: &Pods::default(),
            overlays: &BTreeMap::new(),
            foreign: &Foreign::default(),
            exemptions: &exemptions,
        });
        let exempt = plan.state.bpf.v4.exempt.into_iter();
        exempt
            .map(|(key, why)| (format!("{}/{}", Ipv4Addr::from(key.network), key.prefix_len), why))
            .collect()
    };
    let named = |list: &[(&str, Exempt)]| -> Vec<(String, Exempt)> {
        list.iter().map(|(prefix, why)| ((*prefix).to_owned(), *why)).collect()
    };
    for fast_path in [FastPath::Overlay, FastPath::All] {
        assert_eq!(exempt(fast_path, &[], false), named(&[("10.0.0.0/8", Exempt::Cluster)]));
        assert_eq!(
            exempt(fast_path, &["10.0.0.0/8", "172.16.0.0/12", "192.0.2.2/32"], true),
            named(&[
                ("10.0.0.0/8", Exempt::Cluster),
                ("172.16.0.0/12", Exempt::User),
                ("192.0.2.2/32", Exempt::Node),
                ("192.0.2.3/32", Exempt::Node),
            ])
        );
    }
    assert_eq!(exempt(FastPath::Off, &["172.16.0.0/12"], true), []);
}

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

#[test]
fn changes_come_in_an_order_that_loses_nothing_and_read_as_sentences() {
    let old = planned(FastPath::All, &leases([lease("10.2.0.0/24", "192.0.2.2", mac(2))])).state;
    let new = planned(FastPath::All, &leases([lease("10.3.0.0/24", "198.51.100.3", mac(3))])).state;
    let sentences: Vec<_> = delta(&new, &old).iter().map(Change::to_string).collect();
    assert_eq!(
        sentences,
        [
            "forward frames for 0e:00:00:00:00:03 to 198.51.100.3",
            "resolve neighbour 10.3.0.0 to 0e:00:00:00:00:03",
            "route 10.3.0.0/24 via 10.3.0.0",
            "send packets for 10.3.0.0/24 to 198.51.100.3 by interface 2, next hop 192.0.2.254, MTU 1500",
            "accept packets of 10.3.0.0/24 from 198.51.100.3",
            "accept no packets from 192.0.2.2",
            "forget the route to 10.2.0.0/24",
            "delete the route to 10.2.0.0/24 via 10.2.0.0",
            "delete neighbour 10.2.0.0",
            "stop forwarding frames for 0e:00:00:00:00:02 to 192.0.2.2",
        ]
    );
    let from_nothing: Vec<_> = delta(&new, &State::default()).iter().map(Change::to_string).collect();
    assert_eq!(
        from_nothing[0],
        "set up device flannel.1 (VNI 1, port 8472, local address 192.0.2.1 on interface 2, \
         MAC 0e:00:00:00:00:ff, MTU 1450)"
    );
    assert_eq!(from_nothing[1], "give the VXLAN device address 10.1.0.0/32");
    let at = |sentence: &str| from_nothing.iter().position(|change| change == sentence).unwrap();
    let config = at("configure the programs for fast path all of IPv4");
    assert_eq!(
        config,
        at("let pods keep their address towards 10.0.0.0/8, the cluster's network") + 1,
        "the programs act when they know all"
    );
    assert!(from_nothing[config + 1].starts_with("attach "));
    assert_eq!(from_nothing.last().unwrap(), "attach from_pod to interface 12");
    let to_nothing: Vec<_> = delta(&State::default(), &new).iter().map(Change::to_string).collect();
    assert_eq!(to_nothing.last().unwrap(), "delete the VXLAN device for IPv4");
}

#[test]
fn a_new_device_or_mac_gets_back_what_was_on_the_old_one() {
    let state = planned(FastPath::Off, &leases([lease("10.2.0.0/24", "192.0.2.2", mac(2))])).state;
    let mut other_mac = state.clone();
    other_mac.devices.get_mut(&Family::V4).unwrap().mac = mac(9);
    let changes = delta(&state, &other_mac);
    assert!(matches!(changes[..], [Change::PutDevice(_), Change::PutNeighbour { .. }]), "{changes:?}");
    let mut other_port = state.clone();
    other_port.devices.get_mut(&Family::V4).unwrap().port = 4789;
    assert_eq!(delta(&state, &other_port).len(), 5);
    let mut other_gbp = state.clone();
    other_gbp.devices.get_mut(&Family::V4).unwrap().gbp = true;
    assert_eq!(delta(&state, &other_gbp).len(), 5);
    let changed_in_place: [fn(&mut VxlanDevice); 2] =
        [|device| device.mtu = 1400, |device| device.learning = true];
    for change in changed_in_place {
        let mut other = state.clone();
        change(other.devices.get_mut(&Family::V4).unwrap());
        assert_eq!(delta(&state, &other).len(), 1);
    }
}

fn any_mac() -> impl Strategy<Value = Mac> {
    (0..8u8).prop_map(mac)
}

fn any_node() -> impl Strategy<Value = u8> {
    1..9u8
}

/// The address of a node in a family.
fn node(family: Family, n: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(192, 0, 2, n).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n.into()).into(),
    }
}

fn any_public_ip() -> impl Strategy<Value = IpAddr> {
    (any_family(), any_node()).prop_map(|(family, n)| node(family, n))
}

fn any_family() -> impl Strategy<Value = Family> {
    prop_oneof![2 => Just(Family::V4), 1 => Just(Family::V6)]
}

/// Few enough subnets that they overlap, repeat and touch ours.
fn any_subnet() -> impl Strategy<Value = Ipv4Network> {
    (0..4u8, 0..4u8, 22..26u8).prop_map(|(a, b, prefix)| {
        let network = Ipv4Network::new(Ipv4Addr::new(10, a, b, 0), prefix).unwrap();
        Ipv4Network::new(network.network(), prefix).unwrap()
    })
}

fn any_subnet_v6() -> impl Strategy<Value = Ipv6Network> {
    (0..4u16, 0..4u16, 46..66u8).prop_map(|(a, b, prefix)| {
        let network = Ipv6Network::new(Ipv6Addr::new(0xfd00, 0x10, a, b, 0, 0, 0, 0), prefix).unwrap();
        Ipv6Network::new(network.network(), prefix).unwrap()
    })
}

fn any_network() -> impl Strategy<Value = IpNetwork> {
    prop_oneof![2 => any_subnet().prop_map(IpNetwork::V4), 1 => any_subnet_v6().prop_map(IpNetwork::V6)]
}

fn any_lease() -> impl Strategy<Value = Lease> {
    let data = || {
        prop_oneof![
            8 => any_mac().prop_map(|mac| format!("{{\"VNI\":1,\"VtepMAC\":\"{mac}\"}}")),
            1 => Just("{}".to_owned()),
            1 => Just("[]".to_owned()),
        ]
        .prop_map(|json| RawJson::parse(&json).unwrap())
    };
    let v6 =
        || (any_subnet_v6(), prop::option::weighted(0.9, any_node()), prop::option::weighted(0.9, data()));
    let subnets = prop_oneof![
        (any_subnet(), prop::option::of(v6())).prop_map(|(v4, v6)| (Some(v4), v6)),
        v6().prop_map(|v6| (None, Some(v6))),
    ];
    let end = proptest::option::of(0..4u64);
    (subnets, any_node(), data(), end, prop::bool::weighted(0.9)).prop_map(
        |((v4, v6), n, data, end, vxlan)| {
            let IpAddr::V4(public_ip) = node(Family::V4, n) else { unreachable!() };
            let address_v6 = v6.as_ref().and_then(|(_, n, _)| *n).map(|n| node(Family::V6, n));
            let public_ipv6 = address_v6.map(|address| match address {
                IpAddr::V6(v6) => v6,
                IpAddr::V4(_) => unreachable!(),
            });
            Lease {
                subnet: LeaseSubnet { v4, v6: v6.as_ref().map(|(subnet, ..)| *subnet) },
                attrs: LeaseAttrs {
                    public_ip: if v4.is_some() { public_ip } else { Ipv4Addr::UNSPECIFIED },
                    public_ipv6,
                    backend_type: if vxlan { "vxlan".into() } else { "host-gw".into() },
                    backend_data: Some(data),
                    backend_v6_data: v6.and_then(|(.., data)| data),
                },
                expiration: end.map(|end| SystemTime::UNIX_EPOCH + Duration::from_secs(end)),
            }
        },
    )
}

fn any_direct_route() -> impl Strategy<Value = DirectRoute> {
    (2..4u32, any_public_ip()).prop_map(|(ifindex, via)| DirectRoute { ifindex, via })
}

fn any_leases() -> impl Strategy<Value = Leases> {
    prop::collection::vec(any_lease(), 0..12).prop_map(leases)
}

fn any_families() -> impl Strategy<Value = Vec<Family>> {
    prop_oneof![
        1 => Just(vec![Family::V4]),
        2 => Just(Family::BOTH.to_vec()),
        1 => Just(vec![Family::V6]),
    ]
}

fn any_fast_path() -> impl Strategy<Value = FastPath> {
    prop_oneof![Just(FastPath::Off), Just(FastPath::Overlay), Just(FastPath::Flow), Just(FastPath::All)]
}

prop_compose! {
    fn any_plan()(
        leases in any_leases(),
        fast_path in any_fast_path(),
        direct_routing: bool,
        backend in prop_oneof![3 => Just(Backend::Vxlan), 2 => Just(Backend::HostGw), 1 => Just(Backend::Alloc)],
        hops in prop::collection::btree_set(1..9u8, 0..9),
        pod_links in prop::collection::btree_set(10..14u8, 0..4),
        overlays in prop::collection::btree_map(any_family(), 5..7u32, 0..=2),
        families in any_families(),
        prefixes in prop::collection::btree_set(any_network(), 0..4),
        nodes in any::<bool>(),
    ) -> Plan {
        let of_both = |n| Family::BOTH.map(|family| (node(family, n), hops_in(family, n)));
        let next_hops = hops.into_iter().flat_map(of_both).collect();
        plan(&Inputs {
            policies: &[],
            local: &Local {
                direct_routing: direct_routing && backend == Backend::Vxlan,
                ..local_with(backend, fast_path, &families)
            },
            leases: &leases,
            next_hops: &next_hops,
            pods: &pods(pod_links),
            overlays: &overlays,
            foreign: &Foreign::default(),
            exemptions: &Exemptions { prefixes, nodes },
        })
    }
}

prop_compose! {
    /// Any device a family may have; none once in a while.
    fn any_device(family: Family)(
        attributes in prop::option::weighted(0.8, (1..3u32, prop_oneof![Just(8472u16), Just(4789)], any_mac(), 1400..1402u32, any::<bool>(), any::<bool>())),
    ) -> Option<VxlanDevice> {
        let device = stack_of(family).device.unwrap();
        attributes.map(|(vni, port, mac, mtu, learning, gbp)| VxlanDevice { vni, port, mac, mtu, learning, gbp, ..device })
    }
}

prop_compose! {
    /// Any state, also ones no plan leads to: someone else may have been there.
    fn any_state()(
        v4 in any_device(Family::V4),
        v6 in any_device(Family::V6),
        mut addresses in prop::collection::btree_set(any_network(), 0..3),
        mut neighbours in prop::collection::btree_map(any_network().prop_map(|subnet| subnet.network()), any_mac(), 0..5),
        fdb in prop::collection::btree_map(any_mac(), any_public_ip(), 0..5),
        mut routes in prop::collection::btree_map(any_network(), any_network().prop_map(|subnet| subnet.network()), 0..5),
        mut direct_routes in prop::collection::btree_map(any_network(), any_direct_route(), 0..5),
        bpf in any_plan(),
    ) -> State {
        let bpf = bpf.state.bpf;
        let devices: BTreeMap<Family, VxlanDevice> =
            v4.into_iter().chain(v6).map(|device| (device.family(), device)).collect();
        let mut fdb: BTreeMap<_, _> = fdb.into_iter().map(|(mac, to)| ((Family::of(to), mac), to)).collect();
        addresses.retain(|address| devices.contains_key(&Family::of_network(*address)));
        neighbours.retain(|address, _| devices.contains_key(&Family::of(*address)));
        fdb.retain(|(family, _), _| devices.contains_key(family));
        routes.retain(|subnet, _| devices.contains_key(&Family::of_network(*subnet)));
        // The kernel has one route to a subnet.
        direct_routes.retain(|subnet, _| !routes.contains_key(subnet));
        State { devices, addresses, neighbours, fdb, routes, direct_routes, bpf }
    }
}

fn applied(observed: State, desired: &State) -> State {
    let changes = delta(desired, &observed);
    let mut datapath = MemoryDatapath::holding(observed);
    let results = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(async { datapath.apply(&changes).await });
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    datapath.state
}

/// The maps of a family that is in use hold what is planned for the kernel.
fn check_maps<F: IpFamily>(plan: &Plan, maps: &Maps<F>) -> Result<(), TestCaseError> {
    if maps.config.is_none() {
        return Ok(());
    }
    let state = &plan.state;
    let is_ours = |subnet: &IpNetwork| Family::of_network(*subnet) == F::FAMILY;
    let peers = plan.peers.iter().filter(|(subnet, _)| is_ours(subnet));
    prop_assert_eq!(maps.routes.len(), peers.clone().count());
    let kinds = |kind| maps.routes.values().filter(|route| route.kind == kind).count();
    let on_kernel = plan.on_kernel.keys().filter(|subnet| is_ours(subnet));
    prop_assert_eq!(kinds(RouteKind::Kernel), on_kernel.count());
    prop_assert!(kinds(RouteKind::Direct) <= state.direct_routes.len());
    prop_assert!(kinds(RouteKind::Vxlan) <= state.routes.len());
    let tunnelled = peers.filter(|_| state.devices.contains_key(&F::FAMILY));
    let addresses: BTreeSet<IpAddr> = tunnelled.map(|(_, peer)| peer.public_ip).collect();
    let vteps: BTreeSet<IpAddr> = maps.vteps.keys().map(|vtep| F::address(*vtep)).collect();
    prop_assert_eq!(vteps, addresses);
    Ok(())
}

proptest! {
    #[test]
    fn a_delta_leads_from_any_state_to_any_other(desired in any_state(), observed in any_state()) {
        prop_assert_eq!(applied(observed, &desired), desired);
    }

    #[test]
    fn a_delta_leads_from_any_state_to_any_plan(plan in any_plan(), observed in any_state()) {
        prop_assert_eq!(applied(observed, &plan.state), plan.state);
    }

    #[test]
    fn equal_states_need_no_change(state in any_state()) {
        prop_assert_eq!(delta(&state, &state), []);
    }

    #[test]
    fn no_change_is_made_twice_and_none_is_about_the_same_object(desired in any_state(), observed in any_state()) {
        let keys: Vec<_> = delta(&desired, &observed).iter().map(Change::key).collect();
        let distinct: BTreeSet<_> = keys.iter().copied().collect();
        prop_assert_eq!(distinct.len(), keys.len());
    }

    /// The state depends on what is leased, whichever way that came about.
    #[test]
    fn a_plan_does_not_depend_on_the_path(
        goal in any_leases(),
        detour in prop::collection::vec(any_lease(), 0..12),
        order in any::<u64>(),
    ) {
        let mut direct = Leases::new();
        lease::apply(&mut direct, LeaseEvent::Snapshot(goal.values().cloned().collect()));

        let mut walked = Leases::new();
        for lease in &detour {
            lease::apply(&mut walked, LeaseEvent::Upsert(lease.clone()));
        }
        let mut rest: Vec<_> = goal.values().cloned().collect();
        let mut order = order;
        while !rest.is_empty() {
            let next = rest.swap_remove(usize::try_from(order % rest.len() as u64).unwrap());
            order = order.rotate_left(7).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            lease::apply(&mut walked, LeaseEvent::Upsert(next));
        }
        for lease in &detour {
            if !goal.contains_key(&lease.subnet) {
                lease::apply(&mut walked, LeaseEvent::Remove(lease.subnet));
            }
        }
        prop_assert_eq!(planned(FastPath::All, &direct), planned(FastPath::All, &walked));
    }

    /// What is planned hangs together: nothing is ambiguous, and every route leads somewhere.
    #[test]
    fn a_plan_is_consistent(plan in any_plan()) {
        let state = &plan.state;
        let ours = |subnet: &IpNetwork| stack_of(Family::of_network(*subnet)).subnet;
        prop_assert_eq!(state.routes.len() + state.direct_routes.len(), plan.peers.len());
        for (subnet, route) in &state.direct_routes {
            prop_assert_eq!(route.via, plan.peers[subnet].public_ip);
            prop_assert!(!overlap(*subnet, ours(subnet)));
        }
        for (subnet, via) in &state.routes {
            let mac = state.neighbours[via];
            prop_assert_eq!(state.fdb[&(Family::of(*via), mac)], plan.peers[subnet].public_ip);
            prop_assert!(state.devices.contains_key(&Family::of(*via)));
            prop_assert!(!overlap(*subnet, ours(subnet)));
        }
        check_maps(&plan, &state.bpf.v4)?;
        check_maps(&plan, &state.bpf.v6)?;
    }
}
