//! Asks a few peers at a time whether they answer, so that what is lost on the way is known before somebody asks.
//!
//! What this costs does not depend on how many peers there are.

use std::{convert::Infallible, time::Duration};

use nix::errno::Errno;
use rand::Rng as _;
use tokio::{task::spawn_blocking, time::sleep};
use tracing::warn;

use crate::{
    control::{
        Standing,
        snapshot::{self, Peer},
    },
    inspect::{
        checks::hampers,
        probe::{Outcome, Target, probe},
    },
};

/// Between two rounds, on average.
const PERIOD: Duration = Duration::from_secs(snapshot::PROBE_PERIOD);

/// In between, rounds for those that gave no answer: so many in a period with the one for all.
const ROUNDS: u32 = 3;

/// Asks `number` peers in each period, and as many that gave no answer in each round of it; none with 0.
pub(super) async fn follow(standing: &Standing, number: u32) -> Infallible {
    if number == 0 {
        return std::future::pending().await;
    }
    // Nodes that start together do not ask together. The first round follows soon, for whoever has just started this one.
    let (mut pause, mut round) = (PERIOD / 4, 0);
    loop {
        sleep(pause.mul_f64(rand::rng().random_range(0.5..1.5))).await;
        // Who is back is soon known to be.
        let rounds = if standing.told().probes.unanswered > 0 { ROUNDS } else { 1 };
        let random = if round % rounds == 0 { number as usize } else { 0 };
        (pause, round) = (PERIOD / rounds, round + 1);
        let Ok(peers) = standing.sample(random, number as usize).await else { continue };
        for peer in peers {
            let Some(target) = target(standing, &peer) else { continue };
            let asking = target.clone();
            let Ok(outcome) = spawn_blocking(move || probe(&asking)).await else { continue };
            if is_forbidden(&outcome) {
                warn!(
                    "peers cannot be probed without the capability NET_RAW: they are not, until the next start"
                );
                return std::future::pending().await;
            }
            let found = hampers(&target, &outcome);
            standing.probed(peer.subnet, outcome.told(snapshot::now(), found));
        }
    }
}

/// What to ask of a peer.
fn target(standing: &Standing, peer: &Peer) -> Option<Target> {
    let told = standing.told();
    Some(Target::of(peer.subnet, peer.public_ip, &peer.way, Some(&told.backend?), &told.interface?))
}

fn is_forbidden(outcome: &Outcome) -> bool {
    outcome.underlay.error == Some(Errno::EPERM) && outcome.underlay.rtt.is_none()
}
