//! What netfilter drops on the kernel path, by the rules of whoever has made some.

use flannel_common::packet::headers::{PROTOCOL_TCP, PROTOCOL_UDP, TCP_ACK, TCP_SYN};
use ipnetwork::IpNetwork;

use super::{At, Imagined, Outcome, Step, met::Met, tables::interface, walk::Walk};
use crate::{
    inspect::checks::{Alone, End, Fate, Passage},
    netlink::LinkKind,
};

impl Walk {
    /// Leads a packet with `mark` of our bits through the chains; what becomes of it where one drops it for certain.
    pub(super) fn filtered(&mut self, packet: &Imagined, mark: u32, met: Met) -> Option<Outcome> {
        let filters = self.told.filters.take()?;
        let mut dropped = None;
        let is_bridge = |index| self.link(index).is_some_and(|link| link.kind == LinkKind::Bridge);
        for (hook, by, out) in met.hooks(is_bridge) {
            let passage = self.passage(packet, mark, by, out);
            let at = by.or(out).map(interface);
            for fate in filters.meet(hook, at.as_deref(), &passage) {
                let what = match fate {
                    Fate::Dropped(by) => {
                        let what = format!("drops it: {by}");
                        dropped = Some(Outcome::Dropped { by });
                        what
                    }
                    Fate::Perhaps(by) => {
                        self.perhaps.push(by.clone());
                        format!("may drop it, by a condition that cannot be judged here: {by}")
                    }
                };
                self.steps.push(Step::of_kernel(At::Netfilter, at.clone(), what));
            }
            if dropped.is_some() {
                break;
            }
        }
        if !filters.unread.is_empty() && !self.steps.iter().any(|step| step.at == At::Netfilter) {
            let what =
                format!("{} cannot be asked: its rules are not looked at", filters.unread.join(" and "));
            self.steps.push(Step::of_kernel(At::Netfilter, None, what));
        }
        self.told.filters = Some(filters);
        dropped
    }

    /// What becomes of a packet that comes in by an interface, or that this node makes, where a rule may give it another
    /// destination: a known connection's is given by what the kernel remembers.
    pub(super) fn translated(&mut self, packet: &Imagined, mark: u32, by: Option<u32>) -> Option<Outcome> {
        let hook = if by.is_some() { "prerouting" } else { "output" };
        let passage = self.passage(packet, mark, by, None);
        let rule = self.told.filters.as_ref()?.translator(hook, &passage)?;
        let what = format!("may give it another destination: {rule}");
        self.steps.push(Step::of_kernel(At::Netfilter, by.map(interface), what));
        let why = format!(
            "{rule} may give it another destination, which is not looked up: ask for each backend's address in place of {}",
            packet.destination
        );
        Some(Outcome::Unknown { why })
    }

    fn passage(&self, packet: &Imagined, mark: u32, by: Option<u32>, out: Option<u32>) -> Passage {
        let names = |index: Option<u32>| index.map(interface).into_iter().collect();
        let end = |address| End { network: IpNetwork::from(address), without: None };
        let for_node = self.own.contains(&packet.destination);
        Passage {
            source: end(packet.source),
            destination: end(packet.destination),
            by: names(by),
            out: names(out),
            alone: Some(Alone { for_node, ..alone(packet, (mark, !self.marks.both())) }),
        }
    }
}

fn alone(packet: &Imagined, mark: (u32, u32)) -> Alone {
    let has_ports = [PROTOCOL_TCP, PROTOCOL_UDP].contains(&packet.protocol);
    let begins = packet.protocol == PROTOCOL_TCP && packet.tcp_flags & (TCP_SYN | TCP_ACK) == TCP_SYN;
    Alone {
        protocol: packet.protocol,
        ports: has_ports.then_some((packet.source_port, packet.destination_port)),
        tcp_flags: packet.tcp_flags,
        begins: begins.then_some(true),
        mark,
        for_node: false,
    }
}
