//! What holds of all plans and of all states.

use super::*;

fn any_mac() -> impl Strategy<Value = Mac> {
    (0..8u8).prop_map(mac)
}

fn any_node() -> impl Strategy<Value = u8> {
    1..9u8
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
    let (end, made) = (proptest::option::of(0..4u64), proptest::option::of(0..4u64));
    (subnets, any_node(), data(), end, made, prop::bool::weighted(0.9)).prop_map(
        |((v4, v6), n, data, end, made, vxlan)| {
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
                made,
                node: None,
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
        State { devices, addresses, neighbours, fdb, routes, direct_routes, objects: Objects::new(), bpf }
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
