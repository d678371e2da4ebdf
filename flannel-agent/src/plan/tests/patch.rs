//! A plan that is brought up to date lease by lease is the plan of all leases.

use std::sync::LazyLock;

use super::*;
use crate::plan::Patch;

fn inputs<'a>(
    local: &'a Local,
    leases: &'a Leases,
    next_hops: &'a NextHops,
    exemptions: &'a Exemptions,
    pods: &'a Pods,
) -> Inputs<'a> {
    const OVERLAYS: &BTreeMap<Family, u32> = &BTreeMap::new();
    static FOREIGN: LazyLock<Foreign> = LazyLock::new(Foreign::default);
    Inputs {
        local,
        leases,
        next_hops,
        pods,
        exemptions,
        policies: &[],
        overlays: OVERLAYS,
        foreign: &FOREIGN,
    }
}

/// Few of everything, so that leases get in each other's way.
fn any_lease() -> impl Strategy<Value = Lease> {
    let prefix = prop_oneof![4 => Just(24), 1 => Just(25), 1 => Just(16)];
    let v6 = prop::option::of((2..6u8, 2..6u8, 1..5u8));
    (2..6u8, prefix, 2..6u8, 1..5u8, prop::bool::weighted(0.1), v6).prop_map(
        |(net, prefix, n, vtep, other, v6)| {
            let mut lease = lease(&format!("10.{net}.0.0/{prefix}"), &format!("192.0.2.{n}"), mac(vtep));
            if let (Some((net, n, vtep)), false) = (v6, other) {
                let json = format!("{{\"VNI\":1,\"VtepMAC\":\"{}\"}}", mac(vtep));
                lease.subnet.v6 = Some(format!("fd00:10:0:{net}00::/64").parse().unwrap());
                lease.attrs.public_ipv6 = Some(format!("2001:db8::{n}").parse().unwrap());
                lease.attrs.backend_v6_data = Some(RawJson::parse(&json).unwrap());
            }
            if other {
                lease.attrs.backend_type = "host-gw".to_owned();
            }
            lease
        },
    )
}

proptest! {
    #[test]
    fn patches_add_up_to_the_plan(
        start in prop::collection::vec(any_lease(), 0..4),
        events in prop::collection::vec((any_lease(), prop::bool::weighted(0.4)), 1..12),
        nodes in any::<bool>(),
        direct_routing in any::<bool>(),
    ) {
        let local = local_with(Backend::Vxlan, FastPath::Flow, &Family::BOTH);
        let local = Local { direct_routing, ..local };
        let of_both = |n| Family::BOTH.map(|family| (node(family, n), hops_in(family, n)));
        let (hops, pods) = ((2..5).flat_map(of_both).collect(), pods([3]));
        let prefixes = [net("192.0.2.3/32"), net("203.0.113.0/24"), net("2001:db8::/32")].into();
        let exemptions = Exemptions { prefixes, nodes };
        let mut held = leases(start);
        let mut now = plan(&inputs(&local, &held, &hops, &exemptions, &pods));
        let mut kernel = now.state.clone();
        for (lease, gone) in events {
            let subnet = lease.subnet;
            let before = held.get(&subnet).cloned();
            let event = if gone { LeaseEvent::Remove(subnet) } else { LeaseEvent::Upsert(lease) };
            lease::apply(&mut held, event);
            let inputs = inputs(&local, &held, &hops, &exemptions, &pods);
            let whole = plan(&inputs);
            match Patch::of(&now, &inputs, subnet, before.as_ref()) {
                Some(patch) => {
                    let mut datapath = MemoryDatapath::holding(kernel.clone());
                    for change in patch.changes() {
                        prop_assert!(!matches!(change.key(), ObjectKey::Entry(AnyEntryKey::V4(EntryKey::Config) | AnyEntryKey::V6(EntryKey::Config))));
                        prop_assert!(futures::executor::block_on(datapath.apply(&[change]))[0].is_ok());
                    }
                    patch.apply(&mut now);
                    prop_assert_eq!(&datapath.state, &whole.state);
                }
                None => now = whole.clone(),
            }
            prop_assert_eq!(&now, &whole);
            kernel = whole.state;
        }
    }
}

#[test]
fn a_lease_that_has_nothing_in_common_with_others_is_patched() {
    let local = local(FastPath::Flow);
    let (hops, exemptions, pods) = (BTreeMap::new(), Exemptions::default(), Pods::default());
    let first = lease("10.2.0.0/24", "192.0.2.2", mac(2));
    let second = lease("10.3.0.0/24", "192.0.2.3", mac(3));
    let one = leases([first.clone()]);
    let now = plan(&inputs(&local, &one, &hops, &exemptions, &pods));
    let held = leases([first.clone(), second.clone()]);
    let inputs = inputs(&local, &held, &hops, &exemptions, &pods);
    let patch = Patch::of(&now, &inputs, second.subnet, None).unwrap();
    // Forwarding entry, neighbour, route; peer and source check of the programs.
    assert_eq!(patch.changes().len(), 5);

    let same_mac = lease("10.3.0.0/24", "192.0.2.3", mac(2));
    let held = leases([first, same_mac.clone()]);
    assert!(Patch::of(&now, &Inputs { leases: &held, ..inputs }, same_mac.subnet, None).is_none());
}
