//! A lease that has nothing to do with the others, made usable without looking at these.

use std::time::Duration;

use tokio::time::Instant;

use super::{Reconciler, host::Host, pass::resolve_more};
use crate::{
    datapath::Datapath,
    lease::{Lease, LeaseSource, LeaseSubnet},
    plan::{Inputs, Patch, public_addresses},
};

/// So many leases are taken one by one in [`WINDOW`]. When more come, one pass for all of them is cheaper.
const MOST: u32 = 50;
const WINDOW: Duration = Duration::from_millis(100);

/// How many leases were taken one by one lately.
#[derive(Debug)]
pub(super) struct Burst {
    since: Instant,
    count: u32,
}

impl Burst {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, count: 0 }
    }

    /// Whether there is room for another.
    fn take(&mut self, now: Instant) -> bool {
        if now.duration_since(self.since) >= WINDOW {
            *self = Self::new(now);
        }
        self.count += 1;
        self.count <= MOST
    }
}

impl<D: Datapath, H: Host, L: LeaseSource> Reconciler<D, H, L> {
    /// Makes the lease of `subnet`, which was `before`, usable at once, if the kernel is as planned as far as is known
    /// and no other lease has a say in it. If not, a pass has to follow: `false`.
    ///
    /// The kernel is not read: what is not as we left it gives notice, or shows in the next look, and is put right by
    /// the pass that follows then.
    pub(super) async fn patch(&mut self, subnet: LeaseSubnet, before: Option<&Lease>) -> bool {
        let now = Instant::now();
        let due = self.schedule.gathers();
        let unheard =
            self.exemptions.has_changed().unwrap_or(false) || self.locals.has_changed().unwrap_or(false);
        if !self.settled.is_reached() || !self.pending.is_empty() || due || unheard || !self.burst.take(now) {
            return false;
        }
        let Some(leases) = &self.leases else { return false };
        let followed = leases.get(&subnet).map(|lease| (lease.subnet, lease.clone())).into_iter().collect();
        let address = public_addresses(&self.local, &followed);
        if resolve_more(&mut self.host, &self.local, &mut self.next_hops, address.clone()).await.is_err() {
            return false;
        }
        // Of an interface by which no peer was reached so far, others' hooks are not known.
        let mut hops = address.iter().filter_map(|to| self.next_hops.get(to)?.ok());
        if hops.any(|hop| !self.surroundings.exits.contains(&hop.ifindex)) {
            return false;
        }
        let exemptions = self.exemptions.borrow().clone();
        let inputs = Inputs {
            local: &self.local,
            leases,
            exemptions: &exemptions,
            next_hops: &self.next_hops,
            pods: &self.surroundings.pods,
            policies: &self.surroundings.policies,
            overlays: &self.surroundings.overlays,
            foreign: &self.foreign,
        };
        let Some(patch) = Patch::of(&self.plan, &inputs, subnet, before) else { return false };
        self.apply(&patch.changes(), |_| false).await;
        let plan = &self.plan;
        self.settled.after(self.pending.is_empty(), || plan.state.clone());
        patch.apply(&mut self.plan);
        self.journal.patched(&patch);
        self.journal.on_kernel(&self.plan.on_kernel);
        self.schedule.retry(self.pending.next_due());
        self.report(false);
        true
    }
}
