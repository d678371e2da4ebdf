//! The headers that encapsulation writes, judged by etherparse and by the RFCs.

use std::collections::BTreeSet;

use etherparse::{EtherType, Ethernet2Header, IpNumber, Ipv4Header, UdpHeader};
use flannel_common::{
    family::{ForwardV4, V4},
    layout::{Route, RouteKind},
    packet::hash::{of_flow, of_flow_v6, source_port},
    path::{Encap, HEADERS_AT, HEADERS_LEN},
};
use flannel_common_testing::{Frame, FrameV6, HERE, THERE};
use proptest::prelude::*;

prop_compose! {
    fn peer()(
        vtep: [u8; 4], vni in 0u32..1 << 24, ifindex: u32, next_hop: [u8; 4], vtep_mac: [u8; 6],
        local_mac: [u8; 6],
    ) -> Route<V4> {
        Route { kind: RouteKind::Vxlan, vtep, vni, ifindex, next_hop, mtu: 1500, vtep_mac, local_mac, reserved: [0; 4] }
    }
}

prop_compose! {
    fn encap()(
        route in peer(), source: [u8; 4], port in 1u16.., a: u16, b: u16, inner_tos: u8,
        // Up to the largest whose outer IP length, 36 bytes more, fits 16 bits.
        frame_len in 34u16..=65_535 - 36,
    ) -> Encap<V4> {
        let source_ports = (a.min(b).into(), a.max(b).into());
        let forward = Some(ForwardV4 { tos: None, ttl: 63, protocol: 6, checksum: 0 });
        let inner = Frame::udp(HERE.pod(2), THERE.pod(2), 0).ip(|ip| ip.tos = inner_tos).ip;
        Encap { route, source, port, source_ports, hops: 64, inner, frame_len, forward }
    }
}

/// `udp_flow_src_port` (include/net/udp.h) without the arithmetic of a machine word.
fn kernels_port(hash: u32, min: u32, max: u32) -> u128 {
    let mixed = (u128::from(hash) ^ (u128::from(hash) << 16)) % (1 << 32);
    mixed * u128::from(max - min) / (1 << 32) + u128::from(min)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_field(encap in encap(), id: u16, hash: u32) {
        // The MACs in front are the neighbour table's.
        let mut bytes = vec![0; HEADERS_AT];
        bytes.extend(encap.headers(id, hash));
        prop_assert_eq!(bytes.len(), HEADERS_AT + HEADERS_LEN);

        let (outer, rest) = Ethernet2Header::from_slice(&bytes).unwrap();
        prop_assert_eq!(outer.ether_type, EtherType::IPV4);

        let (ip, rest) = Ipv4Header::from_slice(rest).unwrap();
        prop_assert_eq!(ip.header_checksum, ip.calc_header_checksum());
        prop_assert_eq!(ip.dscp.value(), 0);
        let ecn = match encap.inner.tos & 3 { 3 => 2, mark => mark };
        prop_assert_eq!(ip.ecn.value(), ecn);
        prop_assert_eq!(ip.total_len, 20 + 8 + 8 + encap.frame_len);
        prop_assert_eq!(ip.identification, id);
        prop_assert!(!ip.dont_fragment && !ip.more_fragments);
        prop_assert_eq!(ip.fragment_offset.value(), 0);
        prop_assert_eq!(ip.time_to_live, 64);
        prop_assert_eq!(ip.protocol, IpNumber::UDP);
        prop_assert_eq!(ip.source, encap.source);
        prop_assert_eq!(ip.destination, encap.route.vtep);
        prop_assert!(ip.options.is_empty());

        let (udp, rest) = UdpHeader::from_slice(rest).unwrap();
        let (min, max) = encap.source_ports;
        prop_assert_eq!(u128::from(udp.source_port), kernels_port(hash, min, max));
        prop_assert_eq!(udp.destination_port, encap.port);
        prop_assert_eq!(udp.length, 8 + 8 + encap.frame_len);
        prop_assert_eq!(udp.checksum, 0);

        let (vxlan, rest) = rest.split_at(8);
        let [_, a, b, c] = encap.route.vni.to_be_bytes();
        prop_assert_eq!(vxlan, [0x08, 0, 0, 0, a, b, c, 0]);

        let (inner, rest) = Ethernet2Header::from_slice(rest).unwrap();
        prop_assert_eq!(inner.destination, encap.route.vtep_mac);
        prop_assert_eq!(inner.source, encap.route.local_mac);
        prop_assert_eq!(inner.ether_type, EtherType::IPV4);
        prop_assert!(rest.is_empty());
    }

    #[test]
    fn source_port_is_the_kernels(hash: u32, a: u16, b: u16) {
        let (min, max) = (u32::from(a.min(b)), u32::from(a.max(b)));
        let port = source_port(hash, min, max);
        prop_assert_eq!(u128::from(port), kernels_port(hash, min, max));
        prop_assert!(u32::from(port) >= min);
        prop_assert!(u32::from(port) < max || min == max);
    }
}

#[test]
fn source_ports_use_their_whole_range() {
    let ports = |hash| source_port(hash, 32_768, 60_999);
    assert_eq!(ports(0), 32_768);
    // The hash whose mix with its own lower half is all ones.
    assert_eq!(ports(0x0000_ffff), 60_998);
    // A range the wrong way round, which no kernel accepts, must not overflow.
    assert_eq!(source_port(0x0000_ffff, 60_999, 32_768), 60_999);
}

/// Packets of one flow have one hash, whatever else differs; of many flows few share one.
#[test]
fn a_flow_has_one_hash() {
    let v4 = |flow: u8, len, ttl| {
        let mut frame = Frame::udp(HERE.pod(2), THERE.pod(2), len).ip(|ip| ip.ttl = ttl);
        frame.payload[1] = flow;
        of_flow(&frame.bytes()[..])
    };
    let v6 = |flow: u8, len, hop_limit| {
        let mut frame = FrameV6::udp(HERE.pod_v6(2), THERE.pod_v6(2), len).ip(|ip| ip.hop_limit = hop_limit);
        frame.payload[1] = flow;
        of_flow_v6(&frame.bytes()[..])
    };
    for hash in [&v4 as &dyn Fn(u8, usize, u8) -> Option<u32>, &v6] {
        let mut ports = BTreeSet::new();
        for flow in 0..=255 {
            let one = hash(flow, 10, 64).unwrap();
            assert_eq!(Some(one), hash(flow, 900, 30));
            assert_ne!(one, 0);
            ports.insert(source_port(one, 32_768, 60_999));
        }
        // 256 of 28231 ports collide once on average.
        assert!(ports.len() > 248, "256 flows share {} ports", ports.len());
    }
    assert_eq!(of_flow(&[0; 33][..]), None);
    assert_eq!(of_flow_v6(&[0; 53][..]), None);
}
