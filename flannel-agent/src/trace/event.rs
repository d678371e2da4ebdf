//! A packet at a hook, for people and programs.

use std::{fmt, net::IpAddr, time::Duration};

use flannel_common::{
    layout::trace::{TraceKey, TraceRecord},
    path::Hook,
    reason::{Class, Reason},
};
use serde::{Deserialize, Serialize};

use super::Clock;

/// A packet at a hook.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// When, in UTC, with nanoseconds: the texts sort as the times do.
    pub time: String,
    /// The node.
    pub node: String,
    /// The program at the hook.
    pub hook: String,
    /// The interface.
    pub interface: String,
    /// `egress` or `ingress`.
    pub direction: String,
    /// Source, of the inner packet where there is one; absent of what is no IP packet.
    pub source: Option<IpAddr>,
    /// Destination.
    pub destination: Option<IpAddr>,
    /// Protocol: `tcp`, `udp`, `icmp` or a number.
    pub protocol: Option<String>,
    /// Source port of TCP and UDP.
    pub source_port: Option<u16>,
    /// Destination port.
    pub destination_port: Option<u16>,
    /// It was in VXLAN.
    pub tunnelled: bool,
    /// Length of the frame, bytes.
    pub length: u32,
    /// Packets on the wire: more than one of an aggregate.
    pub segments: u32,
    /// Its mark when it came.
    pub mark: u32,
    /// Its mark when it went on.
    pub mark_after: u32,
    /// What the program did: `pass`, `drop`, `redirect`.
    pub action: String,
    /// What it is counted for; absent of what is let pass uncounted.
    pub reason: Option<String>,
    /// What was noted besides.
    pub notes: Vec<String>,
}

/// An address of a record.
pub fn address(family: u32, words: [u64; 2]) -> Option<IpAddr> {
    let octets: [u8; 16] = bytemuck::cast(words.map(u64::to_ne_bytes));
    match (family, octets) {
        (4, [a, b, c, d, ..]) => Some(IpAddr::from([a, b, c, d])),
        (6, octets) => Some(IpAddr::from(octets)),
        _ => None,
    }
}

/// The hook of a record.
pub fn hook(key: &TraceKey) -> Option<Hook> {
    Hook::ALL.into_iter().find(|hook| *hook as u32 == key.hook)
}

/// The reason of a number.
pub fn reason(number: u32) -> Option<Reason> {
    Reason::ALL.iter().copied().find(|reason| *reason as u32 == number)
}

impl Event {
    /// Of a record; `None` where it is none of ours.
    pub fn of(record: &TraceRecord, node: &str, clock: &Clock, name: impl Fn(u32) -> String) -> Option<Self> {
        let key = &record.key;
        let hook = hook(key)?;
        let counted = record.reasons.iter().take(record.counted as usize);
        let counted: Vec<Reason> = counted.filter_map(|number| reason(u32::from(*number))).collect();
        let is_note = |reason: &&Reason| reason.class() == Class::Note;
        let own = counted.iter().rev().find(|reason| !is_note(reason)).or(match counted.as_slice() {
            [only] if is_note(&only) => None,
            _ => None,
        });
        let notes = counted.iter().filter(is_note).map(|reason| reason.label().to_owned()).collect();
        let has_ports = matches!(key.protocol, 6 | 17) && key.family != 0;
        let [source_port, destination_port] = record.ports.map(|port| has_ports.then_some(port));
        Some(Self {
            time: clock.utc(Duration::from_nanos(record.time)),
            node: node.to_owned(),
            hook: hook.program().to_owned(),
            interface: name(record.ifindex),
            direction: hook.direction().label().to_owned(),
            source: address(key.family, key.source),
            destination: address(key.family, key.destination),
            protocol: (key.family != 0).then(|| protocol(key.protocol)),
            source_port,
            destination_port,
            tunnelled: record.tunnelled != 0,
            length: record.len,
            segments: record.segments,
            mark: record.mark,
            mark_after: record.mark_after,
            action: action(hook, record.action).to_owned(),
            reason: own.map(|reason| reason.label().to_owned()),
            notes,
        })
    }
}

/// The name of a protocol.
pub fn protocol(number: u32) -> String {
    match number {
        1 | 58 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        132 => "sctp".to_owned(),
        number => number.to_string(),
    }
}

/// What an answer of a program means (include/uapi/linux/pkt_cls.h, include/uapi/linux/bpf.h `xdp_action`).
fn action(hook: Hook, number: i32) -> &'static str {
    match (hook.is_xdp(), number) {
        (true, 1) | (false, 2) => "drop",
        (true, 2) | (false, -1 | 0) => "pass",
        (true, 4) | (false, 7) => "redirect",
        _ => "other",
    }
}

/// One line: time, node, hook, interface, packet, length, marks, and what became of it.
impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Of the time of day, as far as a microsecond.
        let time = self.time.get(11..26).unwrap_or(&self.time);
        write!(f, "{time} {} {:<13} {:<15} ", self.node, self.hook, self.interface)?;
        let end = |address: Option<IpAddr>, port: Option<u16>| match (address, port) {
            (Some(address), Some(port)) => std::net::SocketAddr::new(address, port).to_string(),
            (Some(address), None) => address.to_string(),
            (None, _) => "-".to_owned(),
        };
        match &self.protocol {
            Some(protocol) => write!(
                f,
                "{protocol} {} > {}{}",
                end(self.source, self.source_port),
                end(self.destination, self.destination_port),
                if self.tunnelled { " in vxlan" } else { "" }
            )?,
            None => f.write_str("no IP packet")?,
        }
        write!(f, ", {} bytes", self.length)?;
        if self.segments > 1 {
            write!(f, " in {} segments", self.segments)?;
        }
        if self.mark != 0 || self.mark_after != 0 {
            write!(f, ", mark {:#x}", self.mark)?;
            if self.mark != self.mark_after {
                write!(f, " to {:#x}", self.mark_after)?;
            }
        }
        write!(f, ": {}", self.action)?;
        if let Some(reason) = &self.reason {
            write!(f, ", {reason}")?;
        }
        for note in &self.notes {
            write!(f, ", noted {note}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable;

    use super::*;

    fn record() -> TraceRecord {
        let key = TraceKey {
            source: [u64::from_ne_bytes([10, 244, 1, 2, 0, 0, 0, 0]), 0],
            destination: [u64::from_ne_bytes([10, 244, 2, 3, 0, 0, 0, 0]), 0],
            hook: Hook::FromPod as u32,
            reason: Reason::FlowUnknown as u32,
            family: 4,
            protocol: 17,
        };
        let mut record = TraceRecord {
            key,
            ports: [5000, 53],
            len: 86,
            segments: 1,
            action: -1,
            counted: 2,
            ..Zeroable::zeroed()
        };
        record.reasons[0] = Reason::ForwarderLearned as u8;
        record.reasons[1] = Reason::FlowUnknown as u8;
        record
    }

    #[test]
    fn a_record_in_one_line_and_back_from_json() {
        let clock = Clock::starting_at(Duration::from_secs(1_796_000_000));
        let record = TraceRecord { time: 1_500_000_000, mark_after: 0x40, ..record() };
        let event = Event::of(&record, "node1", &clock, |_| "veth1".to_owned()).unwrap();
        assert_eq!(
            event.to_string(),
            "00:53:21.500000 node1 from_pod      veth1           udp 10.244.1.2:5000 > 10.244.2.3:53, 86 bytes, mark 0x0 to \
             0x40: pass, flow_unknown, noted forwarder_learned"
        );
        let json = serde_json::to_string(&event).unwrap();
        assert_eq!(serde_json::from_str::<Event>(&json).unwrap(), event);
    }

    #[test]
    fn what_is_not_ours_is_none() {
        let foreign = TraceRecord { key: TraceKey { hook: 99, ..record().key }, ..record() };
        let clock = Clock::starting_at(Duration::ZERO);
        assert_eq!(Event::of(&foreign, "node1", &clock, |_| String::new()), None);
    }
}
