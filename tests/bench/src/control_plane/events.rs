//! Changes of leases, and how long each takes to be in force.

use std::{
    thread::{self, sleep},
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, ensure};
use rand::rngs::StdRng;

use super::{
    peers::{Change, Peers},
    probe::Probe,
    store::Store,
};
use crate::samples::Samples;

/// Between two changes made one by one: the agent is at rest again.
const PAUSE: Duration = Duration::from_millis(40);
/// How long a change may take to be in force.
const PATIENCE: Duration = Duration::from_secs(30);

/// Times from the moment etcd told of a change until it was in force, microseconds.
pub(super) type Latencies = Samples;

/// Makes `count` changes, each after the last is in force.
pub(super) fn one_by_one(
    store: &mut Store,
    probe: &Probe,
    peers: &mut Peers,
    count: u32,
    random: &mut StdRng,
) -> Result<Latencies> {
    let mut latencies = Latencies::default();
    for turn in 0..count {
        sleep(PAUSE);
        let change = peers.change(turn, random);
        latencies.push(thread::scope(|scope| -> Result<f64> {
            // It may be in force before etcd's answer has come to us.
            let seen = scope.spawn(|| probe.await_change(change, PATIENCE));
            let told = store.make(change)?;
            let seen = seen.join().map_err(|_| anyhow!("panicked"))??;
            Ok(seen.saturating_duration_since(told).as_secs_f64() * 1e6)
        })?);
    }
    Ok(latencies)
}

/// Makes `rate` changes a second for `seconds`, whether or not the last is in force.
pub(super) fn churn(
    store: &mut Store,
    probe: &Probe,
    peers: &mut Peers,
    (rate, seconds): (u32, u32),
    random: &mut StdRng,
) -> Result<Latencies> {
    ensure!(rate > 0, "no changes");
    let begin = Instant::now();
    let (made, told) = std::sync::mpsc::channel::<(Change, Instant)>();
    thread::scope(|scope| {
        let watcher = scope.spawn(move || -> Result<Latencies> {
            let mut latencies = Latencies::default();
            let mut open: Vec<(Change, Instant)> = Vec::new();
            let mut ended = false;
            while !(ended && open.is_empty()) {
                loop {
                    match told.try_recv() {
                        // A later change of the same lease takes the place of an earlier one.
                        Ok(next) => {
                            open.retain(|(change, _)| change.number != next.0.number);
                            open.push(next);
                        }
                        Err(std::sync::mpsc::TryRecvError::Empty) => break,
                        Err(std::sync::mpsc::TryRecvError::Disconnected) => {
                            ended = true;
                            break;
                        }
                    }
                }
                let mut still = Vec::new();
                for (change, since) in open {
                    if probe.holds(change)? {
                        latencies.push(since.elapsed().as_secs_f64() * 1e6);
                    } else {
                        ensure!(since.elapsed() < PATIENCE, "{change:?} is not in force after {PATIENCE:?}");
                        still.push((change, since));
                    }
                }
                open = still;
                sleep(Duration::from_micros(100));
            }
            Ok(latencies)
        });
        for turn in 0..rate * seconds {
            let due = begin + Duration::from_secs(1) * turn / rate;
            sleep(due.saturating_duration_since(Instant::now()));
            let change = peers.change(turn, random);
            let at = store.make(change)?;
            if made.send((change, at)).is_err() {
                break;
            }
        }
        drop(made);
        watcher.join().map_err(|_| anyhow!("panicked"))?
    })
}
