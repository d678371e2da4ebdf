//! Lets the programs go on, for an agent is there.
//!
//! Programs and maps outlive the agent, so that restarts cost nothing. For good they must not: where stock
//! flannel takes over, it keeps the kernel's path up to date and knows nothing of our maps. So the programs act
//! until a time that a running agent puts off again and again.

use std::{path::Path, time::Duration};

use flannel_common::{layout::Hold, map::HOLD};
use nix::time::{ClockId, clock_gettime};
use tokio::time::{MissedTickBehavior, interval};
use tracing::warn;

use super::{MapFault, Pins, maps::Setting};
use crate::telemetry::Said;

/// How often the time is put off: well within the shortest [`Duration`] the flag takes.
const BEAT: Duration = Duration::from_secs(1);

/// Puts the time off by `hold`; zero is without end. Where nothing is pinned there is nothing to do.
///
/// # Errors
/// When the map cannot be written, or the clock read.
pub fn put_off(pins: &Pins, hold: Duration) -> Result<(), MapFault> {
    if !pins.map(HOLD).exists() {
        return Ok(());
    }
    let until = match hold {
        Duration::ZERO => Hold::FOREVER,
        hold => {
            let until =
                Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).map_err(MapFault::Clock)?) + hold;
            Hold { until: u64::try_from(until.as_nanos()).unwrap_or(u64::MAX) }
        }
    };
    Setting::<Hold>::open(pins, HOLD)?.put(&until)
}

/// Goes on putting it off, for as long as it is polled. From the agent's first moment on, before it knows
/// anything of the leases: what an earlier one left is at least as good as it was a moment ago.
/// Without a BPF file system at `bpffs` there are none of either.
pub async fn keep(bpffs: &Path, hold: Duration) -> std::convert::Infallible {
    let Ok(pins) = Pins::under(bpffs) else { return std::future::pending().await };
    let mut beats = interval(BEAT);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut said = Said::default();
    loop {
        beats.tick().await;
        match put_off(&pins, hold) {
            Ok(()) => {
                said.is_over();
            }
            Err(error) if said.is_news(&error) => {
                warn!(%error, "the hold of the programs cannot be renewed; trying again");
            }
            Err(_) => {}
        }
    }
}
