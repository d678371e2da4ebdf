//! The entry points' other half: what they do with IPv6 packets.

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    programs::TcContext,
};
use flannel_common::{
    family::V6,
    layout::AddressV6,
    packet::{
        Packet as _, hash,
        headers::ETHERNET_LEN,
        ipv6::{IPV6_LEN, Ipv6},
    },
    path::{
        Note, Routing as _, Tables as _, TunnelNote,
        egress::exempt_reason,
        flow::is_refusal,
        trail,
        v6::{
            self as path, Deliver, Encap, HEADERS_AT, HEADERS_LEN, HandOver, egress, flow, forwarding, gate,
            ingress, moved,
        },
    },
    reason::{Direction, Reason},
};

use crate::{
    act::{self, Done, conclude},
    ctx::{Size, Skb},
    maps::{self, Maps},
};

/// What a pod sends.
#[inline(always)]
pub(crate) fn from_pod(ctx: &TcContext) -> i32 {
    let skb = Skb::of(ctx, egress::READS as u32);
    let size = skb.size();
    let write_down = |note: Note<V6>| {
        maps::write_down_v6(&note);
        maps::count(Direction::Egress, note.reason(), size);
    };
    moved::note(&skb, &Maps, &skb.arrival(), write_down);
    forwarding::note(&skb, &Maps, &skb.arrival(), write_down);
    let verdict = egress::from_pod(
        &skb,
        &Maps,
        &skb.arrival(),
        |encap, reason| push(skb, &encap, reason),
        |to, reason| hand_over(skb, &to, reason),
        |direct, reason| act::route(skb, &direct, reason),
    );
    begin(skb, &verdict, || Some(ETHERNET_LEN));
    let verdict = match verdict {
        Ok(Done { action: TC_ACT_UNSPEC, reason }) | Err(reason)
            if egress::is_exempt(&skb, &Maps, reason) =>
        {
            skb.mark(maps::marks().exempt);
            Err(exempt_reason(reason))
        }
        other => other,
    };
    conclude(ctx, size, Direction::Egress, verdict)
}

/// What the kernel routed into the overlay, and what [`from_pod`] handed to it.
#[inline(always)]
pub(crate) fn to_overlay(ctx: &TcContext) -> i32 {
    let skb = Skb::of(ctx, egress::READS as u32);
    let size = skb.size();
    let arrival = skb.arrival();
    if egress::is_handed_over(&arrival, maps::marks()) {
        skb.unmark(maps::marks().both());
        return TC_ACT_UNSPEC;
    }
    take_note(skb, size, Direction::Egress);
    skb.unmark(maps::marks().both());
    let verdict = egress::to_overlay(&skb, &Maps, &arrival, |encap, reason| push(skb, &encap, reason));
    conclude(ctx, size, Direction::Egress, verdict)
}

/// What other nodes send.
#[inline(always)]
pub(crate) fn from_underlay(ctx: &TcContext) -> i32 {
    let skb = Skb::of(ctx, ingress::READS as u32);
    let size = skb.size();
    let verdict = ingress::from_underlay(
        &skb,
        &Maps,
        &skb.arrival(),
        |deliver, reason| pop(skb, &deliver, reason),
        |deliver, reason| act::hand(skb, &deliver, reason),
    );
    if matches!(verdict, Err(Reason::NotVxlan)) {
        gate::note_error(&skb, &Maps, |note| write_down_tunnel(&note, Direction::Ingress, size));
    }
    begin(skb, &verdict, || ingress::found_at(&skb, &Maps));
    conclude(ctx, size, Direction::Ingress, act::mark_checked(skb, verdict))
}

/// What the kernel has freed of its outer headers, and [`from_underlay`] has checked.
#[inline(always)]
pub(crate) fn from_overlay(ctx: &TcContext) -> i32 {
    let skb = Skb::of(ctx, egress::READS as u32);
    skb.unmark(maps::marks().flow);
    let size = skb.size();
    gate::note_delivered(&skb, &Maps, |note| write_down_tunnel(&note, Direction::Ingress, size));
    let verdict =
        path::from_overlay(&skb, &Maps, &skb.arrival(), |deliver, reason| act::hand(skb, &deliver, reason));
    conclude(ctx, size, Direction::Ingress, verdict)
}

/// What the kernel's path brings a pod.
#[inline(always)]
pub(crate) fn to_pod(ctx: &TcContext) -> i32 {
    let skb = Skb::of(ctx, egress::READS as u32);
    take_note(skb, skb.size(), Direction::Ingress);
    skb.unmark(maps::marks().both());
    TC_ACT_UNSPEC
}

/// What the kernel's path sends to other nodes; `marked` is what has one of our marks.
#[inline(always)]
pub(crate) fn to_underlay(ctx: &TcContext, marked: bool) -> i32 {
    let skb = Skb::of(ctx, egress::READS as u32);
    let size = skb.size();
    if marked {
        take_note(skb, size, Direction::Egress);
        skb.unmark(maps::marks().both());
    }
    if gate::is_outer(&skb, &Maps) == Some(true)
        && let Some(source) = Maps.config_v6().map(|config| config.vtep)
    {
        let skb = Skb::of(ctx, gate::LEAVING_READS as u32);
        let route = |destination| skb.underlay_route_v6(source, destination);
        gate::note_leaving(&skb, &Maps, &skb.arrival(), route, |note| {
            write_down_tunnel(&note, Direction::Egress, size);
        });
    }
    TC_ACT_UNSPEC
}

#[inline(always)]
fn write_down_tunnel(note: &TunnelNote<AddressV6>, direction: Direction, size: Size) {
    maps::write_down_tunnel_v6(note);
    maps::count(direction, note.reason, size);
}

#[inline(always)]
fn take_note(skb: Skb, size: Size, direction: Direction) {
    let arrival = skb.arrival();
    flow::note(direction, &skb, &Maps, &arrival, |note| {
        maps::write_down_v6(&note);
        maps::count(direction, note.reason(), size);
    });
    act::end(skb, &arrival);
}

/// As [`act::begin`], of a packet of IPv6.
#[inline(always)]
fn begin(skb: Skb, verdict: &Result<Done, Reason>, offset: impl FnOnce() -> Option<usize>) {
    if let Err(reason) = verdict
        && is_refusal(*reason)
        && let Some(ip) = offset().and_then(|offset| skb.view(offset)).map(Ipv6::parse)
    {
        skb.note_beside(trail::begins(ip.traffic_class(), ip.hop_limit));
    }
}

/// Pushes VXLAN and sends the packet to the peer.
#[inline(always)]
fn push(mut skb: Skb, encap: &Encap, reason: Reason) -> Done {
    // Taken first: the hash covers the inner flow only while the inner headers are the outermost.
    let hash = skb.flow_hash(hash::of_flow_v6);
    if skb.push_vxlan_v6().is_none() {
        return Done::kernel(Reason::Refused);
    }
    let headers = encap.headers(hash);
    let written = skb.write(HEADERS_AT, headers).and_then(|()| match encap.forward {
        Some(forward) => forward.write(&mut skb, HEADERS_AT + HEADERS_LEN),
        None => Some(()),
    });
    // As with IPv4: the verifier needs the check, no packet meets it.
    if written.is_none() {
        return Done { action: TC_ACT_SHOT, reason: Reason::Refused };
    }
    if encap.forward.is_none() {
        skb.drop_route();
    }
    Done { action: skb.redirect_neighbour_v6(encap.peer.ifindex, encap.peer.next_hop), reason }
}

/// Gives an aggregate to the VXLAN device, addressed to the peer.
#[inline(always)]
fn hand_over(mut skb: Skb, to: &HandOver, reason: Reason) -> Done {
    let HandOver { ifindex, ethernet, forward } = to;
    // A redirect to a device that is gone would lose the packet.
    if skb.fits(*ifindex, IPV6_LEN as u32).is_err() {
        return Done::kernel(Reason::Ipv6Aggregate);
    }
    let written = skb.write(0, ethernet.bytes()).and_then(|()| forward.write(&mut skb, ETHERNET_LEN));
    if written.is_none() {
        return Done { action: TC_ACT_SHOT, reason: Reason::Refused };
    }
    skb.set_mark(maps::marks().handed_over(skb.arrival().mark));
    Done { action: skb.redirect(*ifindex), reason }
}

/// Pops VXLAN and hands the packet to the pod.
#[inline(always)]
fn pop(mut skb: Skb, deliver: &Deliver, reason: Reason) -> Done {
    // A redirect to a veth that is gone, or too small, would lose the packet.
    if let Err(reason) = skb.fits(deliver.pod.ifindex, deliver.packet_len) {
        return Done::kernel(reason);
    }
    if skb.pop_vxlan_v6().is_none() {
        return Done::kernel(Reason::Refused);
    }
    act::give(skb, deliver, reason)
}
