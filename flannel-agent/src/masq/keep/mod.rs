//! The loop that keeps the rules as they should be.

use std::{future::pending, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tracing::{debug, info, warn};

use super::{exec::ExecError, monitor::RulesetMonitor};
use crate::{
    control::{
        Standing,
        snapshot::{self, Restored},
    },
    telemetry::LastMessage,
};

/// How long a burst of changes is gathered before a look.
const SETTLE: Duration = Duration::from_millis(20);
/// How often to look where the kernel does not tell of changes.
const POLL: Duration = Duration::from_secs(1);
/// How often to look at least where flows are marked: of some of what is kept from the mark the kernel never tells.
const UNTOLD: Duration = Duration::from_secs(5);
/// After a look, so many times its length nothing is done: where there are many rules, a look takes long, and
/// whoever changes them often would have us look all the time.
const REST: u32 = 20;
const LEAST_REST: Duration = Duration::from_millis(200);
const LONGEST_REST: Duration = Duration::from_secs(5);
/// First wait after a failure; it doubles with each, up to `LONGEST`.
const FIRST_RETRY: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(60);
/// So many repairs with no calm between them, and another program is undoing them.
const STRUGGLE: u32 = 5;
/// How long the first of them is left alone; it doubles with each, up to `LONGEST`.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
/// No repair for so long is calm.
const CALM: Duration = Duration::from_secs(30);

/// How closely to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// At start: nothing of an earlier run stays.
    Start,
    /// While running: what others added to our chains is theirs, be it an administrator or a second flanneld
    /// with another network.
    Resync,
}

/// Whether packets of established flows are marked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Flows {
    /// Nobody asked for it.
    NotAsked,
    /// The rules for it are kept.
    Marked,
    /// This kernel, or its iptables or nft, does not take the rules for it.
    Unmarked(String),
}

/// What holds the rules.
pub(super) trait Firewall {
    /// What is wrong with the rules now, one phrase each.
    fn faults(&mut self, look: Look) -> impl Future<Output = Result<Vec<String>, ExecError>> + Send;

    /// Puts right what is wrong, each table in one step.
    fn repair(&mut self, look: Look) -> impl Future<Output = Result<(), ExecError>> + Send;

    /// Removes flannel's rules from where this kind of firewall does not keep them. What cannot be removed is logged.
    fn remove_others(&mut self) -> impl Future<Output = ()> + Send;

    /// What has become of the rules that mark established flows: all others do not depend on them.
    fn flows(&self) -> Flows;

    /// Whether the last look has found other rules to be wanted than the one before, because of rules of others. What was
    /// right then is wrong now, and nobody has undone it.
    fn adapts(&self) -> bool {
        false
    }

    /// The rules of others, as last seen, for which each packet counts.
    fn each_packet(&self) -> &[String] {
        &[]
    }
}

/// Keeps the rules of one firewall.
pub(super) struct Keeper<F> {
    firewall: F,
    /// `--iptables-resync`.
    resync: Duration,
    /// None where the kernel does not tell of changes.
    monitor: Option<RulesetMonitor>,
    failures: u32,
    /// What was last said of a failure, which is not said twice.
    said: LastMessage,
    struggle: Struggle,
    standing: Standing,
    /// What the rules are kept by, as told there.
    kept_by: &'static str,
    /// Rules of others for which each packet counts, as last told there.
    each_packet: Vec<String>,
    /// A notice of the kernel was what the last look was for.
    caused: bool,
    /// The last look, or one after the rules were loaded, has found that ours are to follow those of others.
    follows: bool,
}

/// Repairs that another program keeps undoing.
#[derive(Debug, Default)]
struct Struggle {
    repairs: u32,
    last: Option<Instant>,
    /// No repair before this.
    until: Option<Instant>,
}

impl Struggle {
    /// Notes a repair; how long to leave things alone, if others undo what is done.
    fn repaired(&mut self, now: Instant) -> Option<Duration> {
        let calm = self.last.is_none_or(|last| now.duration_since(last) > CALM + self.pause());
        self.repairs = if calm { 1 } else { self.repairs.saturating_add(1) };
        self.last = Some(now);
        let pause = self.pause();
        self.until = (!pause.is_zero()).then(|| now + pause);
        (!pause.is_zero()).then_some(pause)
    }

    fn pause(&self) -> Duration {
        match self.repairs.checked_sub(STRUGGLE) {
            None => Duration::ZERO,
            Some(more) => FIRST_PAUSE.saturating_mul(1 << more.min(6)).min(LONGEST),
        }
    }

    /// How much of the pause is left, if any.
    fn left(&self) -> Option<Duration> {
        self.until.map(|until| until.saturating_duration_since(Instant::now())).filter(|left| !left.is_zero())
    }
}

impl<F: Firewall> Keeper<F> {
    /// A keeper that has done nothing yet.
    pub(super) fn new(firewall: F, resync: Duration, monitor: Option<RulesetMonitor>) -> Self {
        Self {
            firewall,
            resync,
            monitor,
            failures: 0,
            said: LastMessage::default(),
            struggle: Struggle::default(),
            standing: Standing::default(),
            kept_by: "",
            each_packet: Vec::new(),
            caused: false,
            follows: false,
        }
    }

    /// The same, telling `standing` of the rules that are kept by `kept_by`.
    pub(super) fn telling(self, standing: Standing, kept_by: &'static str) -> Self {
        standing.tell_rules(kept_by, |_| {});
        Self { standing, kept_by, ..self }
    }

    /// Never returns. `applied` becomes something when the rules are in place for the first time. Then `others` removes
    /// those that other kinds of firewall hold.
    pub(super) async fn run(
        mut self,
        applied: watch::Sender<Option<Flows>>,
        others: impl Future<Output = ()>,
    ) {
        while let Err(error) = self.set_up().await {
            let wait = self.failed(&error.to_string());
            sleep(wait).await;
        }
        self.succeeded();
        info!("masquerade and forward rules in place");
        self.standing.tell_rules(self.kept_by, |rules| rules.in_place = true);
        let _ = applied.send(Some(self.firewall.flows()));
        others.await;
        self.firewall.remove_others().await;
        loop {
            match self.look().await {
                Ok(length) => {
                    self.succeeded();
                    self.wait(length).await;
                }
                Err(error) => {
                    let wait = self.failed(&error.to_string());
                    sleep(wait).await;
                }
            }
        }
    }

    async fn set_up(&mut self) -> Result<(), ExecError> {
        let faults = self.firewall.faults(Look::Start).await?;
        if faults.is_empty() {
            debug!("the rules were there already");
            return Ok(());
        }
        debug!(?faults, "putting the rules in place");
        self.firewall.repair(Look::Start).await?;
        self.confirm(Look::Start).await
    }

    /// Looks, and repairs what is wrong; how long the look took.
    async fn look(&mut self) -> Result<Duration, ExecError> {
        let start = Instant::now();
        let faults = self.firewall.faults(Look::Resync).await?;
        let length = start.elapsed();
        if self.firewall.each_packet() != self.each_packet {
            self.each_packet = self.firewall.each_packet().to_vec();
            self.standing.tell_rules(self.kept_by, |rules| rules.each_packet.clone_from(&self.each_packet));
        }
        let adapts = self.firewall.adapts() || self.follows;
        self.follows = adapts && !faults.is_empty();
        if faults.is_empty() || !adapts && self.struggle.left().is_some() {
            return Ok(length);
        }
        self.firewall.repair(Look::Resync).await?;
        self.follows = false;
        if adapts {
            debug!(?faults, "rules follow those of others");
            self.confirm(Look::Resync).await?;
            return Ok(length);
        }
        for fault in &faults {
            info!("restored rules: {fault}");
        }
        self.standing.tell_rules(self.kept_by, |rules| {
            rules.restored += 1;
            rules.last_restored = Some(Restored { at: snapshot::now(), what: faults.join("; ") });
        });
        if let Some(pause) = self.struggle.repaired(Instant::now()) {
            warn!(
                last = faults.join("; "),
                ?pause,
                "another program keeps changing our rules: waiting before they are restored again"
            );
        }
        self.confirm(Look::Resync).await?;
        Ok(length)
    }

    /// Rules that were loaded but do not read as wanted: this iptables or nft writes them in words that we do
    /// not know. They are in force, so that is no failure; but each look would load them again.
    async fn confirm(&mut self, look: Look) -> Result<(), ExecError> {
        let faults = self.firewall.faults(look).await?;
        // Theirs may have changed again meanwhile: the next look is not to take ours for what somebody has removed.
        self.follows = self.firewall.adapts() && !faults.is_empty();
        if !faults.is_empty() {
            debug!(?faults, "wrong again right after the rules were loaded");
        }
        Ok(())
    }

    /// How long to wait after a failure, which is logged unless the last one was the same.
    fn failed(&mut self, error: &str) -> Duration {
        let wait = FIRST_RETRY.saturating_mul(1 << self.failures.min(16)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        self.standing.tell_rules(self.kept_by, |rules| rules.error = Some(error.to_owned()));
        if self.said.is_news(error) {
            warn!(error, "masquerade and forward rules cannot be kept; trying again");
        }
        wait
    }

    fn succeeded(&mut self) {
        if std::mem::take(&mut self.failures) > 0 {
            self.standing.tell_rules(self.kept_by, |rules| rules.error = None);
        }
        if self.said.is_over() {
            info!("masquerade and forward rules can be kept again");
        }
    }

    /// Waits until it is time to look again, the last look having taken `length`. After one that nobody has caused there is
    /// no rest, so that the first change after a calm is seen at once.
    async fn wait(&mut self, length: Duration) {
        let rest = match std::mem::take(&mut self.caused) || self.monitor.is_none() {
            true => (length * REST).clamp(LEAST_REST, LONGEST_REST.min(self.resync.max(LEAST_REST))),
            false => Duration::ZERO,
        };
        sleep(rest).await;
        let poll = match (&self.monitor, self.firewall.flows()) {
            (None, _) => self.resync.min(POLL),
            (Some(_), Flows::Marked) => self.resync.min(UNTOLD),
            (Some(_), _) => self.resync,
        };
        let poll = self.struggle.left().map_or(poll, |left| poll.min(left));
        let told = async {
            match &mut self.monitor {
                Some(monitor) => monitor.changed().await,
                None => pending().await,
            }
        };
        match timeout(poll.saturating_sub(rest), told).await {
            Ok(Ok(())) => {
                self.caused = true;
                sleep(SETTLE).await;
            }
            Ok(Err(error)) => {
                warn!(%error, "the kernel no longer reports changed rules: checking every second");
                self.monitor = None;
            }
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests;
