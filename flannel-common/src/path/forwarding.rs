//! Which pods forward for others: routers, those with containers of their own behind a bridge, VPNs.
//!
//! A popped aggregate keeps its tunnel's marks (net/core/filter.c, `bpf_skb_net_shrink`). A socket does not mind, but
//! what sends the aggregate on does: a bridge cuts it into segments. So a pod that forwards gets aggregates that the
//! kernel's device has popped. No setting tells such a pod (a new namespace may forward wherever its host may), and
//! none of its interfaces has to; but what it sends does: a packet that was forwarded has no socket any more.

use super::Tables;
use crate::{
    layout::PodPlace,
    packet::{
        Arrival, Packet,
        headers::{
            ETHERNET_LEN, ETHERTYPE_IPV4, Ethernet, IPV4_LEN, Ipv4, PROTOCOL_TCP, TCP_RST, TCP_TO_FLAGS,
        },
    },
    path::{
        Note,
        flow::{RENEW, age},
    },
};

/// How long a pod counts as one that forwards after it was last seen to, ns. The acknowledgements of what it forwards
/// come by all the time.
pub const HOLDS: u64 = 60_000_000_000;

/// Whether the pod behind veth `ifindex` forwards for others at the time `now`.
#[inline(always)]
pub(super) fn forwards(tables: &impl Tables, ifindex: u32, now: u64) -> bool {
    age(now, tables.forwarded(ifindex)) < HOLDS
}

/// What to write down about a packet at tc ingress on the host side of a pod's veth: that the pod forwards, if the
/// packet tells and it is not known. `then` gets it.
///
/// Of TCP only, whose aggregates it is about. A reset may come from a filter in the pod, without a socket.
#[inline(always)]
pub fn note<R>(
    packet: &(impl Packet + ?Sized),
    tables: &impl Tables,
    arrival: &Arrival,
    then: impl FnOnce(Note) -> R,
) -> Option<R> {
    if arrival.from_socket {
        return None;
    }
    let ethernet = Ethernet::parse(packet.view(0)?);
    if arrival.vlan_tagged || ethernet.ethertype != ETHERTYPE_IPV4 {
        return None;
    }
    let ip = Ipv4::parse(packet.view(ETHERNET_LEN)?);
    if ip.version_ihl != 0x45 || ip.is_fragment() || ip.protocol != PROTOCOL_TCP {
        return None;
    }
    if is_reset(packet, ETHERNET_LEN + IPV4_LEN)? {
        return None;
    }
    let seen = news(tables, arrival, &tables.pod_v4(ip.source)?)?;
    Some(then(Note::Forwards { ifindex: arrival.ifindex, seen }))
}

/// Whether the TCP header at `at` is that of a reset; `None` when the packet ends before it says.
#[inline(always)]
pub(super) fn is_reset(packet: &(impl Packet + ?Sized), at: usize) -> Option<bool> {
    let header: &[u8; TCP_TO_FLAGS] = packet.view(at)?;
    Some(header[TCP_TO_FLAGS - 1] & TCP_RST != 0)
}

/// When `pod`, whose address a packet without a socket comes from, was seen to forward, if that is not known. Only what
/// comes to an address of the pod's own may skip the stack, and so only its answers matter.
#[inline(always)]
pub(super) fn news(tables: &impl Tables, arrival: &Arrival, pod: &PodPlace) -> Option<u64> {
    let now = tables.now();
    let known = pod.ifindex != arrival.ifindex || age(now, tables.forwarded(pod.ifindex)) < RENEW;
    if known { None } else { Some(now) }
}
