//! From the device to other nodes.

use std::{
    net::UdpSocket,
    sync::{PoisonError, RwLock},
};

use flannel_common::reason::{Direction, Reason};
use nix::errno::Errno;

use super::{
    answers::{Answers, Asked},
    batch::{Datagram, Span},
    counters::Counters,
    device::Device,
    icmp::Problem,
    peers::Peers,
    segment, socket,
    vnet::{self, Offload},
};

/// Memory of one batch: bytes read, and the headers of the pieces they were cut into.
const MEMORY: usize = 512 << 10;
/// What must be free for another read: the longest packet behind its header, and the headers of all its pieces.
const NEEDED: usize = vnet::LEN + (1 << 16) + (96 << 10);
/// Reads of one batch.
const READS: usize = 64;

/// What is read and sent together.
#[derive(Debug)]
pub(super) struct Outward {
    memory: Box<[u8]>,
    used: usize,
    datagrams: Vec<Datagram>,
}

impl Outward {
    pub(super) fn new() -> Self {
        Self { memory: vec![0; MEMORY].into_boxed_slice(), used: 0, datagrams: Vec::new() }
    }

    /// Reads what is there and sends it: whether there was anything.
    ///
    /// # Errors
    /// The device is gone.
    pub(super) fn turn(
        &mut self,
        device: &Device,
        socket: &UdpSocket,
        peers: &RwLock<Peers>,
        answers: &mut Answers,
        counters: &Counters,
    ) -> Result<bool, Errno> {
        self.used = 0;
        self.datagrams.clear();
        let mut reads = 0;
        // Not held while datagrams are sent, which may have to wait.
        let known = peers.read().unwrap_or_else(PoisonError::into_inner);
        while reads < READS && self.used + NEEDED <= self.memory.len() {
            let Some(buffer) = self.memory.get_mut(self.used..self.used + vnet::LEN + (1 << 16)) else {
                break;
            };
            match device.read(buffer) {
                Ok(len) => {
                    reads += 1;
                    self.take(len, &known, |packet| answers.give(packet), counters);
                }
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        drop(known);
        let (mut packets, mut bytes) = (self.datagrams.len() as u64, 0);
        bytes += self.datagrams.iter().map(|datagram| datagram.len() as u64).sum::<u64>();
        socket::send(socket, &self.memory, &self.datagrams, |datagram, _errno| {
            packets -= 1;
            bytes -= datagram.len() as u64;
            counters.note(Direction::Egress, Reason::Refused, datagram.len());
        });
        if packets > 0 {
            counters.carry(Direction::Egress, packets, bytes);
        }
        Ok(reads > 0)
    }

    /// Makes datagrams of the `len` bytes that were read behind what is used.
    fn take(&mut self, len: usize, peers: &Peers, answer: impl FnOnce(Asked<'_>), counters: &Counters) {
        let start = self.used + vnet::LEN;
        let whole = Span { start, len: len.saturating_sub(vnet::LEN) };
        if let Err(reason) = self.datagrams_of(whole, peers, answer) {
            counters.note(Direction::Egress, reason, whole.len);
        }
    }

    /// The datagrams that are made of `bytes`, as if the device had handed them over.
    #[cfg(any(test, fuzzing))]
    pub(super) fn given(
        &mut self,
        bytes: &[u8],
        peers: &Peers,
        answer: impl FnOnce(Asked<'_>),
        counters: &Counters,
    ) -> Vec<Vec<u8>> {
        (self.used, self.datagrams) = (0, Vec::new());
        let len = bytes.len().min(vnet::LEN + (1 << 16));
        self.memory[..len].copy_from_slice(&bytes[..len]);
        self.take(len, peers, answer, counters);
        let pieces =
            |datagram: &Datagram| datagram.pieces.map(|piece| self.memory[piece.range()].to_vec()).concat();
        self.datagrams.iter().map(pieces).collect()
    }

    fn datagrams_of(
        &mut self,
        whole: Span,
        peers: &Peers,
        answer: impl FnOnce(Asked<'_>),
    ) -> Result<(), Reason> {
        let header = self.memory.get(self.used..).and_then(|rest| rest.first_chunk::<{ vnet::LEN }>());
        let offload = header.and_then(Offload::parse).ok_or(Reason::TooBig)?;
        let packet = self.memory.get_mut(whole.range()).ok_or(Reason::Truncated)?;
        let ip = super::packet::header(packet)?;
        let Some(to) = peers.to(ip.destination) else {
            answer(Asked { packet, ip: &ip, problem: Problem::NetUnreachable });
            return Err(Reason::NoRoute);
        };
        if ip.ttl <= 1 {
            answer(Asked { packet, ip: &ip, problem: Problem::TimeExceeded });
        }
        let ip = segment::enter(&mut self.memory, whole)?;
        let end = whole.start + whole.len;
        match offload.aggregate {
            None => {
                let packet = self.memory.get_mut(whole.range()).ok_or(Reason::Truncated)?;
                segment::complete(packet, &ip, &offload)?;
                let packet = Span { start: whole.start, len: usize::from(ip.total_len) };
                self.datagrams.push(Datagram { to, pieces: [packet, Span::default()] });
                self.used = end;
            }
            Some(aggregate) => {
                let datagrams = &mut self.datagrams;
                let each = |head, body| datagrams.push(Datagram { to, pieces: [head, body] });
                self.used = end + segment::cut(&mut self.memory, whole, &ip, aggregate, end, each)?;
            }
        }
        Ok(())
    }
}
