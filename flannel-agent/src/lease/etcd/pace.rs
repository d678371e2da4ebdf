//! How soon keys that are followed are asked for again, when a watch or a poll of them has ended.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tracing::warn;

use super::LastMessage;

/// Pause after a failure; doubled after each further one, up to the second.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// When the next attempt is due.
pub(super) struct Pace {
    pause: Duration,
    not_before: Option<Instant>,
    last_gap: Option<Instant>,
    said: LastMessage,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self { pause: PAUSE.0, not_before: None, last_gap: None, said: LastMessage::default() }
    }

    /// Waits until the next attempt is due. Cancel safe.
    pub(super) async fn wait(&mut self) {
        if let Some(at) = self.not_before {
            sleep_until(at).await;
            self.not_before = None;
        }
    }

    /// Whether what has been logged as interrupted goes on again.
    pub(super) fn is_over(&mut self) -> bool {
        self.said.is_over()
    }

    /// An attempt has held for `length`: after a long one the pauses begin small again.
    pub(super) fn held(&mut self, length: Duration) {
        if length > PAUSE.1 {
            self.went_well();
        }
    }

    /// An attempt has brought what it was for.
    pub(super) fn went_well(&mut self) {
        self.pause = PAUSE.0;
    }

    /// An attempt failed. The next follows after the pause or up to half of it earlier, so that nodes do not all come back
    /// at once.
    pub(super) fn back_off(&mut self, what: &'static str, problem: &str) {
        if self.said.is_news(&problem) {
            warn!(what, error = problem, "watch interrupted; trying again. Known leases stay in force");
        }
        self.not_before = Some(Instant::now() + self.pause.mul_f64(rand::random_range(0.5..=1.0)));
        self.pause = (self.pause * 2).min(PAUSE.1);
    }

    /// Everything has to be read again: at once, unless this happens again and again.
    pub(super) fn gap(&mut self) {
        let again = self.last_gap.is_some_and(|last| last.elapsed() < PAUSE.1);
        self.not_before = again.then(|| Instant::now() + PAUSE.1);
        self.last_gap = Some(Instant::now());
    }
}
