//! Pauses between attempts.

use std::time::Duration;

/// Before the second attempt; doubled before each further one.
const FIRST: Duration = Duration::from_millis(200);
/// The longest, unless another is given.
const LONGEST: Duration = Duration::from_secs(10);

/// Grows with each failure in a row, and differs from node to node: a thousand nodes that lose one API server are
/// not to come back at one moment.
#[derive(Debug)]
pub(super) struct Backoff {
    failures: u32,
    longest: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self::up_to(LONGEST)
    }
}

impl Backoff {
    /// Pauses of at most `longest`.
    pub(super) const fn up_to(longest: Duration) -> Self {
        Self { failures: 0, longest }
    }

    /// How long to wait after another failure: a half to the whole of the step.
    pub(super) fn failed(&mut self) -> Duration {
        let step = FIRST.saturating_mul(1 << self.failures.min(10)).min(self.longest);
        self.failures = self.failures.saturating_add(1);
        step.mul_f64(0.5 + rand::random::<f64>() / 2.0)
    }

    /// It works again.
    pub(super) fn succeeded(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_a_bound_and_starts_again() {
        let mut backoff = Backoff::default();
        let pauses: Vec<Duration> = (0..40).map(|_| backoff.failed()).collect();
        assert!(pauses[0] >= FIRST / 2 && pauses[0] <= FIRST);
        assert!(pauses[20..].iter().all(|pause| (LONGEST / 2..=LONGEST).contains(pause)));
        assert!(pauses[20..].iter().any(|pause| *pause != pauses[20]), "no two nodes alike");
        backoff.succeeded();
        assert!(backoff.failed() <= FIRST);
    }
}
