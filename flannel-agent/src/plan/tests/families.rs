//! Clusters of IPv6, alone and beside IPv4.

use flannel_common::layout::{AddressV6, UnknownVtep};

use super::*;

fn net6(text: &str) -> Ipv6Network {
    text.parse().unwrap()
}

/// A node with both families, `n` of everything.
fn dual_lease(n: u8) -> Lease {
    let v4 = lease(&format!("10.{n}.0.0/24"), &format!("192.0.2.{n}"), mac(n));
    let json = format!("{{\"VNI\":1,\"VtepMAC\":\"{}\"}}", mac(n + 100));
    Lease {
        subnet: LeaseSubnet { v6: Some(net6(&format!("fd00:10:0:{n}00::/64"))), ..v4.subnet },
        attrs: LeaseAttrs {
            public_ipv6: Some(format!("2001:db8::{n}").parse().unwrap()),
            backend_v6_data: Some(RawJson::parse(&json).unwrap()),
            ..v4.attrs
        },
        ..v4
    }
}

/// The same without IPv4.
fn six_lease(n: u8) -> Lease {
    let dual = dual_lease(n);
    Lease {
        subnet: LeaseSubnet { v4: None, ..dual.subnet },
        attrs: LeaseAttrs { public_ip: Ipv4Addr::UNSPECIFIED, backend_data: None, ..dual.attrs },
        ..dual
    }
}

fn planned_in(families: &[Family], backend: Backend, leases: &Leases) -> Plan {
    planned_for(&local_with(backend, FastPath::All, families), leases)
}

fn reasons(plan: &Plan) -> Vec<String> {
    plan.skipped.iter().map(|((subnet, family), skip)| format!("{subnet} {family}: {skip}")).collect()
}

#[test]
fn each_family_has_its_device_and_what_is_on_it() {
    let plan = planned_in(&Family::BOTH, Backend::Vxlan, &leases([dual_lease(2)]));
    let state = plan.state.clone();
    let names: Vec<_> = state.devices.values().map(|device| device.name.as_str()).collect();
    assert_eq!(names, ["flannel.1", "flannel-v6.1"]);
    assert_eq!(state.addresses, BTreeSet::from([net("10.1.0.0/32"), net("fd00:10:0:1::/128")]));
    assert_eq!(
        state.neighbours,
        BTreeMap::from([(ip("10.2.0.0"), mac(2)), (ip("fd00:10:0:200::"), mac(102))])
    );
    assert_eq!(
        state.fdb,
        BTreeMap::from([
            ((Family::V4, mac(2)), ip("192.0.2.2")),
            ((Family::V6, mac(102)), ip("2001:db8::2"))
        ])
    );
    assert_eq!(
        state.routes,
        BTreeMap::from([
            (net("10.2.0.0/24"), ip("10.2.0.0")),
            (net("fd00:10:0:200::/64"), ip("fd00:10:0:200::"))
        ])
    );
    assert_eq!((plan.peers.len(), plan.followed()), (2, 1), "one node");
    assert_eq!((state.bpf.v4.routes.len(), state.bpf.v6.routes.len()), (1, 1));
}

#[test]
fn host_gw_routes_each_family_to_its_own_address() {
    let mut lease = dual_lease(2);
    lease.attrs = LeaseAttrs {
        backend_type: "host-gw".into(),
        backend_data: None,
        backend_v6_data: None,
        ..lease.attrs
    };
    let plan = planned_in(&Family::BOTH, Backend::HostGw, &leases([lease]));
    let route = |via: &str| DirectRoute { ifindex: 2, via: ip(via) };
    assert_eq!(
        plan.state.direct_routes,
        BTreeMap::from([
            (net("10.2.0.0/24"), route("192.0.2.2")),
            (net("fd00:10:0:200::/64"), route("2001:db8::2"))
        ])
    );
}

#[test]
fn nodes_of_one_family_and_of_both_reach_each_other_in_what_they_share() {
    let all = leases([lease("10.2.0.0/24", "192.0.2.2", mac(2)), dual_lease(3), six_lease(4)]);
    let subnets = |families: &[Family]| -> Vec<String> {
        let plan = planned_in(families, Backend::Vxlan, &all);
        assert_eq!(plan.faults(), 0, "{:?}", reasons(&plan));
        plan.peers.keys().map(IpNetwork::to_string).collect()
    };
    assert_eq!(subnets(&[Family::V4]), ["10.2.0.0/24", "10.3.0.0/24"]);
    assert_eq!(
        subnets(&Family::BOTH),
        ["10.2.0.0/24", "10.3.0.0/24", "fd00:10:0:300::/64", "fd00:10:0:400::/64"]
    );
    assert_eq!(subnets(&[Family::V6]), ["fd00:10:0:300::/64", "fd00:10:0:400::/64"]);
    let plan = planned_in(&Family::BOTH, Backend::Vxlan, &all);
    assert_eq!(
        reasons(&plan),
        ["fd00:10:0:400::/64 IPv4: it has no IPv4 subnet", "10.2.0.0/24 IPv6: it has no IPv6 subnet",]
    );
}

#[test]
fn a_fault_in_one_family_leaves_the_other() {
    let with = |change: fn(&mut Lease)| {
        let mut lease = dual_lease(2);
        change(&mut lease);
        let plan = planned_in(&Family::BOTH, Backend::Vxlan, &leases([lease]));
        assert!(plan.peers.contains_key(&net("10.2.0.0/24")));
        assert_eq!((plan.peers.len(), plan.faults()), (1, 1));
        reasons(&plan).concat()
    };
    assert!(with(|lease| lease.attrs.public_ipv6 = None).contains("PublicIPv6: absent"));
    assert!(
        with(|lease| lease.attrs.public_ipv6 = Some(Ipv6Addr::LOCALHOST)).contains("PublicIPv6: expected")
    );
    assert!(
        with(|lease| lease.attrs.public_ipv6 = Some(Ipv4Addr::LOCALHOST.to_ipv6_mapped()))
            .contains("expected")
    );
    let ours: fn(&mut Lease) = |lease| lease.attrs.public_ipv6 = Some("2001:db8::1".parse().unwrap());
    assert!(with(ours).contains("its PublicIPv6 2001:db8::1 is our own"));
    assert!(with(|lease| lease.attrs.backend_v6_data = None).contains("BackendV6Data: absent"));
    let no_mac: fn(&mut Lease) =
        |lease| lease.attrs.backend_v6_data = Some(RawJson::parse("{\"VNI\":1}").unwrap());
    assert!(with(no_mac).contains("BackendV6Data.VtepMAC: absent"));
    let covers: fn(&mut Lease) = |lease| lease.subnet.v6 = Some("fd00:10::/48".parse().unwrap());
    assert!(with(covers).contains("its subnet covers fd00:10:0:1::/64, which is ours"));
}

/// Upstream makes two MACs, but nothing says it must.
#[test]
fn one_mac_may_serve_both_families() {
    let mut lease = dual_lease(2);
    lease.attrs.backend_v6_data = lease.attrs.backend_data.clone();
    let state = planned_in(&Family::BOTH, Backend::Vxlan, &leases([lease])).state;
    assert_eq!(state.fdb[&(Family::V4, mac(2))], ip("192.0.2.2"));
    assert_eq!(state.fdb[&(Family::V6, mac(2))], ip("2001:db8::2"));
    assert_eq!(state.neighbours.len(), 2);
}

#[test]
fn a_family_that_goes_takes_only_its_own_along() {
    let all = leases([dual_lease(2)]);
    let dual = planned_in(&Family::BOTH, Backend::Vxlan, &all).state;
    let v4 = planned_in(&[Family::V4], Backend::Vxlan, &all).state;
    // Of the maps, which follow the same rule, only those for IPv6.
    let sentences = |to, from| {
        let (bpf, kernel): (Vec<_>, Vec<_>) = delta(to, from).into_iter().partition(Change::is_bpf);
        assert!(
            bpf.len() == 4
                && bpf.iter().all(|change| matches!(change.key(), ObjectKey::Entry(AnyEntryKey::V6(_))))
        );
        kernel.iter().map(Change::to_string).collect::<Vec<_>>()
    };
    assert_eq!(sentences(&v4, &dual), ["delete the VXLAN device for IPv6"]);
    assert_eq!(
        sentences(&dual, &v4),
        [
            "set up device flannel-v6.1 (VNI 1, port 8472, local address 2001:db8::1 on interface 2, MAC \
             0e:00:00:00:00:f6, MTU 1430)",
            "give the VXLAN device address fd00:10:0:1::/128",
            "forward frames for 0e:00:00:00:00:66 to 2001:db8::2",
            "resolve neighbour fd00:10:0:200:: to 0e:00:00:00:00:66",
            "route fd00:10:0:200::/64 via fd00:10:0:200::",
        ]
    );
}

/// The maps for IPv6 hold of the peers, of this node and of its pods what the programs need.
#[test]
fn the_fast_path_of_ipv6_has_maps_of_its_own() {
    let address = |text: &str| AddressV6::new(text.parse::<Ipv6Addr>().unwrap().octets());
    let planned = |fast_path, families: &[Family]| {
        let hop = NextHop { ifindex: 2, address: ip("fe80::1"), mtu: 1500 };
        let place = PodPlace { ifindex: 11, mtu: 1500, mac: [1; 6], gateway_mac: [2; 6] };
        let places = BTreeMap::from([(ip("10.1.0.11"), place), (ip("fd00:10:0:1::b"), place)]);
        plan(&Inputs {
            policies: &[],
            local: &local_with(Backend::Vxlan, fast_path, families),
            leases: &leases([dual_lease(2), six_lease(3)]),
            next_hops: &BTreeMap::from([(ip("2001:db8::2"), Ok(hop))]),
            pods: &Pods { links: BTreeSet::from([11]), places, ..Pods::default() },
            overlays: &BTreeMap::from([(Family::V4, 5), (Family::V6, 6)]),
            foreign: &Foreign::default(),
            exemptions: &Exemptions::default(),
        })
        .state
        .bpf
    };
    let bpf = planned(FastPath::All, &Family::BOTH);
    let config = bpf.v6.config.unwrap();
    assert_eq!((config.overlay_ifindex, config.prefix_lengths[..2].to_vec()), (6, vec![64, 0]));
    assert_eq!(config.fast_path, FastPath::All);
    let peers: Vec<_> = bpf.v6.routes.values().map(|peer| (peer.vtep, peer.kind, peer.next_hop)).collect();
    assert_eq!(
        peers,
        [
            (address("2001:db8::2"), RouteKind::Vxlan, address("fe80::1")),
            (address("2001:db8::3"), RouteKind::Kernel, address("::")),
        ]
    );
    assert_eq!(bpf.v6.routes.values().next().unwrap().vtep_mac, mac(102).0);
    assert_eq!(bpf.v6.vteps.len(), 2);
    assert_eq!(bpf.v6.pods.keys().copied().collect::<Vec<_>>(), [address("fd00:10:0:1::b")]);
    assert_eq!(bpf.v4.pods.keys().copied().collect::<Vec<_>>(), [[10, 1, 0, 11]]);
    for overlay in [5, 6] {
        assert!(bpf.hooks.contains(&(overlay, Hook::ToOverlay)));
        assert!(bpf.hooks.contains(&(overlay, Hook::FromOverlay)));
    }
    // Each family without the other.
    let v6 = planned(FastPath::Flow, &[Family::V6]);
    assert!(v6.v4 == Maps::default() && v6.v6.config.is_some());
    assert!(v6.hooks.contains(&(11, Hook::FromPod)) && v6.hooks.contains(&(2, Hook::FromUnderlay)));
    assert_eq!(planned(FastPath::All, &[Family::V4]).v6, Maps::default());
    assert_eq!(planned(FastPath::Off, &Family::BOTH), BpfState::default());
}

/// Each family by itself: what is on the link in one may be behind a gateway in the other.
#[test]
fn ipv6_has_direct_routes_of_its_own() {
    let by = |local: &Local, lease| {
        let on_link = NextHop { ifindex: 2, address: ip("2001:db8::2"), mtu: 1500 };
        let next_hops = BTreeMap::from([(ip("192.0.2.2"), Ok(hop(254))), (ip("2001:db8::2"), Ok(on_link))]);
        plan_by(local, &leases([lease]), &next_hops)
    };
    let local = local_with(Backend::Vxlan, FastPath::Flow, &Family::BOTH);
    let mixed = by(&Local { direct_routing: true, ..local }, dual_lease(2));
    let subnet = net("fd00:10:0:200::/64");
    assert_eq!(mixed.peers[&net("10.2.0.0/24")].route, PeerRoute::Vxlan(mac(2)));
    assert_eq!(mixed.peers[&subnet].route, PeerRoute::Direct);
    let route = DirectRoute { ifindex: 2, via: ip("2001:db8::2") };
    assert_eq!(mixed.state.direct_routes, BTreeMap::from([(subnet, route)]));
    let kind = |plan: &Plan| plan.state.bpf.v6.routes.values().next().unwrap().kind;
    assert_eq!(kind(&mixed), RouteKind::Direct);
    assert_eq!(mixed.state.bpf.v6.vteps.len(), 1, "it may come through the tunnel all the same");

    let mut lease = dual_lease(2);
    lease.attrs.backend_type = "host-gw".into();
    let without = by(&local_with(Backend::HostGw, FastPath::Flow, &[Family::V6]), lease);
    let bpf = &without.state.bpf;
    assert_eq!((kind(&without), bpf.v6.vteps.len()), (RouteKind::Direct, 0));
    let config = bpf.v6.config.unwrap();
    assert_eq!((config.port, config.overlay_ifindex, config.local_mac), (0, 0, [0; 6]));
    assert!(bpf.hooks.contains(&(2, Hook::ToUnderlay)) && bpf.hooks.contains(&(2, Hook::FromUnderlay)));
}

#[test]
fn xdp_watches_for_unknown_vteps_of_each_family_that_has_a_tunnel() {
    let xdp = Xdp { hook: Some(Hook::XdpUnderlay), unknown_vtep: UnknownVtep::Drop };
    let planned = |backend: Backend, fast_path, families: &[Family]| {
        let local = Local { xdp, ..local_with(backend, fast_path, families) };
        let bpf = planned_for(&local, &leases([dual_lease(2)])).state.bpf;
        let asked = (
            bpf.v4.config.map(|config| config.unknown_vtep),
            bpf.v6.config.map(|config| config.unknown_vtep),
        );
        (bpf.hooks.contains(&(2, Hook::XdpUnderlay)), asked)
    };
    let drop = Some(UnknownVtep::Drop);
    for fast_path in [FastPath::Overlay, FastPath::Flow, FastPath::All] {
        assert_eq!(planned(Backend::Vxlan, fast_path, &Family::BOTH), (true, (drop, drop)));
        assert_eq!(planned(Backend::Vxlan, fast_path, &[Family::V4]), (true, (drop, None)));
        assert_eq!(planned(Backend::Vxlan, fast_path, &[Family::V6]), (true, (None, drop)));
        assert!(!planned(Backend::HostGw, fast_path, &Family::BOTH).0, "no tunnel to look at");
    }
    assert_eq!(planned(Backend::Vxlan, FastPath::Off, &Family::BOTH), (false, (None, None)));
}
