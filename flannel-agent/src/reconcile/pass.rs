//! One look at all there is, and what follows from it.

use std::{collections::BTreeSet, net::IpAddr};

use tokio::time::Instant;
use tracing::debug;

use super::{Host, Reconciler, Summary};
use crate::{
    datapath::{Datapath, ObserveError},
    host::heap,
    lease::LeaseSource,
    netlink::{Changed, NetlinkError},
    plan::{Change, Inputs, Local, NextHop, NextHops, NoHop, Plan, State, delta, plan, public_addresses},
    values::Family,
};

/// The plan of the last pass after which nothing was left to do.
#[derive(Debug)]
pub(super) enum Settled {
    /// There was no such pass.
    Never,
    /// That of the last pass.
    AsPlanned,
    /// An earlier one.
    At(Box<State>),
}

impl Settled {
    pub(super) fn is_reached(&self) -> bool {
        !matches!(self, Self::Never)
    }

    /// After the plan has changed from `before`, and all is `done` or not.
    pub(super) fn after(&mut self, done: bool, before: impl FnOnce() -> State) {
        if done {
            *self = Self::AsPlanned;
        } else if matches!(self, Self::AsPlanned) {
            *self = Self::At(Box::new(before()));
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum PassError {
    #[error("cannot read the state of the kernel: {0}")]
    Observe(#[from] ObserveError),
    #[error("cannot read interfaces and routes: {0}")]
    Host(#[from] NetlinkError),
}

impl<D: Datapath, H: Host, L: LeaseSource> Reconciler<D, H, L> {
    pub(super) async fn run_pass(&mut self) {
        let pass = self.schedule.begin(Instant::now());
        let before = self.host.cpu_time();
        match self.pass(pass.changed, pass.start).await {
            Ok(again) => {
                self.journal.read();
                heap::trim();
                // A new device has a new index: what hangs on that is still to be planned.
                let cost = self.host.cpu_time().saturating_sub(before);
                self.schedule.passed(pass, again, self.pending.next_due(), cost, Instant::now());
            }
            Err(error) => {
                self.journal.read_failed(&error.to_string());
                self.summary.send_modify(|summary| {
                    summary.last_error = Some(error.to_string());
                    summary.unreadable = Some(error.to_string());
                });
                let cost = self.host.cpu_time().saturating_sub(before);
                self.schedule.failed(pass, cost, Instant::now());
            }
        }
    }

    /// Does what is to be done; whether another pass must follow at once.
    async fn pass(&mut self, mut changed: Changed, now: Instant) -> Result<bool, PassError> {
        let Some(leases) = &self.leases else { return Ok(false) };
        let surveyed =
            changed.links || changed.addresses || changed.routes || changed.hooks || changed.overrun;
        if surveyed {
            let surroundings = self.host.survey(&self.local, &exits(&self.next_hops)).await?;
            let moved = changed.routes || changed.addresses || changed.overrun;
            let underlay = surroundings.underlay != self.surroundings.underlay;
            if underlay {
                self.pending.hurry(now);
            }
            if moved || underlay {
                // A DHCP client may bring our address back in a moment: until then the ways there were are good,
                // as long as their interfaces are.
                let leads = |to: &IpAddr, hop: &Result<NextHop, NoHop>| {
                    let mut links = surroundings.underlay.iter();
                    surroundings.unaddressed.contains(&Family::of(*to))
                        && hop.is_ok_and(|hop| links.any(|(index, _, up)| *up && *index == hop.ifindex))
                };
                self.next_hops.retain(|to, hop| leads(to, hop));
                // Ours are among the routes that may be gone.
                changed.overlay |= !self.plan.state.direct_routes.is_empty();
            }
            changed.overlay |= surroundings.overlays != self.surroundings.overlays;
            // Of its own kinds nobody but the backend knows which notices are about them.
            changed.overlay |= self.local.backend.has_objects();
            // Only pods that are reached past the host's stack have to be found.
            let placed = self.local.fast_path.finds_pods().then_some(&surroundings.pods);
            self.schedule.pods_seen(placed, self.local.stacks.len(), now);
            self.journal.crowded(&surroundings.pods);
            self.surroundings = surroundings;
        }
        let wanted = public_addresses(&self.local, leases);
        resolve(&mut self.host, &self.local, &mut self.next_hops, wanted).await?;
        let exits = exits(&self.next_hops);
        let unseen = !exits.is_subset(&self.surroundings.exits);
        if unseen {
            // A peer is reached by an interface at which nobody has looked for others' hooks yet.
            self.surroundings = self.host.survey(&self.local, &exits).await?;
        }
        if surveyed || unseen {
            let interfaces = self.surroundings.foreign.interfaces.keys().copied().collect();
            self.programs = self.datapath.foreign_programs(&interfaces).await?;
            self.foreign = self.surroundings.foreign.clone().with(&self.programs);
        }
        let plan = plan(&Inputs {
            local: &self.local,
            leases,
            exemptions: &self.exemptions.borrow_and_update(),
            next_hops: &self.next_hops,
            pods: &self.surroundings.pods,
            policies: &self.surroundings.policies,
            overlays: &self.surroundings.overlays,
            foreign: &self.foreign,
        });
        self.journal.skipped(&plan.skipped);
        self.journal.on_kernel(&plan.on_kernel);
        self.journal.hooked(&plan.hooked);
        let retry = self.pending.next_due().is_some_and(|due| due <= now);
        if plan.state == self.plan.state
            && self.settled.is_reached()
            && !(changed.overlay || changed.overrun || retry)
        {
            self.plan = plan;
            self.report(false);
            return Ok(false);
        }
        let observed = self.datapath.observe().await?;
        if !surveyed && !observed.bpf.has_pods_of(&self.plan.state.bpf) {
            // A program has taken a pod out of the map, which may be somewhere else by now: first that is looked for.
            return Ok(true);
        }
        let again = self.bring_about(&plan, &observed, now).await;
        self.journal.peers(&self.plan.peers, &plan.peers);
        let before = std::mem::replace(&mut self.plan, plan);
        self.settled.after(self.pending.is_empty(), || before.state);
        self.report(true);
        Ok(again)
    }

    /// Applies what leads from `observed` to `plan`, less what failed a moment ago.
    async fn bring_about(&mut self, plan: &Plan, observed: &State, now: Instant) -> bool {
        let mut changes = delta(&plan.state, observed);
        // What the last plan had not, or what is left to do since all was done: while a change fails for long, others
        // come and go.
        let keys = |before| delta(&plan.state, before).iter().map(Change::key).collect::<BTreeSet<_>>();
        let planned = match &self.settled {
            Settled::Never => None,
            Settled::AsPlanned => Some(keys(&self.plan.state)),
            Settled::At(settled) => Some(&keys(settled) | &keys(&self.plan.state)),
        };
        match &planned {
            // Somebody else has put it there since, and no lease is in its way: stock flannel leaves it, too.
            Some(planned) => {
                changes.retain(|change| !change.takes_a_peers_entry() || planned.contains(&change.key()))
            }
            None => self.journal.leftovers(&changes),
        }
        let ready = self.pending.ready(changes, now);
        let repairs =
            |change: &Change| planned.as_ref().is_some_and(|planned| !planned.contains(&change.key()));
        let again = self.apply(&ready, repairs).await;
        if self.pending.is_empty() && !self.settled.is_reached() {
            self.journal.in_place(plan.followed(), ready.len());
        }
        again
    }

    /// Makes `changes`, of which some are `repairs`; whether a device is new.
    pub(super) async fn apply(&mut self, changes: &[Change], repairs: impl Fn(&Change) -> bool) -> bool {
        self.host.making(changes);
        let results = self.datapath.apply(changes).await;
        let heard = self.host.made(changes);
        if heard.any() {
            self.heard(heard);
        }
        let mut new_device = false;
        for (change, result) in changes.iter().zip(results) {
            new_device |= result.is_ok() && matches!(change, Change::PutDevice(_));
            match result {
                Ok(()) => self.journal.done(change, repairs(change), self.pending.succeeded(change)),
                Err(error) => match self.pending.failed(change, &error, Instant::now()) {
                    Some(error) => self.journal.failed(change, error),
                    None => debug!(%change, %error, "not done"),
                },
            }
        }
        self.journal.flush();
        new_device
    }

    /// Why no other node can be reached: by the interfaces that were last seen.
    fn without_underlay(&self) -> Option<String> {
        let wanted = self.local.underlay_ifindex;
        if self.surroundings.underlay.is_empty() {
            return None;
        }
        match self.surroundings.underlay.iter().find(|(index, ..)| *index == wanted) {
            None => Some(format!("the external interface (index {wanted}) is gone")),
            Some((_, _, false)) => Some(format!("the external interface (index {wanted}) is down")),
            Some(_) => None,
        }
    }

    pub(super) fn report(&mut self, read: bool) {
        if self.journal.is_unsettled() {
            self.schedule.peers_changed(Instant::now());
        }
        let summary =
            Summary {
                synced: true,
                peers: self.plan.followed(),
                skipped: self.plan.faults(),
                pending: self.pending.len(),
                last_error: self.pending.last_error(),
                hooked: self.plan.hooked.values().next().map(|hooked| {
                    (self.plan.hooked.len(), format!("{} on {}", hooked.hook, hooked.interface))
                }),
                without_device: self.pending.without_device(),
                without_underlay: self.without_underlay(),
                unreadable: None,
                passes: self.summary.borrow().passes + u64::from(read),
            };
        self.summary.send_replace(summary);
    }
}

/// The interfaces by which peers are reached.
fn exits(next_hops: &NextHops) -> BTreeSet<u32> {
    next_hops.values().flatten().map(|hop| hop.ifindex).collect()
}

/// Looks up the next hops that are not known, and forgets those of nobody.
async fn resolve<H: Host>(
    host: &mut H,
    local: &Local,
    next_hops: &mut NextHops,
    wanted: BTreeSet<IpAddr>,
) -> Result<(), NetlinkError> {
    next_hops.retain(|address, _| wanted.contains(address));
    resolve_more(host, local, next_hops, wanted).await
}

/// Looks up those of `wanted` that are not known.
pub(super) async fn resolve_more<H: Host>(
    host: &mut H,
    local: &Local,
    next_hops: &mut NextHops,
    wanted: BTreeSet<IpAddr>,
) -> Result<(), NetlinkError> {
    let unknown: BTreeSet<_> =
        wanted.into_iter().filter(|address| !next_hops.contains_key(address)).collect();
    if !unknown.is_empty() {
        next_hops.extend(host.next_hops(local, &unknown).await?);
    }
    Ok(())
}
