//! Whether this node's own dataplane is still in place: `/readyz` says so, and an Event when it changes.

use std::{convert::Infallible, time::Duration};

use tokio::{
    select,
    sync::watch,
    time::{Instant, sleep},
};
use tracing::{error, info};

use crate::{
    control::{Standing, snapshot::Snapshot},
    lease::Notice,
    telemetry::{Summary, health::Readiness},
};

/// What is wrong for so long is a failure: a device that is made anew is away for a moment.
const PATIENCE: Duration = Duration::from_secs(5);
/// The same for rules: another program may hold their lock for long, and they stay in place meanwhile.
const RULES_PATIENCE: Duration = Duration::from_secs(30);
/// How often what gives no notice is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Watches it, once the node is ready for the first time. The store of leases has no say: without it the dataplane goes
/// on as it is.
pub(super) async fn follow(
    readiness: &Readiness,
    standing: &Standing,
    mut summary: watch::Receiver<Summary>,
    tell: impl Fn(Notice),
) -> Infallible {
    let mut wrong: Option<Instant> = None;
    loop {
        let told = standing.told();
        let fault = fault(&summary.borrow_and_update(), &told);
        let since = fault.as_ref().map(|_| *wrong.get_or_insert_with(Instant::now));
        match (&fault, since) {
            (Some((because, patience)), Some(since)) => {
                if since.elapsed() >= *patience {
                    standing.tell(|told| {
                        (told.agent.ready, told.agent.not_ready) = (false, Some(because.clone()));
                    });
                    if readiness.fail(because) {
                        error!(because, "not ready any more: the dataplane of this node is not in place");
                        let text = format!("the dataplane of this node is not in place: {because}");
                        tell(Notice { reason: "DataplaneNotInPlace", text });
                    }
                }
            }
            _ => {
                wrong = None;
                if readiness.recover() {
                    info!("ready again: the dataplane of this node is in place");
                    standing.tell(|told| (told.agent.ready, told.agent.not_ready) = (true, None));
                    let text = "the dataplane of this node is in place again".to_owned();
                    tell(Notice { reason: Notice::OVER, text });
                }
            }
        }
        select! {
            () = sleep(LOOK) => {}
            Ok(()) = summary.changed() => {}
        }
    }
}

/// What keeps packets of this node's pods from other nodes, and how long it may.
fn fault(summary: &Summary, told: &Snapshot) -> Option<(String, Duration)> {
    let own = [&summary.without_device, &summary.without_underlay, &summary.unreadable];
    if let Some(because) = own.into_iter().flatten().next() {
        return Some((because.clone(), PATIENCE));
    }
    let rules = told.rules.iter().find_map(|rules| Some((&rules.kept_by, rules.error.as_ref()?)))?;
    Some((format!("the rules of {} cannot be kept: {}", rules.0, rules.1), RULES_PATIENCE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::snapshot::Store;

    #[tokio::test(start_paused = true)]
    async fn a_fault_that_lasts_takes_readiness_away_and_its_end_brings_it_back() {
        let (readiness, standing) = (Readiness::new(), Standing::default());
        let (summaries, summary) = watch::channel(Summary::default());
        let notices = std::cell::RefCell::new(Vec::new());
        let device = |because: Option<&str>| {
            summaries.send_modify(|summary| summary.without_device = because.map(str::to_owned));
        };
        let script = async {
            readiness.set();
            // A store that is away is no fault of this node.
            standing.tell(|told| {
                told.store = Some(Store { trouble: Some("refused".to_owned()), ..Store::default() });
            });
            sleep(Duration::from_secs(60)).await;
            assert!(readiness.is_set());
            device(Some("cannot create device flannel.1"));
            sleep(Duration::from_secs(3)).await;
            device(None);
            sleep(Duration::from_secs(10)).await;
            assert!(readiness.is_set(), "it was away for a moment");
            device(Some("cannot create device flannel.1"));
            sleep(Duration::from_secs(10)).await;
            assert_eq!(readiness.failure().as_deref(), Some("cannot create device flannel.1"));
            assert!(!standing.told().agent.ready);
            device(None);
            sleep(Duration::from_secs(2)).await;
            assert!(readiness.is_set() && standing.told().agent.ready);
        };
        select! {
            never = follow(&readiness, &standing, summary, |notice| notices.borrow_mut().push(notice.reason)) => {
                match never {}
            }
            () = script => {}
        }
        assert_eq!(*notices.borrow(), ["DataplaneNotInPlace", Notice::OVER]);
    }
}
