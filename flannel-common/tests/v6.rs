//! IPv6: header views, outer headers and their checksums, judged by etherparse; and the way of a packet.
#![expect(clippy::unwrap_used, reason = "a failure in a function of a test is the test's failure")]

use std::time::Duration;

use etherparse::{
    EtherType, Ethernet2Header, Ipv6FlowLabel, Ipv6Header, NetHeaders, PacketBuilder, PacketHeaders,
    TcpHeader, TransportHeader, UdpHeader,
};
use flannel_common::{
    family::V6,
    layout::{AddressV6, FastPath, Route, SubnetV6},
    mark::FLOW_MARK,
    packet::{Arrival, ipv6::Ipv6},
    path::{Hook, Move, Note, Verdict, acceptance::LONG_AGO, decide, trail},
    reason::Reason,
};
use flannel_common_testing::{
    FrameV6, HERE, MemoryTables, Node, THERE, TUNNEL, decapsulated, fixtures, handed_over, note_v6,
    random::any_arrival, random_v6::case_v6, seen_at, transport_checksum,
};
use proptest::{collection::vec, prelude::*, sample::select};

#[derive(Clone, Debug)]
enum Kind {
    Udp(u16, u16),
    Tcp(u16, u16, Vec<u8>),
    Echo(u16, u16),
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        (any::<u16>(), any::<u16>()).prop_map(|(from, to)| Kind::Udp(from, to)),
        // No-operation options, which every stack accepts, in whole words.
        (any::<u16>(), any::<u16>(), 0..=10usize).prop_map(|(from, to, words)| Kind::Tcp(
            from,
            to,
            vec![1; words * 4]
        )),
        (any::<u16>(), any::<u16>()).prop_map(|(id, sequence)| Kind::Echo(id, sequence)),
    ]
}

/// From pod 2 here to pod 3 there, by etherparse, so that no header of ours judges itself.
fn frame(hop_limit: u8, class: u8, label: u32, kind: &Kind, data: &[u8]) -> Vec<u8> {
    let start =
        PacketBuilder::ethernet2(HERE.pod_mac(2), HERE.gateway_mac()).ip(etherparse::IpHeaders::Ipv6(
            Ipv6Header {
                traffic_class: class,
                flow_label: Ipv6FlowLabel::try_new(label).unwrap(),
                hop_limit,
                source: HERE.pod_v6(2).octets,
                destination: THERE.pod_v6(3).octets,
                ..Ipv6Header::default()
            },
            etherparse::Ipv6Extensions::default(),
        ));
    let mut bytes = Vec::new();
    match kind {
        Kind::Udp(from, to) => start.udp(*from, *to).write(&mut bytes, data),
        Kind::Tcp(from, to, options) => {
            let mut header = TcpHeader::new(*from, *to, 1, 65_535);
            header.set_options_raw(options).unwrap();
            start.tcp_header(header).write(&mut bytes, data)
        }
        Kind::Echo(id, sequence) => start.icmpv6_echo_request(*id, *sequence).write(&mut bytes, data),
    }
    .unwrap();
    bytes
}

/// Refuses a frame whose transport checksum is wrong.
fn checksum_is_right(frame: &[u8]) -> Result<(), TestCaseError> {
    let packet = PacketHeaders::from_ethernet_slice(frame).unwrap();
    let Some(NetHeaders::Ipv6(ip, _)) = &packet.net else { panic!("not IPv6: {packet:?}") };
    let data = packet.payload.slice();
    let (found, right) = match &packet.transport {
        Some(TransportHeader::Udp(udp)) => (udp.checksum, udp.calc_checksum_ipv6(ip, data).unwrap()),
        Some(TransportHeader::Tcp(tcp)) => (tcp.checksum, tcp.calc_checksum_ipv6(ip, data).unwrap()),
        Some(TransportHeader::Icmpv6(icmp)) => {
            (icmp.checksum, icmp.icmp_type.calc_checksum(ip.source, ip.destination, data).unwrap())
        }
        other => panic!("{other:?}"),
    };
    prop_assert_eq!(found, right);
    Ok(())
}

fn encapsulated(hook: Hook, from: &Node, to: &Node, frame: &[u8], hash: u32) -> Vec<u8> {
    match decide(hook, frame, &from.dual_tables(&[*to]), &seen_at(hook)) {
        Verdict::V6(Move::Encapsulate(encap), _) => {
            flannel_common_testing::encapsulated(frame, &encap, 0, hash).unwrap()
        }
        other => panic!("{other:?}"),
    }
}

fn reason(verdict: &Verdict) -> Option<Reason> {
    match verdict {
        Verdict::V4(Move::Encapsulate(..), ..)
        | Verdict::V4(Move::SendDirect(..), ..)
        | Verdict::V4(Move::Decapsulate(..), ..)
        | Verdict::V4(Move::Deliver(..), ..)
        | Verdict::DecapsulateEarly(..) => panic!("IPv4: {verdict:?}"),
        _ => verdict.reason(),
    }
}

/// The longest leased prefix among the lengths looked up, by looking at every lease.
fn longest(tables: &MemoryTables, address: AddressV6) -> Option<Route<V6>> {
    let looked_up = tables.v6.config?.prefix_lengths;
    let bits = |address: AddressV6, length: u64| {
        u128::from_be_bytes(address.octets).checked_shr(128 - length as u32).unwrap_or(0)
    };
    let holds = |subnet: &SubnetV6| {
        looked_up.iter().any(|length| u64::from(*length) == subnet.prefix_len)
            && bits(address, subnet.prefix_len) == bits(subnet.network, subnet.prefix_len)
    };
    let found = tables.v6.routes.iter().filter(|(subnet, _)| holds(subnet));
    found.max_by_key(|(subnet, _)| subnet.prefix_len).map(|(_, peer)| *peer)
}

/// `frame` to the station that a packet at `hook`, of pods or routed into the overlay, is for.
fn sent(hook: Hook, frame: FrameV6) -> FrameV6 {
    match hook {
        Hook::FromPod => frame.macs(HERE.gateway_mac(), HERE.pod_mac(2)),
        _ => frame.macs(THERE.mac_v6(), HERE.mac_v6()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 1_000, failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn header(mut bytes: [u8; 40]) {
        bytes[0] = 0x60 | bytes[0] & 0x0f;
        let ours = Ipv6::parse(&bytes);
        let (theirs, _) = Ipv6Header::from_slice(&bytes).unwrap();
        prop_assert!(ours.is_version_6());
        prop_assert_eq!(ours.traffic_class(), theirs.traffic_class);
        prop_assert_eq!(ours.class & 0xf_ffff, theirs.flow_label.value());
        prop_assert_eq!(ours.payload_len, theirs.payload_length);
        prop_assert_eq!(ours.next_header, theirs.next_header.0);
        // ESP and what is for experiments may be anything: they are payload of a kind nobody knows.
        let extension = theirs.next_header.is_ipv6_ext_header_value()
            && !matches!(theirs.next_header.0, 50 | 253 | 254);
        prop_assert_eq!(ours.has_extension() || ours.next_header == 44, extension);
        prop_assert_eq!(ours.hop_limit, theirs.hop_limit);
        prop_assert_eq!(ours.source.octets, theirs.source);
        prop_assert_eq!(ours.destination.octets, theirs.destination);
        prop_assert_eq!(ours.bytes(), bytes);
    }

    #[test]
    fn a_prefix_holds_its_addresses(network: [u8; 16], length in 0u32..=128, address: [u8; 16], near: bool) {
        let mut address = u128::from_be_bytes(address);
        let bits = u128::from_be_bytes(network);
        let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
        if near {
            address = bits & mask | address & !mask;
        }
        let subnet = SubnetV6::of(AddressV6::new(network), length);
        prop_assert_eq!(u128::from_be_bytes(subnet.network.octets), bits & mask);
        let held = subnet.contains(AddressV6::new(address.to_be_bytes()));
        prop_assert_eq!(held, address & mask == bits & mask);
    }

    /// Every field, and a checksum that a receiver finds right, made without a look at the payload: be the inner
    /// checksum in its place, or left to the NIC, which leaves the sum of the pseudo header there.
    #[test]
    fn from_pod_to_pod(
        kind in kind(), data in vec(any::<u8>(), 0..1_300), class: u8, hop_limit in 3u8.., label in 0u32..1 << 20,
        hash: u32, left_to_the_nic: bool,
    ) {
        let right = frame(hop_limit, class, label, &kind, &data);
        checksum_is_right(&right)?;
        let mut sent = right.clone();
        let field = match kind { Kind::Udp(..) => 54 + 6, Kind::Tcp(..) => 54 + 16, Kind::Echo(..) => 54 + 2 };
        if left_to_the_nic {
            let ip = Ipv6::parse(sent[14..54].try_into().unwrap());
            let sum = !transport_checksum(&Ipv6 { payload_len: 0, ..ip }, &[]);
            sent[field..field + 2].copy_from_slice(&sum.max(1).to_be_bytes());
        }
        let mut outer = encapsulated(Hook::FromPod, &HERE, &THERE, &sent, hash);
        // What the NIC fills in.
        outer[70 + field..][..2].copy_from_slice(&right[field..field + 2]);
        checksum_is_right(&outer)?;

        let (ethernet, rest) = Ethernet2Header::from_slice(&outer).unwrap();
        prop_assert_eq!(ethernet.ether_type, EtherType::IPV6);
        let (ip, rest) = Ipv6Header::from_slice(rest).unwrap();
        let ecn = match class & 3 { 3 => 2, mark => mark };
        prop_assert_eq!((ip.traffic_class, ip.flow_label.value(), ip.hop_limit), (ecn, 0, 64));
        prop_assert_eq!(usize::from(ip.payload_length), 16 + sent.len());
        prop_assert_eq!((ip.source, ip.destination), (HERE.vtep_v6().octets, THERE.vtep_v6().octets));
        let (udp, rest) = UdpHeader::from_slice(rest).unwrap();
        prop_assert_eq!((udp.destination_port, udp.length), (8472, ip.payload_length));
        prop_assert!((32_768..60_999).contains(&udp.source_port));
        prop_assert!(udp.checksum != 0);
        prop_assert_eq!(&rest[..8], &[0x08, 0, 0, 0, 0, 0, 1, 0]);
        checksum_is_right(&rest[8..])?;

        let tables = THERE.dual_tables(&[HERE]);
        let verdict = decide(Hook::FromUnderlay, &outer[..], &tables, &seen_at(Hook::FromUnderlay));
        let Verdict::V6(Move::Decapsulate(deliver), Reason::DeliverPod) = verdict else { panic!("{verdict:?}") };
        prop_assert_eq!(deliver.pod.mac, THERE.pod_mac(3));
        let mut expected = frame(hop_limit - 2, class, label, &kind, &data);
        expected[..6].copy_from_slice(&THERE.pod_mac(3));
        expected[6..12].copy_from_slice(&THERE.gateway_mac());
        prop_assert_eq!(decapsulated(&outer, &deliver).unwrap(), expected);
    }

    #[test]
    fn from_the_kernel_keeps_every_byte(kind in kind(), data in vec(any::<u8>(), 0..1_300), class: u8, hash: u32) {
        let mut sent = frame(1, class, 7, &kind, &data);
        sent[..6].copy_from_slice(&THERE.mac_v6());
        sent[6..12].copy_from_slice(&HERE.mac_v6());
        let outer = encapsulated(Hook::ToOverlay, &HERE, &THERE, &sent, hash);
        checksum_is_right(&outer)?;
        prop_assert_eq!(&outer[70..], &sent[..]);
    }

    #[test]
    fn an_aggregate_goes_to_the_device_as_routing_would_send_it(
        kind in kind(), data in vec(any::<u8>(), 100..1_300), class: u8,
    ) {
        prop_assume!(!matches!(kind, Kind::Echo(..)));
        let sent = frame(64, class, 7, &kind, &data);
        let arrival = Arrival { gso_size: 90, ..seen_at(Hook::FromPod) };
        let verdict = decide(Hook::FromPod, &sent[..], &HERE.dual_tables(&[THERE]), &arrival);
        let Verdict::V6(Move::HandOver(to), Reason::EncapDevice) = verdict else { panic!("{verdict:?}") };
        let mut expected = frame(63, class, 7, &kind, &data);
        expected[..6].copy_from_slice(&THERE.mac_v6());
        expected[6..12].copy_from_slice(&HERE.mac_v6());
        prop_assert_eq!(handed_over(&sent, &to).unwrap(), expected);
    }

    #[test]
    fn segments_fit_the_underlay_to_the_byte(
        mtu in 200u32..9_000, over in -2i64..=2, options in 0usize..=10, tcp: bool, segments in 1usize..4,
    ) {
        let (header, make): (u32, &dyn Fn(usize) -> FrameV6) = if tcp {
            (20 + options as u32 * 4, &|len| FrameV6::tcp(HERE.pod_v6(2), THERE.pod_v6(2), options * 4, len))
        } else {
            (8, &|len| FrameV6::udp(HERE.pod_v6(2), THERE.pod_v6(2), len))
        };
        let exact = mtu - (40 + 8 + 8 + 14) - 40 - header;
        let size = u32::try_from(i64::from(exact) + over).unwrap();
        let mut tables = HERE.dual_tables(&[THERE]);
        tables.v6.routes.values_mut().for_each(|peer| peer.mtu = mtu);
        for hook in [Hook::FromPod, Hook::ToOverlay] {
            let frame = sent(hook, make(size as usize * segments));
            let gso_size = if segments == 1 { 0 } else { size };
            let verdict = decide(hook, &frame.bytes()[..], &tables, &Arrival { gso_size, ..seen_at(hook) });
            let expected = match (hook, segments, over) {
                (_, _, 1..) => Reason::TooBig,
                (Hook::FromPod, 1, _) => Reason::EncapPod,
                (Hook::FromPod, ..) => Reason::EncapDevice,
                (_, 1, _) => Reason::EncapOverlay,
                _ => Reason::Ipv6Aggregate,
            };
            prop_assert_eq!(reason(&verdict), Some(expected));
        }
    }

    #[test]
    fn longest_prefix_wins(
        mut lengths in vec(1u8..=128, 1..=4), leases in vec((any::<[u8; 16]>(), 1u32..=128), 0..20),
        near in vec(1u32..=128, 0..6), destination: [u8; 16],
    ) {
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        lengths.resize(4, 0);
        let destination = AddressV6::new(destination);
        let mut tables = HERE.dual_tables(&[]);
        tables.v6.tunnels.insert(THERE.vtep_v6(), TUNNEL);
        let config = tables.v6.config.as_mut().unwrap();
        config.prefix_lengths.copy_from_slice(&lengths);
        config.network = SubnetV6::of(destination, 0);
        prop_assume!(!config.subnet.contains(destination));
        // Some of the leases hold the destination, so that there is something to choose from.
        let near = near.into_iter().map(|length| (destination, length));
        let leases = leases.into_iter().map(|(address, length)| (AddressV6::new(address), length));
        for (number, (address, length)) in leases.chain(near).enumerate() {
            let peer = Route { vni: number as u32, ..HERE.peer_v6(&THERE) };
            tables.v6.routes.insert(SubnetV6::of(address, length), peer);
        }
        let expected = longest(&tables, destination);
        let frame = FrameV6::udp(HERE.pod_v6(2), destination, 10);
        for hook in [Hook::FromPod, Hook::ToOverlay] {
            let peer = match decide(hook, &sent(hook, frame.clone()).bytes()[..], &tables, &seen_at(hook)) {
                Verdict::V6(Move::Encapsulate(encap), _) => Some(encap.route),
                Verdict::Kernel(Reason::NoRoute) => None,
                other => panic!("{other:?}"),
            };
            prop_assert_eq!(peer, expected);
        }
    }

    #[test]
    fn almost_valid_packets_are_decided_about(
        case in select(&Hook::ALL[..]).prop_flat_map(case_v6), arrival in prop::option::weighted(0.2, any_arrival()),
    ) {
        let arrival = arrival.unwrap_or(case.arrival);
        if case.frame.get(12..14) != Some(&[0x86, 0xdd]) {
            return Ok(());
        }
        let verdict = decide(case.hook, &case.frame[..], &case.tables, &arrival);
        prop_assert!(reason(&verdict).is_none_or(|reason| fixtures::decided(case.hook).contains(&reason)));
        note_v6(case.hook, &case.frame[..], &case.tables, &arrival);
    }

    /// As with IPv4: only flows of this very pod that netfilter has accepted both ways, and this way lately.
    #[test]
    fn the_gate_opens_for_accepted_flows_only(case in select(&Hook::ALL[..]).prop_flat_map(case_v6)) {
        let flowing = case.tables.v6.config.is_some_and(|config| config.fast_path == FastPath::Flow);
        prop_assume!(flowing && case.frame.get(12..14) == Some(&[0x86, 0xdd]));
        let inner = match decide(case.hook, &case.frame[..], &case.tables, &case.arrival) {
            Verdict::V6(Move::Encapsulate(_), Reason::EncapPod)
            | Verdict::V6(Move::HandOver(..), ..)
            | Verdict::V6(Move::SendDirect(..), ..)
            | Verdict::V6(Move::Deliver(..), ..) => &case.frame[..],
            Verdict::V6(Move::Decapsulate(..), ..) => &case.frame[70..],
            _ => return Ok(()),
        };
        let ip = Ipv6::parse(inner[14..54].try_into().unwrap());
        let egress = case.hook == Hook::FromPod;
        let (local, remote) = if egress { (ip.source, ip.destination) } else { (ip.destination, ip.source) };
        let known: Vec<_> = case.tables.v6.flows.iter().collect();
        let [(flow, permit)] = known[..] else { panic!("fast without a flow") };
        prop_assert_eq!((flow.local, flow.remote), (local, remote));
        let port = |at: usize| u16::from_be_bytes([inner[at], inner[at + 1]]);
        let ports = if egress { (port(54), port(56)) } else { (port(56), port(54)) };
        prop_assert_eq!((flow.local_port, flow.remote_port), ports);
        prop_assert_eq!(flow.protocol as u8, ip.next_header);
        // What has been learned says whose address it was; where pods are is asked for what comes in.
        let ifindex = if egress { case.arrival.ifindex } else { case.tables.v6.pods[&local].ifindex };
        prop_assert_eq!(permit.ifindex, ifindex);
        prop_assert!(permit.egress != 0 && permit.ingress != 0);
        let own = if egress { permit.egress } else { permit.ingress };
        let age = Duration::from_nanos(case.tables.now - own);
        let config = case.tables.v6.config.unwrap();
        prop_assert!(!egress || inner[..6] == HERE.gateway_mac());
        match ip.next_header {
            6 => prop_assert!(inner[67] & 0b111 == 0 && age < Duration::from_millis(config.tcp_refresh.into())),
            17 => prop_assert!(age < Duration::from_millis(config.udp_refresh.into())),
            other => panic!("fast with protocol {other}"),
        }
    }

    #[test]
    fn only_marked_packets_permit(case in select(&Hook::ALL[..]).prop_flat_map(case_v6)) {
        let Some(noted) = note_v6(case.hook, &case.frame[..], &case.tables, &case.arrival) else { return Ok(()) };
        let mut tables = case.tables.clone();
        tables.write_down_v6(&noted);
        match noted {
            Note::Forwards { ifindex, seen } => {
                prop_assert!(!case.arrival.from_socket);
                prop_assert_eq!((ifindex, seen), (case.arrival.ifindex, case.tables.now));
            }
            Note::Changed(_) => prop_assert!(case.arrival.mark & FLOW_MARK != 0 && tables.v6.flows.is_empty()),
            Note::Candidate(..) | Note::Ask(..) => prop_assert!(
                case.hook == Hook::ToPod && case.arrival.mark & FLOW_MARK != 0 && tables.v6.translations.is_empty()
            ),
            Note::Untranslate(flow) => {
                prop_assert!(case.hook == Hook::FromPod && case.tables.v6.translations.contains_key(&flow));
            }
            Note::Moved(address) => {
                prop_assert!(case.hook == Hook::FromPod && case.tables.v6.pods.contains_key(&address));
            }
            Note::Forget(flow) | Note::BrokenOff(flow) => {
                prop_assert!(case.tables.v6.flows.contains_key(&flow) && tables.v6.flows.is_empty());
            }
            Note::Permit(flow, permit) => {
                prop_assert!(case.arrival.mark & FLOW_MARK != 0);
                prop_assert_eq!(permit.ifindex, case.tables.v6.pods[&flow.local].ifindex);
                let now = case.tables.now;
                let own = if case.hook == Hook::ToPod { permit.ingress } else { permit.egress };
                prop_assert_eq!(own, if trail::is_ours(case.arrival.tc_index) { now } else { LONG_AGO });
            }
        }
    }
}
