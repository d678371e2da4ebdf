//! What somebody sends in another's name.

use std::{net::SocketAddr, os::fd::AsRawFd as _};

use anyhow::{Context as _, Result, bail};
use etherparse::PacketBuilder;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sendto, socket,
};

use super::Endpoint;

/// Sends from `from` a reset of the TCP connection between `source` and `destination`, in the name of `source`, with a
/// number that no end expects.
pub fn forge_reset(from: &Endpoint, source: SocketAddr, destination: SocketAddr) -> Result<()> {
    let ip = match (source, destination) {
        (SocketAddr::V4(source), SocketAddr::V4(destination)) => {
            PacketBuilder::ipv4(source.ip().octets(), destination.ip().octets(), 64)
        }
        (SocketAddr::V6(source), SocketAddr::V6(destination)) => {
            PacketBuilder::ipv6(source.ip().octets(), destination.ip().octets(), 64)
        }
        _ => bail!("{source} and {destination} are of two families"),
    };
    let mut packet = Vec::new();
    ip.tcp(source.port(), destination.port(), 0x1234_5678, 0).rst().write(&mut packet, &[])?;
    // A port is none of a raw socket's business.
    let (family, to) = match destination {
        SocketAddr::V4(to) => (AddressFamily::Inet, SocketAddr::from((*to.ip(), 0))),
        SocketAddr::V6(to) => (AddressFamily::Inet6, SocketAddr::from((*to.ip(), 0))),
    };
    from.netns().inside(|| {
        let socket = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)?;
        sendto(socket.as_raw_fd(), &packet, &SockaddrStorage::from(to), MsgFlags::empty())
            .with_context(|| format!("send a reset from {}", from.name()))?;
        Ok(())
    })
}
