//! When the reconciler is to do what: every clock of it, and nothing else. It reads no clock and sleeps nowhere: whoever
//! asks says what time it is.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::time::Instant;

use super::pending::backoff;
use crate::{netlink::Changed, plan::Pods, values::Family};

/// How long a burst of events is gathered before a pass.
const SETTLE: Duration = Duration::from_millis(20);
/// Between passes that pods can cause (by the kernel's notices, or without an address), so many times the CPU time of the
/// last pass is waited: on a large node they take at most a fifth of a CPU, however fast its pods come and go. Not so many
/// times its length: on a busy node, a pass that waits for a CPU is no reason to let pods wait.
const REST: u32 = 4;
/// Maps and programs give no notice when someone changes them: so often they are looked at, and so many
/// times the CPU time of the look apart, which keeps the looks at a two-hundredth of a CPU: a lease that comes meanwhile
/// waits for their end.
const LOOK: Duration = Duration::from_secs(1);
const LOOK_REST: u32 = 200;
/// The same after a look that found something, and the repair: whoever took one thing away may take another.
const REPAIR_REST: u32 = 50;
/// Where nothing was amiss, no longer: on a busy machine a short look takes long.
const LONGEST_LOOK: Duration = Duration::from_secs(4);
/// How often everything is read again though nothing was heard of; on a large node, so many times its CPU time apart.
pub(super) const FULL: Duration = Duration::from_secs(30);
const FULL_REST: u32 = 200;
const LONGEST_FULL: Duration = Duration::from_secs(120);
/// The kernel's decisions may change as fast as somebody makes routes: in the long run flows are seen by it anew no
/// more often than this, which costs each of them a packet on the kernel path either way.
pub(super) const ACCEPTANCE_REST: Duration = Duration::from_millis(500);
/// After a calm so many more times at once: a node's first pod comes with routes of its own soon after the start, and what
/// it sends then is not to be sent back later.
pub(super) const ACCEPTANCE_BURST: u32 = 4;
/// So long after a change the number of peers is logged, if there were many.
pub(super) const TOTAL: Duration = Duration::from_secs(3);

/// What the next pass is to look at, and when it, the next look and the next line of the log are due.
#[derive(Debug)]
pub(super) struct Schedule {
    /// What has changed since the last pass.
    changed: Changed,
    /// When that is to be looked at.
    changes: Option<Instant>,
    /// When changed leases are to be planned.
    leases: Option<Instant>,
    /// When changed exemptions are to be planned.
    exemptions: Option<Instant>,
    /// When what failed is to be tried again.
    retry: Option<Instant>,
    /// When to look for the addresses of new pods.
    pods: Option<Instant>,
    /// When everything is to be read again.
    full: Instant,
    /// No pass before this but for leases, exemptions and the clock: notices, pods without an address and changes that
    /// fail may come as fast as somebody makes them.
    rest: Instant,
    /// When to look at maps and programs alone.
    look: Instant,
    /// When what was accepted of flows is to count no more.
    acceptance: Option<Instant>,
    /// When all that was ended is rested from.
    acceptance_rest: Instant,
    /// When to say how many peers there are.
    total: Option<Instant>,
    /// How long the last pass took.
    length: Duration,
    /// CPU time of the last pass.
    cost: Duration,
    /// Passes in a row that could not read the kernel.
    failures: u32,
    unplaced: Unplaced,
}

/// A pass that has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pass {
    /// When it began.
    pub(super) start: Instant,
    /// What it is to look at.
    pub(super) changed: Changed,
    /// It reads everything, for it is time to.
    full: bool,
}

impl Schedule {
    /// Everything is to be read, now.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            changed: Changed::EVERYTHING,
            changes: None,
            leases: None,
            exemptions: None,
            retry: None,
            pods: None,
            full: now,
            rest: now,
            look: now,
            // What happened before we listened is not known.
            acceptance: Some(now),
            acceptance_rest: now,
            total: None,
            length: Duration::ZERO,
            cost: Duration::ZERO,
            failures: 0,
            unplaced: Unplaced::default(),
        }
    }

    /// When the next pass is due.
    pub(super) fn next_pass(&self) -> Instant {
        let rested = [self.changes, self.retry, self.pods].map(|at| at.map(|at| at.max(self.rest)));
        [self.leases, self.exemptions].into_iter().chain(rested).flatten().fold(self.full, Instant::min)
    }

    /// When maps and programs are to be looked at.
    pub(super) fn next_look(&self) -> Instant {
        self.look
    }

    /// When what was accepted of flows is to count no more, if at all.
    pub(super) fn next_acceptance(&self) -> Option<Instant> {
        self.acceptance
    }

    /// When to say how many peers there are, if at all.
    pub(super) fn next_total(&self) -> Option<Instant> {
        self.total
    }

    /// Whether a pass will follow for leases or exemptions.
    pub(super) fn gathers(&self) -> bool {
        self.leases.is_some() || self.exemptions.is_some()
    }
}

/// What happens.
impl Schedule {
    /// The leases have been read for the first time.
    pub(super) fn leases_read(&mut self, now: Instant) {
        self.full = now;
    }

    /// Leases have changed. More may come in as long as a pass takes.
    pub(super) fn leases_changed(&mut self, now: Instant) {
        let settle = SETTLE.max(self.length);
        self.leases.get_or_insert_with(|| now + settle);
    }

    /// The exemptions from masquerading have changed.
    pub(super) fn exemptions_changed(&mut self, now: Instant) {
        self.exemptions.get_or_insert_with(|| now + SETTLE);
    }

    /// The kernel has given notice of a change.
    pub(super) fn heard(&mut self, changed: Changed, now: Instant) {
        self.changed |= changed;
        self.changes.get_or_insert_with(|| now + SETTLE);
    }

    /// The kernel forwards by something else now.
    pub(super) fn forwarding_changed(&mut self, now: Instant) {
        let earliest = self.acceptance_rest.checked_sub(ACCEPTANCE_REST * ACCEPTANCE_BURST);
        self.acceptance.get_or_insert(earliest.map_or(now, |earliest| earliest.max(now)));
    }

    /// What was accepted of flows counts no more.
    pub(super) fn acceptance_ended(&mut self, now: Instant) {
        self.acceptance = None;
        self.acceptance_rest = self.acceptance_rest.max(now) + ACCEPTANCE_REST;
    }

    /// Something is not as it should be, and is to be looked at now.
    pub(super) fn found(&mut self, changed: Changed, now: Instant) {
        self.changed |= changed;
        self.changes = Some(now);
    }

    /// This node is another one: all is looked at anew, with no rest.
    pub(super) fn node_changed(&mut self, now: Instant) {
        self.changed = Changed::EVERYTHING;
        self.changes = Some(now);
        self.rest = now;
    }

    /// Peers have come, gone or changed.
    pub(super) fn peers_changed(&mut self, now: Instant) {
        self.total.get_or_insert_with(|| now + TOTAL);
    }

    /// How many there are was said.
    pub(super) fn total_said(&mut self) {
        self.total = None;
    }

    /// When what failed is to be tried again.
    pub(super) fn retry(&mut self, at: Option<Instant>) {
        self.retry = at;
    }

    /// A pass has seen `pods`, on a node of so many `families`. `None` where nobody looks for their addresses.
    pub(super) fn pods_seen(&mut self, pods: Option<&Pods>, families: usize, now: Instant) {
        self.pods = pods.and_then(|pods| self.unplaced.look_again(pods, families, now));
    }

    /// A look at maps and programs has taken `cost` of CPU time, and found something `amiss` or not. What a repair
    /// costs counts, too.
    pub(super) fn looked(&mut self, cost: Duration, amiss: bool, now: Instant) {
        let apart = match amiss {
            true => ((cost + self.cost) * REPAIR_REST).clamp(LOOK, FULL),
            false => (cost * LOOK_REST).clamp(LOOK, LONGEST_LOOK),
        };
        self.look = now + apart;
    }
}

/// A pass.
impl Schedule {
    /// Begins a pass, for all that was due.
    pub(super) fn begin(&mut self, start: Instant) -> Pass {
        let full = self.full <= start;
        let mut changed = std::mem::take(&mut self.changed);
        changed.links |= self.pods.is_some_and(|due| due <= start);
        self.changes = None;
        self.leases = None;
        self.exemptions = None;
        self.retry = None;
        if full {
            self.full = start + FULL;
        }
        Pass { start, changed: if full { Changed::EVERYTHING } else { changed }, full }
    }

    /// It has ended, and has taken `cost` of CPU time; what failed is due for another `retry`. Where another pass has
    /// to follow at once, it does, and looks at everything.
    pub(super) fn passed(
        &mut self,
        pass: Pass,
        at_once: bool,
        retry: Option<Instant>,
        cost: Duration,
        now: Instant,
    ) {
        self.failures = 0;
        self.retry = retry;
        if at_once {
            self.changed = Changed::EVERYTHING;
            self.changes = Some(pass.start);
        }
        self.ended(pass, cost, now);
        if at_once {
            self.rest = now;
        }
    }

    /// It could not read the kernel: nothing was done about what was due.
    pub(super) fn failed(&mut self, pass: Pass, cost: Duration, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        self.changed |= Changed::EVERYTHING;
        self.retry = Some(pass.start + backoff(self.failures));
        self.ended(pass, cost, now);
    }

    fn ended(&mut self, pass: Pass, cost: Duration, now: Instant) {
        self.length = now.saturating_duration_since(pass.start);
        self.cost = cost;
        if pass.full {
            self.full = pass.start + (cost * FULL_REST).clamp(FULL, LONGEST_FULL);
        }
        self.rest = now + cost * REST;
    }
}

/// Pods whose address is not known. A pod gets its address after its link, and within its namespace, which
/// raises no notice here: so a new link is looked at again, soon and then ever more rarely.
#[derive(Debug, Default)]
struct Unplaced {
    links: BTreeSet<u32>,
    looks: u32,
}

impl Unplaced {
    /// So often; what has no address after some ten seconds waits for the next full look.
    const LOOKS: u32 = 7;

    /// When to look again, having seen `pods` on a node of so many `families`, each of which a pod may have an
    /// address of.
    fn look_again(&mut self, pods: &Pods, families: usize, now: Instant) -> Option<Instant> {
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

#[cfg(test)]
mod tests;
