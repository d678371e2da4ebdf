//! What this process takes of the CPUs.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// CPU time that all threads of this process have taken so far, in the kernel, too.
pub(crate) fn time() -> Duration {
    // The clock is one of the process itself, and is always there.
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}
