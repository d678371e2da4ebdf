//! Whether the agent is to hear of entries that go, where no flow is translated.
//!
//! The kernel writes a notice of each, whether or not its flow is one that skips the stack, and that costs about as much as a
//! lookup of a connection. So it is worth while where flows last: those are cut or led elsewhere in their midst. And it costs
//! nothing worth speaking of where few flows begin.

use std::time::Duration;

use flannel_common::reason::{Direction, Reason};
use tokio::time::Instant;

use crate::bpf::{Counters, MapFault};

/// A flow that lasts is accepted anew at least as often as this: twice the longest `--flow-refresh`.
const LASTS: Duration = Duration::from_secs(60);
/// So many packets with which flows are accepted in a second, two for each flow at its beginning, are few.
const FEW: u64 = 1_000;

/// What the programs have counted of flows.
pub(super) struct Worth {
    counters: Counters,
    /// Packets of flows whose acceptance had ended.
    renewed: u64,
    /// Packets with which flows were accepted.
    learned: u64,
    lasts_until: Instant,
}

impl Worth {
    pub(super) fn new(counters: Counters) -> Self {
        Self { counters, renewed: 0, learned: 0, lasts_until: Instant::now() }
    }

    /// Whether it is worth while. To be called every second.
    pub(super) fn now(&mut self) -> Result<bool, MapFault> {
        let (renewed, learned) = (self.count(Reason::FlowStale)?, self.count(Reason::FlowLearned)?);
        if renewed != self.renewed {
            self.lasts_until = Instant::now() + LASTS;
        }
        let are_few = learned.wrapping_sub(self.learned) < FEW;
        (self.renewed, self.learned) = (renewed, learned);
        Ok(are_few || Instant::now() < self.lasts_until)
    }

    fn count(&self, reason: Reason) -> Result<u64, MapFault> {
        let [sent, received] = Direction::ALL.map(|direction| self.counters.of(direction, reason));
        Ok(sent?.packets.wrapping_add(received?.packets))
    }
}
