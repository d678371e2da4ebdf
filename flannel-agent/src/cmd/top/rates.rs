//! From what was added up at two moments to what passes in a second.

use std::{cmp::Ordering, collections::BTreeMap, net::IpAddr};

use flannel_common::{
    layout::{Counter, trace::TraceKey},
    path::Hook,
    reason::{Class, Direction},
};
use ipnetwork::IpNetwork;
use serde::Serialize;

use crate::{
    bpf::Runs,
    trace::{address, hook, reason},
};

/// What was added up so far.
#[derive(Clone, Debug, Default)]
pub(in crate::cmd) struct Totals {
    pub(in crate::cmd) sums: BTreeMap<TraceKey, Counter>,
    pub(in crate::cmd) runs: BTreeMap<(&'static str, u32), Runs>,
}

/// Who is who.
#[derive(Clone, Debug, Default)]
pub(in crate::cmd) struct Names {
    /// Our pod subnets.
    pub(in crate::cmd) own: Vec<IpNetwork>,
    /// Peers' subnets, and what they are called.
    pub(in crate::cmd) peers: Vec<(IpNetwork, String)>,
}

/// What passes in a second.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(in crate::cmd) struct Rates {
    pub(in crate::cmd) peers: Vec<Row>,
    pub(in crate::cmd) pods: Vec<Row>,
    pub(in crate::cmd) reasons: Vec<ReasonRow>,
    pub(in crate::cmd) programs: Vec<ProgramRow>,
    /// Share of the packets between pods of two nodes that a program moved; absent where there were none.
    pub(in crate::cmd) fast_share: Option<f64>,
}

/// By what rows are sorted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::cmd) enum Order {
    /// Most packets first.
    #[default]
    Packets,
    /// Most bits first.
    Bits,
    /// By name.
    Name,
}

impl Order {
    /// Its name.
    pub(in crate::cmd) const fn label(self) -> &'static str {
        match self {
            Self::Packets => "packets",
            Self::Bits => "bits",
            Self::Name => "name",
        }
    }

    /// The one behind it; behind the last, the first.
    pub(in crate::cmd) const fn next(self) -> Self {
        match self {
            Self::Packets => Self::Bits,
            Self::Bits => Self::Name,
            Self::Name => Self::Packets,
        }
    }

    fn compare(self, a: (Rate, &str), b: (Rate, &str)) -> Ordering {
        match self {
            Self::Packets => b.0.packets.total_cmp(&a.0.packets),
            Self::Bits => b.0.bits.total_cmp(&a.0.bits),
            Self::Name => a.1.cmp(b.1),
        }
    }
}

impl Rates {
    /// Sorts peers, pods and reasons; what is equal keeps its place.
    pub(in crate::cmd) fn sort(&mut self, order: Order) {
        for rows in [&mut self.peers, &mut self.pods] {
            rows.sort_by(|a, b| order.compare((a.both(), &a.name), (b.both(), &b.name)));
        }
        self.reasons.sort_by(|a, b| order.compare((a.rate, a.reason), (b.rate, b.reason)));
    }
}

/// One end.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(in crate::cmd) struct Row {
    pub(in crate::cmd) name: String,
    /// Away from this node.
    pub(in crate::cmd) out: Rate,
    /// To this node.
    pub(in crate::cmd) into: Rate,
    pub(in crate::cmd) fast_share: f64,
}

/// In a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(in crate::cmd) struct Rate {
    pub(in crate::cmd) packets: f64,
    pub(in crate::cmd) bits: f64,
}

impl Row {
    /// What passes either way.
    fn both(&self) -> Rate {
        Rate { packets: self.out.packets + self.into.packets, bits: self.out.bits + self.into.bits }
    }
}

impl Rate {
    fn add(&mut self, count: Counter, seconds: f64) {
        self.packets += count.packets as f64 / seconds;
        self.bits += 8.0 * count.bytes as f64 / seconds;
    }
}

/// One reason.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(in crate::cmd) struct ReasonRow {
    pub(in crate::cmd) direction: &'static str,
    pub(in crate::cmd) path: &'static str,
    pub(in crate::cmd) reason: &'static str,
    pub(in crate::cmd) rate: Rate,
}

/// One program.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(in crate::cmd) struct ProgramRow {
    pub(in crate::cmd) program: &'static str,
    /// Runs in a second.
    pub(in crate::cmd) runs: f64,
    /// Of each, ns, with what it costs to look.
    pub(in crate::cmd) nanoseconds: f64,
    /// Share of one CPU.
    pub(in crate::cmd) cpu: f64,
}

#[derive(Default)]
struct Gathered {
    out: Rate,
    into: Rate,
    fast: f64,
}

impl Gathered {
    fn row(self, name: String) -> Row {
        let all = self.out.packets + self.into.packets;
        Row {
            name,
            out: self.out,
            into: self.into,
            fast_share: if all > 0.0 { self.fast / all } else { 0.0 },
        }
    }
}

/// What passed between `before` and `after`, which are `seconds` apart.
pub(in crate::cmd) fn rates(before: &Totals, after: &Totals, seconds: f64, names: &Names) -> Rates {
    let mut reasons = BTreeMap::<(Direction, &str), ReasonRow>::new();
    let (mut peers, mut pods) = (BTreeMap::<String, Gathered>::new(), BTreeMap::<String, Gathered>::new());
    let (mut fast, mut all) = (0.0, 0.0);
    for (key, sum) in &after.sums {
        let old = before.sums.get(key).copied().unwrap_or_default();
        let count = Counter {
            packets: sum.packets.saturating_sub(old.packets),
            bytes: sum.bytes.saturating_sub(old.bytes),
        };
        let (Some(hook), Some(reason)) = (hook(key), reason(key.reason)) else { continue };
        if count.packets == 0 {
            continue;
        }
        let direction = hook.direction();
        reasons
            .entry((direction, reason.label()))
            .or_insert_with(|| ReasonRow {
                direction: direction.label(),
                path: reason.class().label(),
                reason: reason.label(),
                rate: Rate::default(),
            })
            .rate
            .add(count, seconds);
        // What passes several of our hooks is counted once: where it comes in, and again only where a later program
        // moves it.
        let moved = reason.class() == Class::Fast;
        let first = matches!(hook, Hook::FromPod | Hook::FromUnderlay);
        if reason.class() == Class::Note || (!first && !moved) {
            continue;
        }
        let ends = (address(key.family, key.source), address(key.family, key.destination));
        let (Some(source), Some(destination)) = ends else { continue };
        let (near, far) = match direction {
            Direction::Egress => (source, destination),
            Direction::Ingress => (destination, source),
        };
        let Some(peer) = names.peer(far) else { continue };
        let packets = count.packets as f64 / seconds;
        let name = names.own.iter().any(|own| own.contains(near)).then(|| near.to_string());
        let add = |gathered: &mut Gathered| {
            if first {
                let rate =
                    if direction == Direction::Egress { &mut gathered.out } else { &mut gathered.into };
                rate.add(count, seconds);
            }
            if moved {
                gathered.fast += packets;
            }
        };
        add(peers.entry(peer.to_owned()).or_default());
        if let Some(name) = name {
            add(pods.entry(name).or_default());
        }
        all += if first { packets } else { 0.0 };
        fast += if moved { packets } else { 0.0 };
    }
    let rows = |gathered: BTreeMap<String, Gathered>| {
        gathered.into_iter().map(|(name, gathered)| gathered.row(name)).collect()
    };
    let mut found = Rates {
        peers: rows(peers),
        pods: rows(pods),
        reasons: reasons.into_values().collect(),
        programs: programs(before, after, seconds),
        fast_share: (all > 0.0).then(|| f64::min(fast / all, 1.0)),
    };
    found.sort(Order::Packets);
    found
}

impl Names {
    fn peer(&self, address: IpAddr) -> Option<&str> {
        self.peers.iter().find(|(subnet, _)| subnet.contains(address)).map(|(_, name)| name.as_str())
    }
}

fn programs(before: &Totals, after: &Totals, seconds: f64) -> Vec<ProgramRow> {
    let mut all = BTreeMap::<&'static str, (f64, f64)>::new();
    for (key, runs) in &after.runs {
        let old = before.runs.get(key).copied().unwrap_or(*runs);
        let (time, count) = all.entry(key.0).or_default();
        *time += runs.time.saturating_sub(old.time).as_nanos() as f64;
        *count += runs.count.saturating_sub(old.count) as f64;
    }
    let row = |(program, (time, count)): (&'static str, (f64, f64))| ProgramRow {
        program,
        runs: count / seconds,
        nanoseconds: if count > 0.0 { time / count } else { 0.0 },
        cpu: time / 1e9 / seconds,
    };
    all.into_iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use flannel_common::reason::Reason;

    use super::*;

    fn key(hook: Hook, reason: Reason, source: [u8; 4], destination: [u8; 4]) -> TraceKey {
        let words = |[a, b, c, d]: [u8; 4]| [u64::from_ne_bytes([a, b, c, d, 0, 0, 0, 0]), 0];
        TraceKey {
            source: words(source),
            destination: words(destination),
            hook: hook as u32,
            reason: reason as u32,
            family: 4,
            protocol: 17,
        }
    }

    #[test]
    fn each_packet_is_counted_once_and_its_share_is_fast() {
        let names = Names {
            own: vec!["10.244.1.0/24".parse().unwrap()],
            peers: vec![("10.244.2.0/24".parse().unwrap(), "node2".to_owned())],
        };
        let (pod, other) = ([10, 244, 1, 2], [10, 244, 2, 3]);
        let count = |packets| Counter { packets, bytes: 100 * packets };
        let before = Totals::default();
        let mut after = Totals::default();
        for (hook, reason, source, destination, packets) in [
            (Hook::FromPod, Reason::EncapPod, pod, other, 60),
            (Hook::FromPod, Reason::FlowUnknown, pod, other, 20),
            // The same twenty, of which the device gets ten.
            (Hook::ToOverlay, Reason::EncapOverlay, pod, other, 10),
            (Hook::ToOverlay, Reason::TunnelStale, pod, other, 10),
            (Hook::FromUnderlay, Reason::DeliverPod, other, pod, 20),
            (Hook::FromPod, Reason::FlowLearned, pod, other, 1),
            // For elsewhere.
            (Hook::FromPod, Reason::NoRoute, pod, [192, 0, 2, 1], 500),
        ] {
            after.sums.insert(key(hook, reason, source, destination), count(packets));
        }
        let found = rates(&before, &after, 2.0, &names);
        let row = |name: &str| Row {
            name: name.to_owned(),
            out: Rate { packets: 40.0, bits: 32_000.0 },
            into: Rate { packets: 10.0, bits: 8_000.0 },
            fast_share: 0.9,
        };
        assert_eq!((found.peers, found.pods), (vec![row("node2")], vec![row("10.244.1.2")]));
        assert_eq!(found.fast_share, Some(0.9));
        assert_eq!((found.reasons[0].reason, found.reasons[0].rate.packets), ("no_route", 250.0));
        assert!(rates(&after, &after, 1.0, &names).peers.is_empty());
    }
}
