//! The loop that keeps the kernel as the leases say.
//!
//! Everything that happens (a lease, a notice of the kernel, a retry, the clock) only says that a pass is
//! due; a pass looks at all there is, so that one mechanism serves start, change, drift and restart:
//!
//! ```text
//! leases, surroundings -> plan() -> delta(planned, observed) -> apply
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    net::IpAddr,
    pin::pin,
};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tracing::{debug, info};

use crate::{
    datapath::{Datapath, ObserveError},
    host::heap,
    lease::{self, LeaseSource, Leases},
    netlink::{Changed, NetlinkError},
    plan::{
        Change, Exemptions, Foreign, ForeignHook, Inputs, Local, NextHop, NextHops, NoHop, Plan, State,
        delta, plan, public_addresses,
    },
    telemetry::Heart,
    values::Family,
};

mod echoes;
mod foreign;
mod host;
mod journal;
mod patched;
mod pending;
mod schedule;
#[cfg(test)]
mod tests;

pub use crate::telemetry::{Pulse, Summary};
pub use echoes::Echoes;
pub use host::{Host, KernelHost, Surroundings};

use journal::Journal;
use patched::Burst;
use pending::Pending;
use schedule::Schedule;

/// Keeps a datapath as a source of leases says.
pub struct Reconciler<D, H, L> {
    local: Local,
    /// What this node is, as it changes.
    locals: watch::Receiver<Local>,
    datapath: D,
    host: H,
    source: L,
    /// `None` before the first snapshot: until then nothing is touched.
    leases: Option<Leases>,
    exemptions: watch::Receiver<Exemptions>,
    surroundings: Surroundings,
    /// Programs of others, which give no notice, by interface.
    programs: BTreeMap<u32, BTreeSet<ForeignHook>>,
    /// All that is others': of the surroundings, and these programs.
    foreign: Foreign,
    next_hops: NextHops,
    plan: Plan,
    settled: Settled,
    pending: Pending,
    journal: Journal,
    schedule: Schedule,
    burst: Burst,
    summary: watch::Sender<Summary>,
    heart: Heart,
}

/// The plan of the last pass after which nothing was left to do.
#[derive(Debug)]
enum Settled {
    /// There was no such pass.
    Never,
    /// That of the last pass.
    AsPlanned,
    /// An earlier one.
    At(Box<State>),
}

impl Settled {
    fn is_reached(&self) -> bool {
        !matches!(self, Self::Never)
    }

    /// After the plan has changed from `before`, and all is `done` or not.
    fn after(&mut self, done: bool, before: impl FnOnce() -> State) {
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
    /// A reconciler that has done nothing yet, and a view of how it fares. `locals` says what this node is
    /// now, and whenever that changes.
    pub fn new(
        mut locals: watch::Receiver<Local>,
        datapath: D,
        host: H,
        source: L,
    ) -> (Self, watch::Receiver<Summary>) {
        let local = locals.borrow_and_update().clone();
        let (summary, view) = watch::channel(Summary::default());
        let now = Instant::now();
        let reconciler = Self {
            local,
            locals,
            datapath,
            host,
            source,
            leases: None,
            exemptions: watch::channel(Exemptions::default()).1,
            surroundings: Surroundings::default(),
            programs: BTreeMap::new(),
            foreign: Foreign::default(),
            next_hops: NextHops::new(),
            plan: Plan::default(),
            settled: Settled::Never,
            pending: Pending::default(),
            journal: Journal::default(),
            schedule: Schedule::new(now),
            burst: Burst::new(now),
            summary,
            heart: Heart::new(),
        };
        (reconciler, view)
    }

    /// For asking whether [`Reconciler::run`] goes round.
    pub fn pulse(&self) -> Pulse {
        self.heart.pulse()
    }

    /// With what the operator exempts from masquerading, which may change at any time.
    #[must_use]
    pub fn exempting(mut self, exemptions: watch::Receiver<Exemptions>) -> Self {
        self.exemptions = exemptions;
        self
    }

    /// Runs until `stop` is ready. A pass that is under way is finished; nothing is removed, so that the
    /// dataplane goes on without us. Returns the datapath.
    pub async fn run(mut self, stop: impl Future<Output = ()>) -> D {
        let mut stop = pin!(stop);
        loop {
            let synced = self.leases.is_some();
            tokio::select! {
                biased;
                () = &mut stop => return self.datapath,
                () = self.heart.beat() => {}
                () = sleep_until(self.schedule.next_pass()), if synced => self.run_pass().await,
                () = sleep_until(self.schedule.next_look()), if self.settled.is_reached() => self.look().await,
                () = until(self.schedule.next_total()) => {
                    self.schedule.total_said();
                    self.journal.total(self.plan.peers.len());
                }
                Ok(()) = self.locals.changed() => self.on_local(),
                event = self.source.next() => self.on_lease(event).await,
                () = changed(&mut self.exemptions) => self.schedule.exemptions_changed(Instant::now()),
                changed = self.host.changed() => self.heard(changed),
            }
        }
    }

    async fn on_lease(&mut self, event: lease::LeaseEvent) {
        match &mut self.leases {
            Some(leases) => {
                let subnet = event.subnet();
                let before = subnet.and_then(|subnet| leases.get(&subnet).cloned());
                let changed = lease::apply(leases, event);
                if let Some(subnet) = subnet.filter(|_| changed)
                    && self.patch(subnet, before.as_ref()).await
                {
                    return;
                }
            }
            None => {
                if !matches!(event, lease::LeaseEvent::Snapshot(_)) {
                    return;
                }
                let leases = self.leases.insert(Leases::new());
                lease::apply(leases, event);
                info!(leases = leases.len(), "leases read");
                self.schedule.leases_read(Instant::now());
            }
        }
        self.schedule.leases_changed(Instant::now());
    }

    /// Lets a pass follow for what changed.
    fn heard(&mut self, changed: Changed) {
        let now = Instant::now();
        if changed.routes || changed.addresses {
            self.pending.hurry(now);
        }
        self.schedule.heard(changed, now);
    }

    /// Looks at maps and programs, and lets a pass follow at once if they are not as planned.
    async fn look(&mut self) {
        let start = Instant::now();
        let found = self.datapath.observe_bpf().await;
        let mut cost = start.elapsed();
        let planned = &self.plan.state.bpf;
        let amiss = !matches!(&found, Ok(None)) && !matches!(&found, Ok(Some(found)) if found == planned);
        if amiss {
            // A program takes a pod's address out of the map when it is announced from elsewhere: the kernel is asked
            // anew where it is.
            let links = matches!(&found, Ok(Some(found)) if !found.has_pods_of(planned));
            self.schedule.found(Changed { links, overlay: true, ..Changed::default() }, start);
        }
        let begun = Instant::now();
        let interfaces = self.surroundings.foreign.0.keys().copied().collect();
        let programs = self.datapath.foreign_programs(&interfaces).await;
        if programs.is_ok_and(|programs| programs != self.programs) {
            self.schedule.found(Changed { hooks: true, ..Changed::default() }, start);
        }
        cost += begun.elapsed();
        self.schedule.looked(cost, amiss, Instant::now());
    }

    /// This node has changed: whatever was concluded of what it was is concluded anew, at once.
    fn on_local(&mut self) {
        self.local = self.locals.borrow_and_update().clone();
        let now = Instant::now();
        self.next_hops.clear();
        self.pending.hurry(now);
        self.schedule.node_changed(now);
    }

    async fn run_pass(&mut self) {
        let pass = self.schedule.begin(Instant::now());
        match self.pass(pass.changed, pass.start).await {
            Ok(again) => {
                self.journal.read();
                heap::trim();
                // A new device has a new index: what hangs on that is still to be planned.
                self.schedule.passed(pass, again, self.pending.next_due(), Instant::now());
            }
            Err(error) => {
                self.journal.read_failed(&error.to_string());
                self.summary.send_modify(|summary| summary.last_error = Some(error.to_string()));
                self.schedule.failed(pass, Instant::now());
            }
        }
    }

    /// Does what is to be done; whether another pass must follow at once.
    async fn pass(&mut self, mut changed: Changed, now: Instant) -> Result<bool, PassError> {
        let Some(leases) = &self.leases else { return Ok(false) };
        let surveyed =
            changed.links || changed.addresses || changed.routes || changed.hooks || changed.overrun;
        if surveyed {
            let surroundings = self.host.survey(&self.local).await?;
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
                    surroundings.adrift.contains(&Family::of(*to))
                        && hop.is_ok_and(|hop| links.any(|(index, _, up)| *up && *index == hop.ifindex))
                };
                self.next_hops.retain(|to, hop| leads(to, hop));
                // Ours are among the routes that may be gone.
                changed.overlay |= !self.plan.state.direct_routes.is_empty();
            }
            changed.overlay |= surroundings.overlays != self.surroundings.overlays;
            // Only pods that are reached past the host's stack have to be found.
            let placed = self.local.fast_path.finds_pods().then_some(&surroundings.pods);
            self.schedule.pods_seen(placed, self.local.stacks.len(), now);
            self.journal.crowded(&surroundings.pods);
            self.surroundings = surroundings;
            let interfaces = self.surroundings.foreign.0.keys().copied().collect();
            self.programs = self.datapath.foreign_programs(&interfaces).await?;
            self.foreign = self.surroundings.foreign.clone().with(&self.programs);
        }
        let wanted = public_addresses(&self.local, leases);
        resolve(&mut self.host, &self.local, &mut self.next_hops, wanted).await?;
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
        let changes = delta(&plan.state, observed);
        // What the last plan had not, or what is left to do since all was done: while a change fails for long, others
        // come and go.
        let keys = |before| delta(&plan.state, before).iter().map(Change::key).collect::<BTreeSet<_>>();
        let planned = match &self.settled {
            Settled::Never => None,
            Settled::AsPlanned => Some(keys(&self.plan.state)),
            Settled::At(settled) => Some(&keys(settled) | &keys(&self.plan.state)),
        };
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
    async fn apply(&mut self, changes: &[Change], repairs: impl Fn(&Change) -> bool) -> bool {
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

    fn report(&mut self, read: bool) {
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
                passes: self.summary.borrow().passes + u64::from(read),
            };
        self.summary.send_replace(summary);
    }
}

/// Waits until then; for ever where that is never. Cancel safe.
async fn until(then: Option<Instant>) {
    match then {
        Some(then) => sleep_until(then).await,
        None => std::future::pending().await,
    }
}

/// Waits for a change; for ever where none can come any more. Cancel safe.
async fn changed<T>(receiver: &mut watch::Receiver<T>) {
    if receiver.changed().await.is_err() {
        std::future::pending().await
    }
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
async fn resolve_more<H: Host>(
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
