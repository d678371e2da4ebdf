//! Routes to pods that do more than lead there, and the interfaces by which peers are reached.

use super::*;
use crate::netlink::Special;

const OVERLAY: u32 = 5;
const ETH1: u32 = 3;

/// The plan of a node with pods at 10.1.0.11 and 10.1.0.12, and peers 10.2.0.0/24 by the external interface and
/// 10.3.0.0/24 by [`ETH1`].
fn planned_with(local: &Local, foreign: &Foreign) -> Plan {
    let next_hops = BTreeMap::from([
        (ip("192.0.2.2"), Ok(hop(2))),
        (ip("192.0.2.3"), Ok(NextHop { ifindex: ETH1, ..hop(3) })),
    ]);
    plan(&Inputs {
        policies: &[],
        local,
        leases: &leases([
            lease("10.2.0.0/24", "192.0.2.2", mac(2)),
            lease("10.3.0.0/24", "192.0.2.3", mac(3)),
        ]),
        next_hops: &next_hops,
        pods: &pods([11, 12]),
        overlays: &BTreeMap::from([(Family::V4, OVERLAY)]),
        foreign,
        exemptions: &Exemptions::default(),
    })
}

fn with_routes(routes: &[(&str, PodRoute)]) -> Foreign {
    let mut foreign = Foreign::default();
    routes.iter().for_each(|(to, route)| foreign.routes.add(net(to), route));
    foreign
}

fn route_of(plan: &Plan, subnet: &str) -> (RouteKind, u32) {
    let route = plan.state.bpf.v4.routes[&subnet_key(net4(subnet))];
    (route.kind, route.mtu)
}

#[test]
fn the_mtu_of_a_route_to_pods_bounds_what_the_programs_take() {
    let mtu = |mtu| PodRoute { mtu: Some(mtu), ..PodRoute::default() };
    let foreign = with_routes(&[("10.2.0.0/24", mtu(1300)), ("10.1.0.11/32", mtu(1200))]);
    for fast_path in [FastPath::Overlay, FastPath::Flow, FastPath::All] {
        let plan = planned_with(&local(fast_path), &foreign);
        assert_eq!(route_of(&plan, "10.2.0.0/24"), (RouteKind::Vxlan, 1350), "with VXLAN's headers");
        assert_eq!(route_of(&plan, "10.3.0.0/24"), (RouteKind::Vxlan, 1500));
        let pods: Vec<_> = plan.state.bpf.v4.pods.values().map(|place| (place.ifindex, place.mtu)).collect();
        let served = if fast_path.finds_pods() { vec![(11, 1200), (12, 1500)] } else { vec![] };
        assert_eq!(pods, served);
        assert!(plan.on_kernel.is_empty() && plan.hooked.is_empty());
    }
    let direct = planned_with(&Local { direct_routing: true, ..local(FastPath::Flow) }, &foreign);
    assert_eq!(route_of(&direct, "10.2.0.0/24"), (RouteKind::Direct, 1300));
}

#[test]
fn what_only_the_kernel_does_for_a_route_leaves_its_packets_to_it() {
    let encap = |to: &str| PodRoute { special: Some((net(to), Special::Encap)), ..PodRoute::default() };
    let foreign =
        with_routes(&[("10.2.0.7/32", encap("10.2.0.7/32")), ("10.1.0.11/32", encap("10.1.0.11/32"))]);
    let plan = planned_with(&local(FastPath::Flow), &foreign);
    assert_eq!(route_of(&plan, "10.2.0.0/24").0, RouteKind::Kernel);
    assert_eq!(route_of(&plan, "10.3.0.0/24").0, RouteKind::Vxlan);
    let why = plan.on_kernel[&net("10.2.0.0/24")].to_string();
    assert_eq!(why, "only the kernel follows route 10.2.0.7/32 with encap");
    let pods: Vec<_> = plan.state.bpf.v4.pods.values().map(|place| place.ifindex).collect();
    assert_eq!(pods, [12]);
    let hooked = &plan.hooked[&(11, Stretch::Pod)];
    assert_eq!(hooked.hook.to_string(), "route 10.1.0.11/32 with encap");
}

#[test]
fn a_chain_at_egress_of_whichever_interface_leads_to_a_peer_leaves_that_peer_to_the_kernel() {
    let hooks = BTreeSet::from([ForeignHook::new(HookPlace::EgressChain, "nftables chain netdev t c")]);
    let interface = HookedInterface { name: "eth1".into(), bridge: None, hooks };
    let foreign = Foreign { interfaces: BTreeMap::from([(ETH1, interface)]), ..Foreign::default() };
    for fast_path in [FastPath::Overlay, FastPath::Flow, FastPath::All] {
        let plan = planned_with(&local(fast_path), &foreign);
        assert_eq!(route_of(&plan, "10.2.0.0/24").0, RouteKind::Vxlan);
        assert_eq!(route_of(&plan, "10.3.0.0/24").0, RouteKind::Kernel);
        assert_eq!(plan.on_kernel, BTreeMap::from([(net("10.3.0.0/24"), NoHop::EgressChain)]));
        let hooked = &plan.hooked[&(ETH1, Stretch::Departures)];
        assert_eq!(
            (hooked.interface.as_str(), hooked.hook.to_string()),
            ("eth1", "nftables chain netdev t c at egress".into())
        );
    }
    assert!(planned_with(&local(FastPath::Off), &foreign).hooked.is_empty());
}
