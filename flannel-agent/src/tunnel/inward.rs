//! From other nodes to the device.

use std::{
    io::IoSlice,
    net::{Ipv4Addr, UdpSocket},
    sync::{PoisonError, RwLock},
};

use flannel_common::reason::{Direction, Reason};
use nix::errno::Errno;

use super::{
    batch::Span,
    counters::Counters,
    device::Device,
    merge::{Item, Merger},
    packet,
    peers::Peers,
    segment,
    socket::{self, MESSAGE, MESSAGES},
};

/// What is received and written together.
#[derive(Debug)]
pub(super) struct Inward {
    memory: Box<[u8]>,
    merger: Merger,
}

impl Inward {
    pub(super) fn new(device: &Device) -> Self {
        let merger = Merger::new(device.has_tcp_aggregates(), device.has_udp_aggregates());
        Self { memory: vec![0; MESSAGE * MESSAGES].into_boxed_slice(), merger }
    }

    /// Receives what is there and gives it to the kernel: whether there was anything.
    ///
    /// # Errors
    /// The socket or the device is gone.
    pub(super) fn turn(
        &mut self,
        device: &Device,
        socket: &UdpSocket,
        peers: &RwLock<Peers>,
        counters: &Counters,
    ) -> Result<bool, Errno> {
        self.merger.clear();
        let merger = &mut self.merger;
        let known = peers.read().unwrap_or_else(PoisonError::into_inner);
        let received = socket::receive(socket, &mut self.memory, |memory, start, message| {
            let end = start + message.len;
            for at in (start..end).step_by(message.size.max(1)) {
                let datagram = Span { start: at, len: message.size.min(end - at) };
                if let Err(reason) = take(memory, datagram, message.from, &known, counters, merger) {
                    counters.note(Direction::Ingress, reason, datagram.len);
                }
            }
        });
        drop(known);
        match received {
            Ok(0) | Err(Errno::EAGAIN | Errno::EINTR) => return Ok(false),
            Ok(_) => {}
            Err(errno) => return Err(errno),
        }
        let (mut packets, mut bytes) = (0, 0);
        for item in self.merger.items() {
            let written = write(device, &self.memory, item)?;
            if written < item.count {
                counters.note(Direction::Ingress, Reason::Refused, item.bytes);
            } else {
                packets += item.count as u64;
                bytes += item.bytes as u64;
            }
        }
        if packets > 0 {
            counters.carry(Direction::Ingress, packets, bytes);
        }
        Ok(true)
    }
}

/// Hands a datagram's packet to `merger`. Who is not known, or speaks for others, is noted and heard all the same: as
/// by stock flannel, and as by the kernel's VXLAN device.
pub(super) fn take(
    memory: &mut [u8],
    datagram: Span,
    from: Ipv4Addr,
    peers: &Peers,
    counters: &Counters,
    merger: &mut Merger,
) -> Result<(), Reason> {
    let packet = memory.get(datagram.range()).ok_or(Reason::Truncated)?;
    let ip = packet::header(packet)?;
    if !peers.is_known(from) {
        counters.note(Direction::Ingress, Reason::UnknownVtep, datagram.len);
    } else if !peers.is_of(from, ip.source) {
        counters.note(Direction::Ingress, Reason::InnerSource, datagram.len);
    }
    let ip = segment::enter(memory, datagram)?;
    merger.take(memory, Span { start: datagram.start, len: usize::from(ip.total_len) }, &ip);
    Ok(())
}

/// Writes an item: how many of its packets the kernel has taken.
fn write(device: &Device, memory: &[u8], item: &Item) -> Result<usize, Errno> {
    let (offload, head, payloads) = item.parts(memory);
    let header = offload.bytes();
    let mut pieces = Vec::with_capacity(payloads.len() + 2);
    pieces.push(IoSlice::new(&header));
    if !head.bytes().is_empty() {
        pieces.push(IoSlice::new(head.bytes()));
    }
    pieces.extend(payloads.iter().filter_map(|span| Some(IoSlice::new(memory.get(span.range())?))));
    let result = device.write(&pieces);
    match result {
        Ok(()) => return Ok(item.count),
        Err(Errno::EBADFD) => return Err(Errno::EBADFD),
        Err(_) if item.count == 1 => return Ok(0),
        Err(_) => {}
    }
    let mut written = 0;
    for packet in item.packets().filter_map(|span| memory.get(span.range())) {
        written += usize::from(device.write_one(packet).is_ok());
    }
    Ok(written)
}
