//! When the reconciler is to look, and at what.

use std::collections::{BTreeMap, BTreeSet};

use tokio::time::Instant;

use super::pending::backoff;
use crate::{netlink::Changed, plan::Pods, values::Family};

/// What is to be looked at in the next pass, and when that is due.
#[derive(Debug)]
pub(super) struct Due {
    pub(super) leases: Option<Instant>,
    pub(super) changed: Changed,
    pub(super) changed_at: Option<Instant>,
    pub(super) full: Instant,
    pub(super) retry: Option<Instant>,
    pub(super) exemptions: Option<Instant>,
    /// When to look at maps and programs alone.
    pub(super) look: Instant,
    /// When to say how many peers there are.
    pub(super) total: Option<Instant>,
    /// When to look for the addresses of new pods.
    pub(super) pods: Option<Instant>,
    /// No pass before this but for leases, exemptions and the clock: notices, pods without an address and changes that
    /// fail may come as fast as somebody makes them.
    pub(super) rest: Instant,
}

impl Due {
    /// When the next pass is due.
    pub(super) fn next(&self) -> Instant {
        let rested = [self.changed_at, self.retry, self.pods].map(|at| at.map(|at| at.max(self.rest)));
        [self.leases, self.exemptions].into_iter().chain(rested).flatten().fold(self.full, Instant::min)
    }
}

/// Pods whose address is not known. A pod gets its address after its link, and within its namespace, which
/// raises no notice here: so a new link is looked at again, soon and then ever more rarely.
#[derive(Debug, Default)]
pub(super) struct Unplaced {
    links: BTreeSet<u32>,
    pub(super) looks: u32,
}

impl Unplaced {
    /// So often; what has no address after some ten seconds waits for the next full look.
    const LOOKS: u32 = 7;

    /// When to look again, having seen `pods` on a node of so many `families`, each of which a pod may have an
    /// address of.
    pub(super) fn look_again(&mut self, pods: &Pods, families: usize, now: Instant) -> Option<Instant> {
        let mut found = BTreeMap::<u32, BTreeSet<Family>>::new();
        for (address, place) in &pods.places {
            found.entry(place.ifindex).or_default().insert(Family::of(*address));
        }
        let complete = found.iter().filter(|(_, found)| found.len() >= families);
        let placed: BTreeSet<u32> = complete.map(|(link, _)| *link).collect();
        let unplaced: BTreeSet<u32> = pods.links.difference(&placed).copied().collect();
        self.looks = if unplaced.is_subset(&self.links) { self.looks.saturating_add(1) } else { 1 };
        let again = !unplaced.is_empty() && self.looks <= Self::LOOKS;
        self.links = unplaced;
        again.then(|| now + backoff(self.looks))
    }
}
