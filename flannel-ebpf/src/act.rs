//! What is done to a packet: the other half of `flannel_common::path`.

use aya_ebpf::{
    bindings::{
        TC_ACT_SHOT, TC_ACT_UNSPEC,
        xdp_action::{XDP_DROP, XDP_PASS},
    },
    programs::TcContext,
};
use aya_log_ebpf::{debug, warn};
use flannel_common::{
    family::{Family, Forward as _, V4},
    layout::{DecapsulatedFor, Flow, PodPlace},
    packet::{
        Arrival, Packet,
        headers::{ETHERNET_LEN, ETHERTYPE_IPV4, Ethernet},
    },
    path::{
        Act, Carrier, Deliver, Direct, Encap, HandOver, Note, Rewrite, Switch, TcPacket, TunnelNote,
        UnderlayRoute, XdpFrame,
    },
    reason::{Direction, Reason},
};

use crate::{
    ctx::{Frame, Skb},
    family::InKernel,
    maps,
    notes::Noted,
    size::Size,
};

/// What has been done with a packet: the tc action, and why.
#[derive(Clone, Copy)]
pub(crate) struct Done {
    action: i32,
    reason: Reason,
}

impl Done {
    /// For headers that could be read before the packet was changed, and so can be written after it: the verifier needs
    /// the check, no packet meets it.
    const LOST: Self = Self { action: TC_ACT_SHOT, reason: Reason::Refused };
}

impl TcPacket for Skb {
    type Size = Size;
    type Done = Done;
    type Answer = i32;

    #[inline(always)]
    fn arrival(&self) -> Arrival {
        self.arrival()
    }

    #[inline(always)]
    fn is_ipv6(&self) -> bool {
        self.is_ipv6()
    }

    #[inline(always)]
    fn make_readable(&self, len: usize) {
        self.make_readable(len as u32);
    }

    #[inline(always)]
    fn size(&self) -> Size {
        self.size()
    }

    #[inline(always)]
    fn mark(&self, bits: u32) {
        self.mark(bits);
    }

    #[inline(always)]
    fn unmark(&self, bits: u32) {
        self.unmark(bits);
    }

    #[inline(always)]
    fn prioritize(&self, priority: u32) {
        self.prioritize(priority);
    }

    #[inline(always)]
    fn note_beside(&self, note: u16) {
        self.note_beside(note);
    }

    #[inline(always)]
    fn take_redirected(&self) -> bool {
        self.take_redirected()
    }

    #[inline(always)]
    fn decapsulated_for(&self) -> Option<PodPlace> {
        self.decapsulated_for()
    }

    /// A frame for another station, or with a tag that the card had taken out of it, was not XDP's to decapsulate: the
    /// kernel does with it as with every such frame.
    #[inline(always)]
    fn hand_on(mut self, pod: &PodPlace) -> Result<Done, Reason> {
        let arrival = self.arrival();
        if arrival.vlan_tagged {
            return Err(Reason::Vlan);
        }
        if arrival.for_other_station {
            return Err(Reason::NotVxlan);
        }
        // Each frame was held to the pod's MTU when it was decapsulated.
        self.fits(pod.ifindex, 0)?;
        let ethernet = Ethernet::new(pod.mac, pod.gateway_mac, ETHERTYPE_IPV4);
        self.write(0, ethernet.bytes()).ok_or(Reason::Truncated)?;
        Ok(Done { action: self.redirect_peer(pod.ifindex), reason: Reason::DeliverPod })
    }

    #[inline(always)]
    fn switch(self, to: &Switch) -> Result<Done, Reason> {
        self.fits(to.pod.ifindex, to.packet_len)?;
        self.address_to_host();
        Ok(Done { action: self.redirect_peer(to.pod.ifindex), reason: Reason::SwitchPod })
    }

    #[inline(always)]
    fn count(&self, direction: Direction, reason: Reason, size: Size) {
        maps::count(direction, reason, size);
    }

    /// Other people's programs behind ours still see it.
    #[inline(always)]
    fn pass(self) -> i32 {
        TC_ACT_UNSPEC
    }

    #[inline(always)]
    fn drop(self, direction: Direction, reason: Reason) -> i32 {
        maps::count(direction, reason, self.size());
        TC_ACT_SHOT
    }

    #[inline(always)]
    fn conclude(self, direction: Direction, size: Size, verdict: Result<Done, Reason>) -> i32 {
        let Done { action, reason } = verdict.unwrap_or_else(|reason| Done { action: TC_ACT_UNSPEC, reason });
        maps::count(direction, reason, size);
        let ctx = &TcContext::new(self.raw());
        match reason {
            Reason::Spoofed | Reason::InnerSource | Reason::Refused | Reason::PodGone => {
                warn!(ctx, "direction {} reason {} length {}", direction as u32, reason as u32, size.bytes);
            }
            _ => debug!(ctx, "direction {} reason {} length {}", direction as u32, reason as u32, size.bytes),
        }
        action
    }
}

impl<F: InKernel + Noted> Act<F> for Skb {
    #[inline(always)]
    fn write_down(&self, note: &Note<F>) {
        F::write_down(note);
    }

    #[inline(always)]
    fn untranslate(&self, flow: &Flow<F>, is_broken_off: bool) {
        F::untranslate(flow);
        if is_broken_off {
            F::tell_broken_off(flow);
        }
    }

    #[inline(always)]
    fn write_down_tunnel(&self, note: &TunnelNote<F>) {
        F::write_down_tunnel(note);
    }

    #[inline(always)]
    fn underlay_route(&self, source: F::Address, destination: F::Address) -> Option<UnderlayRoute> {
        self.underlay_route::<F>(source, destination)
    }

    #[inline(always)]
    fn encapsulate(
        mut self,
        encap: &Encap<F>,
        rewrite: Option<&Rewrite<F>>,
        reason: Reason,
    ) -> Result<Done, Reason> {
        let carrier = maps::carrier();
        if carrier != Carrier::Vxlan {
            return encapsulate_bare(self, carrier, encap, rewrite, reason);
        }
        // Taken first: the inner headers are the outermost only now.
        let hash = self.flow_hash::<F>();
        // With IPv6 there is none to be written.
        let id = maps::next_id(Direction::Egress, reason);
        self.make_room::<F>().ok_or(Reason::Refused)?;
        let inner = F::ENCAP_LEN + ETHERNET_LEN;
        let written = F::write_outer(encap, &mut self, id, hash).and_then(|()| match encap.forward {
            Some(forward) => route(&mut self, &forward, rewrite, inner),
            None => Some(()),
        });
        if written.is_none() {
            return Ok(Done::LOST);
        }
        if encap.forward.is_none() {
            self.drop_route();
        }
        Ok(Done { action: self.redirect_neighbour::<F>(encap.route.ifindex, encap.route.next_hop), reason })
    }

    #[inline(always)]
    fn hand_over(
        mut self,
        to: &HandOver<F>,
        rewrite: Option<&Rewrite<F>>,
        reason: Reason,
    ) -> Result<Done, Reason> {
        let HandOver { ifindex, ethernet, forward } = to;
        // A redirect to a device that is gone would lose the packet.
        self.fits(*ifindex, F::IP_LEN as u32).map_err(|_| Reason::Ipv6Aggregate)?;
        let written =
            self.write(0, ethernet.bytes()).and_then(|()| route(&mut self, forward, rewrite, ETHERNET_LEN));
        if written.is_none() {
            return Ok(Done::LOST);
        }
        self.set_mark(maps::marks().handed_over(self.arrival().mark));
        Ok(Done { action: self.redirect(*ifindex), reason })
    }

    #[inline(always)]
    fn send_direct(
        mut self,
        direct: &Direct<F>,
        rewrite: Option<&Rewrite<F>>,
        reason: Reason,
    ) -> Result<Done, Reason> {
        if route(&mut self, &direct.forward, rewrite, ETHERNET_LEN).is_none() {
            return Ok(Done::LOST);
        }
        Ok(Done { action: self.redirect_neighbour::<F>(direct.ifindex, direct.next_hop), reason })
    }

    #[inline(always)]
    fn decapsulate(
        mut self,
        deliver: &Deliver<F>,
        rewrite: Option<&Rewrite<F>>,
        reason: Reason,
    ) -> Result<Done, Reason> {
        // A redirect to a veth that is gone, or too small, would lose the packet.
        self.fits(deliver.pod.ifindex, deliver.packet_len)?;
        let carrier = maps::carrier();
        self.remove_outer(carrier.overhead::<F>(), carrier != Carrier::Ipip).ok_or(Reason::Refused)?;
        Ok(give(self, deliver, rewrite, reason))
    }

    #[inline(always)]
    fn leave_decapsulated(mut self, ifindex: u32, reason: Reason) -> Result<Done, Reason> {
        let ethernet: [u8; ETHERNET_LEN] = self.read(F::ENCAP_LEN).ok_or(reason)?;
        self.remove_outer(F::ENCAP_LEN, true).ok_or(reason)?;
        if self.write(0, ethernet).is_none() {
            return Ok(Done::LOST);
        }
        Ok(Done { action: self.redirect_in(ifindex), reason })
    }

    #[inline(always)]
    fn deliver(
        self,
        deliver: &Deliver<F>,
        rewrite: Option<&Rewrite<F>>,
        reason: Reason,
    ) -> Result<Done, Reason> {
        self.fits(deliver.pod.ifindex, deliver.packet_len)?;
        Ok(give(self, deliver, rewrite, reason))
    }
}

/// Does to the packet, whose IP header stands at `offset`, what routing does, and translates it if it is to be. `None` where
/// it ends too soon.
#[inline(always)]
fn route<F: Family>(
    skb: &mut Skb,
    forward: &F::Forward,
    rewrite: Option<&Rewrite<F>>,
    offset: usize,
) -> Option<()> {
    forward.write(skb, offset)?;
    match rewrite {
        None => Some(()),
        Some(rewrite) => {
            rewrite.write(skb, offset)?;
            skb.update_checksum(rewrite, offset)
        }
    }
}

/// Puts the packet into UDP or IP as it is and sends it to the node.
#[inline(always)]
fn encapsulate_bare<F: InKernel>(
    mut skb: Skb,
    carrier: Carrier,
    encap: &Encap<F>,
    rewrite: Option<&Rewrite<F>>,
    reason: Reason,
) -> Result<Done, Reason> {
    let overhead = carrier.overhead::<F>();
    let written = match carrier {
        Carrier::Ipip => {
            let id = maps::next_id(Direction::Egress, reason);
            skb.make_room_for_ip::<F>(overhead).ok_or(Reason::Refused)?;
            F::write_outer_ipip(encap, &mut skb, id)
        }
        Carrier::Vxlan | Carrier::Udp => {
            skb.make_room_for_udp::<F>(overhead).ok_or(Reason::Refused)?;
            F::write_outer_udp(encap, &mut skb)
        }
    };
    let written = written.and_then(|()| match encap.forward {
        Some(forward) => route(&mut skb, &forward, rewrite, ETHERNET_LEN + overhead),
        None => Some(()),
    });
    if written.is_none() {
        return Ok(Done::LOST);
    }
    Ok(Done { action: skb.redirect_neighbour::<F>(encap.route.ifindex, encap.route.next_hop), reason })
}

/// Hands the packet, which fits and has no outer headers, to the pod.
#[inline(always)]
fn give<F: Family>(mut skb: Skb, deliver: &Deliver<F>, rewrite: Option<&Rewrite<F>>, reason: Reason) -> Done {
    let Deliver { pod, forward, packet_len: _ } = deliver;
    let ethernet = Ethernet::new(pod.mac, pod.gateway_mac, F::ETHERTYPE);
    let written =
        skb.write(0, ethernet.bytes()).and_then(|()| route(&mut skb, forward, rewrite, ETHERNET_LEN));
    if written.is_none() {
        return Done::LOST;
    }
    if forward.sum() != 0 {
        skb.add_to_sum(forward.sum());
    }
    Done { action: skb.redirect_peer(pod.ifindex), reason }
}

impl XdpFrame for Frame {
    type Answer = u32;

    #[inline(always)]
    fn arrival(&self) -> Arrival {
        self.arrival()
    }

    #[inline(always)]
    fn pass(self) -> u32 {
        XDP_PASS
    }

    #[inline(always)]
    fn count(self, reason: Reason) -> u32 {
        maps::count(Direction::Ingress, reason, self.size());
        XDP_PASS
    }

    #[inline(always)]
    fn drop(self, reason: Reason) -> u32 {
        maps::count(Direction::Ingress, reason, self.size());
        XDP_DROP
    }

    /// The frame keeps the stations of the underlay, so that the kernel sees whose it is, and could route it if nobody
    /// else did.
    #[inline(always)]
    fn decapsulate(mut self, deliver: &Deliver<V4>, reason: Reason) -> u32 {
        let Deliver { pod, forward, packet_len } = deliver;
        let size = self.size();
        let Some(ethernet) = self.view(0).map(Ethernet::parse) else { return XDP_PASS };
        if self.fits(pod.ifindex, *packet_len).is_err() || self.prepend(DecapsulatedFor::to(pod)).is_none() {
            return XDP_PASS;
        }
        if self.remove_outer().is_none() {
            self.take_back();
            return XDP_PASS;
        }
        let written = self.write(0, ethernet.bytes()).and_then(|()| forward.write(&mut self, ETHERNET_LEN));
        // As in tc: the verifier needs the check, no packet meets it.
        if written.is_none() {
            return XDP_DROP;
        }
        maps::count(Direction::Ingress, reason, size);
        XDP_PASS
    }
}
