//! The entry points, one per hook, in the order a packet meets them.

use aya_ebpf::{
    bindings::{TC_ACT_UNSPEC, xdp_action::XDP_PASS},
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use flannel_common::{
    packet::headers::ETHERNET_LEN,
    path::{
        self, early, egress, flow, gate,
        ingress::{self, FROM_UNDERLAY_READS},
    },
    reason::{Direction, Reason},
};

use crate::{
    act,
    ctx::{self, Skb, XdpFrame},
    maps::{self, Maps},
    v6,
};

/// Bytes that an egress decision reads: Ethernet, IPv4 and the start of TCP.
const EGRESS_READS: u32 = 14 + 20 + 20;

/// tc ingress, host side of a pod's veth: what the pod sends.
#[classifier]
fn from_pod(ctx: TcContext) -> i32 {
    // First, and not only for what stays with the kernel: the verifier then walks through it once.
    if act::is_forged(&ctx) {
        return act::drop_forged(&ctx, Direction::Egress);
    }
    if Skb::is_ipv6(&ctx) {
        return v6::from_pod(&ctx);
    }
    let skb = Skb::of(&ctx, EGRESS_READS);
    let size = skb.size();
    act::take_note_of_pod(skb, size);
    let verdict = egress::from_pod(
        &skb,
        &Maps,
        &skb.arrival(),
        |encap, reason| act::push(skb, &encap, reason),
        |direct, reason| act::route(skb, &direct, reason),
    );
    act::begin(skb, &verdict, || Some(ETHERNET_LEN));
    act::conclude(&ctx, size, Direction::Egress, act::mark_exempt(skb, verdict))
}

/// tc egress, flannel.<vni> and flannel-v6.<vni>: what the kernel routed into the overlay.
#[classifier]
fn to_overlay(ctx: TcContext) -> i32 {
    if Skb::is_ipv6(&ctx) {
        return v6::to_overlay(&ctx);
    }
    let skb = Skb::of(&ctx, EGRESS_READS);
    let size = skb.size();
    act::take_note(skb, size, Direction::Egress);
    // The outer packet takes the mark over, and is routed by it.
    skb.unmark(maps::marks().both());
    let verdict =
        egress::to_overlay(&skb, &Maps, &skb.arrival(), |encap, reason| act::push(skb, &encap, reason));
    act::conclude(&ctx, size, Direction::Egress, verdict)
}

/// tc ingress, external interface: what other nodes send.
#[classifier]
fn from_underlay(ctx: TcContext) -> i32 {
    if Skb::is_ipv6(&ctx) {
        return v6::from_underlay(&ctx);
    }
    let skb = Skb::of(&ctx, FROM_UNDERLAY_READS as u32);
    let size = skb.size();
    if let Some(pod) = skb.popped_for() {
        return act::conclude(&ctx, size, Direction::Ingress, act::hand_on(skb, &pod));
    }
    let verdict = ingress::from_underlay(
        &skb,
        &Maps,
        &skb.arrival(),
        |deliver, reason| act::pop(skb, &deliver, reason),
        |deliver, reason| act::hand(skb, &deliver, reason),
    );
    if matches!(verdict, Err(Reason::NotVxlan)) {
        gate::note_error(&skb, &Maps, |note| {
            act::write_down_tunnel(&note, Direction::Ingress, size);
        });
    }
    act::begin(skb, &verdict, || ingress::found_at(&skb, &Maps));
    act::conclude(&ctx, size, Direction::Ingress, act::mark_checked(skb, verdict))
}

/// tc ingress, flannel.<vni> and flannel-v6.<vni>: what the kernel has decapsulated. Only what `from_underlay` has checked
/// and leaves to the kernel no further than that; and what no pod may send.
#[classifier]
fn from_overlay(ctx: TcContext) -> i32 {
    if Skb::mark_of(&ctx) & maps::marks().flow == 0 {
        return if act::is_forged(&ctx) { act::drop_forged(&ctx, Direction::Ingress) } else { TC_ACT_UNSPEC };
    }
    if Skb::is_ipv6(&ctx) {
        return v6::from_overlay(&ctx);
    }
    let skb = Skb::of(&ctx, EGRESS_READS);
    skb.unmark(maps::marks().flow);
    let size = skb.size();
    gate::note_delivered(&skb, &Maps, |note| act::write_down_tunnel(&note, Direction::Ingress, size));
    let verdict =
        path::from_overlay(&skb, &Maps, &skb.arrival(), |deliver, reason| act::hand(skb, &deliver, reason));
    act::conclude(&ctx, size, Direction::Ingress, verdict)
}

/// tc egress, host side of a pod's veth: what the kernel's path brings the pod.
#[classifier]
fn to_pod(ctx: TcContext) -> i32 {
    if Skb::is_ipv6(&ctx) {
        return v6::to_pod(&ctx);
    }
    let skb = Skb::of(&ctx, EGRESS_READS);
    act::take_note(skb, skb.size(), Direction::Ingress);
    // Here ends its use, here as at the other ends of the kernel's path.
    skb.unmark(maps::marks().both());
    TC_ACT_UNSPEC
}

/// tc egress, external interface: what the kernel's path sends to other nodes, in VXLAN or without a tunnel.
#[classifier]
fn to_underlay(ctx: TcContext) -> i32 {
    // Told before any byte is looked at.
    if Skb::take_redirected(&ctx) {
        return TC_ACT_UNSPEC;
    }
    let marked = flow::has_our_mark(Skb::mark_of(&ctx), maps::marks());
    if Skb::is_ipv6(&ctx) {
        return v6::to_underlay(&ctx, marked);
    }
    let skb = Skb::of(&ctx, EGRESS_READS);
    let size = skb.size();
    if marked {
        act::take_note(skb, size, Direction::Egress);
        skb.unmark(maps::marks().both());
    }
    act::take_note_of_tunnel(&ctx, skb, size);
    TC_ACT_UNSPEC
}

/// XDP in the driver of the external interface: strangers, and what can be popped before packets are merged.
#[xdp(frags)]
fn xdp_underlay(ctx: XdpContext) -> u32 {
    let frame = XdpFrame::of(&ctx);
    if let Some(reason) = early::stranger(&frame, &Maps, &frame.arrival()) {
        return act::judge(frame, reason);
    }
    let size = frame.size();
    let popped = early::pop(&frame, &Maps, &frame.arrival(), |deliver, reason| {
        act::pop_early(frame, &deliver, reason, size)
    });
    popped.unwrap_or(XDP_PASS)
}

/// Generic XDP on the external interface: strangers.
///
/// Not for frames of several buffers: of those the kernel makes a copy that does not know the length of its
/// Ethernet header (net/core/skbuff.c, `skb_pp_cow_data`; seen with 6.18), so that programs of tc behind it see the
/// frame without one. For others it makes the frame one piece, and nothing is lost.
#[xdp]
fn xdp_generic(ctx: XdpContext) -> u32 {
    let frame = XdpFrame::of(&ctx);
    early::stranger(&frame, &Maps, &frame.arrival()).map_or(XDP_PASS, |reason| act::judge(frame, reason))
}

/// Attached nowhere: tries what the kernel makes of the flags of the programs above.
#[classifier]
fn try_room(ctx: TcContext) -> i32 {
    ctx::try_room(&ctx)
}
