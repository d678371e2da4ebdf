//! What is sent through the lab: every byte is checked, every lost packet counted.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};

pub use dialogue::Dialogue;
pub use every_kind::{every_kind, every_kind_both_ways};
pub use forged::forge_reset;
pub use matrix::{Matrix, reachability};
pub use paced::{Loss, Paced, PacedReport};
pub use serving::Serving;
pub use source::source_seen;

use crate::Netns;

pub mod content;
pub mod dialogue;
pub mod every_kind;
mod forged;
pub mod matrix;
pub mod overlay_frame;
pub mod paced;
pub mod ping;
pub mod serving;
pub mod source;
pub mod tcp;
pub mod udp;
pub mod wire;

/// Receive buffer of every UDP socket, bytes: what the machine is too busy to read must not look lost.
const RECEIVE_BUFFER: usize = 8 << 20;

/// How often a blocked receiver looks whether it is to stop.
const TICK: Duration = Duration::from_millis(50);

/// Where traffic starts or ends: an address in a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    name: String,
    netns: Netns,
    address: IpAddr,
}

impl Endpoint {
    /// `address` in `netns`, called `name` in messages.
    pub fn new(name: String, netns: Netns, address: impl Into<IpAddr>) -> Self {
        Self { name, netns, address: address.into() }
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Its address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Its address where that is of IPv4; else 0.0.0.0.
    pub fn address_v4(&self) -> Ipv4Addr {
        match self.address {
            IpAddr::V4(v4) => v4,
            IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
        }
    }

    /// `port` there.
    pub fn socket_address(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.address, port)
    }

    /// What a socket is bound to that talks to here and leaves its address to the kernel.
    pub fn any_address(&self) -> IpAddr {
        match self.address {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        }
    }

    /// The source address the kernel chooses here for packets to `destination`.
    pub fn source_towards(&self, destination: &Self) -> Result<IpAddr> {
        self.netns.inside(|| {
            let socket = UdpSocket::bind((destination.any_address(), 0))?;
            socket
                .connect((destination.address, 9))
                .with_context(|| format!("no route to {}", destination.address))?;
            Ok(socket.local_addr()?.ip())
        })
    }

    /// A UDP socket here, on a port of its own.
    fn udp(&self) -> Result<UdpSocket> {
        self.netns.inside(|| {
            let socket =
                UdpSocket::bind(self.socket_address(0)).with_context(|| format!("bind {}", self.address))?;
            setsockopt(&socket, RcvBufForce, &RECEIVE_BUFFER).context("SO_RCVBUFFORCE")?;
            socket.set_read_timeout(Some(TICK))?;
            Ok(socket)
        })
    }
}

/// Two UDP sockets, each connected to the other.
pub fn udp_pair(a: &Endpoint, b: &Endpoint) -> Result<(UdpSocket, UdpSocket)> {
    let (at_a, at_b) = (a.udp()?, b.udp()?);
    let address = |socket: &UdpSocket| -> Result<SocketAddr> { Ok(socket.local_addr()?) };
    at_a.connect(address(&at_b)?).with_context(|| format!("{} to {}", a.name, b.name))?;
    at_b.connect(address(&at_a)?).with_context(|| format!("{} to {}", b.name, a.name))?;
    Ok((at_a, at_b))
}

/// Whether a receive failed only because nothing came in time, or because an ICMP error did.
fn is_quiet(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{
        ConnectionRefused, HostUnreachable, Interrupted, NetworkUnreachable, TimedOut, WouldBlock,
    };
    matches!(
        error.kind(),
        WouldBlock | TimedOut | Interrupted | ConnectionRefused | HostUnreachable | NetworkUnreachable
    )
        // That a packet sent earlier was too large for a link on its way is told to whoever asks first, sender or receiver.
        || error.raw_os_error() == Some(nix::errno::Errno::EMSGSIZE as i32)
}
