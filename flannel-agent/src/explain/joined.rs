//! Bridges that are joined to each other: who is behind one is on the link of the other, too.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{At, ExplainError, Imagined, Outcome, Step, tables::interface, walk::Walk};
use crate::netlink::{Link, obstacle};

/// How one bridge is joined to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Joint {
    /// By pairs of veths: their ends in the order that frames pass; none from a bridge to itself.
    Veths(Vec<String>),
    /// Perhaps, by what is not seen from here: this.
    Perhaps(String),
    /// Not at all.
    Apart,
}

/// The ports of `bridges` that let frames pass.
fn ports<'a>(links: &'a [Link], bridges: &BTreeSet<u32>) -> Vec<&'a Link> {
    let bridge = |port: &Link| {
        links.iter().find(|link| Some(link.index) == port.master && bridges.contains(&link.index))
    };
    links
        .iter()
        .filter(|port| bridge(port).is_some_and(|bridge| obstacle(port, Some(bridge)).is_none()))
        .collect()
}

/// The bridges that pairs of veths join to `from`, itself among them, each with the way there.
fn reached(links: &[Link], from: u32) -> BTreeMap<u32, Vec<String>> {
    let mut reached = BTreeMap::from([(from, Vec::new())]);
    let mut next = VecDeque::from([from]);
    while let Some(bridge) = next.pop_front() {
        let way = reached[&bridge].clone();
        for port in ports(links, &BTreeSet::from([bridge])).into_iter().filter(|port| port.kind.is_pair()) {
            let other = links.iter().find(|link| Some(link.index) == port.lower && link.kind.is_pair());
            let Some((other, master)) = other.and_then(|other| Some((other, other.master?))) else {
                continue;
            };
            let is_open =
                !ports(links, &BTreeSet::from([master])).iter().all(|port| port.index != other.index);
            if is_open && !reached.contains_key(&master) {
                let way = [way.as_slice(), &[port.name.clone(), other.name.clone()]].concat();
                reached.insert(master, way);
                next.push_back(master);
            }
        }
    }
    reached
}

/// How bridge `to` is joined to bridge `from`.
pub(super) fn joint(links: &[Link], from: u32, to: u32) -> Joint {
    let (mut here, there) = (reached(links, from), reached(links, to));
    if let Some(way) = here.remove(&to) {
        let filters = links
            .iter()
            .find(|link| link.vlan_filtering && (link.index == to || here.contains_key(&link.index)));
        return match filters.filter(|_| from != to) {
            Some(bridge) => Joint::Perhaps(format!("{} filters by VLAN", bridge.name)),
            None => Joint::Veths(way),
        };
    }
    let [here, there] = [here, there].map(|reached| reached.into_keys().collect::<BTreeSet<u32>>());
    let (near, far) = (ports(links, &here), ports(links, &there));
    // A VLAN or the like on one, as a port of the other.
    for (ports, bridges, others) in [(&near, &there, &far), (&far, &here, &near)] {
        let stands_on = |port: &&&Link| {
            !port.kind.is_pair()
                && port.lower.is_some_and(|lower| {
                    bridges.contains(&lower) || others.iter().any(|other| other.index == lower)
                })
        };
        if let Some(port) = ports.iter().find(stands_on) {
            return Joint::Perhaps(format!(
                "{} stands on {}",
                port.name,
                port.lower.map(interface).unwrap_or_default()
            ));
        }
    }
    // What leads elsewhere from both may lead to the same place: one switch, or one namespace.
    let elsewhere =
        |ports: &[&Link]| ports.iter().find(|port| !port.kind.is_pair()).map(|port| port.name.clone());
    if let Some((near, far)) = elsewhere(&near).zip(elsewhere(&far)) {
        return Joint::Perhaps(format!("{near} and {far} lead elsewhere"));
    }
    let namespace = |port: &&&Link| port.peer.map(|peer| peer.namespace);
    let shared = near.iter().find(|port| {
        namespace(port).is_some() && far.iter().any(|other| namespace(&other) == namespace(port))
    });
    match shared {
        Some(port) => Joint::Perhaps(format!("the namespace behind {} has an interface at both", port.name)),
        None => Joint::Apart,
    }
}

impl Walk {
    /// From `bridge` to the pod with the packet's destination, which is at none of the places of pods: over a bridge that is
    /// joined to it. `None` where no pod has it, or the bridges are apart.
    pub(super) async fn over_joined_bridges(
        &mut self,
        packet: Imagined,
        bridge: u32,
    ) -> Result<Option<Outcome>, ExplainError> {
        let to = packet.destination;
        let Some(found) = self.netlink.cut_off(to, &self.links).await?.filter(|found| !found.is_shut) else {
            return Ok(None);
        };
        let veth = self.links.iter().find(|link| link.name == found.interface);
        let Some(master) = veth.and_then(|veth| veth.master) else { return Ok(None) };
        let outcome = match joint(&self.links, bridge, master) {
            Joint::Apart => return Ok(None),
            Joint::Veths(way) => {
                let what =
                    format!("{to} is behind {} of bridge {}{}", found.interface, interface(master), by(&way));
                self.steps.push(Step::of_kernel(At::Bridge, Some(interface(bridge)), what));
                Outcome::Pod { interface: found.interface, fast: false }
            }
            Joint::Perhaps(what) => self.perhaps_joined(&found.interface, master, bridge, &what),
        };
        Ok(Some(outcome))
    }

    /// Of two bridges of which it is not seen whether they are joined.
    pub(super) fn perhaps_joined(&mut self, veth: &str, master: u32, bridge: u32, what: &str) -> Outcome {
        let [master, bridge] = [master, bridge].map(interface);
        let why = format!(
            "{veth} is a port of bridge {master}, and {what}: whether {master} is joined to {bridge} is not seen"
        );
        self.steps.push(Step::of_kernel(At::Bridge, Some(bridge), why.clone()));
        Outcome::Unknown { why }
    }
}

/// How a bridge is reached.
pub(super) fn by(way: &[String]) -> String {
    match way {
        [] => String::new(),
        way => format!(", by the veths {}", way.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::{LinkKind, PeerEnd};

    fn bridge(index: u32) -> Link {
        Link::plain(index, &format!("br{index}"), LinkKind::Bridge, 1450)
    }

    fn port(index: u32, master: u32, kind: LinkKind, lower: Option<u32>) -> Link {
        Link { master: Some(master), lower, ..Link::plain(index, &format!("port{index}"), kind, 1450) }
    }

    #[test]
    fn bridges_are_joined_by_pairs_of_veths_and_perhaps_by_what_leads_elsewhere() {
        let bridges = || vec![bridge(1), bridge(2), bridge(3)];
        let pair = |a, one, b, other| {
            [port(a, one, LinkKind::Veth, Some(b)), port(b, other, LinkKind::Veth, Some(a))]
        };
        let apart = Joint::Apart;
        let way = |names: &[&str]| Joint::Veths(names.iter().map(|name| (*name).to_owned()).collect());
        assert_eq!(joint(&bridges(), 1, 1), way(&[]));
        assert_eq!(joint(&bridges(), 1, 3), apart);
        let mut links = bridges();
        links.extend(pair(10, 1, 11, 2));
        links.extend(pair(12, 2, 13, 3));
        assert_eq!(joint(&links, 1, 3), way(&["port10", "port11", "port12", "port13"]));
        let mut closed = links.clone();
        closed[6].closed_port = true;
        assert_eq!(joint(&closed, 1, 3), apart);
        links[1].vlan_filtering = true;
        assert_eq!(joint(&links, 1, 3), Joint::Perhaps("br2 filters by VLAN".to_owned()));
        let perhaps: [(Vec<Link>, &str); 3] = [
            (
                vec![port(10, 1, LinkKind::Other, None), port(11, 3, LinkKind::Other, None)],
                "port10 and port11 lead",
            ),
            (vec![port(10, 3, LinkKind::Other, Some(1))], "port10 stands on"),
            (
                [10, 11]
                    .map(|index| {
                        let peer = Some(PeerEnd { namespace: 7, index: 2 });
                        Link { peer, ..port(index, if index == 10 { 1 } else { 3 }, LinkKind::Veth, None) }
                    })
                    .into(),
                "the namespace behind port10",
            ),
        ];
        for (more, says) in perhaps {
            let found = joint(&[bridges(), more].concat(), 1, 3);
            assert!(
                matches!(&found, Joint::Perhaps(what) if what.starts_with(says)),
                "{found:?} instead of {says}"
            );
        }
        // A card on one of them leads nowhere near the other.
        assert_eq!(joint(&[bridges(), vec![port(10, 1, LinkKind::Other, None)]].concat(), 1, 3), apart);
    }
}
