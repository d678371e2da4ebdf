//! What the pods' bridge does by itself: it floods, keeps isolated ports apart, and has stations that are behind no pod's
//! veth.

use std::net::IpAddr;

use flannel_common::layout::PodPlace;
use ipnetwork::IpNetwork;

use super::{
    At, ExplainError, Imagined, Outcome, Step,
    joined::{Joint, by, joint},
    met::Met,
    tables::interface,
    walk::Walk,
};
use crate::{host::sysctl, values::Mac};

/// The MAC of all stations that packets to this address are for; `None` for an address of one.
pub(super) fn group(destination: IpAddr, subnet: IpNetwork) -> Option<Mac> {
    match (destination, subnet) {
        (IpAddr::V4(to), _) if to.is_multicast() => {
            let [_, b, c, d] = to.octets();
            Some(Mac([0x01, 0x00, 0x5e, b & 0x7f, c, d]))
        }
        (IpAddr::V4(to), IpNetwork::V4(subnet)) => {
            (to.is_broadcast() || to == subnet.broadcast()).then_some(Mac([0xff; 6]))
        }
        (IpAddr::V6(to), _) if to.is_multicast() => {
            let [.., a, b, c, d] = to.octets();
            Some(Mac([0x33, 0x33, a, b, c, d]))
        }
        _ => None,
    }
}

/// Whether bridged packets meet the chains of forwarded ones.
fn passes_iptables(v4: bool) -> bool {
    let name = if v4 { "bridge/bridge-nf-call-iptables" } else { "bridge/bridge-nf-call-ip6tables" };
    sysctl::NET.read(name).is_ok_and(|value| value.trim() != "0")
}

impl Walk {
    /// For all stations: from a pod's port of `bridge`, `isolated` or not, to the others.
    pub(super) fn flooded(&mut self, bridge: u32, isolated: bool) -> Outcome {
        let interface = interface(bridge);
        let what = match isolated {
            true => "hands it to those of its other ports that are not isolated, and to this node",
            false => "hands it to its other ports, and to this node",
        };
        let what = what.to_owned();
        self.steps.push(Step::of_kernel(At::Bridge, Some(interface.clone()), what));
        Outcome::Flooded { interface, isolated }
    }

    /// From the pod behind veth `from` to another on the same link.
    pub(super) async fn bridged(
        &mut self,
        packet: Imagined,
        from: u32,
        bridge: u32,
        to: PodPlace,
    ) -> Result<Outcome, ExplainError> {
        let destination = packet.destination;
        let isolated = |index| self.link(index).is_some_and(|port| port.isolated_port);
        if isolated(from) && isolated(to.ifindex) {
            let ports = [from, to.ifindex].map(interface).join(" and ");
            let by = format!("{ports} are isolated ports: bridge -d link show");
            self.steps.push(Step::of_kernel(At::Bridge, Some(interface(bridge)), by.clone()));
            return Ok(Outcome::Dropped { by });
        }
        let what = format!("{destination} is on the same link");
        self.steps.push(Step::of_kernel(At::Bridge, Some(interface(bridge)), what));
        if let Some(dropped) = self.filtered(&packet, 0, Met::Bridged(from, to.ifindex)) {
            return Ok(dropped);
        }
        if passes_iptables(destination.is_ipv4())
            && let Some(dropped) = self.filtered(&packet, 0, Met::CalledBy(bridge))
        {
            return Ok(dropped);
        }
        self.bring_to_pod(packet, to, 0).await
    }

    /// From an address of the pods' subnet that is behind none of their veths: of a container on a bridge that is joined to
    /// theirs, if theirs has heard of it.
    pub(super) async fn leaves_a_station(&mut self, packet: Imagined) -> Result<Outcome, ExplainError> {
        let source = packet.source;
        let Some(found) = self.netlink.cut_off(source, &self.links).await? else {
            return Err(ExplainError::NoPod(source));
        };
        let bridges = match found.is_shut {
            true => Default::default(),
            false => self.netlink.pod_bridges(&[self.node.subnet], &self.links).await?,
        };
        let veth = self.links.iter().find(|link| link.name == found.interface);
        let master = veth.and_then(|veth| veth.master);
        // Both on one bridge need no other.
        if let Some(master) =
            master.filter(|_| !found.is_shut && self.node.subnet.contains(packet.destination))
            && self.place(packet.destination).await?.is_none()
            && let Some(outcome) = self.over_joined_bridges(packet, master).await?
        {
            return Ok(outcome);
        }
        for bridge in bridges {
            let joint = master.map_or(Joint::Apart, |master| joint(&self.links, master, bridge));
            let known = self.netlink.neighbour(bridge, source).await?;
            let is_known = known.and_then(|neighbour| neighbour.mac).is_some();
            let way = match (joint, master) {
                (Joint::Veths(way), _) => by(&way),
                _ if is_known => String::new(),
                (Joint::Perhaps(what), Some(master)) => {
                    return Ok(self.perhaps_joined(&found.interface, master, bridge, &what));
                }
                _ => continue,
            };
            let what =
                format!("{source} is behind {}, and a station on this bridge, too{way}", found.interface);
            self.steps.push(Step::of_kernel(At::Bridge, Some(interface(bridge)), what));
            let neighbour = self.place(packet.destination).await?;
            let on_bridge =
                |place: &PodPlace| self.link(place.ifindex).is_some_and(|veth| veth.master == Some(bridge));
            return match neighbour.filter(on_bridge) {
                Some(place) => self.bring_to_pod(packet, place, 0).await,
                None => self.routed(packet, Some(bridge), 0).await,
            };
        }
        Ok(self.dropped_at(source, found.interface, &found.why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_for_all_has_a_mac_of_all() {
        let [v4, v6] = ["10.244.1.0/24", "fd00:1::/64"].map(|subnet| subnet.parse::<IpNetwork>().unwrap());
        for (to, subnet, mac) in [
            ("224.0.0.251", v4, Some([1, 0, 0x5e, 0, 0, 251])),
            ("239.129.2.3", v4, Some([1, 0, 0x5e, 1, 2, 3])),
            ("255.255.255.255", v4, Some([0xff; 6])),
            ("10.244.1.255", v4, Some([0xff; 6])),
            ("10.244.2.255", v4, None),
            ("10.244.1.7", v4, None),
            ("ff02::1:ff00:7", v6, Some([0x33, 0x33, 0xff, 0, 0, 7])),
            ("fd00:1::7", v6, None),
        ] {
            assert_eq!(group(to.parse().unwrap(), subnet), mac.map(Mac), "{to}");
        }
    }
}
