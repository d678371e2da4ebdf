//! The tunnel's gate: what the kernel's own packets say about it.

use flannel_common::{
    family::V4,
    layout::{RouteKind, Tunnel},
    mark::FLOW_MARK,
    packet::{Arrival, Packet as _, checksum, headers::Ethernet},
    path::{Hook, TunnelNote, UnderlayRoute, host_mark},
    reason::Reason,
};
use flannel_common_testing::{
    Frame, FrameV6, HERE, MemoryTables, NOW, THERE, TUNNEL, note_tunnel, note_tunnel_v6, seen_at,
};

const SECOND: u64 = 1_000_000_000;

fn never() -> MemoryTables {
    let mut tables = HERE.dual_tables(&[THERE]);
    tables.tunnels.clear();
    tables.v6.tunnels.clear();
    tables
}

/// As the kernel's device makes a packet for `THERE`.
fn leaving() -> Frame {
    let inner = Frame::udp(HERE.pod(2), THERE.pod(2), 64).macs(THERE.mac, HERE.mac).bytes();
    Frame::vxlan(HERE.vtep, THERE.vtep, &inner)
}

fn leaving_v6() -> FrameV6 {
    let inner = FrameV6::udp(HERE.pod_v6(2), THERE.pod_v6(2), 64).macs(THERE.mac_v6(), HERE.mac_v6());
    FrameV6::vxlan(HERE.vtep_v6(), THERE.vtep_v6(), &inner.bytes())
}

/// The route by which `frame` has left.
fn its_route(frame: &[u8], mtu: u32) -> Option<UnderlayRoute> {
    Some(UnderlayRoute { stations: Ethernet::parse(&frame.read(0)?), mtu })
}

fn seen(frame: &Frame, tables: &MemoryTables, route: Option<UnderlayRoute>) -> Option<TunnelNote<V4>> {
    note_tunnel(Hook::ToUnderlay, &frame.bytes()[..], tables, &seen_at(Hook::ToUnderlay), route)
}

#[test]
fn the_kernels_own_packet_opens_the_gate_with_its_routes_mtu() {
    let frame = leaving().ip(|ip| ip.ttl = 128);
    let route = its_route(&frame.bytes(), 1300);
    let note = seen(&frame, &never(), route).unwrap();
    let tunnel = Tunnel { egress: NOW, ingress: 0, differs: 0, mtu: 1300, ttl: 128 };
    assert_eq!(note, TunnelNote { vtep: THERE.vtep, tunnel, reason: Reason::TunnelSeen });
    let frame = leaving_v6();
    let route = its_route(&frame.bytes(), 1300);
    let at = seen_at(Hook::ToUnderlay);
    let note = note_tunnel_v6(Hook::ToUnderlay, &frame.bytes()[..], &never(), &at, route).unwrap();
    let tunnel = Tunnel { egress: NOW, ingress: 0, differs: 0, mtu: 1300, ttl: 64 };
    assert_eq!(note, TunnelNote { vtep: THERE.vtep_v6(), tunnel, reason: Reason::TunnelSeen });
}

#[test]
fn a_packet_that_the_programs_would_not_have_sent_closes_it() {
    let usual = its_route(&leaving().bytes(), 1500);
    let differs = |frame: &Frame, route| {
        let mut tables = HERE.tables(&[THERE]);
        tables.tunnels.insert(THERE.vtep, Tunnel { egress: NOW - 5 * SECOND, ..TUNNEL });
        let note = seen(frame, &tables, route).unwrap();
        let tunnel = Tunnel { egress: 0, differs: NOW, ..TUNNEL };
        assert_eq!(note, TunnelNote { vtep: THERE.vtep, tunnel, reason: Reason::TunnelDiffers });
    };
    differs(&leaving().ip(|ip| ip.tos = 0xb8), usual);
    differs(&leaving().ip(|ip| ip.fragment = 0x4000), usual);
    // By another gateway, by none, or without a neighbour that is known.
    differs(&leaving(), its_route(&leaving().macs([2; 6], [4; 6]).bytes(), 1500));
    differs(&leaving(), None);
}

/// The mark or class may be the inner packet's, which `to_overlay` has set apart; or rules for outer packets give it to
/// each.
#[test]
fn a_packet_with_a_mark_or_class_that_the_host_goes_by_does_not_open_it() {
    let (v4, v6) = (leaving().bytes(), leaving_v6().bytes());
    let routes = [its_route(&v4, 1500), its_route(&v6, 1500)];
    let usual = seen_at(Hook::ToUnderlay);
    let reason = |at: &Arrival| {
        let note = note_tunnel(Hook::ToUnderlay, &v4[..], &never(), at, routes[0]);
        let note_v6 = note_tunnel_v6(Hook::ToUnderlay, &v6[..], &never(), at, routes[1]);
        let reasons = (note.map(|note| note.reason), note_v6.map(|note| note.reason));
        assert_eq!(reasons.0, reasons.1);
        reasons.0
    };
    for heeded in [Arrival { mark: 0x0200_0000, ..usual }, Arrival { priority: 0x1_0020, ..usual }] {
        assert_eq!(reason(&heeded), Some(Reason::TunnelDiffers));
        assert_eq!(reason(&Arrival { tc_index: host_mark::LEFT, ..heeded }), None);
    }
    for heeded_by_nobody in [Arrival { mark: 0x0100_5040, ..usual }, Arrival { priority: 6, ..usual }] {
        assert_eq!(reason(&heeded_by_nobody), Some(Reason::TunnelSeen));
    }
}

#[test]
fn what_is_known_is_not_written_down_again_at_once() {
    let route = its_route(&leaving().bytes(), 1500);
    assert_eq!(seen(&leaving(), &HERE.tables(&[THERE]), route), None);
    let mut tables = never();
    tables.tunnels.insert(THERE.vtep, Tunnel { differs: NOW, ..Tunnel::default() });
    assert_eq!(seen(&leaving(), &tables, route), None);
}

#[test]
fn what_was_known_before_something_changed_is_written_down_again_at_once() {
    let route = its_route(&leaving().bytes(), 1500);
    for known in [TUNNEL, Tunnel { egress: 0, differs: NOW - 1, ..TUNNEL }] {
        let mut tables = HERE.tables(&[THERE]);
        tables.tunnels.insert(THERE.vtep, known);
        tables.since = NOW;
        assert_eq!(seen(&leaving(), &tables, route).map(|note| note.reason), Some(Reason::TunnelSeen));
        let frame = Frame::udp(THERE.pod(2), HERE.pod(2), 64).macs(HERE.mac, THERE.mac).bytes();
        let at = seen_at(Hook::FromOverlay);
        let delivered = note_tunnel(Hook::FromOverlay, &frame[..], &tables, &at, None);
        assert_eq!(delivered.map(|note| note.reason), Some(Reason::TunnelSeen));
    }
}

#[test]
fn other_packets_say_nothing() {
    let nothing = |about, frame: Frame, tables: &MemoryTables| {
        assert_eq!(seen(&frame, tables, its_route(&frame.bytes(), 1500)), None, "{about}");
    };
    let inner = Frame::udp(HERE.pod(2), THERE.pod(2), 64);
    nothing("without a tunnel", inner.clone(), &never());
    nothing("from another address", leaving().ip(|ip| ip.source = [192, 168, 0, 7]), &never());
    nothing("for another address", leaving().ip(|ip| ip.destination = [192, 168, 0, 7]), &never());
    nothing("a fragment", leaving().ip(|ip| ip.fragment = 0x2000), &never());
    let mut direct = never();
    direct.routes.values_mut().for_each(|peer| peer.kind = RouteKind::Direct);
    nothing("a peer that is reached without", leaving(), &direct);
}

#[test]
fn what_the_device_delivers_opens_the_way_in() {
    let at = seen_at(Hook::FromOverlay);
    assert_ne!(at.mark & FLOW_MARK, 0);
    let tables = never();
    for source in [THERE.pod(2), THERE.vtep] {
        let frame = Frame::udp(source, HERE.pod(2), 64).macs(HERE.mac, THERE.mac).bytes();
        let note = note_tunnel(Hook::FromOverlay, &frame[..], &tables, &at, None).unwrap();
        let tunnel = Tunnel { ingress: NOW, ..Tunnel::default() };
        assert_eq!(note, TunnelNote { vtep: THERE.vtep, tunnel, reason: Reason::TunnelSeen });
    }
    let unknown = Frame::udp([10, 244, 9, 9], HERE.pod(2), 64).macs(HERE.mac, THERE.mac).bytes();
    assert_eq!(note_tunnel(Hook::FromOverlay, &unknown[..], &tables, &at, None), None);
}

#[test]
fn an_icmp_error_about_the_tunnel_closes_it() {
    let tables = HERE.dual_tables(&[THERE]);
    let at = seen_at(Hook::FromUnderlay);
    let about = leaving().bytes()[14..14 + 28].to_vec();
    let error = |kind: u8, about: &[u8]| {
        let mut message = vec![kind, 4, 0, 0, 0, 0, 5, 20];
        message.extend(about);
        let frame = Frame::ipv4([192, 168, 0, 254], HERE.vtep, 1, message).bytes();
        note_tunnel(Hook::FromUnderlay, &frame[..], &tables, &at, None)
    };
    let closed = Tunnel { egress: 0, differs: NOW, ..TUNNEL };
    let note = TunnelNote { vtep: THERE.vtep, tunnel: closed, reason: Reason::TunnelClosed };
    assert_eq!(error(3, &about), Some(note));
    assert_eq!(error(0, &about), None, "an echo");
    assert_eq!(error(3, &about[..20]), None, "without ports");
    let other = Frame::udp(HERE.vtep, THERE.vtep, 8).bytes()[14..].to_vec();
    assert_eq!(error(3, &other), None, "about something else");
    let about = leaving_v6().bytes()[14..14 + 48].to_vec();
    let mut message = vec![2, 0, 0, 0, 0, 0, 5, 20];
    message.extend(&about);
    let frame = FrameV6::new(THERE.vtep_v6(), HERE.vtep_v6(), 58, message).bytes();
    let note = note_tunnel_v6(Hook::FromUnderlay, &frame[..], &tables, &at, None);
    assert_eq!(
        note,
        Some(TunnelNote { vtep: THERE.vtep_v6(), tunnel: closed, reason: Reason::TunnelClosed })
    );
    assert_eq!(checksum::of(&leaving().ip), leaving().ip.checksum, "the frames are real ones");
}
