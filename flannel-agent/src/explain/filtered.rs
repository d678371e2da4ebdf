//! What netfilter drops on the kernel path, by the rules of whoever has made some.

use flannel_common::packet::headers::{PROTOCOL_TCP, PROTOCOL_UDP, TCP_ACK, TCP_SYN};
use ipnetwork::IpNetwork;

use super::{At, Imagined, Outcome, Step, tables::interface, walk::Walk};
use crate::inspect::checks::{Alone, End, Fate, Passage};

/// Where a packet is in netfilter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Met {
    /// It comes in by one interface, and leaves by another.
    Forwarded(u32, u32),
    /// It comes in by this interface, for this node.
    In(u32),
    /// It is of this node, and leaves by this interface.
    Out(u32),
}

impl Met {
    /// The hooks that it meets, each with the interfaces that are known there.
    fn hooks(self) -> Vec<(&'static str, Option<u32>, Option<u32>)> {
        match self {
            Self::Forwarded(by, out) => vec![
                ("prerouting", Some(by), None),
                ("forward", Some(by), Some(out)),
                ("postrouting", None, Some(out)),
            ],
            Self::In(by) => vec![("prerouting", Some(by), None), ("input", Some(by), None)],
            Self::Out(out) => vec![("output", None, Some(out)), ("postrouting", None, Some(out))],
        }
    }
}

impl Walk {
    /// Leads a packet with `mark` of our bits through the chains; what becomes of it where one drops it for certain.
    pub(super) fn filtered(&mut self, packet: &Imagined, mark: u32, met: Met) -> Option<Outcome> {
        let filters = self.told.filters.take()?;
        let mut dropped = None;
        for (hook, by, out) in met.hooks() {
            let names = |index: Option<u32>| index.map(interface).into_iter().collect();
            let end = |address| End { network: IpNetwork::from(address), without: None };
            let passage = Passage {
                source: end(packet.source),
                destination: end(packet.destination),
                by: names(by),
                out: names(out),
                alone: Some(alone(packet, (mark, !self.marks.both()))),
            };
            let at = by.or(out).map(interface);
            for fate in filters.meet(hook, &passage) {
                let what = match fate {
                    Fate::Passes => continue,
                    Fate::Dropped(by) => {
                        dropped = Some(Outcome::Dropped { by: by.clone() });
                        format!("drops it: {by}")
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
    }
}
