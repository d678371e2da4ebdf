//! Any bytes as what the device or the socket of the tunnel hands over: what a fuzzer of it runs.

#![expect(
    clippy::expect_used,
    reason = "what is expected is a promise: a fuzzer is to find where it is broken"
)]

use std::{cell::RefCell, net::Ipv4Addr};

use ipnetwork::Ipv4Network;

use super::{
    batch::Span,
    counters::Counters,
    inward,
    merge::{Item, Merger},
    outward::Outward,
    packet,
    peers::Peers,
    segment,
    vnet::Offload,
};

thread_local! {
    static OUTWARD: RefCell<Outward> = RefCell::new(Outward::new());
}

fn peers() -> Peers {
    let mut peers = Peers::new(8285);
    for node in 2..4u8 {
        if let Ok(subnet) = Ipv4Network::new(Ipv4Addr::new(10, 244, node, 0), 24) {
            peers.insert(subnet, Ipv4Addr::new(192, 168, 0, node));
        }
    }
    peers
}

/// What other nodes have sent: the length of each datagram in two bytes, and the datagram.
///
/// # Panics
/// What is written to the device is not what came, packet by packet.
pub(crate) fn from_nodes(bytes: &[u8]) {
    let mut memory = Vec::new();
    let mut spans = Vec::new();
    let mut rest = bytes;
    while let Some((length, behind)) = rest.split_first_chunk() {
        let (datagram, behind) =
            behind.split_at(behind.len().min(usize::from(u16::from_le_bytes(*length)) % 2048));
        spans.push(Span { start: memory.len(), len: datagram.len() });
        memory.extend_from_slice(datagram);
        rest = behind;
    }
    let (peers, counters) = (peers(), Counters::new());
    let mut merger = Merger::new(true, true);
    let mut taken = Vec::new();
    for (number, span) in spans.into_iter().enumerate() {
        let from = Ipv4Addr::new(192, 168, 0, (number % 4) as u8);
        if inward::take(&mut memory, span, from, &peers, &counters, &mut merger).is_ok() {
            // As it is written: without what stood behind its end, with the TTL counted down.
            let ip = packet::header(&memory[span.range()]).expect("what was taken");
            taken.push(memory[span.start..span.start + usize::from(ip.total_len)].to_vec());
        }
    }
    let items = merger.items();
    assert_eq!(items.iter().map(|item| item.count).sum::<usize>(), taken.len());
    let written = items.iter().flat_map(|item| cut(item, &memory));
    let mut written: Vec<_> = written.map(without_id).collect();
    let mut taken: Vec<_> = taken.into_iter().map(without_id).collect();
    written.sort();
    taken.sort();
    assert_eq!(written, taken);
}

/// The packets that the kernel makes of what is written for `item`.
fn cut(item: &Item, memory: &[u8]) -> Vec<Vec<u8>> {
    let (offload, head, payloads) = item.parts(memory);
    assert_eq!(Offload::parse(&offload.bytes()), Some(offload));
    let mut whole = head.bytes().to_vec();
    payloads.iter().for_each(|span| whole.extend_from_slice(&memory[span.range()]));
    let Some(aggregate) = offload.aggregate else { return vec![whole] };
    let ip = packet::header(&whole).expect("the head of an aggregate");
    let span = Span { start: 0, len: whole.len() };
    let room = whole.len();
    whole.resize(room + 64 * 120, 0);
    let mut pieces = Vec::new();
    let each = |head: Span, body: Span| pieces.push((head, body));
    segment::cut(&mut whole, span, &ip, aggregate, room, each).expect("what was merged can be cut");
    pieces.iter().map(|(head, body)| [&whole[head.range()], &whole[body.range()]].concat()).collect()
}

/// Where nothing is fragmented the identification says nothing, so merging does not keep it, nor the sum over it. The
/// header is otherwise as it was: a packet with options is never merged.
fn without_id(mut packet: Vec<u8>) -> Vec<u8> {
    for at in [4, 5, 10, 11] {
        packet[at] = 0;
    }
    packet
}

/// What the device has handed over: a header of virtio, and a packet or an aggregate.
///
/// # Panics
/// A datagram is none of IPv4, or not whole.
pub(crate) fn from_pods(bytes: &[u8]) {
    let (peers, counters) = (peers(), Counters::new());
    let mut answers = 0;
    OUTWARD.with_borrow_mut(|outward| {
        let answer = |asked: super::answers::Asked<'_>| {
            answers += usize::from(asked.answer([10, 244, 1, 0]).is_some());
        };
        for datagram in outward.given(bytes, &peers, answer, &counters) {
            let ip = packet::header(&datagram).expect("a packet");
            assert_eq!(usize::from(ip.total_len), datagram.len());
        }
    });
    assert!(answers <= 1);
}
