//! The udp backend's tunnel: a TUN device whose packets this process carries between nodes, each as the payload of one UDP
//! datagram.
//!
//! ```text
//! pods ─▶ flannel0 ─▶ read ─▶ segment ─▶ sendmmsg, UDP_SEGMENT ─▶ other node        outward
//! pods ◀─ flannel0 ◀─ writev ◀─ merge ◀─ recvmmsg, UDP_GRO ◀──── other node         inward
//! ```
//!
//! On the wire it is stock flannel's tunnel: one packet in each datagram, as it is but for its TTL, which each end counts
//! down by one. Between this process and the kernel, many packets go by each system call: the device hands over aggregates
//! of TCP and UDP and takes them back, and so does the socket, where the kernel can.
//!
//! Each way has a thread of its own. What they do with bytes is pure ([`segment`], [`merge`], [`packet`], [`icmp`]); the
//! system is met in [`device`] and [`socket`].

mod answers;
mod batch;
mod counters;
mod device;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod icmp;
mod inward;
mod merge;
mod outward;
mod packet;
mod peers;
mod segment;
mod server;
mod socket;
#[cfg(test)]
mod tests;
mod vnet;

pub use counters::{Count, Counters};
pub use device::{Device, DeviceError};
pub use peers::Peers;
pub use server::{Tunnel, TunnelError};
pub use socket::bind;
