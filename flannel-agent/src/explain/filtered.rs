//! What netfilter drops on the kernel path, by the rules of whoever has made some.

use flannel_common::packet::headers::{PROTOCOL_TCP, PROTOCOL_UDP, TCP_ACK, TCP_SYN};
use ipnetwork::IpNetwork;

use super::{At, Imagined, Outcome, Step, tables::interface, walk::Walk};
use crate::{
    inspect::checks::{Alone, End, Fate, Passage},
    netlink::LinkKind,
};

/// Where a packet is in netfilter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Met {
    /// It comes in by one interface, and leaves by another.
    Forwarded(u32, u32),
    /// It comes in by this interface, for this node.
    In(u32),
    /// It is of this node, and leaves by this interface.
    Out(u32),
    /// It comes into a bridge by this port.
    ByPort(u32),
    /// A bridge hands it from one port to another.
    Bridged(u32, u32),
    /// This bridge, which does so, has iptables called.
    CalledBy(u32),
    /// It leaves a bridge by this port.
    OutOfPort(u32),
}

/// A hook, and the interfaces that are known there.
type Hook = (&'static str, Option<u32>, Option<u32>);

impl Met {
    /// The hooks that it meets. Those of bridges are met where `is_bridge`; there ports are not known.
    fn hooks(self, is_bridge: impl Fn(u32) -> bool) -> Vec<Hook> {
        let of_bridge = |name, index| is_bridge(index).then_some((name, None, None));
        let comes = |by| {
            let own = [("ingress", Some(by), None), ("prerouting", Some(by), None)];
            of_bridge("bridge input", by).into_iter().chain(own)
        };
        let leaves = |out| {
            let own = [("postrouting", None, Some(out)), ("egress", None, Some(out))];
            own.into_iter().chain(of_bridge("bridge output", out))
        };
        let mut hooks: Vec<Hook> = Vec::new();
        match self {
            Self::Forwarded(by, out) => {
                hooks.extend(comes(by));
                hooks.push(("forward", Some(by), Some(out)));
                hooks.extend(leaves(out));
            }
            Self::In(by) => {
                hooks.extend(comes(by));
                hooks.push(("input", Some(by), None));
            }
            Self::Out(out) => {
                hooks.push(("output", None, Some(out)));
                hooks.extend(leaves(out));
            }
            Self::ByPort(port) => {
                hooks.extend([("ingress", Some(port), None), ("bridge prerouting", Some(port), None)]);
            }
            Self::CalledBy(bridge) => hooks.extend([
                ("prerouting", Some(bridge), None),
                ("forward", Some(bridge), Some(bridge)),
                ("postrouting", None, Some(bridge)),
            ]),
            Self::Bridged(from, to) => hooks.push(("bridge forward", Some(from), Some(to))),
            Self::OutOfPort(port) => {
                hooks.extend([("bridge postrouting", None, Some(port)), ("egress", None, Some(port))]);
            }
        }
        hooks
    }
}

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
