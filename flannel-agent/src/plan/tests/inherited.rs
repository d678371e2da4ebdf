//! What an earlier daemon left is read back as the leases it had.

use super::*;

fn as_leases(all: Vec<Lease>) -> Leases {
    all.into_iter().map(|lease| (lease.subnet, lease)).collect()
}

fn dual(n: u8) -> Lease {
    let v4 = lease(&format!("10.{n}.0.0/24"), &format!("192.0.2.{n}"), mac(n));
    let v6_data = RawJson::parse(&format!("{{\"VNI\":1,\"VtepMAC\":\"{}\"}}", mac(n + 100))).unwrap();
    Lease {
        subnet: LeaseSubnet { v6: Some(format!("fd00:10:0:{n}00::/64").parse().unwrap()), ..v4.subnet },
        attrs: LeaseAttrs {
            public_ipv6: Some(format!("2001:db8::{n}").parse().unwrap()),
            backend_v6_data: Some(v6_data),
            ..v4.attrs
        },
        ..v4
    }
}

#[test]
fn what_is_in_the_kernel_stands_for_the_same_peers() {
    let hops: NextHops =
        [("192.0.2.2", true), ("2001:db8::2", true), ("192.0.2.3", false), ("2001:db8::3", false)]
            .into_iter()
            .map(|(to, on_link)| {
                let gateway = if ip(to).is_ipv4() { "192.0.2.254" } else { "2001:db8::fe" };
                let address = if on_link { ip(to) } else { ip(gateway) };
                (ip(to), Ok(NextHop { ifindex: 2, address, mtu: 1500 }))
            })
            .collect();
    for (backend, direct_routing) in
        [(Backend::Vxlan, false), (Backend::Vxlan, true), (Backend::HostGw, false), (Backend::Alloc, false)]
    {
        let local = Local { direct_routing, ..local_with(backend, FastPath::Off, &Family::BOTH) };
        let plan_of = |leases: &Leases| {
            plan(&Inputs {
                policies: &[],
                foreign: &Foreign::default(),
                local: &local,
                leases,
                next_hops: &hops,
                pods: &Pods::default(),
                exemptions: &Exemptions::default(),
                overlays: &BTreeMap::new(),
            })
        };
        let leased = leases([dual(2), dual(3)].map(|lease| Lease {
            attrs: LeaseAttrs { backend_type: backend.of_node().published().to_owned(), ..lease.attrs },
            ..lease
        }));
        let before = plan_of(&leased).state;
        let found = as_leases(inherited(&local, &before));
        assert_eq!(found.len(), if backend == Backend::Alloc { 0 } else { 4 }, "{backend:?}");
        assert_eq!(plan_of(&found).state, before, "{backend:?} {direct_routing}");
    }
}

#[test]
fn what_does_not_fit_together_stands_for_nobody() {
    let local = local(FastPath::Off);
    let whole = plan(&Inputs {
        policies: &[],
        foreign: &Foreign::default(),
        local: &local,
        leases: &leases([lease("10.2.0.0/24", "192.0.2.2", mac(2))]),
        next_hops: &NextHops::new(),
        pods: &Pods::default(),
        exemptions: &Exemptions::default(),
        overlays: &BTreeMap::new(),
    })
    .state;
    assert_eq!(inherited(&local, &whole).len(), 1);
    let with = |change: fn(&mut State)| {
        let mut state = whole.clone();
        change(&mut state);
        inherited(&local, &state).len()
    };
    assert_eq!(with(|state| state.neighbours.clear()), 0);
    assert_eq!(with(|state| state.fdb.clear()), 0);
    assert_eq!(with(|state| state.routes = BTreeMap::from([(net("10.2.0.0/24"), ip("10.9.0.0"))])), 0);
    for not_a_nodes in ["10.1.0.0/24", "10.0.0.0/8", "10.0.0.0/15", "172.16.0.0/24"] {
        let mut state = whole.clone();
        let base = net(not_a_nodes).network();
        state.neighbours.insert(base, mac(2));
        state.routes = BTreeMap::from([(net(not_a_nodes), base)]);
        assert_eq!(inherited(&local, &state), [], "{not_a_nodes}");
    }
}
