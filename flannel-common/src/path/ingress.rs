//! What packets for local pods have in common that have no outer headers, or none any more.

use super::{
    Deliver, Rewrite, Tables,
    egress::segment_len,
    fields,
    gate::{self, Passage},
    tables::Clock,
};
use crate::{
    family::{Family, Forward as _, IpHeader as _},
    layout::{Config, FastPath},
    packet::{Arrival, Packet, headers::ETHERNET_LEN},
    reason::{Direction, Reason},
};

/// How to hand a packet without outer headers to a pod at this time, and how to translate it if it is. Its header `ip` is
/// one for an address in our pod subnet, without options or extensions.
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
) -> Result<(Deliver<F>, Option<Rewrite<F>>), Reason> {
    if ip.hops() <= 1 {
        return Err(Reason::Ttl);
    }
    let pod = tables.pod(ip.destination()).ok_or(Reason::UnknownPod)?;
    let rewrite = if config.fast_path == FastPath::Flow {
        let passage = Passage {
            way: Direction::Ingress,
            ifindex: pod.ifindex,
            gateway: None,
            fields: fields::of(ip.class(), ip.hops()),
            clock,
        };
        gate::admit_to_pod(&passage, packet, ETHERNET_LEN, tables, config, ip)?
    } else {
        None
    };
    let packet_len = segment_len::<F>(packet, ETHERNET_LEN, arrival, ip)?;
    if packet_len > pod.mtu {
        return Err(Reason::TooBig);
    }
    let forward = match &rewrite {
        None => F::Forward::hop(ip),
        Some(rewrite) => F::Forward::hop(ip).translated(rewrite.addresses),
    };
    Ok((Deliver { pod, forward, packet_len }, rewrite))
}
