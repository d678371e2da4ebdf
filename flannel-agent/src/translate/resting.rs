//! Connections that rest.
//!
//! Connection tracking has not seen what was last acknowledged of a fast connection. So it may take its last data for lost,
//! and keeps it for five minutes if nothing more comes, where it keeps one that it has followed for five days
//! (`nf_conntrack_tcp_timeout_unacknowledged`, and `_established`). Without its entry a connection that goes on meets rules
//! for new ones, and has no translation. So those that rest and whose end lives are kept for as long as the others.

use std::{collections::VecDeque, time::Duration};

use flannel_common::layout::{Flow, FlowProtocol};
use tokio::time::Instant;

use super::{
    TranslateError,
    ends::PodEnds,
    flows::{TranslatedFlows, tuple},
    watched::LOOKED_AT,
};
use crate::{
    bpf::{PodEnd, TrieFamily, hold},
    host::conntrack::TcpTimeouts,
    netlink::{Conntrack, TcpState},
};

/// A connection rests when it has been silent for one part in so many of the time after which it would be forgotten.
const RESTS: u32 = 3;
/// The table of flows is gone over every one part in so many of that time.
const GONE_OVER: u32 = 6;
/// At least one part in so many of those that rest is looked at in a turn.
const PART: usize = 100;

impl<F: TrieFamily> TranslatedFlows<F> {
    /// Keeps some of the connections that rest, the next in turn. To be called a few times a second.
    pub(super) async fn keep_resting(
        &mut self,
        timeouts: TcpTimeouts,
        conntrack: &mut Conntrack,
        ends: &mut PodEnds,
    ) -> Result<(), TranslateError> {
        let forgotten = timeouts.unacknowledged;
        if forgotten >= timeouts.established {
            return Ok(());
        }
        let is_due = self.resting.since.is_none_or(|since| since.elapsed() >= forgotten / GONE_OVER);
        if self.resting.left.is_empty() && is_due {
            self.resting.left = self.find_resting(forgotten)?;
            self.resting.at_once = LOOKED_AT.max(self.resting.left.len() / PART);
            self.resting.since = Some(Instant::now());
        }
        for _ in 0..self.resting.at_once {
            let Some(flow) = self.resting.left.pop_front() else { break };
            let tuple = tuple(&flow);
            let entry = conntrack.entry(&tuple)?;
            if entry.is_some_and(|entry| entry.tcp == Some(TcpState::Established) && entry.left <= forgotten)
                && ends.of(&self.tables, &flow).await? == PodEnd::Open
            {
                conntrack.change(&tuple, None, Some(timeouts.established))?;
            }
        }
        Ok(())
    }

    /// Those of the table that rest and would be `forgotten` after so long.
    fn find_resting(&self, forgotten: Duration) -> Result<VecDeque<Flow<F>>, TranslateError> {
        let now = hold::now()?.as_nanos();
        let rests = (forgotten / RESTS).as_nanos()..=forgotten.as_nanos();
        let found = self.tables.flows.keys_of(|flow, permit| {
            let last = permit.egress.max(permit.ingress);
            flow.protocol == FlowProtocol::Tcp && rests.contains(&now.saturating_sub(last.into()))
        })?;
        Ok(found.into())
    }
}
