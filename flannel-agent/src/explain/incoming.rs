//! From another node.

use std::net::IpAddr;

use flannel_common::{
    layout::RouteKind,
    packet::{
        Arrival,
        headers::{PROTOCOL_IPIP, PROTOCOL_UDP},
    },
    path::{Carrier, Hook, Verdict},
    reason::Reason,
};

use super::{
    At, ExplainError, Imagined, Outcome, Step,
    met::Met,
    packet::{in_ip, in_udp, in_vxlan},
    tables::interface,
    walk::{Walk, is_ipip},
};
use crate::{
    netlink::{DecidedPacket, LinkKind, xfrm::Direction},
    values::Mac,
};

/// The MAC of a station that nobody has looked for.
const SOMEBODY: Mac = Mac([0x02, 0, 0, 0, 0, 0x01]);

/// The ends of the packet that carried another, where it is known, and the interface that it came in by.
type Came = (Option<(IpAddr, IpAddr)>, u32);

impl Walk {
    /// From the node whose lease holds its source, or from `node`, in the tunnel.
    pub(super) async fn arrives(
        &mut self,
        packet: Imagined,
        node: Option<IpAddr>,
    ) -> Result<Outcome, ExplainError> {
        let peer = self.tables.peer(packet.source)?;
        let underlay = peer
            .map(|peer| peer.ifindex)
            .filter(|index| self.link(*index).is_some())
            .or_else(|| self.interface_with(Hook::FromUnderlay))
            .ok_or(ExplainError::NoUnderlay(packet.source))?;
        let carrier = self.carrier();
        let tunnelled = peer.filter(|peer| peer.kind != RouteKind::Direct);
        let has_tunnel = self.node.port != 0 || carrier == Carrier::Ipip;
        let sender = node.or(tunnelled.map(|peer| peer.vtep)).filter(|_| has_tunnel);
        let inner_source = peer.map_or(SOMEBODY, |peer| peer.vtep_mac);
        let inner = match carrier {
            Carrier::Udp | Carrier::Ipip => packet.bare(),
            Carrier::Vxlan => packet.frame(self.node.local_mac, inner_source),
        };
        let stations = (self.mac_of(underlay), SOMEBODY);
        let ends = sender.map(|sender| (sender, self.node.vtep));
        let frame = match (ends, carrier) {
            (Some(ends), Carrier::Udp) => in_udp(&inner, self.node.port, ends, stations),
            (Some(ends), Carrier::Ipip) => in_ip(&inner, ends, stations),
            (Some(ends), Carrier::Vxlan) => in_vxlan(&inner, self.node.vni, self.node.port, ends, stations),
            (None, _) => packet.frame(stations.0, stations.1),
        };
        let arrival = Arrival { ifindex: underlay, ..Arrival::default() };
        if let Some(outcome) = self.by_xdp(&frame, &arrival)? {
            return Ok(outcome);
        }
        let verdict = self.at(Hook::FromUnderlay, &frame, &arrival)?;
        if let Some((pod, _)) = verdict.pod() {
            return Ok(Outcome::Pod { interface: interface(pod.ifindex), fast: true });
        }
        if let Verdict::LeaveDecapsulated(device, _) = verdict {
            return self.given_by_device(packet, &inner, device, 0).await;
        }
        if sender.is_none() {
            return self.routed(packet, Some(underlay), 0).await;
        }
        let mark = if matches!(verdict, Verdict::Checked(_)) { self.marks.flow } else { 0 };
        match carrier {
            Carrier::Udp => self.out_of_udp(packet, &inner, mark, (ends, underlay)).await,
            Carrier::Ipip => self.out_of_ip(packet, &inner, mark, (ends, underlay)).await,
            Carrier::Vxlan => self.out_of_the_device(packet, &inner, mark, (ends, underlay)).await,
        }
    }

    /// Taken out of IP by the kernel's device, from a packet between these `ends`.
    async fn out_of_ip(
        &mut self,
        packet: Imagined,
        inner: &[u8],
        mark: u32,
        (ends, underlay): Came,
    ) -> Result<Outcome, ExplainError> {
        let Some(device) = self.links.iter().find(|link| is_ipip(&link.kind)).cloned() else {
            return Ok(Outcome::Dropped { by: "no device of IP in IP is there".to_owned() });
        };
        if let Some((source, destination)) = ends {
            let outer =
                DecidedPacket { source, destination, protocol: PROTOCOL_IPIP, ports: (0, 0), mark: 0 };
            if let Some(blocked) = self.by_ipsec(&[Direction::In], &outer) {
                return Ok(blocked);
            }
            if let Some(dropped) = self.carrier_filtered((source, destination), (PROTOCOL_IPIP, 0), underlay)
            {
                return Ok(dropped);
            }
        }
        let what = "takes it out of IP".to_owned();
        self.steps.push(Step::of_kernel(At::Ipip, Some(device.name.clone()), what));
        self.given_by_device(packet, inner, device.index, mark).await
    }

    /// Taken out of UDP by the agent, which gives it to its device.
    async fn out_of_udp(
        &mut self,
        packet: Imagined,
        inner: &[u8],
        mark: u32,
        (ends, underlay): Came,
    ) -> Result<Outcome, ExplainError> {
        let carrier = (PROTOCOL_UDP, self.node.port);
        if let Some(dropped) = ends.and_then(|ends| self.carrier_filtered(ends, carrier, underlay)) {
            return Ok(dropped);
        }
        let Some(device) = self.interface_with(Hook::FromOverlay) else {
            return Ok(Outcome::Dropped { by: "the agent's device is not there".to_owned() });
        };
        let what = format!("the agent takes it from UDP port {}", self.node.port);
        self.steps.push(Step::of_kernel(At::Tun, Some(interface(device)), what));
        self.given_by_device(packet.forwarded(), inner, device, mark).await
    }

    /// What netfilter drops of packets between `ends` that carry others.
    fn carrier_filtered(
        &mut self,
        ends: (IpAddr, IpAddr),
        carrier: (u8, u16),
        underlay: u32,
    ) -> Option<Outcome> {
        self.filtered(&Imagined::carrier(ends, carrier), 0, Met::In(underlay))
    }

    /// The programs of XDP.
    fn by_xdp(&mut self, frame: &[u8], arrival: &Arrival) -> Result<Option<Outcome>, ExplainError> {
        for hook in [Hook::XdpUnderlay, Hook::XdpGeneric] {
            if !self.has(hook, arrival.ifindex) {
                continue;
            }
            let verdict = self.at(hook, frame, arrival)?;
            if let Verdict::Drop(reason) = verdict {
                return Ok(Some(Outcome::Dropped {
                    by: format!("{}: {}", hook.program(), reason.sentence()),
                }));
            }
            if let Some((pod, _)) = verdict.pod() {
                self.steps.push(Step {
                    at: At::Hook(Hook::FromUnderlay),
                    interface: Some(interface(arrival.ifindex)),
                    what: "hands on what XDP has decapsulated".to_owned(),
                    reason: Some(Reason::DeliverPod),
                    lookups: Vec::new(),
                });
                return Ok(Some(Outcome::Pod { interface: interface(pod.ifindex), fast: true }));
            }
        }
        Ok(None)
    }

    /// Decapsulated by the kernel's device, from a packet between these `ends`.
    async fn out_of_the_device(
        &mut self,
        packet: Imagined,
        inner: &[u8],
        mark: u32,
        (ends, underlay): Came,
    ) -> Result<Outcome, ExplainError> {
        let (vni, port) = (self.node.vni, self.node.port);
        let is_it = |kind: &LinkKind| match kind {
            LinkKind::Vxlan(vxlan) => {
                (vxlan.vni, vxlan.port) == (vni, port)
                    && vxlan.local.is_none_or(|local| local.is_ipv4() == packet.source.is_ipv4())
            }
            _ => false,
        };
        let Some(device) = self.links.iter().find(|link| is_it(&link.kind)).cloned() else {
            return Ok(Outcome::Dropped {
                by: format!("no VXLAN device has VNI {vni} and port {port}: nobody takes the UDP packet"),
            });
        };
        if let Some((from, to)) = ends {
            let packet = DecidedPacket {
                source: from,
                destination: to,
                protocol: PROTOCOL_UDP,
                ports: (0, port),
                mark: 0,
            };
            if let Some(blocked) = self.by_ipsec(&[Direction::In], &packet) {
                return Ok(blocked);
            }
            if let Some(dropped) = self.carrier_filtered((from, to), (PROTOCOL_UDP, port), underlay) {
                return Ok(dropped);
            }
        }
        let what = "decapsulates it".to_owned();
        self.steps.push(Step::of_kernel(At::Device, Some(device.name.clone()), what));
        self.given_by_device(packet, inner, device.index, mark).await
    }

    /// Given to the kernel by the tunnel's device.
    async fn given_by_device(
        &mut self,
        packet: Imagined,
        inner: &[u8],
        device: u32,
        mark: u32,
    ) -> Result<Outcome, ExplainError> {
        if self.has(Hook::FromOverlay, device) {
            let arrival = Arrival { ifindex: device, mark, ..Arrival::default() };
            let verdict = self.at(Hook::FromOverlay, inner, &arrival)?;
            if let Verdict::Drop(reason) = verdict {
                return Ok(Outcome::Dropped { by: format!("from_overlay: {}", reason.sentence()) });
            }
            if let Some((pod, _)) = verdict.pod() {
                return Ok(Outcome::Pod { interface: interface(pod.ifindex), fast: true });
            }
        }
        self.routed(packet, Some(device), 0).await
    }
}
