//! Packets in IP as they are, which the ipip backend's nodes send each other.

use etherparse::Ipv4Header;
use flannel_common::{
    layout::{FastPath, Heeded, Tunnel},
    mark::{FLOW_MARK, SNAT_EXEMPT_MARK},
    packet::{
        Arrival,
        headers::{ETHERNET_LEN, Ethernet, PROTOCOL_IPIP},
    },
    path::{
        Decision, HEADERS_IPIP_LEN, Hook, Move, Note, UnderlayRoute, Verdict, decide, decide_all, host_mark,
        trail,
    },
    reason::Reason,
};
use flannel_common_testing::{
    ELSEWHERE, Frame, HERE, MemoryTables, NEXT_HOP_MAC, THERE, encapsulated_in_ip, interface, seen_at,
};

const ECT_0: u8 = 2;
const CE: u8 = 3;

fn tables() -> MemoryTables {
    HERE.tables(&[THERE]).of_ipip()
}

fn gated() -> MemoryTables {
    let mut tables = tables();
    tables.config.iter_mut().for_each(|config| config.fast_path = FastPath::Flow);
    tables
}

/// From our pod 2 to pod 2 of the other node.
fn from_pod() -> Frame {
    Frame::tcp(HERE.pod(2), THERE.pod(2), 0, 100).macs(HERE.gateway_mac(), HERE.pod_mac(2))
}

/// The other way, as its pod sent it and its node routed it.
fn inner() -> Frame {
    Frame::tcp(THERE.pod(2), HERE.pod(2), 0, 100).ip(|ip| ip.ttl = 63)
}

/// From another node to this one.
fn in_ip(source: [u8; 4], packet: &[u8]) -> Frame {
    Frame::ipip(source, HERE.vtep, packet)
}

fn packet(frame: &Frame) -> Vec<u8> {
    frame.bytes()[ETHERNET_LEN..].to_vec()
}

fn arrives(tables: &MemoryTables, frame: &Frame) -> Verdict {
    decide(Hook::FromUnderlay, &frame.bytes()[..], tables, &seen_at(Hook::FromUnderlay))
}

fn sent(tables: &MemoryTables, frame: &Frame) -> Option<Reason> {
    decide(Hook::FromPod, &frame.bytes()[..], tables, &seen_at(Hook::FromPod)).reason()
}

#[test]
fn a_pods_packet_gets_the_header_that_the_kernels_device_writes() {
    for (tos, outer_tos) in [(0, 0), (0xb8, 0), (ECT_0, ECT_0), (CE | 0xb8, ECT_0)] {
        let frame = from_pod().ip(|ip| (ip.tos, ip.ttl) = (tos, 40));
        let verdict = decide(Hook::FromPod, &frame.bytes()[..], &tables(), &seen_at(Hook::FromPod));
        let Verdict::V4(Move::Encapsulate(encap), Reason::EncapPod) = verdict else { panic!("{verdict:?}") };
        assert_eq!(encap.forward.unwrap().ttl, 39, "the device counts no hop");
        let headers = encap.headers_ipip(7);
        assert_eq!((headers.len(), &headers[..2]), (HEADERS_IPIP_LEN, &[8, 0][..]));
        let (ip, rest) = Ipv4Header::from_slice(&headers[2..]).unwrap();
        assert!(rest.is_empty());
        assert_eq!(ip.header_checksum, ip.calc_header_checksum());
        assert_eq!((ip.source, ip.destination), (HERE.vtep, THERE.vtep));
        assert_eq!((ip.protocol.0, ip.total_len), (PROTOCOL_IPIP, 20 + frame.ip.total_len));
        assert_eq!((ip.time_to_live, ip.identification), (39, 7), "the TTL is the inner one");
        assert!(ip.dont_fragment && !ip.more_fragments && ip.fragment_offset.value() == 0);
        assert_eq!(ip.dscp.value() << 2 | ip.ecn.value(), outer_tos, "of {tos:#x}");
    }
}

#[test]
fn what_does_not_fit_or_outlives_no_hop_is_the_kernels() {
    let large = |len| Frame::tcp(HERE.pod(2), THERE.pod(2), 0, len).macs(HERE.gateway_mac(), HERE.pod_mac(2));
    assert_eq!(sent(&tables(), &large(1500 - 20 - 40)), Some(Reason::EncapPod));
    assert_eq!(sent(&tables(), &large(1500 - 20 - 39)), Some(Reason::TooBig));
    assert_eq!(sent(&tables(), &from_pod().ip(|ip| ip.ttl = 1)), Some(Reason::Ttl));
    assert_eq!(sent(&HERE.tables(&[THERE]), &from_pod()), Some(Reason::EncapPod));
    let of_vxlan = MemoryTables { carrier: tables().carrier, ..HERE.tables(&[THERE]) };
    assert_eq!(sent(&of_vxlan, &from_pod()), Some(Reason::PeerOnKernel));
}

#[test]
fn a_peers_packet_is_taken_out_for_the_pod() {
    let verdict = arrives(&tables(), &in_ip(THERE.vtep, &packet(&inner())));
    let Verdict::V4(Move::Decapsulate(deliver), Reason::DeliverPod) = verdict else { panic!("{verdict:?}") };
    assert_eq!((deliver.forward.ttl, deliver.packet_len), (62, u32::from(inner().ip.total_len)));
    assert_eq!((deliver.pod.mac, deliver.forward.tos), (HERE.pod_mac(2), None));
    // Congestion that the outer header tells of.
    let marked = packet(&inner().ip(|ip| ip.tos = 0xb8 | ECT_0));
    let verdict = arrives(&tables(), &in_ip(THERE.vtep, &marked).ip(|ip| ip.tos = CE));
    let Verdict::V4(Move::Decapsulate(deliver), _) = verdict else { panic!("{verdict:?}") };
    assert_eq!(deliver.forward.tos, Some(0xb8 | CE));
    let deaf = in_ip(THERE.vtep, &packet(&inner())).ip(|ip| ip.tos = CE);
    assert_eq!(arrives(&tables(), &deaf).reason(), Some(Reason::Ecn));
}

#[test]
fn what_is_wrong_with_a_packet_leaves_it_to_the_device() {
    let from = |source, inner: &Frame| arrives(&tables(), &in_ip(source, &packet(inner))).reason().unwrap();
    assert_eq!(from(ELSEWHERE.vtep, &inner()), Reason::UnknownVtep);
    assert_eq!(from(THERE.vtep, &Frame::tcp(ELSEWHERE.pod(2), HERE.pod(2), 0, 100)), Reason::InnerSource);
    assert_eq!(from(THERE.vtep, &inner().ip(|ip| ip.ttl = 1)), Reason::Ttl);
    assert_eq!(from(THERE.vtep, &inner().ip(|ip| ip.fragment = 0x2000)), Reason::Fragment);
    assert_eq!(from(THERE.vtep, &inner().ip(|ip| ip.version_ihl = 0x46)), Reason::IpOptions);
    assert_eq!(from(THERE.vtep, &Frame::tcp(THERE.pod(2), THERE.pod(3), 0, 9)), Reason::NotOurPod);
    let of = |frame: Frame| arrives(&tables(), &frame).reason().unwrap();
    let right = || in_ip(THERE.vtep, &packet(&inner()));
    assert_eq!(of(right().ip(|ip| ip.destination = ELSEWHERE.vtep)), Reason::NotVxlan);
    assert_eq!(of(right().ip(|ip| ip.protocol = 17)), Reason::NotVxlan);
    assert_eq!(of(right().ip(|ip| ip.fragment = 0x2000)), Reason::Fragment);
    let longer = [packet(&inner()), vec![0]].concat();
    assert_eq!(of(in_ip(THERE.vtep, &longer)), Reason::Length);
}

/// The kernel is seen to let packets of a node pass only by one that was checked with its outer header.
#[test]
fn what_is_checked_opens_the_way_in() {
    let mut stale = gated();
    stale.tunnels.insert(THERE.vtep, Tunnel::default());
    let left = arrives(&stale, &in_ip(THERE.vtep, &packet(&inner())));
    assert_eq!(left, Verdict::Checked(Reason::TunnelStale));
    let from_device = |mark, tables: &MemoryTables| {
        let arrival = Arrival { mark, ..seen_at(Hook::FromOverlay) };
        decide_all(Hook::FromOverlay, &packet(&inner())[..], tables, &arrival, None)
    };
    assert_eq!(from_device(0, &stale).v4.tunnel, None, "anybody may have sent it");
    let decision = from_device(FLOW_MARK, &stale);
    assert_eq!(decision.verdict, Verdict::Pass);
    let seen = decision.v4.tunnel.unwrap();
    assert_eq!((seen.vtep, seen.tunnel.ingress, seen.reason), (THERE.vtep, stale.now, Reason::TunnelSeen));
    stale.tunnels.insert(THERE.vtep, seen.tunnel);
    let left = arrives(&stale, &in_ip(THERE.vtep, &packet(&inner())));
    assert_eq!(left.reason(), Some(Reason::FlowUnknown), "{left:?}");
}

/// What our pod has sent, as the kernel's device puts it on the wire by the external interface.
fn leaves(tables: &MemoryTables, frame: &Frame, mark: u32, tc_index: u16) -> Decision {
    let arrival = Arrival { mark, tc_index, ..seen_at(Hook::ToUnderlay) };
    let stations = Ethernet::new(NEXT_HOP_MAC, interface::UNDERLAY_MAC, 0x0800);
    let route = UnderlayRoute { stations, mtu: 1400 };
    decide_all(Hook::ToUnderlay, &frame.bytes()[..], tables, &arrival, Some(route))
}

fn by_the_device(inner: &Frame, vtep: [u8; 4]) -> Frame {
    in_ip(HERE.vtep, &packet(inner)).macs(NEXT_HOP_MAC, interface::UNDERLAY_MAC).ip(|ip| {
        (ip.destination, ip.ttl, ip.fragment) = (vtep, inner.ip.ttl, 0x4000);
    })
}

/// The device has no MACs: where a packet goes shows on the wire.
#[test]
fn flows_are_learned_and_peers_seen_where_the_outer_packet_leaves() {
    let mut tables = gated();
    tables.tunnels.clear();
    tables.flows.clear();
    let routed = from_pod().ip(|ip| ip.ttl = 63);
    let arrival = Arrival { mark: FLOW_MARK, ..seen_at(Hook::ToOverlay) };
    let decision = decide_all(Hook::ToOverlay, &packet(&routed)[..], &tables, &arrival, None);
    assert_eq!((decision.verdict, decision.v4.note), (Verdict::Pass, None));

    let header = trail::Header { class: 0, hops: 64, numbers: [0; 2] };
    let udp = Frame::udp(HERE.pod(2), THERE.pod(2), 100)
        .macs(HERE.gateway_mac(), HERE.pod_mac(2))
        .ip(|ip| ip.ttl = 63);
    let (mark, begun) = (FLOW_MARK | SNAT_EXEMPT_MARK, trail::begins(header));
    let decision = leaves(&tables, &by_the_device(&udp, THERE.vtep), mark, begun);
    assert!(
        matches!(decision.v4.note, Some(Note::Permit(flow, permit)) if flow.local == HERE.pod(2) && permit.egress != 0),
        "{decision:?}"
    );
    let seen = decision.v4.tunnel.unwrap();
    assert_eq!((seen.vtep, seen.reason, seen.tunnel.mtu), (THERE.vtep, Reason::TunnelSeen, 1400));
    tables.tunnels.insert(THERE.vtep, seen.tunnel);

    // Led to another node by a route of somebody else's, it is not learned.
    let decision = leaves(&tables, &by_the_device(&udp, ELSEWHERE.vtep), mark, begun);
    assert!(matches!(decision.v4.note, Some(Note::Changed(_))), "{decision:?}");
    assert_eq!(decision.v4.tunnel, None);
    // Nor with another DSCP than it began with.
    let changed = udp.clone().ip(|ip| ip.tos = 0x20);
    let decision = leaves(&tables, &by_the_device(&changed, THERE.vtep), mark, begun);
    assert!(matches!(decision.v4.note, Some(Note::Changed(_))), "{decision:?}");
}

#[test]
fn another_outer_header_than_the_programs_closes_the_way_out() {
    let mut tables = gated();
    tables.tunnels.clear();
    let inner = from_pod().ip(|ip| ip.ttl = 63);
    let reason = |frame: Frame| leaves(&tables, &frame, 0, 0).v4.tunnel.unwrap().reason;
    let right = || by_the_device(&inner, THERE.vtep);
    assert_eq!(reason(right()), Reason::TunnelSeen);
    assert_eq!(reason(right().ip(|ip| ip.ttl = 64)), Reason::TunnelDiffers, "a TTL of the device's own");
    assert_eq!(reason(right().ip(|ip| ip.fragment = 0)), Reason::TunnelDiffers, "nopmtudisc");
    assert_eq!(reason(right().ip(|ip| ip.tos = 0xb8)), Reason::TunnelDiffers);
    assert_eq!(reason(right().macs([2; 6], interface::UNDERLAY_MAC)), Reason::TunnelDiffers);

    // What the host treats by its mark speaks for no other packet.
    let mut heeding = tables.clone();
    heeding.config.iter_mut().for_each(|config| config.heeded = Heeded { marks: 0x10, classes: 0 });
    assert_eq!(leaves(&heeding, &right(), 0x10, host_mark::LEFT).v4.tunnel, None);
    assert_eq!(leaves(&heeding, &right(), 0x10, 0).v4.tunnel.unwrap().reason, Reason::TunnelDiffers);
}

#[test]
fn what_a_program_writes_it_would_take_for_the_kernels() {
    for tos in [0, 0xb8, ECT_0, CE] {
        let mut tables = tables();
        let frame = from_pod().ip(|ip| ip.tos = tos);
        let verdict = decide(Hook::FromPod, &frame.bytes()[..], &tables, &seen_at(Hook::FromPod));
        let Verdict::V4(Move::Encapsulate(encap), _) = verdict else { panic!("{verdict:?}") };
        let mut out = encapsulated_in_ip(&frame.bytes(), &encap, 1).unwrap();
        out[..12]
            .copy_from_slice(&Ethernet::new(NEXT_HOP_MAC, interface::UNDERLAY_MAC, 0x0800).bytes()[..12]);
        tables.tunnels.clear();
        let stations = Ethernet::parse(out[..ETHERNET_LEN].first_chunk().unwrap());
        let route = UnderlayRoute { stations, mtu: 1500 };
        let decision =
            decide_all(Hook::ToUnderlay, &out[..], &tables, &seen_at(Hook::ToUnderlay), Some(route));
        assert_eq!(decision.v4.tunnel.unwrap().reason, Reason::TunnelSeen, "TOS {tos:#x}");
    }
}

/// An error about the tunnel itself closes the way out.
#[test]
fn icmp_about_the_outer_packet_closes_the_way_out() {
    let about = |protocol| {
        let outer = Frame::ipv4(HERE.vtep, THERE.vtep, protocol, vec![0x45; 8]).bytes();
        let error = [&[3, 4, 0, 0, 0, 0, 5, 0][..], &outer[ETHERNET_LEN..]].concat();
        let frame = Frame::ipv4([192, 0, 2, 99], HERE.vtep, 1, error).bytes();
        let decision =
            decide_all(Hook::FromUnderlay, &frame[..], &tables(), &seen_at(Hook::FromUnderlay), None);
        decision.v4.tunnel.map(|note| (note.vtep, note.reason))
    };
    assert_eq!(about(PROTOCOL_IPIP), Some((THERE.vtep, Reason::TunnelClosed)));
    assert_eq!(about(17), None);
}
