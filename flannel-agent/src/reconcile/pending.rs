//! Changes that failed: when each is tried again.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use rand::Rng;
use tokio::time::Instant;

use crate::{
    backend::Stage,
    datapath::ChangeError,
    plan::{Change, ObjectKey},
};

const FIRST: Duration = Duration::from_millis(100);
const LAST: Duration = Duration::from_secs(30);

/// How long to wait after the `attempts`-th failure: 100 ms doubling to 30 s, less up to a quarter of it,
/// by chance, so that what failed together is not all tried together for ever.
pub(super) fn backoff(attempts: u32) -> Duration {
    let doubled = FIRST.saturating_mul(1u32.checked_shl(attempts.saturating_sub(1)).unwrap_or(u32::MAX));
    doubled.min(LAST).mul_f64(rand::rng().random_range(0.75..=1.0))
}

#[derive(Debug)]
struct Entry {
    change: Change,
    attempts: u32,
    due: Instant,
    error: String,
    blocked: bool,
}

/// The changes that failed and are still wanted.
#[derive(Debug, Default)]
pub(super) struct Pending {
    entries: BTreeMap<ObjectKey, Entry>,
    last_error: Option<String>,
}

impl Pending {
    /// Of `changes`, all that are wanted, those to be tried now. What is no longer wanted is forgotten, and
    /// what is wanted otherwise than when it failed is tried at once.
    pub(super) fn ready(&mut self, changes: Vec<Change>, now: Instant) -> Vec<Change> {
        let mut kept = BTreeMap::new();
        let lacking: BTreeSet<_> = changes
            .iter()
            .filter(|change| matches!(change, Change::PutDevice(_)))
            .filter_map(Change::device)
            .collect();
        let ready = changes
            .into_iter()
            .filter(|change| {
                let Some((key, entry)) = self.entries.remove_entry(&change.key()) else { return true };
                let same = entry.change == *change;
                let ready = !same
                    || entry.due <= now
                    || (entry.blocked && !change.device().is_some_and(|device| lacking.contains(&device)));
                if same {
                    kept.insert(key, entry);
                }
                ready
            })
            .collect();
        self.entries = kept;
        ready
    }

    /// Notes that a change was made; whether it had failed before.
    pub(super) fn succeeded(&mut self, change: &Change) -> bool {
        self.entries.remove(&change.key()).is_some()
    }

    /// Notes that a change failed. Returns the error if there is news in it.
    pub(super) fn failed(&mut self, change: &Change, error: &ChangeError, now: Instant) -> Option<String> {
        let text = error.to_string();
        let blocked = matches!(error, ChangeError::Blocked);
        let before = self.entries.remove(&change.key());
        let attempts = before.as_ref().map_or(0, |entry| entry.attempts).saturating_add(1);
        // A pod that ends while its veth is looked at is no fault of anything.
        let fault = !blocked && !matches!(error, ChangeError::Gone(_));
        let news = fault && before.is_none_or(|entry| entry.error != text);
        if fault {
            self.last_error = Some(format!("cannot {change}: {text}"));
        }
        let entry = Entry {
            change: change.clone(),
            attempts,
            due: now + backoff(attempts),
            error: text.clone(),
            blocked,
        };
        self.entries.insert(change.key(), entry);
        news.then_some(text)
    }

    /// Something changed that they may have failed for: all are tried in the next pass.
    pub(super) fn hurry(&mut self, now: Instant) {
        for entry in self.entries.values_mut() {
            entry.due = entry.due.min(now);
        }
    }

    /// When the next is to be tried.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.entries.values().map(|entry| entry.due).min()
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Each change, why it failed, and how often.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&Change, &str, u32)> {
        self.entries.values().map(|entry| (&entry.change, entry.error.as_str(), entry.attempts))
    }

    /// Why a device is among what failed, if one is.
    pub(super) fn without_device(&self) -> Option<String> {
        let is_device = |change: &Change| match change {
            Change::PutDevice(_) => true,
            Change::PutObject(id, _) => id.stage == Stage::Device,
            _ => false,
        };
        let device = self.entries.values().find(|entry| is_device(&entry.change))?;
        Some(format!("cannot {}: {}", device.change, device.error))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The last failure, as long as anything is pending.
    pub(super) fn last_error(&self) -> Option<String> {
        if self.is_empty() { None } else { self.last_error.clone() }
    }
}

#[cfg(test)]
mod tests {
    use flannel_common::path::Hook;

    use super::*;
    use crate::backend::{AnyObject, ObjectId};

    #[test]
    fn an_interface_that_is_gone_is_no_fault() {
        let (mut pending, now) = (Pending::default(), Instant::now());
        let change = Change::Attach { ifindex: 7, hook: Hook::FromPod };
        assert_eq!(pending.failed(&change, &ChangeError::Gone(7), now), None);
        assert_eq!(pending.last_error(), None);
        assert!(
            pending.ready(vec![change.clone()], now).is_empty(),
            "not at once, while it is still asked for"
        );
        let refused = ChangeError::Bpf("no".to_owned());
        assert_eq!(pending.failed(&change, &refused, now), Some("no".to_owned()));
        assert!(pending.last_error().is_some());
    }

    #[test]
    fn a_backends_own_device_is_a_device() {
        let (mut pending, now) = (Pending::default(), Instant::now());
        let network = "10.244.0.0/16".parse().unwrap();
        let put = |stage| Change::PutObject(ObjectId { stage, network }, AnyObject::new("it".to_owned()));
        let refused = ChangeError::Bpf("no".to_owned());
        pending.failed(&put(Stage::Peer), &refused, now);
        assert_eq!(pending.without_device(), None);
        pending.failed(&put(Stage::Device), &refused, now);
        assert_eq!(pending.without_device().as_deref(), Some("cannot set up it: no"));
    }
}
