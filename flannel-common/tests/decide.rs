//! Verdicts: of the fixtures, of any packet at all, and of sizes and prefixes computed another way.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use flannel_common::{
    family::V4,
    layout::{AddressV6, FastPath, Route, RouteKind, SubnetV4, UnknownVtep},
    mark::FLOW_MARK,
    packet::{Arrival, Fib, Packet, headers::folded},
    path::{
        Hook, Move, Note, Verdict, acceptance::LONG_AGO, decide, fields, to_overlay::is_handed_over, trail,
    },
    reason::Reason,
};
use flannel_common_testing::{
    ELSEWHERE, Frame, FrameV6, HERE, MemoryTables, THERE, TUNNEL, fixtures, note, note_v6,
    random::{any_arrival, arbitrary_bytes, case},
    seen_at,
};
use proptest::{collection::vec, prelude::*, sample::select};

#[test]
fn fixtures_are_decided_as_written() {
    for hook in Hook::ALL {
        for fixture in fixtures::of(hook) {
            let verdict = decide(hook, &fixture.frame[..], &fixture.tables, &fixture.arrival);
            assert_eq!(verdict, fixture.verdict, "{}: {}", hook.program(), fixture.about);
            let noted = note(hook, &fixture.frame[..], &fixture.tables, &fixture.arrival);
            assert_eq!(noted, fixture.note, "{}: {}", hook.program(), fixture.about);
            let noted = note_v6(hook, &fixture.frame[..], &fixture.tables, &fixture.arrival);
            assert_eq!(noted, fixture.note_v6, "{}: {}", hook.program(), fixture.about);
        }
    }
}

#[test]
fn every_reason_of_every_hook_has_a_fixture() {
    for hook in Hook::ALL {
        let found: BTreeSet<_> =
            fixtures::of(hook).iter().filter_map(|fixture| fixture.verdict.reason()).collect();
        let all: BTreeSet<_> = fixtures::decided(hook).iter().copied().collect();
        assert_eq!(found, all, "{}", hook.program());
        let found: BTreeSet<_> =
            fixtures::of(hook).iter().filter_map(|fixture| fixture.note).map(|note| note.reason()).collect();
        assert_eq!(found, fixtures::noted(hook).iter().copied().collect(), "{}", hook.program());
    }
}

#[test]
fn fixtures_of_a_hook_have_names_of_their_own() {
    for hook in Hook::ALL {
        let mut names = BTreeSet::new();
        for fixture in fixtures::of(hook) {
            assert!(names.insert(fixture.about), "{}: {:?} stands twice", hook.program(), fixture.about);
        }
    }
}

fn any_hook() -> impl Strategy<Value = Hook> {
    select(&Hook::ALL[..])
}

/// The longest leased prefix among the lengths looked up, by looking at every lease.
fn longest(tables: &MemoryTables, address: [u8; 4]) -> Option<Route<V4>> {
    let looked_up = tables.config?.prefix_lengths;
    let mut best: Option<(&SubnetV4, &Route<V4>)> = None;
    for (subnet, peer) in &tables.routes {
        let bits = |address: [u8; 4]| u64::from(u32::from_be_bytes(address)) >> (32 - subnet.prefix_len);
        if looked_up.iter().any(|length| u32::from(*length) == subnet.prefix_len)
            && bits(address) == bits(subnet.network)
            && best.is_none_or(|(other, _)| other.prefix_len < subnet.prefix_len)
        {
            best = Some((subnet, peer));
        }
    }
    best.map(|(_, peer)| *peer)
}

/// A frame, and what routing does with it.
struct Routed(Vec<u8>, Fib);

impl Packet for Routed {
    fn len(&self) -> u32 {
        Packet::len(&self.0[..])
    }

    fn view<const N: usize>(&self, offset: usize) -> Option<&[u8; N]> {
        self.0[..].view(offset)
    }

    fn write<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> Option<()> {
        self.0[..].write(offset, bytes)
    }

    fn fib_v4(&self, _: u32, _: [u8; 4], _: [u8; 4]) -> Fib {
        self.1
    }

    fn fib_v6(&self, _: u32, _: AddressV6, _: AddressV6) -> Fib {
        self.1
    }
}

/// VXLAN of our network to an address that is in no lease: routing tells whose it is.
#[test]
fn vxlan_that_passes_by_is_left_alone_and_that_for_the_node_is_not() {
    let mut tables = HERE.dual_tables(&[THERE]);
    tables.config.iter_mut().for_each(|config| config.unknown_vtep = UnknownVtep::Drop);
    tables.v6.config.iter_mut().for_each(|config| config.unknown_vtep = UnknownVtep::Drop);
    let (gateway, gateway_v6) = ([10, 244, 1, 1], HERE.pod_v6(1));
    let frames = [
        Frame::vxlan(ELSEWHERE.vtep, gateway, &[0; 64]).bytes(),
        FrameV6::vxlan(ELSEWHERE.vtep_v6(), gateway_v6, &[0; 64]).bytes(),
    ];
    for frame in frames {
        let at = |hook, fib| decide(hook, &Routed(frame.clone(), fib), &tables, &Arrival::default());
        let dropped = Verdict::Drop(Reason::VtepDropped);
        for hook in [Hook::XdpGeneric, Hook::XdpUnderlay] {
            assert_eq!(at(hook, Fib::Forwarded), Verdict::Pass);
            assert_eq!([at(hook, Fib::Local), at(hook, Fib::Unknown)], [dropped; 2]);
        }
        // Pods' packets are dropped only for what is known to be a node's.
        let dropped = Verdict::Drop(Reason::PodVxlan);
        for hook in [Hook::FromPod, Hook::FromOverlay] {
            assert_eq!(at(hook, Fib::Local), dropped);
            assert!([Fib::Forwarded, Fib::Unknown].into_iter().all(|fib| at(hook, fib) != dropped));
        }
    }
}

/// `frame` to the station that a packet at `hook`, of pods or routed into the overlay, is for.
fn sent(hook: Hook, frame: Frame) -> Frame {
    match hook {
        Hook::FromPod => frame.macs(HERE.gateway_mac(), HERE.pod_mac(2)),
        _ => frame.macs(THERE.mac, HERE.mac),
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2_000, failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn any_bytes_are_decided_about(
        hook in any_hook(), frame in arbitrary_bytes(), arrival in any_arrival(), tables: bool,
    ) {
        let tables = if tables { HERE.tables(&[THERE]) } else { MemoryTables::default() };
        let verdict = decide(hook, &frame[..], &tables, &arrival);
        prop_assert!(verdict.reason().is_none_or(|reason| fixtures::decided(hook).contains(&reason)));
        let uncounted = hook.is_xdp() || hook == Hook::ToOverlay && is_handed_over(&arrival, tables.marks);
        let ignored = hook == Hook::FromOverlay && arrival.mark & FLOW_MARK == 0;
        let only_noted = matches!(hook, Hook::ToPod | Hook::ToUnderlay);
        prop_assert!(verdict.reason().is_some() || only_noted || ignored || uncounted);
        let refused = verdict.reason() == Some(Reason::PodVxlan);
        prop_assert!(verdict.reason().is_none() || !(only_noted || ignored) || refused);
        note_v6(hook, &frame[..], &tables, &arrival);
        note(hook, &frame[..], &tables, &arrival);
    }

    #[test]
    fn almost_valid_packets_are_decided_about(
        case in any_hook().prop_flat_map(case), arrival in prop::option::weighted(0.2, any_arrival()),
    ) {
        let arrival = arrival.unwrap_or(case.arrival);
        let verdict = decide(case.hook, &case.frame[..], &case.tables, &arrival);
        prop_assert!(
            verdict.reason().is_none_or(|reason| fixtures::decided(case.hook).contains(&reason))
        );
        // A decision depends on nothing else, and changes nothing.
        prop_assert_eq!(decide(case.hook, &case.frame[..], &case.tables, &arrival), verdict);
    }

    /// Exemptions never change what the fast path takes, nor why it takes no more: they only mark, and only
    /// what pods of this node send.
    #[test]
    fn exemptions_only_mark_what_the_kernel_gets(case in any_hook().prop_flat_map(case)) {
        let with = decide(case.hook, &case.frame[..], &case.tables, &case.arrival);
        let tables = MemoryTables { exempt: BTreeMap::new(), ..case.tables.clone() };
        let without = decide(case.hook, &case.frame[..], &tables, &case.arrival);
        match (with, without) {
            (Verdict::Exempt(with), Verdict::Kernel(without)) => {
                prop_assert_eq!(case.hook, Hook::FromPod);
                let counted = match without {
                    Reason::NoRoute | Reason::PodOnKernel => Reason::SnatExempt,
                    other => other,
                };
                prop_assert_eq!(with, counted);
                let address = |at: usize| -> [u8; 4] { case.frame[at..at + 4].try_into().unwrap() };
                prop_assert!(case.tables.config.unwrap().subnet.contains(address(26)));
                prop_assert!(case.tables.exempt.keys().any(|prefix| prefix.contains(address(30))));
            }
            (with, without) => prop_assert_eq!(with, without),
        }
    }

    /// Past the host's stack go only flows of this very pod that netfilter has accepted both ways, and this way
    /// lately; none by a packet that connection tracking must see.
    #[test]
    fn the_gate_opens_for_accepted_flows_only(case in any_hook().prop_flat_map(case)) {
        let flowing = case.tables.config.is_some_and(|config| config.fast_path == FastPath::Flow);
        let (ifindex, inner) = match decide(case.hook, &case.frame[..], &case.tables, &case.arrival) {
            Verdict::V4(Move::Encapsulate(_), Reason::EncapPod) | Verdict::V4(Move::SendDirect(..), ..) => {
                // Whose address it was when the flow was accepted: what has been learned says more than where pods are.
                (case.arrival.ifindex, &case.frame[..])
            }
            Verdict::V4(Move::Decapsulate(deliver), _) | Verdict::DecapsulateEarly(deliver, _) => (deliver.pod.ifindex, &case.frame[50..]),
            Verdict::V4(Move::Deliver(deliver), _) => (deliver.pod.ifindex, &case.frame[..]),
            Verdict::Switch(to, _) => {
                prop_assert!(flowing && case.frame[..6] == to.pod.mac);
                prop_assert_eq!(to.pod, case.tables.pods[&case.frame[30..34]]);
                let (from, to) = (case.arrival.ifindex, to.pod.ifindex);
                let known: Vec<_> = case.tables.flows.iter().collect();
                let [(flow, permit)] = known[..] else { panic!("fast without a flow") };
                prop_assert_eq!((permit.ifindex, permit.gateway), (from.min(to), from.max(to)));
                let (local, own, sent) = match from < to {
                    true => (26, permit.egress, permit.sent),
                    false => (30, permit.ingress, permit.received),
                };
                prop_assert_eq!(&flow.local[..], &case.frame[local..local + 4]);
                prop_assert!(permit.egress != 0 && permit.ingress != 0);
                prop_assert!(fields::hold(sent, fields::of(case.frame[15], case.frame[22])));
                let config = case.tables.config.unwrap();
                let refresh = match case.frame[23] {
                    6 => config.tcp_refresh,
                    17 => config.udp_refresh,
                    other => panic!("fast with protocol {other}"),
                };
                prop_assert!(case.frame[23] == 17 || case.frame[47] & 0b111 == 0);
                prop_assert!(Duration::from_nanos(case.tables.now - own) < Duration::from_millis(refresh.into()));
                return Ok(());
            }
            _ => return Ok(()),
        };
        prop_assume!(flowing);
        let known: Vec<_> = case.tables.flows.iter().collect();
        let [(flow, permit)] = known[..] else { panic!("fast without a flow") };
        let (local, remote) = if case.hook == Hook::FromPod { (26, 30) } else { (30, 26) };
        prop_assert_eq!((&flow.local[..], &flow.remote[..]), (&inner[local..local + 4], &inner[remote..remote + 4]));
        let (local, remote) = if case.hook == Hook::FromPod { (34, 36) } else { (36, 34) };
        let port = |at: usize| u16::from_be_bytes([inner[at], inner[at + 1]]);
        prop_assert_eq!((flow.local_port, flow.remote_port), (port(local), port(remote)));
        prop_assert_eq!(flow.protocol as u8, inner[23]);
        prop_assert_eq!(permit.ifindex, ifindex);
        prop_assert!(permit.egress != 0 && permit.ingress != 0);
        let own = if case.hook == Hook::FromPod { permit.egress } else { permit.ingress };
        let age = Duration::from_nanos(case.tables.now - own);
        let config = case.tables.config.unwrap();
        prop_assert_eq!(permit.gateway, folded(&HERE.gateway_mac()));
        prop_assert!(case.hook != Hook::FromPod || case.frame[..6] == HERE.gateway_mac());
        let fields = fields::of(inner[15], inner[22]);
        match case.hook {
            Hook::FromPod => prop_assert!(fields::hold(permit.sent, fields)),
            // Of ECN, the outer header decides, too.
            _ => prop_assert!(fields::are_alike(permit.received, fields)),
        }
        match inner[23] {
            6 => prop_assert!(inner[47] & 0b111 == 0 && age < Duration::from_millis(config.tcp_refresh.into())),
            17 => prop_assert!(age < Duration::from_millis(config.udp_refresh.into())),
            other => panic!("fast with protocol {other}"),
        }
    }

    /// A note is taken of what netfilter has marked, and permits the one direction it was seen in.
    #[test]
    fn only_marked_packets_permit(case in any_hook().prop_flat_map(case)) {
        let Some(noted) = note(case.hook, &case.frame[..], &case.tables, &case.arrival) else { return Ok(()) };
        let mut tables = case.tables.clone();
        tables.write_down(&noted);
        match noted {
            Note::Forget(flow) | Note::BrokenOff(flow) => {
                prop_assert!(case.tables.flows.contains_key(&flow) && tables.flows.is_empty());
            }
            Note::Permit(flow, permit) => {
                prop_assert!(case.arrival.mark & FLOW_MARK != 0);
                prop_assert_eq!(permit.ifindex, case.tables.pods[&flow.local].ifindex);
                let before = case.tables.flows.get(&flow).filter(|before| before.ifindex == permit.ifindex);
                let before = before.copied().unwrap_or_default();
                // Nothing tells where a packet has come in that has no note of ours beside it.
                let stamp = if trail::is_ours(case.arrival.tc_index) { case.tables.now } else { LONG_AGO };
                let is_of_node = case.tables.config.unwrap().subnet.contains(flow.remote);
                let expected = match case.hook {
                    Hook::ToOverlay | Hook::ToUnderlay => (stamp, before.ingress),
                    _ if is_of_node && case.frame[26..30] == flow.local => (stamp, before.ingress),
                    _ => (before.egress, stamp),
                };
                prop_assert_eq!((permit.egress, permit.ingress), expected);
                let again = note(case.hook, &case.frame[..], &tables, &case.arrival);
                let refresh = case.tables.config.unwrap().udp_refresh;
                prop_assert!(again.is_none() || refresh == 0, "noted twice");
                let outwards = matches!(case.hook, Hook::ToOverlay | Hook::ToUnderlay) || is_of_node;
                let number = |at: usize| u32::from_be_bytes(case.frame[at..at + 4].try_into().unwrap());
                let header = trail::Header {
                    class: if outwards { case.frame[15] } else { case.frame[15] & !3 },
                    // Between pods of this node nothing is routed.
                    hops: case.frame[22].wrapping_sub(is_of_node.into()),
                    numbers: if case.frame[23] == 6 { [number(38), number(42)] } else { [0; 2] },
                };
                prop_assert!(!trail::is_changed(case.arrival.tc_index, header));
            }
            Note::Changed(flow) => {
                prop_assert!(case.arrival.mark & FLOW_MARK != 0 && tables.flows.is_empty());
                prop_assert!(case.tables.pods.contains_key(&flow.local));
                prop_assert!(case.hook != Hook::ToPod || trail::is_ours(case.arrival.tc_index));
            }
            Note::Candidate(..) | Note::Ask(..) => prop_assert!(
                case.hook == Hook::ToPod && case.arrival.mark & FLOW_MARK != 0 && tables.translations.is_empty()
            ),
            Note::Untranslate(flow) => {
                prop_assert!(case.hook == Hook::FromPod && case.tables.translations.contains_key(&flow));
            }
            Note::Moved(address) => {
                prop_assert!(case.hook == Hook::FromPod && case.tables.pods.contains_key(&address));
            }
            Note::Forwards { ifindex, seen } => {
                prop_assert_eq!((case.hook, ifindex), (Hook::FromPod, case.arrival.ifindex));
                prop_assert!(seen == case.tables.now && !case.arrival.from_socket);
                let again = note(case.hook, &case.frame[..], &tables, &case.arrival);
                prop_assert!(again.is_none(), "noted twice");
            }
        }
    }

    #[test]
    fn longest_prefix_wins(
        mut lengths in vec(1u8..=32, 1..=4), leases in vec((any::<[u8; 4]>(), 1u32..=32), 0..20),
        near in vec(1u32..=32, 0..6), destination: [u8; 4],
    ) {
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        lengths.resize(4, 0);
        let mut tables = HERE.tables(&[]);
        tables.tunnels.insert(THERE.vtep, TUNNEL);
        let config = tables.config.as_mut().unwrap();
        config.prefix_lengths.copy_from_slice(&lengths);
        config.network = SubnetV4::of([0; 4], 0);
        // Half of the leases hold the destination, so that there is something to choose from.
        let near = near.into_iter().map(|length| (destination, length));
        for (number, (address, length)) in leases.into_iter().chain(near).enumerate() {
            let mut peer = HERE.peer(&THERE);
            peer.vni = number as u32;
            tables.routes.insert(SubnetV4::of(address, length), peer);
        }
        let frame = Frame::udp(HERE.pod(2), destination, 10);
        prop_assume!(!HERE.subnet.contains(destination));
        let expected = longest(&tables, destination);
        for hook in [Hook::FromPod, Hook::ToOverlay] {
            let peer = match decide(hook, &sent(hook, frame.clone()).bytes()[..], &tables, &seen_at(hook)) {
                Verdict::V4(Move::Encapsulate(encap), _) => Some(encap.route),
                Verdict::Kernel(Reason::NoRoute) => None,
                other => panic!("{other:?}"),
            };
            prop_assert_eq!(peer, expected);
        }
    }

    #[test]
    fn a_prefix_holds_its_addresses(network: [u8; 4], length in 0u32..=32, address: [u8; 4]) {
        let subnet = SubnetV4::of(network, length);
        let mask = (u64::from(u32::MAX) << (32 - length)) as u32;
        prop_assert_eq!(u32::from_be_bytes(subnet.network), u32::from_be_bytes(network) & mask);
        let same = u32::from_be_bytes(address) & mask == u32::from_be_bytes(network) & mask;
        prop_assert_eq!(subnet.contains(address), same);
        prop_assert!(subnet.contains(network));
    }

    #[test]
    fn segments_fit_the_underlay_to_the_byte(
        mtu in 200u32..9_000, over in -2i64..=2, options in 0usize..=10, tcp: bool, segments in 2usize..4,
    ) {
        // A segment as it goes out: 50 bytes of outer headers less the outer Ethernet header, the inner
        // Ethernet header, the inner IP packet.
        let (header, make): (u32, &dyn Fn(usize) -> Frame) = if tcp {
            (20 + options as u32 * 4, &|len| Frame::tcp(HERE.pod(2), THERE.pod(2), options * 4, len))
        } else {
            (8, &|len| Frame::udp(HERE.pod(2), THERE.pod(2), len))
        };
        let exact = mtu - (20 + 8 + 8 + 14) - 20 - header;
        let size = u32::try_from(i64::from(exact) + over).unwrap();
        let mut tables = HERE.tables(&[THERE]);
        tables.routes.values_mut().for_each(|peer| peer.mtu = mtu);
        for (gso_size, len) in [(size, size as usize * segments), (0, size as usize)] {
            for hook in [Hook::FromPod, Hook::ToOverlay] {
                let frame = sent(hook, make(len));
                let arrival = Arrival { gso_size, ..seen_at(hook) };
                let verdict = decide(hook, &frame.bytes()[..], &tables, &arrival);
                let fits = matches!(verdict, Verdict::V4(Move::Encapsulate(..), ..));
                prop_assert!(fits || verdict == Verdict::Kernel(Reason::TooBig), "{verdict:?}");
                prop_assert_eq!(fits, over <= 0, "{:?} at {}", hook, gso_size);
            }
        }
    }

    /// Without a tunnel nothing is added: a segment is the packet it becomes.
    #[test]
    fn segments_fit_the_link_to_the_byte(
        mtu in 200u32..9_000, over in -2i64..=2, options in 0usize..=10, tcp: bool, segments in 2usize..4,
    ) {
        let (header, make): (u32, &dyn Fn(usize) -> Frame) = if tcp {
            (20 + options as u32 * 4, &|len| Frame::tcp(HERE.pod(2), THERE.pod(2), options * 4, len))
        } else {
            (8, &|len| Frame::udp(HERE.pod(2), THERE.pod(2), len))
        };
        let size = u32::try_from(i64::from(mtu - 20 - header) + over).unwrap();
        let mut tables = HERE.tables(&[THERE]);
        tables.routes.values_mut().for_each(|peer| (peer.kind, peer.mtu) = (RouteKind::Direct, mtu));
        for (gso_size, len) in [(size, size as usize * segments), (0, size as usize)] {
            let arrival = Arrival { gso_size, ..seen_at(Hook::FromPod) };
            let frame = sent(Hook::FromPod, make(len));
            let verdict = decide(Hook::FromPod, &frame.bytes()[..], &tables, &arrival);
            let fits = matches!(verdict, Verdict::V4(Move::SendDirect(..), ..));
            prop_assert!(fits || verdict == Verdict::Kernel(Reason::TooBig), "{verdict:?}");
            prop_assert_eq!(fits, over <= 0, "{:?} at {}", verdict, gso_size);
        }
    }

    /// What comes without a tunnel is handed to a pod only where its source may be sent to in the same way, by
    /// the same interface.
    #[test]
    fn without_a_tunnel_only_direct_peers_are_heard(case in case(Hook::FromUnderlay)) {
        let verdict = decide(case.hook, &case.frame[..], &case.tables, &case.arrival);
        let Verdict::V4(Move::Deliver(..), ..) = verdict else { return Ok(()) };
        let source: [u8; 4] = case.frame[26..30].try_into().unwrap();
        let peer = longest(&case.tables, source).unwrap();
        prop_assert_eq!((peer.kind, peer.ifindex), (RouteKind::Direct, case.arrival.ifindex));
        let destination: [u8; 4] = case.frame[30..34].try_into().unwrap();
        prop_assert!(case.tables.config.unwrap().subnet.contains(destination));
    }
}
