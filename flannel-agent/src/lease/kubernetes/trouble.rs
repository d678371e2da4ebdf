//! What does not work between us and the API server, for whoever wants to know.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::watch;

/// What fails now, by what was tried. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Trouble {
    failing: Arc<Mutex<BTreeMap<&'static str, String>>>,
    shown: Arc<watch::Sender<Option<String>>>,
}

impl Default for Trouble {
    fn default() -> Self {
        Self { failing: Arc::default(), shown: Arc::new(watch::channel(None).0) }
    }
}

impl Trouble {
    /// `part` failed.
    pub(super) fn has(&self, part: &'static str, problem: &impl ToString) {
        self.change(|failing| {
            failing.insert(part, problem.to_string());
        });
    }

    /// `part` works.
    pub(super) fn is_over(&self, part: &'static str) {
        self.change(|failing| {
            failing.remove(part);
        });
    }

    /// One of them, while there are any.
    pub(super) fn shown(&self) -> watch::Receiver<Option<String>> {
        self.shown.subscribe()
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<&'static str, String>)) {
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut failing);
        let first = failing.values().next().cloned();
        self.shown.send_if_modified(|shown| {
            let news = *shown != first;
            *shown = first;
            news
        });
    }
}
