//! What the programs did in the last minute, for whoever asks how much of the traffic is fast.

use std::{collections::VecDeque, convert::Infallible, path::Path, time::Duration};

use flannel_common::reason::{Class, Reason};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::{
    bpf::{Pins, read_counters},
    control::{Standing, snapshot::Traffic},
};

/// Between two looks at the counters: 150 calls of the kernel.
const LOOK: Duration = Duration::from_secs(10);
/// So many looks are a minute.
const LOOKS: usize = 7;

/// Packets since the programs were loaded.
#[derive(Clone, Copy)]
struct Total {
    at: Instant,
    fast: u64,
    kernel: u64,
    dropped: u64,
}

/// Tells it, again and again. Without programs there is nothing to tell.
pub(super) async fn follow(standing: &Standing, bpffs: &Path) -> Infallible {
    let mut totals = VecDeque::<Total>::with_capacity(LOOKS);
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        let Some(now) = total(bpffs) else {
            totals.clear();
            standing.tell(|told| told.traffic = None);
            continue;
        };
        // Counters that went back are those of other maps.
        if totals.back().is_some_and(|last| last.fast > now.fast || last.kernel > now.kernel) {
            totals.clear();
        }
        if totals.len() == LOOKS {
            totals.pop_front();
        }
        totals.push_back(now);
        let Some(first) = totals.front().filter(|_| totals.len() > 1) else { continue };
        let traffic = Traffic {
            seconds: now.at.duration_since(first.at).as_secs(),
            fast: now.fast - first.fast,
            kernel: now.kernel - first.kernel,
            dropped: now.dropped.saturating_sub(first.dropped),
        };
        standing.tell(|told| told.traffic = Some(traffic));
    }
}

fn total(bpffs: &Path) -> Option<Total> {
    let rows = read_counters(&Pins::under(bpffs).ok()?).ok()?;
    let sum = |class| {
        let rows = rows.iter().filter(|row| row.reason.class() == class && is_between_pods(row.reason));
        rows.map(|row| row.packets).sum()
    };
    Some(Total {
        at: Instant::now(),
        fast: sum(Class::Fast),
        kernel: sum(Class::Kernel),
        dropped: sum(Class::Drop),
    })
}

/// Whether what is counted for this reason may be a packet between pods of different nodes. The others come by because
/// the programs see all there is at an interface.
fn is_between_pods(reason: Reason) -> bool {
    !matches!(
        reason,
        Reason::NoConfig
            | Reason::NotIp
            | Reason::NotUnicast
            | Reason::NoRoute
            | Reason::NotVxlan
            | Reason::NotDirect
            | Reason::SnatExempt
    )
}
