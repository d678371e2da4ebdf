//! Backends other than a tunnel.

use super::*;

/// A lease of a node of the host-gw backend.
fn direct_lease(subnet: &str, public_ip: &str) -> Lease {
    Lease { attrs: LeaseAttrs::plain_v4(ip4(public_ip), "host-gw"), ..lease(subnet, public_ip, mac(0)) }
}

/// What a node of another backend plans, the fast path notwithstanding.
fn planned_by(backend: Backend, leases: &Leases) -> Plan {
    planned_for(&local_by(backend, FastPath::All), leases)
}

#[test]
fn host_gw_routes_straight_to_the_peers_of_its_kind() {
    let all = leases([
        direct_lease("10.2.0.0/24", "192.0.2.2"),
        // One node with two subnets.
        direct_lease("10.3.0.0/24", "192.0.2.2"),
        lease("10.4.0.0/24", "192.0.2.4", mac(4)),
        direct_lease("10.5.0.0/24", "192.0.2.1"),
    ]);
    let plan = planned_by(Backend::HostGw, &all);
    let route = DirectRoute { ifindex: 2, via: ip("192.0.2.2") };
    let direct_routes = BTreeMap::from([(net("10.2.0.0/24"), route), (net("10.3.0.0/24"), route)]);
    // No device and no address; the programs know the same peers, and none by VXLAN.
    assert_eq!(plan.state, State { direct_routes, bpf: plan.state.bpf.clone(), ..State::default() });
    assert!(plan.state.bpf.v4.vteps.is_empty());
    let config = plan.state.bpf.v4.config.unwrap();
    assert_eq!((config.vtep, config.port, config.local_mac), ([192, 0, 2, 1], 0, [0; 6]));
    for subnet in ["10.2.0.0/24", "10.3.0.0/24"] {
        let peer = plan.state.bpf.v4.routes[&subnet_key(net4(subnet))];
        let expected = (RouteKind::Direct, 2, [192, 0, 2, 2], 1500);
        assert_eq!((peer.kind, peer.ifindex, peer.next_hop, peer.mtu), expected);
    }
    assert!(plan.peers.values().all(|peer| peer.route == PeerRoute::Direct));
    let skips = skips(&plan);
    assert_eq!(skips["10.4.0.0/24"], "its backend is \"vxlan\", ours is \"host-gw\"");
    assert!(skips["10.5.0.0/24"].starts_with("its PublicIP 192.0.2.1 is our own, that of lease 10."));
}

#[test]
fn in_ip_the_programs_stand_at_the_backends_own_device() {
    let of = |subnet, public_ip| Lease {
        attrs: LeaseAttrs::plain_v4(ip4(public_ip), "ipip"),
        ..lease(subnet, public_ip, mac(0))
    };
    let all = leases([of("10.2.0.0/24", "192.0.2.2"), of("10.3.0.0/24", "198.51.100.3")]);
    let local = Local { direct_routing: true, ..local_by(Backend::Ipip, FastPath::Flow) };
    let next_hops = BTreeMap::from([(ip("192.0.2.2"), Ok(hop(2))), (ip("198.51.100.3"), Ok(hop(254)))]);
    let bpf = plan_by(&local, &all, &next_hops).state.bpf;
    let route = |subnet| bpf.v4.routes[&subnet_key(net4(subnet))];
    assert_eq!(route("10.2.0.0/24").kind, RouteKind::Direct);
    let routed = route("10.3.0.0/24");
    assert_eq!((routed.kind, routed.vtep), (RouteKind::Ipip, [198, 51, 100, 3]));
    assert_eq!((routed.next_hop, routed.mtu, routed.vtep_mac), ([192, 0, 2, 254], 1500, [0; 6]));
    assert_eq!(bpf.v4.vteps.len(), 2, "either may come through the tunnel");
    let config = bpf.v4.config.unwrap();
    assert_eq!((config.port, config.overlay_ifindex, config.local_mac), (0, 0, [0; 6]));
    for hook in [(5, Hook::ToOverlay), (5, Hook::FromOverlay), (2, Hook::ToUnderlay), (2, Hook::FromUnderlay)]
    {
        assert!(bpf.hooks.contains(&hook), "{hook:?} of {:?}", bpf.hooks);
    }
}

#[test]
fn alloc_does_nothing_about_anybody() {
    let all = leases([lease("10.2.0.0/24", "192.0.2.2", mac(2)), direct_lease("10.3.0.0/24", "192.0.2.3")]);
    assert_eq!(planned_by(Backend::Alloc, &all), Plan::default());
}

#[test]
fn a_subnet_may_change_between_tunnel_and_direct_route() {
    let tunnel = planned(FastPath::Off, &leases([lease("10.2.0.0/24", "192.0.2.2", mac(2))])).state;
    let mut direct = planned_by(Backend::HostGw, &leases([direct_lease("10.2.0.0/24", "192.0.2.2")])).state;
    direct.bpf = BpfState::default();
    let sentences = |to, from| delta(to, from).iter().map(Change::to_string).collect::<Vec<_>>();
    assert_eq!(
        sentences(&direct, &tunnel),
        ["route 10.2.0.0/24 via 192.0.2.2 on interface 2", "delete the VXLAN device for IPv4"]
    );
    let back = sentences(&tunnel, &direct);
    // The kernel has the new route in place of the old before the old is asked to go.
    assert_eq!(
        back[4..],
        ["route 10.2.0.0/24 via 10.2.0.0", "delete the route to 10.2.0.0/24 via 192.0.2.2 on interface 2"]
    );
}

#[test]
fn a_direct_route_that_leads_elsewhere_is_replaced() {
    let wanted = planned_by(Backend::HostGw, &leases([direct_lease("10.2.0.0/24", "192.0.2.2")])).state;
    for other in
        [DirectRoute { ifindex: 3, via: ip("192.0.2.2") }, DirectRoute { ifindex: 2, via: ip("192.0.2.9") }]
    {
        let mut observed = wanted.clone();
        observed.direct_routes.insert(net("10.2.0.0/24"), other);
        observed.direct_routes.insert(net("10.9.0.0/24"), other);
        let changes = delta(&wanted, &observed);
        let expected = [
            Change::PutDirectRoute {
                subnet: net("10.2.0.0/24"),
                route: DirectRoute { ifindex: 2, via: ip("192.0.2.2") },
            },
            Change::DeleteDirectRoute { subnet: net("10.9.0.0/24"), route: other },
        ];
        assert_eq!(changes, expected);
    }
}

/// A node with a tunnel that reaches peers on its link without it.
fn direct_routing(fast_path: FastPath) -> Local {
    Local { direct_routing: true, ..local(fast_path) }
}

#[test]
fn direct_routing_takes_the_tunnel_only_where_a_gateway_is_between() {
    let all = leases([
        lease("10.2.0.0/24", "192.0.2.2", mac(2)),
        lease("10.3.0.0/24", "198.51.100.3", mac(3)),
        lease("10.4.0.0/24", "192.0.2.4", mac(4)),
        lease("10.5.0.0/24", "192.0.2.5", mac(5)),
        lease("10.7.0.0/24", "192.0.2.7", mac(7)),
    ]);
    let next_hops = BTreeMap::from([
        (ip("192.0.2.2"), Ok(hop(2))),
        (ip("198.51.100.3"), Ok(hop(254))),
        (ip("192.0.2.4"), Err(NoHop::Multipath)),
        (ip("192.0.2.5"), Err(NoHop::NoRoute)),
        (ip("192.0.2.7"), Ok(NextHop { ifindex: 3, ..hop(7) })),
    ]);
    let plan = plan_by(&direct_routing(FastPath::Flow), &all, &next_hops);
    let routes: Vec<_> = plan.peers.values().map(|peer| peer.route).collect();
    assert_eq!(
        routes,
        [
            PeerRoute::Direct,
            PeerRoute::Vxlan(mac(3)),
            PeerRoute::Vxlan(mac(4)),
            PeerRoute::Vxlan(mac(5)),
            PeerRoute::Direct
        ]
    );
    let state = &plan.state;
    assert_eq!(
        state.direct_routes,
        BTreeMap::from([
            (net("10.2.0.0/24"), DirectRoute { ifindex: 2, via: ip("192.0.2.2") }),
            (net("10.7.0.0/24"), DirectRoute { ifindex: 3, via: ip("192.0.2.7") }),
        ])
    );
    // No neighbour and no forwarding entry of a peer that is reached without the tunnel.
    assert_eq!(state.neighbours.len(), 3);
    assert!(
        !state.neighbours.contains_key(&ip("10.2.0.0")) && !state.fdb.contains_key(&(Family::V4, mac(2)))
    );
    assert_eq!(state.devices[&Family::V4], device(), "the tunnel's MTU, whatever the route");
    let kind = |subnet| state.bpf.v4.routes[&subnet_key(net4(subnet))].kind;
    assert_eq!(kind("10.2.0.0/24"), RouteKind::Direct);
    assert_eq!(kind("10.3.0.0/24"), RouteKind::Vxlan);
    for (subnet, why) in [
        ("10.4.0.0/24", NoHop::Multipath),
        ("10.5.0.0/24", NoHop::NoRoute),
        ("10.7.0.0/24", NoHop::OtherInterface),
    ] {
        assert_eq!((kind(subnet), plan.on_kernel[&net(subnet)]), (RouteKind::Kernel, why));
    }
    // Each node chooses for itself: a peer may come through the tunnel, whichever way it is reached.
    assert_eq!(state.bpf.v4.vteps.len(), 5);
}

#[test]
fn a_route_that_changes_loses_no_packet() {
    let all = leases([lease("10.2.0.0/24", "192.0.2.2", mac(2))]);
    let by =
        |hop| plan_by(&direct_routing(FastPath::All), &all, &BTreeMap::from([(ip("192.0.2.2"), Ok(hop))]));
    let (direct, tunnel) = (by(hop(2)).state, by(hop(254)).state);
    let sentences = |to, from| delta(to, from).iter().map(Change::to_string).collect::<Vec<_>>();
    assert_eq!(
        sentences(&tunnel, &direct),
        [
            "forward frames for 0e:00:00:00:00:02 to 192.0.2.2",
            "resolve neighbour 10.2.0.0 to 0e:00:00:00:00:02",
            "route 10.2.0.0/24 via 10.2.0.0",
            "send packets for 10.2.0.0/24 to 192.0.2.2 by interface 2, next hop 192.0.2.254, MTU 1500",
            "delete the route to 10.2.0.0/24 via 192.0.2.2 on interface 2",
        ]
    );
    assert_eq!(
        sentences(&direct, &tunnel),
        [
            "route 10.2.0.0/24 via 192.0.2.2 on interface 2",
            "send packets for 10.2.0.0/24 straight to 192.0.2.2 by interface 2, MTU 1500",
            "delete the route to 10.2.0.0/24 via 10.2.0.0",
            "delete neighbour 10.2.0.0",
            "stop forwarding frames for 0e:00:00:00:00:02 to 192.0.2.2",
        ]
    );
}

#[test]
fn what_the_kernel_sends_is_looked_at_where_it_leaves() {
    let hooks = |local: Local| {
        let hooks = planned_for(&local, &Leases::new()).state.bpf.hooks;
        (hooks.contains(&(2, Hook::ToUnderlay)), hooks.contains(&(2, Hook::FromUnderlay)))
    };
    let host_gw = |fast_path| local_by(Backend::HostGw, fast_path);
    assert_eq!(hooks(host_gw(FastPath::Flow)), (true, true));
    assert_eq!(hooks(direct_routing(FastPath::Flow)), (true, true));
    assert_eq!(hooks(local(FastPath::Flow)), (true, true));
    assert_eq!(hooks(host_gw(FastPath::All)), (false, true));
    assert_eq!(hooks(host_gw(FastPath::Overlay)), (false, false));
    let overlay = planned_for(&host_gw(FastPath::Overlay), &Leases::new()).state.bpf;
    assert_eq!(overlay.hooks, BTreeSet::from([(11, Hook::FromPod), (12, Hook::FromPod)]));
    assert_eq!(overlay.v4.exempt.len(), 1);
}
