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
use crate::telemetry::LastMessage;

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
        Duration::ZERO => Hold::FOREVER.until,
        hold => nanoseconds(now()? + hold),
    };
    let mut setting = Setting::<Hold>::open(pins, HOLD)?;
    let since = setting.get()?.map_or(Hold::FOREVER.since, |hold| hold.since);
    setting.put(&Hold { until, since })
}

/// Lets what the programs have noted of flows and tunnels count no more: their packets take the kernel path until the
/// programs have seen it let them through anew. [`put_off`] writes the same map; none of them waits between reading and
/// writing, and all are polled by one task.
///
/// # Errors
/// When the map cannot be read or written, or the clock read.
pub(crate) fn end_acceptance(setting: &mut Setting<Hold>) -> Result<(), MapFault> {
    // Programs that nobody lets act go by nothing.
    let Some(hold) = setting.get()? else { return Ok(()) };
    setting.put(&Hold { since: nanoseconds(now()?), ..hold })
}

/// The time on the clock of [`Hold`]; the programs' coarse one is never ahead of it.
pub(crate) fn now() -> Result<Duration, MapFault> {
    Ok(clock_gettime(ClockId::CLOCK_MONOTONIC).map_err(MapFault::Clock)?.into())
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Goes on putting it off, for as long as it is polled. From the agent's first moment on, before it knows
/// anything of the leases: what an earlier one left is at least as good as it was a moment ago.
/// Without a BPF file system at `bpffs` there are none of either.
pub async fn keep(bpffs: &Path, hold: Duration) -> std::convert::Infallible {
    let Ok(pins) = Pins::under(bpffs) else { return std::future::pending().await };
    let mut beats = interval(BEAT);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut said = LastMessage::default();
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
