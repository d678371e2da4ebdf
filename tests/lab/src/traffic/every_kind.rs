//! One of each kind of traffic a cluster carries.

use std::time::Duration;

use anyhow::Result;

use super::{
    Endpoint,
    ping::ping,
    tcp, udp,
    udp::{HEADERS, HEADERS_V6, Receiver},
};
use crate::wait::eventually;

/// MTU of pods over an underlay of 1500 bytes.
pub const POD_MTU: usize = 1450;

/// What VXLAN over IPv6 carries of the same underlay. Pods of a cluster with both families have the larger MTU, and
/// are told of this one as by a router.
pub const POD_MTU_V6: usize = 1430;

/// Bytes of one TCP transfer: enough for the window to open and the largest packets to form.
const BULK: u64 = 48 << 20;

/// How long a pod may take to learn an MTU.
const LEARNING: Duration = Duration::from_secs(10);

/// Datagrams of each UDP size.
const DATAGRAMS: u64 = 100;

/// Sends each kind from `from` to `to`, with answers where there are any: ICMP small, filling the MTU and
/// in fragments; UDP likewise; UDP GSO to both kinds of receiver; TCP with large GSO.
pub fn every_kind(from: &Endpoint, to: &Endpoint) -> Result<()> {
    let full = if from.address().is_ipv4() { POD_MTU - HEADERS } else { POD_MTU_V6 - HEADERS_V6 };
    if from.address().is_ipv6() {
        // The first that is too large is what tells the pod. Not one that goes in fragments: where connections are
        // tracked, the node may put those together and cut them anew without a word.
        eventually(LEARNING, "the pod knows the path's MTU", || ping(from, to, full + 1))?;
        eventually(LEARNING, "the other pod does", || ping(to, from, full + 1))?;
    }
    for size in [0, 56, full, full + 1, 5000] {
        ping(from, to, size)?;
    }
    for size in [1, 64, full, 3 * full] {
        udp::echo(from, to, size, DATAGRAMS)?;
    }
    for receiver in [Receiver::Plain, Receiver::Gro] {
        udp::gso(from, to, full, 40, 5, receiver)?;
        udp::gso(from, to, 100, 64, 5, receiver)?;
    }
    tcp::bulk(from, to, BULK)?;
    Ok(())
}

/// [`every_kind`] from each of the two to the other.
pub fn every_kind_both_ways(a: &Endpoint, b: &Endpoint) -> Result<()> {
    every_kind(a, b)?;
    every_kind(b, a)
}
