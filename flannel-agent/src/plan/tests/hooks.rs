//! What others have set up at one interface decides for that interface, and for nothing else.

use flannel_common::{layout::UnknownVtep, path::Hook};

use super::*;

const ETH0: u32 = 2;
const OVERLAY: u32 = 5;
const BRIDGE: u32 = 7;

/// The programs and pods that are planned where each of `hooks` is at its interface. Pod 11 is on a bridge, 12 is not.
fn planned_beside(local: &Local, hooks: &[(u32, HookPlace)]) -> (BTreeSet<(u32, Hook)>, Vec<u32>) {
    let interface = |index: u32| {
        let ours = hooks.iter().filter(|(at, _)| *at == index);
        let bridge = Some(BRIDGE).filter(|_| index == 11);
        let hooks = ours.map(|(_, place)| ForeignHook::new(*place, "it")).collect();
        (index, HookedInterface { name: format!("if{index}"), bridge, hooks })
    };
    let plan = plan(&Inputs {
        policies: &[],
        local,
        leases: &leases([lease("10.2.0.0/24", "192.0.2.2", mac(2))]),
        next_hops: &BTreeMap::new(),
        pods: &pods([11, 12]),
        overlays: &BTreeMap::from([(Family::V4, OVERLAY)]),
        foreign: &Foreign {
            interfaces: [ETH0, OVERLAY, BRIDGE, 11, 12].map(interface).into(),
            ..Foreign::default()
        },
        exemptions: &Exemptions::default(),
    });
    let bpf = plan.state.bpf;
    (bpf.hooks, bpf.v4.pods.values().map(|place| place.ifindex).collect())
}

#[test]
fn a_hook_leaves_to_the_kernel_what_would_pass_it_by() {
    use HookPlace::{Ahead, Bridge, Egress, Ingress};
    for fast_path in [FastPath::Flow, FastPath::All] {
        let local = Local { underlay_ifindex: ETH0, ..local(fast_path) };
        let (all, both) = planned_beside(&local, &[]);
        assert_eq!(both, [11, 12]);
        for (index, place, pods, gone) in [
            (11, Ingress, vec![12], vec![(11, Hook::ToPod)]),
            (11, Egress, vec![12], vec![(11, Hook::ToPod)]),
            (11, Bridge, vec![12], vec![(11, Hook::ToPod)]),
            (11, Ahead, vec![11, 12], vec![]),
            (BRIDGE, Egress, vec![12], vec![(11, Hook::ToPod)]),
            (BRIDGE, Bridge, vec![12], vec![(11, Hook::ToPod)]),
            (ETH0, Ingress, vec![11, 12], vec![(ETH0, Hook::FromUnderlay)]),
            (ETH0, Ahead, vec![11, 12], vec![]),
            (ETH0, Egress, vec![11, 12], vec![]),
            (OVERLAY, Ahead, vec![], vec![(OVERLAY, Hook::ToOverlay), (OVERLAY, Hook::FromOverlay)]),
            (OVERLAY, Egress, vec![], vec![(OVERLAY, Hook::ToOverlay), (OVERLAY, Hook::FromOverlay)]),
        ] {
            let (hooks, served) = planned_beside(&local, &[(index, place)]);
            assert_eq!(served, pods, "{fast_path:?}, {place:?} of {index}");
            let left: BTreeSet<_> = all.difference(&hooks).copied().collect();
            let gone: BTreeSet<_> = gone.into_iter().filter(|hook| all.contains(hook)).collect();
            assert_eq!(left, gone, "{fast_path:?}, {place:?} of {index}");
            assert!(hooks.is_subset(&all), "{hooks:?}");
        }
    }
}

#[test]
fn fast_path_overlay_passes_by_nothing_but_what_the_tunnel_device_sends() {
    let local = Local { underlay_ifindex: ETH0, ..local(FastPath::Overlay) };
    let (all, _) = planned_beside(&local, &[]);
    assert!(all.contains(&(OVERLAY, Hook::ToOverlay)));
    for place in [(11, HookPlace::Egress), (ETH0, HookPlace::Ingress), (OVERLAY, HookPlace::Ingress)] {
        assert_eq!(planned_beside(&local, &[place]).0, all, "{place:?}");
    }
    let (hooks, _) = planned_beside(&local, &[(OVERLAY, HookPlace::Egress)]);
    assert!(!hooks.contains(&(OVERLAY, Hook::ToOverlay)));
}

#[test]
fn what_looks_for_outer_headers_at_ingress_ends_early_decapsulation_but_not_the_look_for_unknown_vteps() {
    for (unknown_vtep, instead) in [(UnknownVtep::Off, None), (UnknownVtep::Drop, Some(Hook::XdpGeneric))] {
        let xdp = Xdp { hook: Some(Hook::XdpUnderlay), unknown_vtep };
        let local = Local { underlay_ifindex: ETH0, xdp, ..local(FastPath::Flow) };
        let found = |hooks: &[(u32, HookPlace)]| {
            planned_beside(&local, hooks).0.into_iter().map(|(_, hook)| hook).find(|hook| hook.is_xdp())
        };
        assert_eq!(found(&[]), Some(Hook::XdpUnderlay));
        for place in [HookPlace::Ahead, HookPlace::Ingress] {
            assert_eq!(found(&[(ETH0, place)]), instead);
        }
        assert_eq!(found(&[(ETH0, HookPlace::Egress)]), Some(Hook::XdpUnderlay));
    }
}
