//! What a node's programs counted, read past the agent.

use std::{collections::BTreeMap, path::Path};

use anyhow::Result;
use flannel_agent::bpf::{Pins, Traffic, read_counters};
use flannel_common::{
    path::gate,
    reason::{Class, Direction, Reason},
};

/// Packets and bytes of one counter, over all CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets as on the wire: a GSO aggregate counts its segments.
    pub packets: u64,
    /// Bytes, Ethernet header included.
    pub bytes: u64,
}

/// One reading of a node's counters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters(BTreeMap<(Direction, Reason), Count>);

impl Counters {
    /// Reads those pinned below `bpffs`.
    pub fn read(bpffs: &Path) -> Result<Self> {
        let rows = read_counters(&Pins::under(bpffs)?)?;
        let counts = rows
            .into_iter()
            .map(|Traffic { direction, reason, packets, bytes }| {
                ((direction, reason), Count { packets, bytes })
            })
            .collect();
        Ok(Self(counts))
    }

    /// One counter.
    pub fn get(&self, direction: Direction, reason: Reason) -> Count {
        self.0.get(&(direction, reason)).copied().unwrap_or_default()
    }

    /// Packets of one direction that took the fast path, or were left to the kernel.
    pub fn packets(&self, direction: Direction, class: Class) -> u64 {
        let of_class =
            self.0.iter().filter(|((way, reason), _)| *way == direction && reason.class() == class);
        of_class.map(|(_, count)| count.packets).sum()
    }

    /// Share of the packets between pods of two nodes, those of one direction, that skipped the host's stack; `None`
    /// where there were none.
    pub fn share_past_the_stack(&self, direction: Direction) -> Option<f64> {
        let skipped = match direction {
            Direction::Egress => {
                [Reason::EncapPod, Reason::RoutePod, Reason::EncapDevice, Reason::Translated]
            }
            Direction::Ingress => {
                [Reason::DeliverPod, Reason::HandPod, Reason::DeliverOverlay, Reason::Translated]
            }
        };
        let packets = |reasons: &[Reason]| -> u64 {
            reasons.iter().map(|reason| self.get(direction, *reason).packets).sum()
        };
        let (skipped, left) = (packets(&skipped), packets(&gate::REFUSALS));
        (skipped + left > 0).then(|| skipped as f64 / (skipped + left) as f64)
    }

    /// Pods' packets that went out past the host's stack, and that came in so: as they are, then in VXLAN.
    pub fn past_the_stack(&self) -> [u64; 4] {
        use Direction::{Egress, Ingress};
        [
            (Egress, Reason::RoutePod),
            (Ingress, Reason::HandPod),
            (Egress, Reason::EncapPod),
            (Ingress, Reason::DeliverPod),
        ]
        .map(|(direction, reason)| self.get(direction, reason).packets)
    }

    /// What was counted since `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        let difference = self.0.iter().map(|(&(direction, reason), count)| {
            let before = earlier.get(direction, reason);
            let count = Count { packets: count.packets - before.packets, bytes: count.bytes - before.bytes };
            ((direction, reason), count)
        });
        Self(difference.collect())
    }

    /// Every counter that is not zero, with its direction and reason.
    pub fn nonzero(&self) -> impl Iterator<Item = (Direction, Reason, Count)> {
        let set = self.0.iter().filter(|(_, count)| count.packets > 0);
        set.map(|(&(direction, reason), &count)| (direction, reason, count))
    }
}

impl std::fmt::Display for Counters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (direction, reason, count) in self.nonzero() {
            write!(f, "{} {}: {} packets; ", direction.label(), reason.label(), count.packets)?;
        }
        Ok(())
    }
}
