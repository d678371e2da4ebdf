//! From a verdict to what the kernel is told.

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    programs::TcContext,
};
use aya_log_ebpf::{debug, warn};
use flannel_common::{
    packet::{
        Packet,
        headers::{ENCAP_LEN, ETHERNET_LEN, ETHERTYPE_IPV4, Ethernet},
    },
    path::{Deliver, Encap, Forward, HEADERS_LEN},
    reason::{Direction, Reason},
};

use crate::{
    ctx::{Size, Skb},
    maps,
};

/// What has been done with a packet: the tc action, and why.
#[derive(Clone, Copy)]
pub(crate) struct Done {
    action: i32,
    reason: Reason,
}

impl Done {
    /// Left to the kernel, unchanged. Other people's programs behind ours still see it.
    #[inline(always)]
    const fn kernel(reason: Reason) -> Self {
        Self { action: TC_ACT_UNSPEC, reason }
    }
}

/// Counts the packet, in the size it came with, and returns the tc action.
#[inline(always)]
pub(crate) fn conclude(
    ctx: &TcContext,
    size: Size,
    direction: Direction,
    verdict: Result<Done, Reason>,
) -> i32 {
    let Done { action, reason } = verdict.unwrap_or_else(Done::kernel);
    maps::count(direction, reason, size);
    match reason {
        Reason::Spoofed | Reason::InnerSource | Reason::Refused | Reason::PodGone => {
            warn!(ctx, "direction {} reason {} length {}", direction as u32, reason as u32, size.bytes);
        }
        _ => debug!(ctx, "direction {} reason {} length {}", direction as u32, reason as u32, size.bytes),
    }
    action
}

/// Pushes VXLAN and sends the packet to the peer.
#[inline(always)]
pub(crate) fn push(mut skb: Skb, encap: &Encap, reason: Reason) -> Done {
    // Taken first: the hash covers the inner flow only while the inner headers are the outermost.
    let hash = skb.flow_hash();
    if skb.push_vxlan().is_none() {
        return Done::kernel(Reason::Refused);
    }
    let headers = encap.headers(Skb::random_id(), hash);
    let written = skb.write(0, headers).and_then(|()| match encap.forward {
        Some(forward) => write_forward(&mut skb, HEADERS_LEN, forward),
        None => Some(()),
    });
    // Headers that could be read before the push can be written after it: the verifier needs the
    // check, no packet meets it.
    if written.is_none() {
        return Done { action: TC_ACT_SHOT, reason: Reason::Refused };
    }
    Done { action: skb.redirect_neighbour(encap.peer.ifindex, encap.peer.next_hop), reason }
}

/// Pops VXLAN and hands the packet to the pod.
#[inline(always)]
pub(crate) fn pop(mut skb: Skb, deliver: &Deliver, reason: Reason) -> Done {
    let Deliver { pod, forward } = deliver;
    // A redirect to a veth that is gone, or too small, would lose the packet.
    if let Err(reason) = skb.fits_after_pop(pod.ifindex) {
        return Done::kernel(reason);
    }
    if skb.pop_vxlan().is_none() {
        return Done::kernel(Reason::Refused);
    }
    let ethernet = Ethernet { destination: pod.mac, source: pod.gateway_mac, ethertype: ETHERTYPE_IPV4 };
    let written =
        skb.write(0, ethernet.bytes()).and_then(|()| write_forward(&mut skb, ETHERNET_LEN, *forward));
    if written.is_none() {
        return Done { action: TC_ACT_SHOT, reason: Reason::Refused };
    }
    Done { action: skb.redirect_peer(pod.ifindex), reason }
}

/// Writes TOS, TTL and checksum of the IPv4 header at `offset`.
#[inline(always)]
fn write_forward(skb: &mut Skb, offset: usize, forward: Forward) -> Option<()> {
    skb.write(offset + 1, [forward.tos])?;
    skb.write(offset + 8, [forward.ttl])?;
    skb.write(offset + 10, forward.checksum.to_be_bytes())
}

const _: () = assert!(ENCAP_LEN == 50);
