//! Datagrams that are sent together.

use std::{io::IoSlice, net::SocketAddrV4, ops::Range};

/// A stretch of a batch's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Span {
    /// Offset of its first byte.
    pub(super) start: usize,
    /// Length, bytes.
    pub(super) len: usize,
}

impl Span {
    /// What it spans.
    pub(super) fn range(self) -> Range<usize> {
        self.start..self.start + self.len
    }
}

/// One datagram: a packet in two pieces, the second of which may be empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Datagram {
    pub(super) to: SocketAddrV4,
    pub(super) pieces: [Span; 2],
}

impl Datagram {
    /// Length of the payload, bytes.
    pub(super) fn len(&self) -> usize {
        self.pieces[0].len + self.pieces[1].len
    }
}

/// So many datagrams the kernel makes of one message (include/linux/udp.h, UDP_MAX_SEGMENTS; 128 in younger kernels).
const MOST_SEGMENTS: usize = 64;
/// The longest message: 65535 bytes with its headers.
const LONGEST: usize = 65_507;

/// How many of `datagrams`, from the first on, can go by one message: of the same length to the same node, but for the last,
/// which may be shorter.
pub(super) fn run(datagrams: &[Datagram]) -> usize {
    let Some(first) = datagrams.first() else { return 0 };
    let (mut count, mut bytes) = (1, first.len());
    for next in datagrams.iter().skip(1).take(MOST_SEGMENTS - 1) {
        let len = next.len();
        if next.to != first.to || len > first.len() || bytes + len > LONGEST {
            break;
        }
        count += 1;
        bytes += len;
        if len < first.len() {
            break;
        }
    }
    count
}

/// The pieces of `datagrams` in `memory`, one after the other.
pub(super) fn pieces<'a>(memory: &'a [u8], datagrams: &[Datagram]) -> Vec<IoSlice<'a>> {
    let mut slices = Vec::with_capacity(datagrams.len() * 2);
    for piece in datagrams.iter().flat_map(|datagram| datagram.pieces).filter(|piece| piece.len > 0) {
        if let Some(bytes) = memory.get(piece.range()) {
            slices.push(IoSlice::new(bytes));
        }
    }
    slices
}
