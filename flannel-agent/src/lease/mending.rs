//! Our own lease, where others write it: it is put right at once, and then ever later while they keep at it. Two that write
//! one lease are not to do so for ever at the pace of the store, which tells every node of each write.

use std::time::{Duration, SystemTime};

use tokio::{sync::watch, time::Instant};

use super::backoff::Backoff;

/// The longest pause before a lease that others keep writing is put right again.
const LONGEST: Duration = Duration::from_secs(30);
/// After the last time it was put right, it is contested for so long, and four times the last pause: whoever contests it
/// may pause as we do.
const CALM: Duration = Duration::from_secs(60);
/// So many changes after one another are more than a mistake of somebody's.
const CONTESTED: u32 = 3;

/// What others have made of our lease since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mended {
    /// How often it was put right.
    pub times: u64,
    /// When somebody last changed it.
    pub last: Option<SystemTime>,
    /// What is written again and again, beside what should be there; absent while nobody does.
    pub contested: Option<String>,
}

/// When our lease is put right, and what is said of it.
#[derive(Debug)]
pub(super) struct Mending {
    pause: Backoff,
    /// Changes that came one after the other, and when they are over.
    row: u32,
    calm_at: Option<Instant>,
    shown: watch::Sender<Mended>,
}

impl Mending {
    /// Shows what was done in `shown`.
    pub(super) fn new(shown: watch::Sender<Mended>) -> Self {
        Self { pause: Backoff::up_to(LONGEST), row: 0, calm_at: None, shown }
    }

    /// Somebody has changed our lease at the time `now`, to what `what` says: how long to wait before it is put right.
    pub(super) fn changed(&mut self, now: Instant, what: impl FnOnce() -> String) -> Duration {
        self.calm(now);
        self.row += 1;
        let pause = if self.row == 1 { Duration::ZERO } else { self.pause.failed() };
        self.calm_at = Some(now + pause * 5 + CALM);
        let contested = (self.row >= CONTESTED).then(what);
        self.shown.send_modify(|shown| {
            shown.times += 1;
            shown.last = Some(SystemTime::now());
            shown.contested = contested;
        });
        pause
    }

    /// When there may be something to say next.
    pub(super) fn calm_at(&self) -> Option<Instant> {
        self.calm_at
    }

    /// Nobody contests it any more, if the time for that has come.
    pub(super) fn calm(&mut self, now: Instant) {
        if self.calm_at.is_some_and(|at| at <= now) {
            self.calm_at = None;
            self.row = 0;
            self.pause.succeeded();
            self.shown.send_if_modified(|shown| shown.contested.take().is_some());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_is_mended_at_once_and_a_contest_ever_later() {
        let (shown, seen) = watch::channel(Mended::default());
        let mut mending = Mending::new(shown);
        let mut now = Instant::now();
        assert_eq!(mending.changed(now, String::new), Duration::ZERO);
        assert_eq!((seen.borrow().times, seen.borrow().contested.clone()), (1, None));
        // Another mistake, an hour later.
        now += Duration::from_secs(3600);
        assert_eq!(mending.changed(now, String::new), Duration::ZERO);
        // Somebody who pauses as long as we do is still contesting it.
        let mut pauses = Vec::new();
        for _ in 0..20 {
            let pause = mending.changed(now, || "both".to_owned());
            pauses.push(pause);
            now += pause * 3;
        }
        assert!(pauses[0] < Duration::from_millis(300), "{pauses:?}");
        assert!(pauses[15..].iter().all(|pause| (LONGEST / 2..=LONGEST).contains(pause)), "{pauses:?}");
        assert_eq!((seen.borrow().times, seen.borrow().contested.as_deref()), (22, Some("both")));
        let calm = mending.calm_at().unwrap();
        mending.calm(calm - Duration::from_millis(1));
        assert!(seen.borrow().contested.is_some());
        mending.calm(calm);
        assert_eq!((seen.borrow().contested.clone(), mending.calm_at()), (None, None));
        assert_eq!(mending.changed(calm, String::new), Duration::ZERO);
    }
}
