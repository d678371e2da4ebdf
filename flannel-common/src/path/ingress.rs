//! What packets for local pods have in common that have no outer headers, or none any more.

use super::{
    Deliver, Tables,
    egress::segment_len,
    flow::{self, Passage},
    tables::Clock,
};
use crate::{
    family::{Family, Forward as _, IpHeader as _},
    layout::{Config, FastPath},
    packet::{Arrival, Packet, headers::ETHERNET_LEN},
    reason::{Direction, Reason},
};

/// How to hand a packet without outer headers to a pod at this time. Its header `ip` is one for an address in our pod
/// subnet, without options or extensions.
///
/// # Errors
/// Why the packet is the kernel's.
#[inline(always)]
pub(super) fn deliver_to<F: Family>(
    packet: &(impl Packet + ?Sized),
    tables: &impl Tables<F>,
    arrival: &Arrival,
    config: &Config<F>,
    ip: &F::Header,
    clock: Clock,
) -> Result<Deliver<F>, Reason> {
    if ip.hops() <= 1 {
        return Err(Reason::Ttl);
    }
    let pod = tables.pod(ip.destination()).ok_or(Reason::UnknownPod)?;
    if config.fast_path == FastPath::Flow {
        let passage = Passage { way: Direction::Ingress, ifindex: pod.ifindex, gateway: 0, clock };
        flow::admit(&passage, packet, ETHERNET_LEN, tables, config, ip)?;
    }
    let packet_len = segment_len::<F>(packet, ETHERNET_LEN, arrival, ip)?;
    Ok(Deliver { pod, forward: F::Forward::hop(ip), packet_len })
}
