//! What the kernel and the maps hold for peers, pods and exemptions.

use super::*;

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
