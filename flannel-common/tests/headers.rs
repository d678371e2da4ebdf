//! Header views and checksums, judged by etherparse.

use etherparse::{Ethernet2Header, IpDscp, IpEcn, IpFragOffset, Ipv4Header, UdpHeader};
use flannel_common::packet::{
    Packet as _, checksum,
    headers::{Ethernet, IPV4_LEN, Ipv4, Udp, Vxlan},
};
use proptest::prelude::*;

/// Any IPv4 header without options that etherparse can describe; the flag that must be zero is.
fn ipv4() -> impl Strategy<Value = Ipv4> {
    (any::<[u8; IPV4_LEN]>()).prop_map(|mut bytes| {
        bytes[0] = 0x45;
        bytes[6] &= 0x7f;
        Ipv4::parse(&bytes)
    })
}

fn judged(ip: &Ipv4) -> Ipv4Header {
    let Ok((header, _)) = Ipv4Header::from_slice(&ip.bytes()) else { panic!("refused: {ip:?}") };
    header
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn ethernet(bytes: [u8; 14]) {
        let ours = Ethernet::parse(&bytes);
        let (theirs, _) = Ethernet2Header::from_slice(&bytes).unwrap();
        prop_assert_eq!(ours.destination(), theirs.destination);
        prop_assert_eq!(ours.source(), theirs.source);
        prop_assert_eq!(ours.ethertype, theirs.ether_type.0);
        prop_assert_eq!(ours.is_unicast(), theirs.destination[0] % 2 == 0);
        prop_assert_eq!(ours.bytes(), bytes);
    }

    #[test]
    fn ipv4_fields(ip in ipv4()) {
        let theirs = judged(&ip);
        prop_assert_eq!(ip.tos, theirs.dscp.value() << 2 | theirs.ecn.value());
        prop_assert_eq!(ip.total_len, theirs.total_len);
        prop_assert_eq!(ip.id, theirs.identification);
        prop_assert_eq!(ip.fragment & 0x4000 != 0, theirs.dont_fragment);
        prop_assert_eq!(ip.fragment & 0x2000 != 0, theirs.more_fragments);
        prop_assert_eq!(ip.fragment & 0x1fff, theirs.fragment_offset.value());
        prop_assert_eq!(ip.is_fragment(), theirs.is_fragmenting_payload());
        prop_assert_eq!(ip.ttl, theirs.time_to_live);
        prop_assert_eq!(ip.protocol, theirs.protocol.0);
        prop_assert_eq!(ip.checksum, theirs.header_checksum);
        prop_assert_eq!(ip.source, theirs.source);
        prop_assert_eq!(ip.destination, theirs.destination);
    }

    #[test]
    fn ipv4_bytes_are_what_etherparse_writes(
        tos: u8, total_len: u16, id: u16, df: bool, mf: bool, offset in 0u16..0x2000,
        ttl: u8, protocol: u8, source: [u8; 4], destination: [u8; 4],
    ) {
        let mut theirs = Ipv4Header {
            dscp: IpDscp::try_new(tos >> 2).unwrap(),
            ecn: IpEcn::try_new(tos & 3).unwrap(),
            total_len,
            identification: id,
            dont_fragment: df,
            more_fragments: mf,
            fragment_offset: IpFragOffset::try_new(offset).unwrap(),
            time_to_live: ttl,
            protocol: protocol.into(),
            source,
            destination,
            ..Ipv4Header::default()
        };
        theirs.header_checksum = theirs.calc_header_checksum();
        let mut ours = Ipv4 {
            version_ihl: 0x45,
            tos,
            total_len,
            id,
            fragment: u16::from(df) << 14 | u16::from(mf) << 13 | offset,
            ttl,
            protocol,
            checksum: 0xdead,
            source,
            destination,
        };
        ours.checksum = checksum::of(&ours);
        prop_assert_eq!(&ours.bytes()[..], &theirs.to_bytes()[..]);
    }

    #[test]
    fn ipv4_of_any_bytes_is_those_bytes(bytes: [u8; IPV4_LEN]) {
        prop_assert_eq!(Ipv4::parse(&bytes).bytes(), bytes);
    }

    #[test]
    fn udp(bytes: [u8; 8]) {
        let ours = Udp::parse(&bytes);
        let (theirs, _) = UdpHeader::from_slice(&bytes).unwrap();
        prop_assert_eq!(ours.source, theirs.source_port);
        prop_assert_eq!(ours.destination, theirs.destination_port);
        prop_assert_eq!(ours.len, theirs.length);
        prop_assert_eq!(ours.checksum, theirs.checksum);
        prop_assert_eq!(ours.bytes(), bytes);
    }

    #[test]
    fn vxlan(bytes: [u8; 8], vni in 0u32..1 << 24) {
        prop_assert_eq!(Vxlan::parse(&bytes).bytes(), bytes);
        // RFC 7348, section 5: I flag, 24 reserved bits, 24 bits of VNI, 8 reserved bits.
        let [_, a, b, c] = vni.to_be_bytes();
        prop_assert_eq!(Vxlan::of(vni).bytes(), [0x08, 0, 0, 0, a, b, c, 0]);
    }

    #[test]
    fn checksum_whole(ip in ipv4()) {
        let right = judged(&ip).calc_header_checksum();
        prop_assert_eq!(checksum::of(&ip), right);
        prop_assert_eq!(checksum::sum(&Ipv4 { checksum: right, ..ip }), 0xffff);
        // In one's complement 0 is written in two ways, so a header has two right checksums at most.
        let valid = checksum::sum(&ip) == 0xffff;
        prop_assert_eq!(valid, ip.checksum == right || (right == 0 && ip.checksum == 0xffff));
    }

    #[test]
    fn checksum_by_difference(ip in ipv4(), tos: u8, ttl: u8, ours_is_right: bool) {
        let word = |high: u8, low: u8| u16::from_be_bytes([high, low]);
        let mut before = ip;
        if ours_is_right {
            before.checksum = judged(&before).calc_header_checksum();
        }
        let after = Ipv4 { tos, ttl, ..before };
        let updated = checksum::update(
            checksum::update(before.checksum, word(0x45, before.tos), word(0x45, tos)),
            word(before.ttl, before.protocol),
            word(ttl, before.protocol),
        );
        let after = Ipv4 { checksum: updated, ..after };
        // A right one stays right, and a wrong one must not become right.
        let valid = |ip: &Ipv4| checksum::sum(ip) == 0xffff;
        prop_assert_eq!(valid(&before), valid(&after));
        if ours_is_right {
            prop_assert_eq!(updated, judged(&after).calc_header_checksum());
        }
    }

    #[test]
    fn packet_reads_and_writes_within_its_bounds(
        mut frame in prop::collection::vec(any::<u8>(), 0..40), offset in 0usize..50, with: [u8; 6],
    ) {
        let before = frame.clone();
        let fits = offset + with.len() <= frame.len();
        prop_assert_eq!(frame.read::<6>(offset).is_some(), fits);
        prop_assert_eq!(frame.write(offset, with).is_some(), fits);
        if fits {
            prop_assert_eq!(frame.read(offset), Some(with));
            prop_assert_eq!(&frame[..offset], &before[..offset]);
            prop_assert_eq!(&frame[offset + 6..], &before[offset + 6..]);
        } else {
            prop_assert_eq!(frame, before);
        }
    }
}

#[test]
fn reads_far_outside_do_not_overflow() {
    let frame = [0u8; 20];
    assert_eq!(frame.read::<4>(usize::MAX), None);
    assert_eq!(frame.read::<4>(17), None);
    assert_eq!(frame.read::<4>(16), Some([0; 4]));
}
