use std::net::{Ipv4Addr, SocketAddrV4};

use flannel_common::{
    packet::{
        checksum::{self, sum_of},
        headers::Ipv4,
    },
    reason::Reason,
};
use proptest::{collection::vec, prelude::*};

use super::{
    batch::{Datagram, Span, run},
    icmp::{Answer, Problem},
    merge::Merger,
    packet::{self, is_right, pseudo_header, write},
    segment::{complete, cut, enter},
    vnet::{Kind, Offload},
};

/// A packet from pod 10.1.2.3 to pod 10.1.9.9, with right checksums.
fn packet(protocol: u8, id: u16, transport: &[u8], payload: &[u8]) -> Vec<u8> {
    let len = transport.len() + payload.len();
    let mut ip = Ipv4 {
        version_ihl: 0x45,
        tos: 0,
        total_len: (20 + len) as u16,
        id,
        fragment: 0x4000,
        ttl: 63,
        protocol,
        checksum: 0,
        source: [10, 1, 2, 3],
        destination: [10, 1, 9, 9],
    };
    ip.checksum = checksum::of(&ip);
    let mut bytes = ip.bytes().to_vec();
    bytes.extend_from_slice(transport);
    bytes.extend_from_slice(payload);
    let at = 20 + packet::checksum_at(protocol).unwrap();
    write(&mut bytes, at, 0);
    let sum = pseudo_header(&ip, len) + sum_of(&bytes[20..]);
    write(&mut bytes, at, packet::finished(protocol, sum));
    bytes
}

fn tcp(id: u16, sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = [0; 32];
    header[..4].copy_from_slice(&[0x9c, 0x40, 0x14, 0x51]);
    header[4..8].copy_from_slice(&sequence.to_be_bytes());
    header[8..12].copy_from_slice(&7u32.to_be_bytes());
    header[12..16].copy_from_slice(&[0x80, flags, 0x01, 0xf6]);
    header[20..24].copy_from_slice(&[1, 1, 8, 10]);
    packet(6, id, &header, payload)
}

fn udp(id: u16, payload: &[u8]) -> Vec<u8> {
    let mut header = [0x9c, 0x40, 0x14, 0x51, 0, 0, 0, 0];
    write(&mut header, 4, (8 + payload.len()) as u16);
    packet(17, id, &header, payload)
}

/// Each packet in a place of its own.
fn memory_of(packets: &[Vec<u8>]) -> (Vec<u8>, Vec<Span>) {
    let mut memory = Vec::new();
    let spans = packets.iter().map(|packet| {
        let span = Span { start: memory.len(), len: packet.len() };
        memory.extend_from_slice(packet);
        span
    });
    let spans = spans.collect();
    (memory, spans)
}

/// What is written to the device: header and packet.
fn written(packets: &[Vec<u8>], merger: &mut Merger) -> Vec<(Offload, Vec<u8>)> {
    let (memory, spans) = memory_of(packets);
    for span in spans {
        let ip = packet::header(&memory[span.range()]).unwrap();
        merger.take(&memory, span, &ip);
    }
    let all = merger.items().iter().map(|item| {
        let (offload, head, payloads) = item.parts(&memory);
        let mut bytes = head.bytes().to_vec();
        payloads.iter().for_each(|payload| bytes.extend_from_slice(&memory[payload.range()]));
        (Offload::parse(&offload.bytes()).unwrap(), bytes)
    });
    all.collect()
}

/// What an item stands for, as the kernel and we would cut it.
fn pieces((offload, bytes): &(Offload, Vec<u8>)) -> Vec<Vec<u8>> {
    let ip = packet::header(bytes).unwrap();
    let Some(aggregate) = offload.aggregate else { return vec![bytes.clone()] };
    let whole = Span { start: 0, len: bytes.len() };
    let mut memory = bytes.clone();
    memory.resize(bytes.len() + (64 << 10), 0);
    let mut spans = Vec::new();
    cut(&mut memory, whole, &ip, aggregate, bytes.len(), |head, body| spans.push((head, body))).unwrap();
    let piece = |(head, body): &(Span, Span)| [&memory[head.range()], &memory[body.range()]].concat();
    spans.iter().map(piece).collect()
}

#[test]
fn segments_that_follow_each_other_become_one_write() {
    let body = |n: u8| vec![n; 100];
    let packets = [
        tcp(1, 1000, 0x10, &body(1)),
        tcp(2, 1100, 0x10, &body(2)),
        tcp(3, 1200, 0x18, &[3; 40]),
        tcp(4, 1240, 0x10, &body(4)),
    ];
    let items = written(&packets, &mut Merger::new(true, true));
    assert_eq!(items.len(), 2, "PSH and the short segment end the first");
    let (offload, bytes) = &items[0];
    assert_eq!(offload.aggregate, Some((Kind::Tcp, 100)));
    assert_eq!((offload.checksum, offload.headers), (Some((20, 16)), 52));
    assert_eq!(packet::header(bytes).unwrap().total_len as usize, 52 + 240);
    assert_eq!(bytes[20 + 13], 0x18);
    let again: Vec<_> = items.iter().flat_map(pieces).collect();
    assert_eq!(again, packets);
}

#[test]
fn what_the_kernel_could_not_cut_again_is_not_merged() {
    let body = [1; 100];
    let first = tcp(1, 1000, 0x10, &body);
    let change = |at: usize, value: u8| {
        let mut other = tcp(2, 1100, 0x10, &body);
        other[at] = value;
        let (header, payload) = other[20..].split_at(32);
        let mut made = packet(6, 2, header, payload);
        made[..20].copy_from_slice(&other[..20]);
        let mut ip = Ipv4::parse(made.first_chunk().unwrap());
        ip.checksum = checksum::of(&ip);
        made[..20].copy_from_slice(&ip.bytes());
        made
    };
    let mut corrupt = tcp(2, 1100, 0x10, &body);
    corrupt[80] ^= 1;
    let cases = [
        ("a gap", tcp(2, 1101, 0x10, &body)),
        ("FIN", tcp(2, 1100, 0x11, &body)),
        ("longer", tcp(2, 1100, 0x10, &[1; 101])),
        ("TOS", change(1, 4)),
        ("TTL", change(8, 62)),
        ("another acknowledgement", change(31, 8)),
        ("another window", change(35, 8)),
        ("another time stamp", change(50, 8)),
        ("a wrong checksum", corrupt),
        ("no payload", tcp(2, 1100, 0x10, &[])),
    ];
    for (why, second) in cases {
        let packets = [first.clone(), second, tcp(3, 5000, 0x10, &body)];
        let items = written(&packets, &mut Merger::new(true, true));
        let as_they_came: Vec<_> = items.iter().map(|(_, bytes)| bytes.clone()).collect();
        assert_eq!(as_they_came, packets, "{why}");
    }
    let wrong_first = {
        let mut packet = first.clone();
        packet[80] ^= 1;
        packet
    };
    let packets = [wrong_first, tcp(2, 1100, 0x10, &body)];
    assert_eq!(written(&packets, &mut Merger::new(true, true)).len(), 2);
    let packets = [first.clone(), tcp(2, 1100, 0x10, &body)];
    assert_eq!(written(&packets, &mut Merger::new(false, false)).len(), 2, "a device that takes none");
}

#[test]
fn datagrams_of_one_length_are_merged_where_the_device_takes_them() {
    let packets = [udp(1, &[1; 64]), udp(2, &[2; 64]), udp(3, &[3; 20]), udp(4, &[4; 64])];
    let items = written(&packets, &mut Merger::new(true, true));
    assert_eq!(items.len(), 2);
    assert_eq!(items[0].0.aggregate, Some((Kind::Udp, 64)));
    assert_eq!(items.iter().flat_map(pieces).collect::<Vec<_>>(), packets);
    assert_eq!(written(&packets, &mut Merger::new(true, false)).len(), 4);
    // Without a checksum the payload cannot be told to be right.
    let mut plain = udp(2, &[2; 64]);
    write(&mut plain, 26, 0);
    assert_eq!(written(&[packets[0].clone(), plain], &mut Merger::new(true, true)).len(), 2);
}

#[test]
fn flows_that_come_mixed_keep_their_own_order() {
    let other = |id: u16| {
        let mut packet = udp(id, &[9; 64]);
        packet[20] = 1;
        let (ip, segment) = packet.split_at_mut(20);
        let ip = Ipv4::parse(ip.first_chunk().unwrap());
        write(segment, 6, 0);
        let sum = pseudo_header(&ip, segment.len()) + sum_of(segment);
        write(segment, 6, packet::finished(17, sum));
        packet
    };
    let packets = [udp(1, &[1; 64]), other(1), udp(2, &[2; 64]), other(2)];
    let items = written(&packets, &mut Merger::new(true, true));
    assert_eq!(items.len(), 2);
    let order: Vec<_> = items.iter().flat_map(pieces).collect();
    assert_eq!(order, [&packets[0], &packets[2], &packets[1], &packets[3]].map(Clone::clone));
}

#[test]
fn the_ttl_is_counted_down_and_ends() {
    let mut memory = udp(1, b"x");
    let whole = Span { start: 0, len: memory.len() };
    let ip = enter(&mut memory, whole).unwrap();
    assert_eq!((ip.ttl, memory[8]), (62, 62));
    assert_eq!(checksum::sum(&packet::header(&memory).unwrap()), 0xffff);
    memory[8] = 1;
    assert_eq!(enter(&mut memory, whole), Err(Reason::Ttl));
}

#[test]
fn what_is_no_packet_is_told_apart() {
    let good = udp(1, b"payload");
    let with = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        packet::header(&bytes)
    };
    assert_eq!(packet::header(&good[..19]), Err(Reason::Truncated));
    assert_eq!(packet::header(&good[..30]), Err(Reason::Truncated));
    assert_eq!(with(0, 0x65), Err(Reason::NotIp));
    assert_eq!(with(0, 0x44), Err(Reason::Truncated));
    assert_eq!(with(3, 19), Err(Reason::Truncated));
    assert!(packet::header(&good).is_ok());
}

#[test]
fn a_checksum_left_to_us_is_completed() {
    let good = udp(1, &[7; 33]);
    let ip = packet::header(&good).unwrap();
    let mut bytes = good.clone();
    write(&mut bytes, 26, checksum::fold(pseudo_header(&ip, good.len() - 20)));
    let offload = Offload { checksum: Some((20, 6)), ..Offload::default() };
    complete(&mut bytes, &ip, &offload).unwrap();
    assert_eq!(bytes, good);
    let beyond = Offload { checksum: Some((20, 4000)), ..Offload::default() };
    assert_eq!(complete(&mut bytes, &ip, &beyond), Err(Reason::Truncated));
}

#[test]
fn answers_quote_the_packet_and_errors_get_none() {
    let asked = udp(1, b"payload");
    let ip = packet::header(&asked).unwrap();
    let answer = Answer::to(&asked, &ip, Problem::NetUnreachable, [10, 1, 2, 0]).unwrap();
    let bytes = answer.bytes();
    let outer = packet::header(bytes).unwrap();
    assert_eq!((outer.source, outer.destination, outer.ttl), ([10, 1, 2, 0], ip.source, 8));
    assert_eq!(&bytes[20..22], &[3, 0]);
    assert_eq!(checksum::fold(sum_of(&bytes[20..])), 0xffff);
    assert_eq!(&bytes[28..], &asked[..28]);
    // No answer to an answer, to a later fragment, to a group.
    let again = packet::header(bytes).unwrap();
    assert!(Answer::to(bytes, &again, Problem::TimeExceeded, [10, 1, 2, 0]).is_none());
    let late = Ipv4 { fragment: 3, ..ip };
    assert!(Answer::to(&asked, &late, Problem::TimeExceeded, [10, 1, 2, 0]).is_none());
    let group = Ipv4 { destination: [224, 0, 0, 251], ..ip };
    assert!(Answer::to(&asked, &group, Problem::NetUnreachable, [10, 1, 2, 0]).is_none());
}

#[test]
fn a_run_is_of_one_length_to_one_node() {
    let to = |last, len| Datagram {
        to: SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, last), 8285),
        pieces: [Span { start: 0, len }, Span::default()],
    };
    assert_eq!(run(&[]), 0);
    assert_eq!(run(&[to(1, 100), to(1, 100), to(1, 60), to(1, 100)]), 3);
    assert_eq!(run(&[to(1, 100), to(1, 101)]), 1);
    assert_eq!(run(&[to(1, 100), to(2, 100)]), 1);
    assert_eq!(run(&[to(1, 1472); 60]), 44, "as long as a message may be");
    assert_eq!(run(&[to(1, 100); 200]), 64);
}

proptest! {
    #[test]
    fn sums_are_those_of_words(bytes in vec(any::<u8>(), 0..200)) {
        let mut padded = bytes.clone();
        padded.resize(bytes.len().next_multiple_of(2), 0);
        let plain = padded.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum::<u32>();
        prop_assert_eq!(checksum::fold(sum_of(&bytes)) % 0xffff, checksum::fold(plain) % 0xffff);
    }

    /// Whatever is merged comes out as it went in when it is cut again, each flow in its order.
    #[test]
    fn merged_and_cut_again_packets_are_as_they_were(
        script in vec((any::<bool>(), 0u8..4, 1usize..300, any::<bool>(), any::<bool>()), 1..40)
    ) {
        let (mut sequence, mut id) = (0xffff_f000u32, 0u16);
        let mut packets = Vec::new();
        for (is_tcp, jump, len, same, push) in script {
            let len = if same { 100 } else { len };
            id = id.wrapping_add(1);
            let payload = vec![id as u8; len];
            packets.push(if is_tcp {
                if jump == 3 {
                    sequence = sequence.wrapping_add(9);
                }
                let packet = tcp(id, sequence, if push { 0x18 } else { 0x10 }, &payload);
                sequence = sequence.wrapping_add(len as u32);
                packet
            } else {
                udp(id, &payload)
            });
        }
        let items = written(&packets, &mut Merger::new(true, true));
        let again: Vec<_> = items.iter().flat_map(pieces).collect();
        for protocol in [6, 17] {
            // The identification is not kept: with DF set nobody may look at it.
            let of = |all: &[Vec<u8>]| -> Vec<Vec<u8>> {
                all.iter().filter(|bytes| bytes[9] == protocol).map(|bytes| [&bytes[..4], &bytes[6..10], &bytes[12..]].concat()).collect()
            };
            prop_assert_eq!(of(&again), of(&packets));
        }
        for bytes in &again {
            let ip = packet::header(bytes).unwrap();
            prop_assert!(checksum::sum(&ip) == 0xffff && is_right(&ip, &bytes[20..]));
        }
    }

    /// Bytes from anywhere make nobody panic.
    #[test]
    fn noise_is_taken_or_refused(mut bytes in vec(any::<u8>(), 0..400), size in 0usize..80, tcp in any::<bool>()) {
        if let Some(first) = bytes.first_mut() {
            *first = 0x40 | (*first & 0xf);
        }
        let whole = Span { start: 0, len: bytes.len() };
        let mut memory = bytes.clone();
        memory.resize(bytes.len() + 4096, 0);
        if let Ok(ip) = enter(&mut memory, whole) {
            let _ = Answer::to(&memory[whole.range()], &ip, Problem::TimeExceeded, [1, 2, 3, 4]);
            let mut merger = Merger::new(true, true);
            let packet = Span { start: 0, len: usize::from(ip.total_len) };
            merger.take(&memory, packet, &ip);
            merger.take(&memory, packet, &ip);
            merger.items().iter().for_each(|item| assert!(item.parts(&memory).2.len() <= 2));
            let kind = if tcp { Kind::Tcp } else { Kind::Udp };
            let _ = cut(&mut memory, whole, &ip, (kind, size), bytes.len(), |_, _| {});
            let offload = Offload { checksum: Some((size, size)), ..Offload::default() };
            let _ = complete(&mut memory[..bytes.len()], &ip, &offload);
        }
    }
}
