//! A raw socket to one address.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd as _, OwnedFd},
    time::Instant,
};

use nix::{
    errno::Errno,
    libc, setsockopt_impl, sockopt_impl,
    sys::{
        socket::{
            AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, connect, recv, send,
            setsockopt, socket, sockopt::ReceiveTimeout,
        },
        time::{TimeVal, TimeValLike as _},
    },
};

use super::echo::{Answer, HEADER, answer, request};

/// The longest wait in one call, so that the end is not missed.
const TICK_MS: i64 = 50;
/// IP_PMTUDISC_PROBE, IPV6_PMTUDISC_PROBE (include/uapi/linux/in.h): nothing is fragmented, and what was learned of paths
/// is not asked.
const PROBE: libc::c_int = 3;
/// Bytes of payload of a small echo.
const SMALL: u32 = 32;

/// Sends echoes to one address, unfragmented, and receives what it answers.
#[derive(Debug)]
pub(super) struct EchoSocket {
    socket: OwnedFd,
    is_v4: bool,
    identifier: u16,
}

sockopt_impl!(
    /// Whether packets of IPv4 may be fragmented.
    Discovery,
    SetOnly,
    libc::IPPROTO_IP,
    libc::IP_MTU_DISCOVER,
    libc::c_int
);
sockopt_impl!(
    /// Whether packets of IPv6 may be fragmented.
    DiscoveryV6,
    SetOnly,
    libc::IPPROTO_IPV6,
    libc::IPV6_MTU_DISCOVER,
    libc::c_int
);

impl EchoSocket {
    /// Opens one to `to`, from whichever address the route there gives.
    ///
    /// # Errors
    /// `EPERM` without CAP_NET_RAW; no route.
    pub(super) fn open(to: IpAddr) -> Result<Self, Errno> {
        let is_v4 = to.is_ipv4();
        let (family, protocol) = match is_v4 {
            true => (AddressFamily::Inet, SockProtocol::Icmp),
            false => (AddressFamily::Inet6, SockProtocol::IcmpV6),
        };
        let socket = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        setsockopt(&socket, ReceiveTimeout, &TimeVal::milliseconds(TICK_MS))?;
        match is_v4 {
            true => setsockopt(&socket, Discovery, &PROBE)?,
            false => setsockopt(&socket, DiscoveryV6, &PROBE)?,
        }
        // Only what that address sends is received.
        connect(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(to, 0)))?;
        Ok(Self { socket, is_v4, identifier: rand::random() })
    }

    /// Bytes of IP and ICMP headers.
    fn headers(&self) -> u32 {
        HEADER as u32 + if self.is_v4 { 20 } else { 40 }
    }

    /// The size of a small packet, bytes.
    pub(super) fn least(&self) -> u32 {
        self.headers() + SMALL
    }

    /// Sends an echo in a packet of `size` bytes.
    pub(super) fn send(&self, sequence: u16, size: u32) -> Result<(), Errno> {
        let length = size.saturating_sub(self.headers()) as usize;
        let bytes = request(self.is_v4, self.identifier, sequence, length);
        send(self.socket.as_raw_fd(), &bytes, MsgFlags::empty()).map(drop)
    }

    /// The answers until `end`, or until one `is_last`.
    pub(super) fn receive(&self, end: Instant, mut is_last: impl FnMut(&Answer) -> bool) -> Vec<Answer> {
        let mut answers = Vec::new();
        let mut buffer = vec![0; 1 << 16];
        while Instant::now() < end {
            match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) => {
                    let Some(answer) = answer(self.is_v4, &buffer[..length], self.identifier) else {
                        continue;
                    };
                    answers.push(answer);
                    if is_last(&answer) {
                        break;
                    }
                }
                // What a router says of an earlier packet is told once, and waited on for others.
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(_) => std::thread::sleep(std::time::Duration::from_millis(5)),
            }
        }
        answers
    }
}
