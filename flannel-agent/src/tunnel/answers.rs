//! ICMP errors for packets that cannot go on.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::{AsRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use flannel_common::packet::headers::Ipv4;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket,
};
use tracing::warn;

use super::icmp::{Answer, Problem};

/// Answers a second, as many as the kernel's own at most (net.ipv4.icmp_msgs_per_sec).
const ANSWERS: u32 = 1000;

/// A packet that is answered by an error.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    pub(super) packet: &'a [u8],
    pub(super) ip: &'a Ipv4,
    pub(super) problem: Problem,
}

impl Asked<'_> {
    /// Who is answered.
    fn sender(&self) -> Ipv4Addr {
        self.ip.source.into()
    }

    /// The answer of the node at `from`.
    pub(super) fn answer(&self, from: [u8; 4]) -> Option<Answer> {
        Answer::to(self.packet, self.ip, self.problem, from)
    }
}

/// Errors that are sent back, not more of them than the kernel would send.
#[derive(Debug)]
pub(super) struct Answers {
    /// For packets with a header of ours. By the device the kernel would take none from an address of its own.
    socket: Option<OwnedFd>,
    pub(super) from: [u8; 4],
    left: u32,
    since: Instant,
}

impl Answers {
    pub(super) fn new() -> Self {
        let raw = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw);
        if let Err(errno) = &raw {
            warn!(%errno, "packets for subnets of nobody get no ICMP answer: the agent needs CAP_NET_RAW for that");
        }
        Self { socket: raw.ok(), from: [0; 4], left: ANSWERS, since: Instant::now() }
    }

    /// Answers whoever has sent the packet.
    pub(super) fn give(&mut self, asked: Asked<'_>) {
        if self.since.elapsed() >= Duration::from_secs(1) {
            (self.left, self.since) = (ANSWERS, Instant::now());
        }
        if self.left == 0 {
            return;
        }
        if let Some((socket, answer)) = self.socket.as_ref().zip(asked.answer(self.from)) {
            self.left -= 1;
            let to = SockaddrIn::from(SocketAddrV4::new(asked.sender(), 0));
            // One that the kernel refuses is one that is lost on its way.
            let _ = sendto(socket.as_raw_fd(), answer.bytes(), &to, MsgFlags::MSG_DONTWAIT);
        }
    }
}
