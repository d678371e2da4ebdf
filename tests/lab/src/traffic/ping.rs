//! ICMP echo.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use etherparse::{IcmpEchoHeader, Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, Ipv4HeaderSlice};
use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, connect, recv,
            send, setsockopt, socket, sockopt::ReceiveTimeout,
        },
        time::{TimeVal, TimeValLike as _},
    },
};

use super::{Endpoint, TICK, content::Content};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// Sends one echo request with `size` bytes of payload; how long its answer, with the same payload, took.
/// A `size` beyond the path's MTU goes in fragments.
pub fn ping(from: &Endpoint, to: &Endpoint, size: usize) -> Result<Duration> {
    let identifier: u16 = rand::random();
    let mut payload = vec![0; size];
    Content::new(u64::from(identifier)).fill(&mut payload);
    let echo = IcmpEchoHeader { id: identifier, seq: 1 };
    let request = match to.address() {
        IpAddr::V4(_) => {
            let header = Icmpv4Header::with_checksum(Icmpv4Type::EchoRequest(echo), &payload);
            header.to_bytes().to_vec()
        }
        // The kernel fills in the checksum (RFC 3542, 3.1).
        IpAddr::V6(_) => Icmpv6Header::new(Icmpv6Type::EchoRequest(echo)).to_bytes().to_vec(),
    };
    let request = [request.as_slice(), &payload].concat();

    let exchange = || -> Result<Duration> {
        let (family, protocol) = match to.address() {
            IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp),
            IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
        };
        let socket = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol).context("raw socket")?;
        setsockopt(&socket, ReceiveTimeout, &TimeVal::milliseconds(TICK.as_millis() as i64))?;
        let file = std::os::fd::AsRawFd::as_raw_fd(&socket);
        bind(file, &SockaddrStorage::from(from.socket_address(0)))?;
        // Only what that address sends is received.
        connect(file, &SockaddrStorage::from(to.socket_address(0))).context("connect")?;
        let start = Instant::now();
        send(file, &request, MsgFlags::empty()).context("send echo request")?;
        let mut buffer = vec![0; 66_000];
        while start.elapsed() < PATIENCE {
            let length = match recv(file, &mut buffer, MsgFlags::empty()) {
                Ok(length) => length,
                Err(Errno::EAGAIN | Errno::EINTR) => continue,
                Err(error) => return Err(error).context("receive"),
            };
            if let Some(answer) = answer(&buffer[..length], to, echo) {
                ensure!(answer == payload, "the answer's payload differs");
                return Ok(start.elapsed());
            }
        }
        bail!("no answer within {PATIENCE:?}")
    };
    from.netns().inside(exchange).with_context(|| {
        format!(
            "ping of {size} bytes from {} ({}) to {} ({})",
            from.name(),
            from.address(),
            to.name(),
            to.address()
        )
    })
}

/// The payload of `packet` if it answers `echo`. IPv6 hands over no header of its own.
fn answer<'a>(packet: &'a [u8], from: &Endpoint, echo: IcmpEchoHeader) -> Option<&'a [u8]> {
    if from.address().is_ipv6() {
        let (icmp, payload) = Icmpv6Header::from_slice(packet).ok()?;
        return (icmp.icmp_type == Icmpv6Type::EchoReply(echo)).then_some(payload);
    }
    let ip = Ipv4HeaderSlice::from_slice(packet).ok()?;
    let (icmp, payload) = Icmpv4Header::from_slice(packet.get(ip.slice().len()..)?).ok()?;
    (ip.source_addr() == from.address() && icmp.icmp_type == Icmpv4Type::EchoReply(echo)).then_some(payload)
}
