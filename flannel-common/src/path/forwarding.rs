//! Which pods forward for others: routers, those with containers of their own behind a bridge, VPNs.
//!
//! A popped aggregate keeps its tunnel's marks (net/core/filter.c, `bpf_skb_net_shrink`). A socket does not mind, but
//! what sends the aggregate on does: a bridge cuts it into segments. So a pod that forwards gets aggregates that the
//! kernel's device has popped. No setting tells such a pod (a new namespace may forward wherever its host may), and
//! none of its interfaces has to; but what it sends does: a packet that was forwarded has no socket any more.

use super::Tables;
use crate::{
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
    let header: &[u8; TCP_TO_FLAGS] = packet.view(ETHERNET_LEN + IPV4_LEN)?;
    if header[TCP_TO_FLAGS - 1] & TCP_RST != 0 {
        return None;
    }
    // Only what comes to an address of the pod's own may skip the stack, and so only its answers matter.
    let pod = tables.pod_v4(ip.source)?;
    let now = tables.now();
    if pod.ifindex != arrival.ifindex || age(now, tables.forwarded(pod.ifindex)) < RENEW {
        return None;
    }
    Some(then(Note::Forwards { ifindex: pod.ifindex, seen: now }))
}
