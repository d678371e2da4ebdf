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
    // No device, no address and no program.
    assert_eq!(plan.state, State { direct_routes, ..State::default() });
    assert!(plan.peers.values().all(|peer| peer.way == Way::Direct));
    let skips = skips(&plan);
    assert_eq!(skips["10.4.0.0/24"], "its backend is \"vxlan\", ours is \"host-gw\"");
    assert_eq!(skips["10.5.0.0/24"], "its PublicIP 192.0.2.1 is our own");
}

#[test]
fn alloc_does_nothing_about_anybody() {
    let all = leases([lease("10.2.0.0/24", "192.0.2.2", mac(2)), direct_lease("10.3.0.0/24", "192.0.2.3")]);
    assert_eq!(planned_by(Backend::Alloc, &all), Plan::default());
}

#[test]
fn a_subnet_may_change_between_tunnel_and_direct_route() {
    let tunnel = planned(FastPath::Off, &leases([lease("10.2.0.0/24", "192.0.2.2", mac(2))])).state;
    let direct = planned_by(Backend::HostGw, &leases([direct_lease("10.2.0.0/24", "192.0.2.2")])).state;
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
