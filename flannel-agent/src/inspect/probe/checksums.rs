//! Whether checksums of TCP and UDP are whole on the way, where those of ICMP may be.
//!
//! A packet whose hops end at the peer's node comes back, as it came there, in the node's ICMP message: rules of the node
//! see it only after that. What is answered to a SYN is seen here before TCP drops it for its checksum.
//!
//! Between network namespaces of one machine a checksum may never be made: the kernel's own TCP takes such a segment, and
//! so does what is found here.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    thread::sleep,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, connect, getsockname,
        getsockopt, recv, send, setsockopt, socket, sockopt,
    },
};

use super::{
    PORT,
    segment::{Transport, answers, is_whole, opening, ports},
};

/// Attempts of each packet: a single loss says nothing.
const ATTEMPTS: usize = 2;
/// How long an answer may take at least.
const PATIENCE: Duration = Duration::from_millis(400);
/// A port of UDP that nobody listens at, as `traceroute` has it.
const CLOSED: u16 = 33_434;
/// Bytes of content. An ICMP message quotes 500 bytes and more (RFC 1812).
const CONTENT: usize = 64;
/// Between two looks at what cannot be waited for.
const TICK: Duration = Duration::from_millis(2);

/// What is known of the checksums on the way to a peer and back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checksums {
    /// Whether a segment of TCP that we made came whole to the peer's node; absent where that told nothing.
    pub tcp_there: Option<bool>,
    /// The same of a datagram of UDP.
    pub udp_there: Option<bool>,
    /// Whether an answer of TCP came whole from it; absent where none came.
    pub tcp_back: Option<bool>,
    /// Segments with a checksum that we made are answered, and those whose checksum is left to the device and the card
    /// are not.
    pub lost_by_offload: bool,
}

impl Checksums {
    /// Asks a peer at `to`, an address of its node, which answers within `rtt`. `behind` is one of its subnet's, where packets
    /// with a TTL of `hops` do not get to.
    pub(super) fn look(to: IpAddr, (behind, hops): (Option<IpAddr>, u8), rtt: Duration) -> Self {
        let patience = PATIENCE.max(rtt * 4);
        let there = |transport| behind.and_then(|behind| came_whole((behind, hops), transport, patience));
        let mut found =
            Self { tcp_there: there(Transport::Tcp), udp_there: there(Transport::Udp), ..Self::default() };
        let Ok(heard) = RawSocket::open(to, Transport::Tcp) else { return found };
        match connected(&heard, to, patience) {
            Connected::Answered => found.tcp_back = Some(true),
            Connected::Broken => found.tcp_back = Some(false),
            Connected::Silent => found.lost_by_offload = only_ours_is_answered(&heard, to, patience),
        }
        found
    }
}

/// Whether a packet whose hops end before `behind` came whole to where they do.
fn came_whole((behind, hops): (IpAddr, u8), transport: Transport, patience: Duration) -> Option<bool> {
    let socket = RawSocket::open(behind, transport).ok()?;
    socket.end_after(hops).ok()?;
    for _ in 0..ATTEMPTS {
        let port = if transport == Transport::Tcp { PORT } else { CLOSED };
        let sent = opening(transport, socket.ends, (some_port(), port), CONTENT);
        socket.send(&sent);
        let Some(came) = socket.quoted(&sent, patience) else { continue };
        // Who quotes less shows no checksum's worth; what has other bytes and fits was translated.
        return (came.len() == sent.len()).then(|| came == sent || is_whole(transport, socket.ends, &came));
    }
    None
}

/// What came of a connection that the kernel was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Connected {
    /// With yes or no.
    Answered,
    /// There was an answer, with a wrong checksum.
    Broken,
    Silent,
}

fn connected(heard: &RawSocket, to: IpAddr, patience: Duration) -> Connected {
    let Ok((socket, port)) = connecting(to) else { return Connected::Silent };
    if is_answered(&socket, patience) {
        return Connected::Answered;
    }
    let broken = heard.segments().iter().any(|segment| {
        ports(segment) == Some((PORT, port))
            && !is_whole(Transport::Tcp, (heard.ends.1, heard.ends.0), segment)
    });
    // One that came at this moment, TCP may have taken.
    match broken {
        true if is_answered(&socket, TICK * 10) => Connected::Answered,
        true => Connected::Broken,
        false => Connected::Silent,
    }
}

/// A connection that begins, and its own port.
fn connecting(to: IpAddr) -> Result<(OwnedFd, u16), Errno> {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(family, SockType::Stream, flags, None)?;
    match connect(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(to, PORT))) {
        Ok(()) | Err(Errno::EINPROGRESS | Errno::ECONNREFUSED) => {}
        Err(error) => return Err(error),
    }
    let own = own_address(&socket)?;
    Ok((socket, own.port()))
}

fn is_answered(socket: &OwnedFd, patience: Duration) -> bool {
    let mut ready = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
    let patience = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
    if !matches!(poll(&mut ready, patience), Ok(1..)) {
        return false;
    }
    let failed =
        ready[0].revents().is_some_and(|seen| seen.intersects(PollFlags::POLLERR | PollFlags::POLLHUP));
    match getsockopt(socket, sockopt::SocketError) {
        Ok(0) => !failed,
        Ok(error) => Errno::from_raw(error) == Errno::ECONNREFUSED,
        Err(_) => false,
    }
}

/// Whether SYNs that we made whole are answered, each time, and those of the kernel never.
fn only_ours_is_answered(heard: &RawSocket, to: IpAddr, patience: Duration) -> bool {
    (0..ATTEMPTS).all(|_| {
        let port = some_port();
        heard.segments();
        heard.send(&opening(Transport::Tcp, heard.ends, (port, PORT), 0));
        let end = Instant::now() + patience;
        let mut is_heard = false;
        while !is_heard && Instant::now() < end {
            sleep(TICK);
            let came = heard.segments();
            is_heard = came.iter().any(|segment| ports(segment) == Some((PORT, port)) && answers(segment));
        }
        is_heard && connected(heard, to, patience) == Connected::Silent
    })
}

/// One that the kernel gives to nobody by itself (net.ipv4.ip_local_port_range).
fn some_port() -> u16 {
    rand::random_range(61_000..=u16::MAX)
}

fn own_address(socket: &OwnedFd) -> Result<SocketAddr, Errno> {
    let own: SockaddrStorage = getsockname(socket.as_raw_fd())?;
    let v4 = own.as_sockaddr_in().map(|own| SocketAddr::V4((*own).into()));
    v4.or_else(|| own.as_sockaddr_in6().map(|own| SocketAddr::V6((*own).into()))).ok_or(Errno::EAFNOSUPPORT)
}

/// Sends packets of one protocol to one address, and sees what comes from it.
#[derive(Debug)]
struct RawSocket {
    socket: OwnedFd,
    /// Our address and the other.
    ends: (IpAddr, IpAddr),
}

impl RawSocket {
    fn open(to: IpAddr, transport: Transport) -> Result<Self, Errno> {
        let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let protocol = match transport {
            Transport::Tcp => SockProtocol::Tcp,
            Transport::Udp => SockProtocol::Udp,
        };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(family, SockType::Raw, flags, protocol)?;
        connect(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(to, 0)))?;
        let own = own_address(&socket)?.ip();
        Ok(Self { socket, ends: (own, to) })
    }

    /// Where packets come to after so many hops, the node says what came there instead of forwarding it.
    fn end_after(&self, hops: u8) -> Result<(), Errno> {
        match self.ends.1 {
            IpAddr::V4(_) => {
                setsockopt(&self.socket, sockopt::Ipv4RecvErr, &true)?;
                setsockopt(&self.socket, sockopt::Ipv4Ttl, &hops.into())
            }
            IpAddr::V6(_) => {
                setsockopt(&self.socket, sockopt::Ipv6RecvErr, &true)?;
                setsockopt(&self.socket, sockopt::Ipv6Ttl, &hops.into())
            }
        }
    }

    /// What cannot be sent gets no answer.
    fn send(&self, bytes: &[u8]) {
        let _ = send(self.socket.as_raw_fd(), bytes, MsgFlags::empty());
    }

    /// What an ICMP message quotes of a packet with the ports of `sent`.
    fn quoted(&self, sent: &[u8], patience: Duration) -> Option<Vec<u8>> {
        let end = Instant::now() + patience;
        let mut buffer = [0; 2048];
        while Instant::now() < end {
            match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_ERRQUEUE) {
                Ok(length) if ports(&buffer[..length]) == ports(sent) => {
                    return Some(buffer[..length].to_vec());
                }
                Ok(_) => {}
                Err(_) => sleep(TICK),
            }
        }
        None
    }

    /// All that has come, without its IP header.
    fn segments(&self) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        let mut buffer = vec![0; 1 << 16];
        // No more than a socket's buffer has room for at a time.
        while found.len() < 1000
            && let Ok(length) = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())
        {
            let header = match self.ends.1 {
                IpAddr::V4(_) => usize::from(buffer[0] & 0xf) * 4,
                IpAddr::V6(_) => 0,
            };
            found.extend(buffer[..length].get(header..).map(<[u8]>::to_vec));
        }
        found
    }
}
