//! Packets in UDP as they are, which the udp backend's nodes send each other.

use etherparse::{Ipv4Header, UdpHeader};
use flannel_common::{
    layout::{FastPath, RouteKind, Tunnel},
    mark::FLOW_MARK,
    packet::{
        Arrival,
        headers::{ETHERNET_LEN, PROTOCOL_UDP, UDP_LEN, Udp},
    },
    path::{Carrier, HEADERS_UDP_LEN, Hook, Move, Note, Verdict, decide, decide_all},
    reason::Reason,
};
use flannel_common_testing::{ELSEWHERE, Frame, HERE, MemoryTables, THERE, seen_at};

const PORT: u16 = 8285;

fn tables() -> MemoryTables {
    let mut tables = HERE.tables(&[THERE]);
    tables.carrier = Carrier::Udp;
    if let Some(config) = &mut tables.config {
        (config.port, config.vni, config.local_mac) = (PORT.into(), 0, [0; 6]);
        (config.source_port_min, config.source_port_max) = (PORT.into(), u32::from(PORT) + 1);
    }
    tables.routes.values_mut().for_each(|route| {
        (route.kind, route.vtep_mac, route.local_mac) = (RouteKind::Udp, [0; 6], [0; 6]);
    });
    tables
}

/// From our pod 2 to pod 2 of the other node.
fn from_pod() -> Frame {
    Frame::tcp(HERE.pod(2), THERE.pod(2), 0, 100).macs(HERE.gateway_mac(), HERE.pod_mac(2))
}

/// The other way, as its pod sent it and its node routed it.
fn inner() -> Frame {
    Frame::tcp(THERE.pod(2), HERE.pod(2), 0, 100).ip(|ip| ip.ttl = 62)
}

/// `inner` without its Ethernet header, in UDP.
fn in_udp(source: [u8; 4], inner: &[u8]) -> Frame {
    let len = (UDP_LEN + inner.len()) as u16;
    let udp = Udp { source: PORT, destination: PORT, len, checksum: 0x1234 };
    Frame::ipv4(source, HERE.vtep, PROTOCOL_UDP, [&udp.bytes(), inner].concat())
}

fn packet(frame: &Frame) -> Vec<u8> {
    frame.bytes()[ETHERNET_LEN..].to_vec()
}

fn arrives(tables: &MemoryTables, frame: &Frame) -> Verdict {
    decide(Hook::FromUnderlay, &frame.bytes()[..], tables, &seen_at(Hook::FromUnderlay))
}

#[test]
fn a_pods_packet_is_put_into_udp_as_a_socket_does() {
    let frame = from_pod();
    let verdict = decide(Hook::FromPod, &frame.bytes()[..], &tables(), &seen_at(Hook::FromPod));
    let Verdict::V4(Move::Encapsulate(encap), Reason::EncapPod) = verdict else { panic!("{verdict:?}") };
    assert_eq!(encap.forward.unwrap().ttl, 62, "this node's routing, and its end of the tunnel");
    let headers = encap.headers_udp();
    assert_eq!((headers.len(), &headers[..2]), (HEADERS_UDP_LEN, &[8, 0][..]));
    let (ip, rest) = Ipv4Header::from_slice(&headers[2..]).unwrap();
    assert_eq!(ip.header_checksum, ip.calc_header_checksum());
    assert_eq!((ip.source, ip.destination), (HERE.vtep, THERE.vtep));
    assert_eq!((ip.total_len, ip.time_to_live), (28 + frame.ip.total_len, 64));
    assert!(ip.dont_fragment && ip.dscp.value() == 0 && ip.ecn.value() == 0);
    let (udp, rest) = UdpHeader::from_slice(rest).unwrap();
    assert_eq!((udp.source_port, udp.destination_port), (PORT, PORT));
    assert_eq!((udp.length, udp.checksum), (8 + frame.ip.total_len, 0));
    assert!(rest.is_empty());
}

#[test]
fn what_does_not_fit_or_outlives_no_hop_is_the_kernels() {
    let left = |frame: &Frame, tables: &MemoryTables| {
        decide(Hook::FromPod, &frame.bytes()[..], tables, &seen_at(Hook::FromPod)).reason().unwrap()
    };
    let large = |len| Frame::tcp(HERE.pod(2), THERE.pod(2), 0, len).macs(HERE.gateway_mac(), HERE.pod_mac(2));
    assert_eq!(left(&large(1500 - 28 - 40), &tables()), Reason::EncapPod);
    assert_eq!(left(&large(1500 - 28 - 39), &tables()), Reason::TooBig);
    assert_eq!(left(&from_pod().ip(|ip| ip.ttl = 2), &tables()), Reason::Ttl);
    let mut of_vxlan = tables();
    of_vxlan.routes.values_mut().for_each(|route| route.kind = RouteKind::Vxlan);
    assert_eq!(left(&from_pod(), &of_vxlan), Reason::PeerOnKernel);
}

#[test]
fn a_datagram_of_a_peer_is_taken_out_for_the_pod() {
    let verdict = arrives(&tables(), &in_udp(THERE.vtep, &packet(&inner())));
    let Verdict::V4(Move::Decapsulate(deliver), Reason::DeliverPod) = verdict else { panic!("{verdict:?}") };
    assert_eq!((deliver.forward.ttl, deliver.packet_len), (60, u32::from(inner().ip.total_len)));
    assert_eq!(deliver.pod.mac, HERE.pod_mac(2));
}

#[test]
fn what_is_wrong_with_a_datagram_leaves_it_to_the_agent() {
    let from = |source, inner: &Frame| arrives(&tables(), &in_udp(source, &packet(inner))).reason().unwrap();
    assert_eq!(from(ELSEWHERE.vtep, &inner()), Reason::UnknownVtep);
    let forged = Frame::tcp(ELSEWHERE.pod(2), HERE.pod(2), 0, 100);
    assert_eq!(from(THERE.vtep, &forged), Reason::InnerSource);
    assert_eq!(from(THERE.vtep, &inner().ip(|ip| ip.ttl = 2)), Reason::Ttl);
    assert_eq!(from(THERE.vtep, &inner().ip(|ip| ip.fragment = 0x2000)), Reason::Fragment);
    assert_eq!(from(THERE.vtep, &Frame::tcp(THERE.pod(2), THERE.pod(3), 0, 9)), Reason::NotOurPod);
    // As the kernel merges datagrams for a socket.
    let two = [packet(&inner()), packet(&inner())].concat();
    assert_eq!(arrives(&tables(), &in_udp(THERE.vtep, &two)).reason(), Some(Reason::Length));
    let mut stale = tables();
    stale.tunnels.insert(THERE.vtep, Tunnel::default());
    if let Some(config) = &mut stale.config {
        config.fast_path = FastPath::Flow;
    }
    let left = arrives(&stale, &in_udp(THERE.vtep, &packet(&inner())));
    assert!(matches!(left, Verdict::Kernel(_)), "never marked: a socket takes it: {left:?}");
}

/// The device is one of IP: what goes through it has no Ethernet header.
#[test]
fn at_the_device_flows_are_learned_and_peers_seen() {
    let mut tables = tables();
    if let Some(config) = &mut tables.config {
        config.fast_path = FastPath::Flow;
    }
    let out = packet(&from_pod().ip(|ip| ip.ttl = 63));
    let arrival = Arrival { mark: FLOW_MARK, ..seen_at(Hook::ToOverlay) };
    let decision = decide_all(Hook::ToOverlay, &out[..], &tables, &arrival, None);
    assert_eq!(decision.verdict, Verdict::Pass);
    assert!(
        matches!(decision.v4.note, Some(Note::Permit(flow, _)) if flow.local == HERE.pod(2)),
        "{decision:?}"
    );

    tables.tunnels.insert(THERE.vtep, Tunnel::default());
    let arrival = Arrival { mark: 0, ..seen_at(Hook::FromOverlay) };
    let decision = decide_all(Hook::FromOverlay, &packet(&inner())[..], &tables, &arrival, None);
    assert_eq!(decision.verdict, Verdict::Pass);
    let seen = decision.v4.tunnel.unwrap();
    assert_eq!((seen.vtep, seen.tunnel.ingress, seen.reason), (THERE.vtep, tables.now, Reason::TunnelSeen));
}
