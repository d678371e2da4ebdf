//! Whether somebody keeps the host's clock right.
#![expect(unsafe_code, reason = "adjtimex(2) has no safe interface")]

use std::{mem, time::Duration};

use nix::libc;

/// The clock, as the kernel was told by whoever keeps it: NTP, PTP and the like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// Somebody keeps it right. A hypervisor that does so tells the kernel nothing.
    pub synchronised: bool,
    /// How far from the true time it is at most; it grows for as long as nobody sets it, up to 16 s.
    pub error: Duration,
}

/// Reads it; `None` where the kernel does not say.
pub fn clock() -> Option<Clock> {
    // SAFETY: it is a struct of numbers, for which zero stands for nothing to change.
    let mut timex: libc::timex = unsafe { mem::zeroed() };
    // SAFETY: the kernel writes to that struct alone; it lives until after the call.
    let state = unsafe { libc::adjtimex(&raw mut timex) };
    if state < 0 {
        return None;
    }
    let error = u64::try_from(timex.maxerror).unwrap_or_default();
    let synchronised = state != libc::TIME_ERROR && timex.status & libc::STA_UNSYNC == 0;
    Some(Clock { synchronised, error: Duration::from_micros(error) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_how_right_the_clock_is() {
        let clock = clock().unwrap();
        assert!(clock.synchronised || clock.error > Duration::ZERO, "{clock:?}");
    }
}
