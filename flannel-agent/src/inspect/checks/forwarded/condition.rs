//! What a rule asks of a packet, and whether it is so.

use ipnetwork::IpNetwork;

use super::{End, Passage, Truth};
use crate::values::is_interface;

/// What is known of one packet besides its addresses and interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alone {
    /// Its protocol (IANA).
    pub protocol: u8,
    /// Its ports, source first, where the protocol has some.
    pub ports: Option<(u16, u16)>,
    /// Its flags of TCP.
    pub tcp_flags: u8,
    /// It begins a connection; `None` where it may also be of one that is known.
    pub begins: Option<bool>,
    /// Bits of its mark that are set, and those that are known.
    pub mark: (u32, u32),
    /// It is for this node itself.
    pub for_node: bool,
}

/// What a rule asks of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) asks: Asks,
    pub(super) negated: bool,
}

/// Ports, or other numbers, from one to another.
pub(super) type Ranges = Vec<(u16, u16)>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Asks {
    Source(Vec<IpNetwork>),
    Destination(Vec<IpNetwork>),
    /// It comes in by one of these; a name may end in `+` or `*`.
    By(Vec<String>),
    /// It leaves by one of these.
    Out(Vec<String>),
    /// It is of IPv4, or else of IPv6.
    IsV4(bool),
    /// It is of one of these protocols (IANA).
    Protocol(Vec<u8>),
    /// Its port is among these; of this protocol alone, where one is named.
    SourcePort(Option<u8>, Ranges),
    DestinationPort(Option<u8>, Ranges),
    EitherPort(Ranges),
    /// Of these flags of TCP those are set.
    TcpFlags(u8, u8),
    /// Its mark has this value in these bits.
    Mark(u32, u32),
    /// It begins a connection, or is of one that is known. Where neither is asked for, it is what no packet is here:
    /// invalid, related, or translated.
    State {
        new: bool,
        known: bool,
    },
    /// It is for this node itself.
    ForNode,
    /// It is one of those that chance, or a rate, takes out of many.
    Chance,
    /// All of these are so, of one of the lists at least.
    AnyOf(Vec<Vec<Condition>>),
    /// What cannot be judged.
    Something,
}

impl Condition {
    pub(super) fn of(&self, passage: &Passage) -> Truth {
        let any = |networks: &[IpNetwork], end: End| {
            networks.iter().map(|named| end.is_in(*named)).max().unwrap_or_default()
        };
        let alone = passage.alone.as_ref();
        let port = |of: Option<u8>, ranges: &Ranges, which: fn((u16, u16)) -> u16| {
            alone.map_or(Truth::Unknown, |alone| match alone.ports {
                Some(ports) if of.is_none_or(|of| of == alone.protocol) => is_among(ranges, which(ports)),
                // Whether negated or not.
                _ => is(self.negated),
            })
        };
        let truth = match &self.asks {
            Asks::Source(networks) => any(networks, passage.source),
            Asks::Destination(networks) => any(networks, passage.destination),
            Asks::By(names) => is_named(names, &passage.by),
            Asks::Out(names) => is_named(names, &passage.out),
            Asks::IsV4(v4) => is(passage.source.network.is_ipv4() == *v4),
            Asks::Protocol(protocols) => {
                alone.map_or(Truth::Unknown, |alone| is(protocols.contains(&alone.protocol)))
            }
            Asks::SourcePort(of, ranges) => port(*of, ranges, |(source, _)| source),
            Asks::DestinationPort(of, ranges) => port(*of, ranges, |(_, destination)| destination),
            Asks::EitherPort(ranges) => {
                port(None, ranges, |(source, _)| source)
                    .max(port(None, ranges, |(_, destination)| destination))
            }
            Asks::TcpFlags(mask, set) => {
                alone.map_or(Truth::Unknown, |alone| is(alone.tcp_flags & mask == *set))
            }
            Asks::Mark(value, mask) => {
                alone.map_or(Truth::Unknown, |alone| has_mark(alone.mark, *value, *mask))
            }
            Asks::State { new, known } => begins(alone, *new, *known),
            Asks::ForNode => alone.map_or(Truth::Unknown, |alone| is(alone.for_node)),
            // Which one is, nobody knows.
            Asks::Chance => alone.map_or(Truth::Partly, |_| Truth::Unknown),
            Asks::AnyOf(lists) => lists.iter().map(|all| all_of(all, passage)).max().unwrap_or_default(),
            Asks::Something => Truth::Unknown,
        };
        if self.negated { truth.negated() } else { truth }
    }
}

/// Whether all of them are so.
pub(super) fn all_of(conditions: &[Condition], passage: &Passage) -> Truth {
    conditions.iter().map(|condition| condition.of(passage)).min().unwrap_or(Truth::Yes)
}

const fn is(so: bool) -> Truth {
    if so { Truth::Yes } else { Truth::No }
}

fn is_among(ranges: &Ranges, port: u16) -> Truth {
    is(ranges.iter().any(|(from, to)| (*from..=*to).contains(&port)))
}

fn has_mark((set, known): (u32, u32), value: u32, mask: u32) -> Truth {
    match (set ^ value) & mask & known {
        0 if mask & !known == 0 => Truth::Yes,
        0 => Truth::Unknown,
        _ => Truth::No,
    }
}

fn begins(alone: Option<&Alone>, new: bool, known: bool) -> Truth {
    match alone.map_or(Some(true), |alone| alone.begins) {
        Some(true) => is(new),
        Some(false) => is(known),
        None if new && known => Truth::Yes,
        None if new || known => Truth::Unknown,
        None => Truth::No,
    }
}

fn is_named(names: &[String], interfaces: &[String]) -> Truth {
    let fits = |interface: &String| names.iter().any(|name| is_interface(name, &['+', '*'], interface));
    match interfaces.iter().filter(|interface| fits(interface)).count() {
        _ if interfaces.is_empty() => Truth::Unknown,
        0 => Truth::No,
        fitting if fitting == interfaces.len() => Truth::Yes,
        _ => Truth::Unknown,
    }
}
