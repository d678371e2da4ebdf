//! Which pods forward for others: routers, those with containers of their own behind a bridge, VPNs.
//!
//! An aggregate that a program has decapsulated keeps its tunnel's GSO flags (net/core/filter.c, `bpf_skb_net_shrink`).
//! A socket ignores them, but what sends the aggregate on does not: a bridge cuts it into segments. So a pod that
//! forwards gets aggregates that the kernel's device has decapsulated. No setting tells such a pod (a new namespace may
//! forward wherever its host may), and none of its interfaces has to; but what it sends does: a packet that was
//! forwarded has no socket any more.

use super::{
    NodeTables, Note, Tables,
    acceptance::{RENEW, age},
};
use crate::{
    family::{Family, IpHeader as _},
    packet::{
        Arrival, Packet,
        headers::{ETHERNET_LEN, Ethernet, PROTOCOL_TCP, TCP_RST, TCP_TO_FLAGS},
    },
};

/// How long a pod counts as one that forwards after it was last seen to, ns. The acknowledgements of what it forwards
/// come by all the time.
pub const HOLDS: u64 = 60_000_000_000;

/// Whether the pod behind veth `ifindex` forwards for others at the time `now`.
#[inline(always)]
pub(super) fn forwards(tables: &impl NodeTables, ifindex: u32, now: u64) -> bool {
    age(now, tables.forwarded(ifindex)) < HOLDS
}

/// What to write down about a packet at tc ingress on the host side of a pod's veth: that the pod forwards, if the
/// packet tells and it is not known. `then` gets it.
///
/// Of TCP only, whose aggregates it is about. A reset may come from a filter in the pod, without a socket.
#[inline(always)]
pub(super) fn note<F: Family, R>(
    packet: &(impl Packet + ?Sized),
    tables: &impl Tables<F>,
    arrival: &Arrival,
    then: impl FnOnce(Note<F>) -> R,
) -> Option<R> {
    if arrival.from_socket {
        return None;
    }
    if arrival.vlan_tagged || Ethernet::parse(packet.view(0)?).ethertype != F::ETHERTYPE {
        return None;
    }
    let ip = F::Header::read(packet, ETHERNET_LEN)?;
    if ip.check().is_err() || ip.protocol() != PROTOCOL_TCP {
        return None;
    }
    let tcp: &[u8; TCP_TO_FLAGS] = packet.view(ETHERNET_LEN + F::IP_LEN)?;
    if tcp[TCP_TO_FLAGS - 1] & TCP_RST != 0 {
        return None;
    }
    // Only what comes to an address of the pod's own may skip the stack, and so only its answers matter.
    let pod = tables.pod(ip.source())?;
    let now = tables.now();
    if pod.ifindex != arrival.ifindex || age(now, tables.forwarded(pod.ifindex)) < RENEW {
        return None;
    }
    Some(then(Note::Forwards { ifindex: arrival.ifindex, seen: now }))
}
