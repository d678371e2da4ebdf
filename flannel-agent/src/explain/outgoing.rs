//! From a pod, or from the node itself, towards other nodes.

use std::net::IpAddr;

use flannel_common::{
    layout::PodPlace,
    packet::{
        Arrival,
        headers::{PROTOCOL_IPIP, PROTOCOL_UDP},
    },
    path::{Carrier, Encap, Hook, Move, Verdict},
};

use super::{
    At, ExplainError, Imagined, Outcome, Step,
    bridge::group,
    met::Met,
    packet::{in_ip, in_udp, in_vxlan},
    tables::interface,
    walk::{Walk, is_ipip, too_big},
};
use crate::{
    netlink::{DecidedPacket, Link, LinkKind, RouteQuery, forwards_ipv6, xfrm::Direction},
    values::{IpFamily, Mac},
};

/// Where a program sends a packet.
enum Sent {
    /// Out of an interface, to a neighbour there.
    By { ifindex: u32, next_hop: IpAddr, node: Option<IpAddr> },
    /// To the VXLAN device.
    Device(u32),
}

fn sent(verdict: &Verdict) -> Option<Sent> {
    match verdict {
        Verdict::V4(how, _) => moved(how),
        Verdict::V6(how, _) => moved(how),
        _ => None,
    }
}

fn moved<F: IpFamily>(how: &Move<F>) -> Option<Sent> {
    match how {
        Move::Encapsulate(Encap { route, .. }) => Some(Sent::By {
            ifindex: route.ifindex,
            next_hop: F::address(route.next_hop),
            node: Some(F::address(route.vtep)),
        }),
        Move::SendDirect(to) => {
            Some(Sent::By { ifindex: to.ifindex, next_hop: F::address(to.next_hop), node: None })
        }
        Move::HandOver(to) => Some(Sent::Device(to.ifindex)),
        Move::Decapsulate(_) | Move::Deliver(_) => None,
    }
}

/// As IPsec's policies see it.
pub(super) fn decided(packet: &Imagined, mark: u32) -> DecidedPacket {
    DecidedPacket {
        source: packet.source,
        destination: packet.destination,
        protocol: packet.protocol,
        ports: (packet.source_port, packet.destination_port),
        mark,
    }
}

impl Walk {
    /// From a pod.
    pub(super) async fn leaves_a_pod(
        &mut self,
        packet: Imagined,
        place: PodPlace,
    ) -> Result<Outcome, ExplainError> {
        let neighbour =
            match self.node.subnet.contains(packet.destination) && !self.own.contains(&packet.destination) {
                true => self.place(packet.destination).await?,
                false => None,
            };
        // What has no stations is routed, from there and to there.
        let is_apart = |place: &PodPlace| self.link(place.ifindex).is_some_and(Link::has_no_stations);
        let neighbour = neighbour.filter(|to| !is_apart(to) && !is_apart(&place));
        let group = group(packet.destination, self.node.subnet);
        let to = neighbour.map_or(place.gateway_mac, |neighbour| neighbour.mac);
        let frame = packet.frame(group.unwrap_or(Mac(to)), Mac(place.mac));
        let arrival = Arrival { ifindex: place.ifindex, from_socket: true, ..Arrival::default() };
        let verdict = self.at(Hook::FromPod, &frame, &arrival)?;
        let mark = match verdict {
            Verdict::Drop(reason) => {
                return Ok(Outcome::Dropped { by: format!("from_pod: {}", reason.sentence()) });
            }
            Verdict::Switch(to, _) => {
                return Ok(Outcome::Pod { interface: interface(to.pod.ifindex), fast: true });
            }
            Verdict::Exempt(_) => self.marks.exempt,
            _ => 0,
        };
        if let Some(sent) = sent(&verdict) {
            return self.redirected(sent, true).await;
        }
        // The programs are in front of the bridge.
        if let Some(dropped) = self.shut(packet.source, place.ifindex) {
            return Ok(dropped);
        }
        let link = self.link(place.ifindex).cloned().ok_or(ExplainError::NoPod(packet.source))?;
        let gateway = link.master.unwrap_or(link.index);
        if link.master.is_some()
            && let Some(dropped) = self.filtered(&packet, mark, Met::ByPort(place.ifindex))
        {
            return Ok(dropped);
        }
        if group.is_some() && link.master.is_some() {
            let isolated = link.isolated_port;
            return Ok(self.flooded(gateway, isolated));
        }
        if let Some(neighbour) = neighbour {
            return self.bridged(packet, place.ifindex, gateway, neighbour).await;
        }
        if self.node.subnet.contains(packet.destination)
            && let Some(outcome) = self.over_joined_bridges(packet, gateway).await?
        {
            return Ok(outcome);
        }
        self.routed(packet, Some(gateway), mark).await
    }

    /// From a socket of this node.
    pub(super) async fn leaves_the_node(&mut self, packet: Imagined) -> Result<Outcome, ExplainError> {
        self.routed(packet, None, 0).await
    }

    /// By a program: that of a pod's veth, past the host's stack, which is then `fast`, or the one behind routing.
    async fn redirected(&mut self, sent: Sent, fast: bool) -> Result<Outcome, ExplainError> {
        match sent {
            Sent::By { ifindex, next_hop, node } => {
                self.neighbour(ifindex, next_hop).await?;
                let to = node.unwrap_or(next_hop).to_string();
                Ok(Outcome::Leaves { interface: interface(ifindex), to, fast })
            }
            Sent::Device(ifindex) => Ok(Outcome::Leaves {
                interface: interface(ifindex),
                to: "the tunnel's device".to_owned(),
                fast,
            }),
        }
    }

    /// By the kernel's routing. `arrived_by` is none for what this node makes.
    pub(super) async fn routed(
        &mut self,
        packet: Imagined,
        arrived_by: Option<u32>,
        mark: u32,
    ) -> Result<Outcome, ExplainError> {
        if let Some(unknown) = self.translated(&packet, mark, arrived_by) {
            return Ok(unknown);
        }
        let query = RouteQuery {
            source: Some(packet.source),
            destination: packet.destination,
            arrived_by,
            mark,
            tos: packet.tos,
            protocol: packet.protocol,
            source_port: Some(packet.source_port),
            destination_port: Some(packet.destination_port),
        };
        let route = match self.route(&query).await? {
            Ok(route) => route,
            Err(Outcome::Node) => {
                let blocked = self.by_ipsec(&[Direction::In], &decided(&packet, mark));
                let dropped = arrived_by.and_then(|by| self.filtered(&packet, mark, Met::In(by)));
                return Ok(blocked.or(dropped).unwrap_or(Outcome::Node));
            }
            Err(outcome) => return Ok(outcome),
        };
        if arrived_by.is_some() && packet.hops <= 1 {
            return Ok(Outcome::Dropped {
                by: "its TTL ends here: the kernel answers with ICMP time exceeded".to_owned(),
            });
        }
        if packet.destination.is_ipv6() && arrived_by.is_some_and(|index| !forwards_ipv6(&interface(index))) {
            return Ok(Outcome::Dropped {
                by: "net.ipv6.conf.all.forwarding = 0: the kernel forwards no IPv6".to_owned(),
            });
        }
        let Some(link) = route.ifindex.and_then(|index| self.link(index)).cloned() else {
            return Ok(Outcome::Dropped {
                by: format!("the route to {} has no interface", packet.destination),
            });
        };
        let ways: &[Direction] = match arrived_by {
            Some(_) => &[Direction::Forward, Direction::Out],
            None => &[Direction::Out],
        };
        if let Some(blocked) = self.by_ipsec(ways, &decided(&packet, mark)) {
            return Ok(blocked);
        }
        let packet = if arrived_by.is_some() { packet.forwarded() } else { packet };
        let mtu = route.mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu));
        if let Some(dropped) = too_big(packet.size, mtu, &link.name) {
            return Ok(dropped);
        }
        let met = arrived_by.map_or(Met::Out(link.index), |by| Met::Forwarded(by, link.index));
        if let Some(dropped) = self.filtered(&packet, mark, met) {
            return Ok(dropped);
        }
        self.rules(&packet, &link.name, arrived_by.is_some(), mark);
        let next_hop = route.gateway.unwrap_or(packet.destination);
        if self.carrier() == Carrier::Udp && self.has(Hook::ToOverlay, link.index) {
            return self.route_into_udp(packet, &link, mark).await;
        }
        if is_ipip(&link.kind) {
            return self.route_into_ip(packet, &link, next_hop, mark).await;
        }
        if matches!(link.kind, LinkKind::Vxlan(_)) {
            return self.route_over_device(packet, &link, next_hop, mark).await;
        }
        let mac = self.neighbour(link.index, next_hop).await?;
        if self.node.subnet.contains(packet.destination) {
            let place = self.place(packet.destination).await?;
            if place.is_none()
                && let Some(outcome) = self.over_joined_bridges(packet, link.index).await?
            {
                return Ok(outcome);
            }
            // Whoever has that MAC gets it, if anybody.
            if let (Some(place), Some(mac)) = (place, mac)
                && !link.has_no_stations()
                && mac != Mac(place.mac)
            {
                let (name, pod) = (&link.name, Mac(place.mac));
                return Ok(Outcome::Dropped {
                    by: format!(
                        "{name} sends it to {mac}, and the pod has {pod}: ip neigh del {next_hop} dev {name}"
                    ),
                });
            }
            return match place {
                Some(place) => self.bring_to_pod(packet, place, mark).await,
                None => Ok(match (self.cut_off(packet.destination, mac).await?, mac) {
                    (Some(dropped), _) => dropped,
                    // Somebody on this link has it, behind another bridge or in a virtual machine.
                    (None, Some(_)) => {
                        Outcome::Leaves { interface: link.name, to: next_hop.to_string(), fast: false }
                    }
                    (None, None) => {
                        Outcome::Dropped { by: format!("no pod on {} has {}", link.name, packet.destination) }
                    }
                }),
            };
        }
        if self.has(Hook::ToUnderlay, link.index) {
            let frame = packet.frame(mac.unwrap_or(Mac([2, 0, 0, 0, 0, 1])), self.mac_of(link.index));
            let arrival = Arrival { ifindex: link.index, mark, ..Arrival::default() };
            self.at(Hook::ToUnderlay, &frame, &arrival)?;
        }
        Ok(Outcome::Leaves { interface: link.name, to: next_hop.to_string(), fast: false })
    }

    /// Routed to a VXLAN device.
    async fn route_over_device(
        &mut self,
        packet: Imagined,
        link: &Link,
        next_hop: IpAddr,
        mark: u32,
    ) -> Result<Outcome, ExplainError> {
        let Some(mac) = self.neighbour(link.index, next_hop).await? else {
            return Ok(Outcome::Dropped {
                by: format!(
                    "{} has no neighbour {next_hop}: the agent writes it from the lease of that node",
                    link.name
                ),
            });
        };
        let frame = packet.frame(mac, self.mac_of(link.index));
        let arrival = Arrival { ifindex: link.index, mark, ..Arrival::default() };
        let verdict = self.at(Hook::ToOverlay, &frame, &arrival)?;
        if let Some(sent) = sent(&verdict) {
            return self.redirected(sent, false).await;
        }
        let entries = self.netlink.permanent_fdb(link.index).await?;
        let Some(entry) = entries.into_iter().find(|entry| entry.mac == mac) else {
            let what = format!("no entry for {mac}: the agent writes it from the lease of that node");
            self.steps.push(Step::of_kernel(At::Fdb, Some(link.name.clone()), what.clone()));
            return Ok(Outcome::Dropped { by: format!("{}: {what}", link.name) });
        };
        let what = format!("{mac} is behind {}", entry.public_ip);
        self.steps.push(Step::of_kernel(At::Fdb, Some(link.name.clone()), what));
        self.by_the_device(&frame, link, entry.public_ip).await
    }

    /// Routed to the device that the agent serves.
    async fn route_into_udp(
        &mut self,
        packet: Imagined,
        link: &Link,
        mark: u32,
    ) -> Result<Outcome, ExplainError> {
        let bytes = packet.bare();
        let arrival = Arrival { ifindex: link.index, mark, ..Arrival::default() };
        let verdict = self.at(Hook::ToOverlay, &bytes, &arrival)?;
        if let Some(sent) = sent(&verdict) {
            return self.redirected(sent, false).await;
        }
        let Some(peer) = self.tables.peer(packet.destination)? else {
            let by = "the agent: no lease holds its destination, and the sender is told so by ICMP";
            return Ok(Outcome::Dropped { by: by.to_owned() });
        };
        let (node, port) = (peer.vtep, self.node.port);
        let what = format!("the agent sends it to {node}, UDP port {port}");
        self.steps.push(Step::of_kernel(At::Tun, Some(link.name.clone()), what));
        let inner = packet.forwarded().bare();
        let outer = |ends, stations| in_udp(&inner, port, ends, stations);
        self.leave_for_node((PROTOCOL_UDP, port), Some(self.node.vtep), node, 0, outer).await
    }

    /// Routed to the device of IP in IP, by the gateway `node`.
    async fn route_into_ip(
        &mut self,
        packet: Imagined,
        link: &Link,
        node: IpAddr,
        mark: u32,
    ) -> Result<Outcome, ExplainError> {
        let inner = packet.bare();
        if self.has(Hook::ToOverlay, link.index) {
            let arrival = Arrival { ifindex: link.index, mark, ..Arrival::default() };
            self.at(Hook::ToOverlay, &inner, &arrival)?;
        }
        let what = format!("puts it into IP for {node}");
        self.steps.push(Step::of_kernel(At::Ipip, Some(link.name.clone()), what));
        let outer = |ends, stations| in_ip(&inner, ends, stations);
        self.leave_for_node((PROTOCOL_IPIP, 0), Some(self.node.vtep), node, mark, outer).await
    }

    /// Encapsulated by the kernel's device.
    async fn by_the_device(
        &mut self,
        frame: &[u8],
        device: &Link,
        node: IpAddr,
    ) -> Result<Outcome, ExplainError> {
        let LinkKind::Vxlan(vxlan) = device.kind else {
            return Ok(Outcome::Dropped { by: format!("{} is no VXLAN device", device.name) });
        };
        let what = format!("encapsulates it for {node}, UDP port {}, VNI {}", vxlan.port, vxlan.vni);
        self.steps.push(Step::of_kernel(At::Device, Some(device.name.clone()), what));
        let outer = |ends, stations| in_vxlan(frame, vxlan.vni, vxlan.port, ends, stations);
        match self.leave_for_node((PROTOCOL_UDP, self.node.port), vxlan.local, node, 0, outer).await? {
            Outcome::Node => {
                Ok(Outcome::Dropped { by: format!("{node} is this node's own address: VXLAN to itself") })
            }
            outcome => Ok(outcome),
        }
    }

    /// Sent to `node` as the kernel routes it, from `source` if that is set, in `protocol`, with UDP to `port`. `outer` makes
    /// the packet between its ends and stations, which has `mark` of our bits.
    async fn leave_for_node(
        &mut self,
        (protocol, port): (u8, u16),
        source: Option<IpAddr>,
        node: IpAddr,
        mark: u32,
        outer: impl FnOnce((IpAddr, IpAddr), (Mac, Mac)) -> Vec<u8>,
    ) -> Result<Outcome, ExplainError> {
        let query = RouteQuery {
            source,
            destination: node,
            arrived_by: None,
            mark: 0,
            tos: 0,
            protocol,
            source_port: None,
            destination_port: Some(port).filter(|_| protocol == PROTOCOL_UDP),
        };
        let route = match self.route(&query).await? {
            Ok(route) => route,
            Err(outcome) => return Ok(outcome),
        };
        let source = source.unwrap_or(self.node.vtep);
        let outer_packet = DecidedPacket { source, destination: node, protocol, ports: (0, port), mark: 0 };
        if let Some(blocked) = self.by_ipsec(&[Direction::Out], &outer_packet) {
            return Ok(blocked);
        }
        let Some(underlay) = route.ifindex else {
            return Ok(Outcome::Dropped { by: format!("the route to {node} has no interface") });
        };
        let carrier = Imagined::carrier((source, node), (protocol, port));
        if let Some(dropped) = self.filtered(&carrier, mark, Met::Out(underlay)) {
            return Ok(dropped);
        }
        let mac = self.neighbour(underlay, route.gateway.unwrap_or(node)).await?;
        if self.has(Hook::ToUnderlay, underlay) {
            let stations = (mac.unwrap_or(Mac([2, 0, 0, 0, 0, 1])), self.mac_of(underlay));
            let outer = outer((source, node), stations);
            let arrival = Arrival { ifindex: underlay, mark, ..Arrival::default() };
            self.at(Hook::ToUnderlay, &outer, &arrival)?;
        }
        Ok(Outcome::Leaves { interface: interface(underlay), to: node.to_string(), fast: false })
    }
}
