//! From a verdict to what the kernel is told.

use aya_ebpf::{
    bindings::{
        TC_ACT_SHOT, TC_ACT_UNSPEC,
        xdp_action::{XDP_DROP, XDP_PASS},
    },
    programs::TcContext,
};
use aya_log_ebpf::{debug, warn};
use flannel_common::{
    layout::{PodPlace, PoppedFor},
    packet::{
        Arrival, Packet, hash,
        headers::{ETHERNET_LEN, ETHERTYPE_IPV4, Ethernet, Ipv4},
    },
    path::{
        Deliver, Direct, Encap, HEADERS_AT, HEADERS_LEN, Note, Routing, Tables as _, TunnelNote, egress,
        flow, forged, forwarding, gate, ingress, moved, trail, tunnel,
    },
    reason::{Direction, Reason},
};

use crate::{
    ctx::{NextHop, Size, Skb, XdpFrame},
    maps,
};

/// What has been done with a packet: the tc action, and why.
#[derive(Clone, Copy)]
pub(crate) struct Done {
    pub(crate) action: i32,
    pub(crate) reason: Reason,
}

impl Done {
    /// Left to the kernel, unchanged. Other people's programs behind ours still see it.
    #[inline(always)]
    pub(crate) const fn kernel(reason: Reason) -> Self {
        Self { action: TC_ACT_UNSPEC, reason }
    }
}

/// Sets the mark on a pod's packet that stays with the kernel, if it is one to keep its address.
#[inline(always)]
pub(crate) fn mark_exempt(skb: Skb, verdict: Result<Done, Reason>) -> Result<Done, Reason> {
    let reason = match verdict {
        Ok(Done { action: TC_ACT_UNSPEC, reason }) | Err(reason) => reason,
        moved => return moved,
    };
    if !egress::is_exempt(&skb, &maps::Maps, reason) {
        return Err(reason);
    }
    skb.mark(maps::marks().exempt);
    Err(egress::exempt_reason(reason))
}

/// Whether a packet of a pod is VXLAN that no pod may send.
#[inline(always)]
pub(crate) fn is_forged(ctx: &TcContext) -> bool {
    if forged::is_out_of_question(&Skb::of(ctx, 0), &maps::Maps) {
        return false;
    }
    let skb = Skb::of(ctx, tunnel::READS as u32);
    forged::is_for_a_node(&skb, &maps::Maps, &skb.arrival())
}

/// Drops such a packet.
#[inline(always)]
pub(crate) fn drop_forged(ctx: &TcContext, direction: Direction) -> i32 {
    maps::count(direction, Reason::PodVxlan, Skb::of(ctx, 0).size());
    TC_ACT_SHOT
}

/// Sets the mark on what other nodes send, and only the kernel's device can pop, if nothing else keeps it from a pod.
#[inline(always)]
pub(crate) fn mark_checked(skb: Skb, verdict: Result<Done, Reason>) -> Result<Done, Reason> {
    if let Err(reason) = verdict
        && ingress::is_checked(reason)
    {
        skb.mark(maps::marks().flow);
    }
    verdict
}

/// Writes down what a packet of a pod says about the pod.
#[inline(always)]
pub(crate) fn take_note_of_pod(skb: Skb, size: Size) {
    let write_down = |note: Note| {
        maps::write_down(&note);
        maps::count(Direction::Egress, note.reason(), size);
    };
    moved::note(&skb, &maps::Maps, &skb.arrival(), write_down);
    forwarding::note(&skb, &maps::Maps, &skb.arrival(), write_down);
}

/// Notes beside a packet of IPv4, which stands at what `offset` says and is left to the kernel's path by the flow gate,
/// what rules may change of it there.
#[inline(always)]
pub(crate) fn begin(skb: Skb, verdict: &Result<Done, Reason>, offset: impl FnOnce() -> Option<usize>) {
    if let Err(reason) = verdict
        && flow::is_refusal(*reason)
        && let Some(ip) = offset().and_then(|offset| skb.view(offset)).map(Ipv4::parse)
    {
        skb.note_beside(trail::begins(ip.tos, ip.ttl));
    }
}

/// Writes down what the packet, at the end of the kernel's path, says about its flow.
#[inline(always)]
pub(crate) fn take_note(skb: Skb, size: Size, direction: Direction) {
    let arrival = skb.arrival();
    flow::note(direction, &skb, &maps::Maps, &arrival, |note| {
        maps::write_down(&note);
        maps::count(direction, note.reason(), size);
    });
    end(skb, &arrival);
}

/// Takes the note away that [`begin`] has made beside the packet: nobody else knows it.
#[inline(always)]
pub(crate) fn end(skb: Skb, arrival: &Arrival) {
    if trail::is_ours(arrival.tc_index) {
        skb.note_beside(0);
    }
}

/// Writes down what the kernel's own packet, about to leave, says about the tunnel it takes.
#[inline(always)]
pub(crate) fn take_note_of_tunnel(ctx: &TcContext, skb: Skb, size: Size) {
    if gate::is_outer(&skb, &maps::Maps) != Some(true) {
        return;
    }
    let skb = Skb::of(ctx, gate::LEAVING_READS as u32);
    let Some(source) = maps::Maps.config().map(|config| config.vtep) else { return };
    let route = |destination| skb.underlay_route(source, destination);
    gate::note_leaving(&skb, &maps::Maps, &skb.arrival(), route, |note| {
        write_down_tunnel(&note, Direction::Egress, size);
    });
}

/// Writes down what is noted about a tunnel.
#[inline(always)]
pub(crate) fn write_down_tunnel(note: &TunnelNote, direction: Direction, size: Size) {
    maps::write_down_tunnel(note);
    maps::count(direction, note.reason, size);
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
    // Taken first: the inner headers are the outermost only now.
    let hash = skb.flow_hash(hash::of_flow);
    let id = maps::next_id(Direction::Egress, reason);
    if skb.push_vxlan().is_none() {
        return Done::kernel(Reason::Refused);
    }
    let headers = encap.headers(id, hash);
    let written = skb.write(HEADERS_AT, headers).and_then(|()| match encap.forward {
        Some(forward) => forward.write(&mut skb, HEADERS_AT + HEADERS_LEN),
        None => Some(()),
    });
    // Headers that could be read before the push can be written after it: the verifier needs the
    // check, no packet meets it.
    if written.is_none() {
        return Done { action: TC_ACT_SHOT, reason: Reason::Refused };
    }
    if encap.forward.is_none() {
        skb.drop_route();
    }
    Done { action: skb.redirect_neighbour(encap.peer.ifindex, encap.peer.next_hop), reason }
}

/// Sends the packet to the peer as it is.
#[inline(always)]
pub(crate) fn route<A: NextHop, F: Routing>(mut skb: Skb, direct: &Direct<A, F>, reason: Reason) -> Done {
    if direct.forward.write(&mut skb, ETHERNET_LEN).is_none() {
        return Done { action: TC_ACT_SHOT, reason: Reason::Refused };
    }
    Done { action: direct.next_hop.redirect(skb, direct.ifindex), reason }
}

/// Pops VXLAN and hands the packet to the pod.
#[inline(always)]
pub(crate) fn pop(mut skb: Skb, deliver: &Deliver, reason: Reason) -> Done {
    // A redirect to a veth that is gone, or too small, would lose the packet.
    if let Err(reason) = skb.fits(deliver.pod.ifindex, deliver.packet_len) {
        return Done::kernel(reason);
    }
    if skb.pop_vxlan().is_none() {
        return Done::kernel(Reason::Refused);
    }
    give(skb, deliver, reason)
}

/// Hands the packet to the pod as it is.
#[inline(always)]
pub(crate) fn hand<F: Routing>(skb: Skb, deliver: &Deliver<F>, reason: Reason) -> Done {
    match skb.fits(deliver.pod.ifindex, deliver.packet_len) {
        Ok(()) => give(skb, deliver, reason),
        Err(reason) => Done::kernel(reason),
    }
}

/// Hands the packet, which fits, to the pod.
#[inline(always)]
pub(crate) fn give<F: Routing>(mut skb: Skb, deliver: &Deliver<F>, reason: Reason) -> Done {
    let Deliver { pod, forward, packet_len: _ } = deliver;
    let ethernet = Ethernet::new(pod.mac, pod.gateway_mac, F::ETHERTYPE);
    let written = skb.write(0, ethernet.bytes()).and_then(|()| forward.write(&mut skb, ETHERNET_LEN));
    if written.is_none() {
        return Done { action: TC_ACT_SHOT, reason: Reason::Refused };
    }
    Done { action: skb.redirect_peer(pod.ifindex), reason }
}

/// Hands on to `pod` what XDP has popped for it. A frame for another station, or with a tag that the card had
/// taken out of it, was not ours to pop: the kernel does with it as with every such frame.
#[inline(always)]
pub(crate) fn hand_on(mut skb: Skb, pod: &PodPlace) -> Result<Done, Reason> {
    let arrival = skb.arrival();
    if arrival.vlan_tagged {
        return Err(Reason::Vlan);
    }
    if arrival.for_other_station {
        return Err(Reason::NotVxlan);
    }
    // Each frame was held to the pod's MTU when it was popped.
    skb.fits(pod.ifindex, 0)?;
    let ethernet = Ethernet::new(pod.mac, pod.gateway_mac, ETHERTYPE_IPV4);
    if skb.write(0, ethernet.bytes()).is_none() {
        return Err(Reason::Truncated);
    }
    Ok(Done { action: skb.redirect_peer(pod.ifindex), reason: Reason::DeliverPod })
}

/// What becomes of a stranger's frame, which is counted for `reason`.
#[inline(always)]
pub(crate) fn judge(frame: XdpFrame, reason: Reason) -> u32 {
    maps::count(Direction::Ingress, reason, frame.size());
    if matches!(reason, Reason::VtepDropped) { XDP_DROP } else { XDP_PASS }
}

/// Pops VXLAN and says in front of the frame which pod it is for. It keeps the stations of the underlay, so that
/// the kernel sees whose it is, and could route it if nobody else did.
#[inline(always)]
pub(crate) fn pop_early(mut frame: XdpFrame, deliver: &Deliver, reason: Reason, size: Size) -> u32 {
    let Deliver { pod, forward, packet_len } = deliver;
    let Some(ethernet) = frame.view(0).map(Ethernet::parse) else { return XDP_PASS };
    if frame.fits(pod.ifindex, *packet_len).is_err() || frame.prepend(PoppedFor::to(pod)).is_none() {
        return XDP_PASS;
    }
    if frame.pop_vxlan().is_none() {
        frame.take_back();
        return XDP_PASS;
    }
    let written = frame.write(0, ethernet.bytes()).and_then(|()| forward.write(&mut frame, ETHERNET_LEN));
    // As with the pop in tc: the verifier needs the check, no packet meets it.
    if written.is_none() {
        return XDP_DROP;
    }
    maps::count(Direction::Ingress, reason, size);
    XDP_PASS
}
