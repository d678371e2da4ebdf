//! The loop that keeps the kernel as the leases say.
//!
//! Everything that happens (a lease, a notice of the kernel, a retry, the clock) only makes a pass due.
//! A pass looks at all there is, so that one mechanism serves start, change, drift and restart:
//!
//! ```text
//! leases, surroundings -> plan() -> delta(planned, observed) -> apply
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    pin::pin,
};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tracing::{debug, info, warn};

use crate::{
    control::{Questioned, Questions},
    datapath::Datapath,
    lease::{self, LeaseSource, Leases},
    netlink::Changed,
    plan::{Exemptions, Foreign, ForeignHook, Local, NextHops, Plan},
    telemetry::{Heart, LastMessage},
};

mod answer;
mod echoes;
mod foreign;
mod host;
mod journal;
mod pass;
mod patched;
mod pending;
mod schedule;
#[cfg(test)]
mod tests;
mod trace;

pub use crate::telemetry::{Pulse, Summary};
pub use echoes::Echoes;
pub use host::{Host, KernelHost, Surroundings};

use journal::Journal;
use pass::Settled;
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
    /// Why acceptance could not be ended, as last logged.
    unended: LastMessage,
    summary: watch::Sender<Summary>,
    heart: Heart,
    questioned: Questioned,
    /// Who looks at packets, if anybody.
    looking: Option<trace::Looking>,
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
            unended: LastMessage::default(),
            summary,
            heart: Heart::new(),
            questioned: Questioned::new(),
            looking: None,
        };
        (reconciler, view)
    }

    /// For asking whether [`Reconciler::run`] goes round.
    pub fn pulse(&self) -> Pulse {
        self.heart.pulse()
    }

    /// For asking what [`Reconciler::run`] knows and does.
    pub fn questions(&self) -> Questions {
        self.questioned.questions()
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
                question = self.questioned.next() => self.answer(question).await,
                () = until(self.looking.map(|looking| looking.until)) => self.end_trace(),
                () = sleep_until(self.schedule.next_pass()), if synced => self.run_pass().await,
                () = sleep_until(self.schedule.next_look()), if self.settled.is_reached() => self.look().await,
                () = until(self.schedule.next_acceptance()) => self.end_acceptance().await,
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
        if changed.forwarding || changed.overrun {
            self.schedule.forwarding_changed(now);
        }
        // That alone is nothing a plan depends on.
        let changed = Changed { forwarding: false, ..changed };
        if changed.any() {
            self.schedule.heard(changed, now);
        }
    }

    /// Lets the kernel decide anew about flows that skip its stack, for it decides by something else now.
    async fn end_acceptance(&mut self) {
        let now = Instant::now();
        self.schedule.acceptance_ended(now);
        match self.datapath.end_acceptance().await {
            Ok(()) => {
                self.unended.is_over();
                debug!("routes or rules changed: every flow must be accepted again");
            }
            Err(error) => {
                self.schedule.forwarding_changed(now);
                if self.unended.is_news(&error) {
                    warn!(
                        %error,
                        "flows that skip the stack cannot be made to obey changed routes and rules before \
                        --flow-refresh; trying again"
                    );
                }
            }
        }
    }

    /// Looks at what gives no notice, maps and programs and the backend's own objects, and lets a pass follow at once
    /// if they are not as planned.
    async fn look(&mut self) {
        let (start, before) = (Instant::now(), self.host.cpu_time());
        let found = self.datapath.observe_bpf().await;
        let planned = &self.plan.state.bpf;
        let amiss = !matches!(&found, Ok(None)) && !matches!(&found, Ok(Some(found)) if found == planned);
        if amiss {
            // A program takes a pod's address out of the map when it is announced from elsewhere: the kernel is asked
            // anew where it is.
            let links = matches!(&found, Ok(Some(found)) if !found.has_pods_of(planned));
            self.schedule.found(Changed { links, overlay: true, ..Changed::default() }, start);
        }
        let objects = self.datapath.observe_objects().await;
        if objects.is_ok_and(|objects| objects.is_some_and(|objects| objects != self.plan.state.objects)) {
            self.schedule.found(Changed { overlay: true, ..Changed::default() }, start);
        }
        let interfaces = self.surroundings.foreign.interfaces.keys().copied().collect();
        let programs = self.datapath.foreign_programs(&interfaces).await;
        if programs.is_ok_and(|programs| programs != self.programs) {
            self.schedule.found(Changed { hooks: true, ..Changed::default() }, start);
        }
        let unheard = self.host.unheard().await;
        if unheard.any() {
            self.schedule.found(unheard, start);
        }
        let cost = self.host.cpu_time().saturating_sub(before);
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
