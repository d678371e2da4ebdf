//! From one node to another, in the tunnel or without, a packet is what it was, two hops later.
#![expect(clippy::unwrap_used, reason = "a failure in a function of a test is the test's failure")]

use etherparse::{NetHeaders, PacketBuilder, PacketHeaders, TcpHeader, TransportHeader};
use flannel_common::{
    layout::{PodPlace, RouteKind},
    path::{Hook, Move, Verdict, decide},
    reason::Reason,
};
use flannel_common_testing::{HERE, MemoryTables, Node, THERE, delivered, seen_at, sent_direct};
use proptest::{collection::vec, prelude::*};

/// Ethernet from etherparse, so that no header of ours judges itself.
fn frame(source: [u8; 4], destination: [u8; 4], ttl: u8, kind: &Kind, data: &[u8]) -> Vec<u8> {
    let start = PacketBuilder::ethernet2(HERE.pod_mac(2), HERE.gateway_mac()).ipv4(source, destination, ttl);
    let mut bytes = Vec::new();
    match kind {
        Kind::Udp(from, to) => start.udp(*from, *to).write(&mut bytes, data),
        Kind::Tcp(from, to, options) => {
            let mut header = TcpHeader::new(*from, *to, 1, 65_535);
            header.set_options_raw(options).unwrap();
            start.tcp_header(header).write(&mut bytes, data)
        }
        Kind::Echo(id, sequence) => start.icmpv4_echo_request(*id, *sequence).write(&mut bytes, data),
    }
    .unwrap();
    bytes
}

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

/// Sets the TOS byte, which etherparse's builder has no step for.
fn marked(mut frame: Vec<u8>, tos: u8) -> Vec<u8> {
    let (mut ip, _) = etherparse::Ipv4Header::from_slice(&frame[14..]).unwrap();
    ip.dscp = etherparse::IpDscp::try_new(tos >> 2).unwrap();
    ip.ecn = etherparse::IpEcn::try_new(tos & 3).unwrap();
    ip.header_checksum = ip.calc_header_checksum();
    frame[14..34].copy_from_slice(&ip.to_bytes());
    frame
}

/// Refuses a frame whose IP or transport checksum is wrong.
fn checksums_are_right(frame: &[u8]) -> Result<(), TestCaseError> {
    let packet = PacketHeaders::from_ethernet_slice(frame).unwrap();
    let Some(NetHeaders::Ipv4(ip, _)) = &packet.net else { panic!("not IPv4: {packet:?}") };
    prop_assert_eq!(ip.header_checksum, ip.calc_header_checksum());
    let data = packet.payload.slice();
    let (found, right) = match &packet.transport {
        Some(TransportHeader::Udp(udp)) => (udp.checksum, udp.calc_checksum_ipv4(ip, data).unwrap()),
        Some(TransportHeader::Tcp(tcp)) => (tcp.checksum, tcp.calc_checksum_ipv4(ip, data).unwrap()),
        Some(TransportHeader::Icmpv4(icmp)) => (icmp.checksum, icmp.icmp_type.calc_checksum(data)),
        other => panic!("{other:?}"),
    };
    prop_assert_eq!(found, right);
    Ok(())
}

/// The frame on the underlay, as the program at `hook` of `from` makes it.
fn encapsulated(hook: Hook, from: &Node, to: &Node, frame: &[u8], id: u16, hash: u32) -> Vec<u8> {
    match decide(hook, frame, &from.tables(&[*to]), &seen_at(hook)) {
        Verdict::V4(Move::Encapsulate(encap), _) => {
            flannel_common_testing::encapsulated(frame, &encap, id, hash).unwrap()
        }
        other => panic!("{other:?}"),
    }
}

/// The frame in the pod, as the program of `at` makes it, and where it goes.
fn decapsulated(at: &Node, from: &Node, frame: &[u8]) -> (Vec<u8>, PodPlace) {
    match decide(Hook::FromUnderlay, frame, &at.tables(&[*from]), &seen_at(Hook::FromUnderlay)) {
        Verdict::V4(Move::Decapsulate(deliver), Reason::DeliverPod) => {
            (flannel_common_testing::decapsulated(frame, &deliver).unwrap(), deliver.pod)
        }
        other => panic!("{other:?}"),
    }
}

/// The tables of `at` in a cluster with `peer`, without a tunnel between them.
fn direct(at: &Node, peer: &Node) -> MemoryTables {
    let mut tables = at.tables(&[*peer]);
    tables.routes.values_mut().for_each(|peer| peer.kind = RouteKind::Direct);
    tables
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn from_pod_to_pod(
        kind in kind(), data in vec(any::<u8>(), 0..1_300), tos: u8, ttl in 3u8.., id: u16, hash: u32,
    ) {
        let sent = marked(frame(HERE.pod(2), THERE.pod(3), ttl, &kind, &data), tos);
        checksums_are_right(&sent)?;
        let outer = encapsulated(Hook::FromPod, &HERE, &THERE, &sent, id, hash);
        // etherparse sees a UDP packet whose payload is the VXLAN header and the inner frame.
        let packet = PacketHeaders::from_ethernet_slice(&outer).unwrap();
        prop_assert_eq!(packet.payload.slice().len(), 8 + sent.len());
        checksums_are_right(&packet.payload.slice()[8..])?;

        let (received, pod) = decapsulated(&THERE, &HERE, &outer);
        checksums_are_right(&received)?;
        prop_assert_eq!(pod.mac, THERE.pod_mac(3));
        let mut expected = marked(frame(HERE.pod(2), THERE.pod(3), ttl - 2, &kind, &data), tos);
        expected[..6].copy_from_slice(&THERE.pod_mac(3));
        expected[6..12].copy_from_slice(&THERE.gateway_mac());
        prop_assert_eq!(received, expected);
    }

    #[test]
    fn from_pod_to_pod_without_a_tunnel(
        kind in kind(), data in vec(any::<u8>(), 0..1_300), tos: u8, ttl in 3u8..,
    ) {
        let sent = marked(frame(HERE.pod(2), THERE.pod(3), ttl, &kind, &data), tos);
        let verdict = decide(Hook::FromPod, &sent[..], &direct(&HERE, &THERE), &seen_at(Hook::FromPod));
        let Verdict::V4(Move::SendDirect(route), Reason::RoutePod) = verdict else { panic!("{verdict:?}") };
        let wire = sent_direct(&sent, &route).unwrap();
        checksums_are_right(&wire)?;

        let seen = seen_at(Hook::FromUnderlay);
        let verdict = decide(Hook::FromUnderlay, &wire[..], &direct(&THERE, &HERE), &seen);
        let Verdict::V4(Move::Deliver(deliver), Reason::HandPod) = verdict else { panic!("{verdict:?}") };
        let received = delivered(&wire, &deliver).unwrap();
        checksums_are_right(&received)?;
        let mut expected = marked(frame(HERE.pod(2), THERE.pod(3), ttl - 2, &kind, &data), tos);
        expected[..6].copy_from_slice(&THERE.pod_mac(3));
        expected[6..12].copy_from_slice(&THERE.gateway_mac());
        prop_assert_eq!(received, expected);
    }

    #[test]
    fn from_the_kernel_to_pod(
        kind in kind(), data in vec(any::<u8>(), 0..1_300), tos: u8, ttl in 2u8.., id: u16, hash: u32,
    ) {
        let mut sent = marked(frame(HERE.vtep, THERE.pod(2), ttl, &kind, &data), tos);
        sent[..6].copy_from_slice(&THERE.mac);
        sent[6..12].copy_from_slice(&HERE.mac);
        let outer = encapsulated(Hook::ToOverlay, &HERE, &THERE, &sent, id, hash);
        // What the kernel has routed keeps every byte of its frame.
        prop_assert_eq!(&outer[50..], &sent[..]);

        // A node speaks for itself: what it answers to a pod reaches the pod as fast.
        let (received, pod) = decapsulated(&THERE, &HERE, &outer);
        checksums_are_right(&received)?;
        prop_assert_eq!(pod.mac, THERE.pod_mac(2));
        let mut expected = marked(frame(HERE.vtep, THERE.pod(2), ttl - 1, &kind, &data), tos);
        expected[..6].copy_from_slice(&THERE.pod_mac(2));
        expected[6..12].copy_from_slice(&THERE.gateway_mac());
        prop_assert_eq!(received, expected);
    }

    #[test]
    fn congestion_on_the_way_reaches_flows_that_take_part(
        data in vec(any::<u8>(), 0..100), dscp in 0u8..64, mark in 0u8..4,
    ) {
        let kind = Kind::Udp(1, 2);
        let sent = marked(frame(HERE.pod(2), THERE.pod(3), 64, &kind, &data), dscp << 2 | mark);
        let mut outer = encapsulated(Hook::FromPod, &HERE, &THERE, &sent, 1, 2);
        let outer_tos = outer[15];
        outer = marked(outer, outer_tos | 3);
        if mark == 0 {
            let tables = THERE.tables(&[HERE]);
            let verdict = decide(Hook::FromUnderlay, &outer[..], &tables, &seen_at(Hook::FromUnderlay));
            prop_assert_eq!(verdict, Verdict::Kernel(Reason::Ecn));
        } else {
            let (received, _) = decapsulated(&THERE, &HERE, &outer);
            checksums_are_right(&received)?;
            prop_assert_eq!(received[15], dscp << 2 | 3);
        }
    }
}
