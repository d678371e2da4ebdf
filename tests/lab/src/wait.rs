//! Waiting for what happens in its own time.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

/// Time between two attempts.
const PAUSE: Duration = Duration::from_millis(50);

/// Tries `attempt` until it succeeds. After `timeout` it fails with the last attempt's error, so that
/// the message shows the state it stopped in. The first attempt is always made.
pub fn eventually<T>(timeout: Duration, what: &str, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(state) if start.elapsed() >= timeout => {
                return Err(state).with_context(|| format!("not within {timeout:?}: {what}"));
            }
            Err(_) => sleep(PAUSE),
        }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn reports_the_last_state() {
        let mut attempts = 0;
        let error = eventually(Duration::from_millis(120), "the moon", || -> Result<()> {
            attempts += 1;
            bail!("seen {attempts} times")
        })
        .unwrap_err();
        assert!(attempts >= 2, "one attempt only");
        assert_eq!(format!("{error:#}"), format!("not within 120ms: the moon: seen {attempts} times"));
    }
}
