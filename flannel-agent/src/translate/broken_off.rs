//! Connections that are broken off while they are fast.
//!
//! Connection tracking has not seen how far such a connection has come. So its reset has another number than expected, and
//! the kernel keeps it as established, for ten seconds, for it may go on (`nf_conntrack_tcp_packet` in
//! net/netfilter/nf_conntrack_proto_tcp.c). A new connection between the same ports would count as part of it: with its
//! translation, and past rules for new ones. So it gets the state here that the kernel itself gives a connection that it
//! has followed. The rest is the kernel's: a SYN that comes then begins a connection of its own, and one that has come
//! before goes on, for its SYN-ACK sets the state again.
//!
//! An end that has lost a connection may send a SYN between the same ports. The other end answers that by what makes the
//! first one reset the old connection, before it sends its SYN again.
//!
//! The kernel may be right: an end ignores a reset that does not have the number that it expects itself (RFC 5961). What
//! goes on after its reset becomes established again.

use std::{collections::VecDeque, mem, time::Duration};

use flannel_common::layout::Flow;
use tokio::time::Instant;

use super::{
    TranslateError,
    flows::{TranslatedFlows, tuple},
};
use crate::{
    bpf::TrieFamily,
    host::conntrack::may_be_reset,
    netlink::{Conntrack, TcpState},
};

/// For so long the reset may come that is to come: the SYN is sent again after one second, and after two more.
const AWAITED: Duration = Duration::from_secs(3);
/// After so long nothing comes any more that was on its way when the connection was reset.
const SETTLED: Duration = Duration::from_secs(1);
/// After so long connection tracking forgets it, as a rule, if nothing has come.
const FORGOTTEN: Duration = Duration::from_secs(10);
/// For so long a connection is kept that goes on, until its next packet on the kernel path sets the usual time.
const KEPT: Duration = Duration::from_secs(300);
/// The most that are looked at again, 64 bytes each: what takes longer than a packet is rare.
const MOST: usize = 4_096;

/// A connection that is looked at again.
struct Watched<F: TrieFamily> {
    flow: Flow<F>,
    /// Of its entry.
    id: u32,
    since: Instant,
}

/// Connections of a family that are looked at again, the oldest first.
pub(super) struct BrokenOffFlows<F: TrieFamily> {
    /// Their reset has not come yet.
    awaited: VecDeque<Watched<F>>,
    /// Their state was changed, and they may go on.
    closed: VecDeque<Watched<F>>,
}

impl<F: TrieFamily> Default for BrokenOffFlows<F> {
    fn default() -> Self {
        Self { awaited: VecDeque::new(), closed: VecDeque::new() }
    }
}

impl<F: TrieFamily> TranslatedFlows<F> {
    /// Closes the connections of these flows, which are broken off. True where a reset has not come yet:
    /// [`Self::close_awaited`] is for these.
    pub(super) fn break_off(
        &mut self,
        flows: &[Flow<F>],
        conntrack: &mut Conntrack,
    ) -> Result<bool, TranslateError> {
        let mut is_awaited = false;
        for flow in flows {
            self.forget(flow)?;
            if let Some(id) = self.close(flow, conntrack)? {
                is_awaited = true;
                watch(&mut self.broken_off.awaited, *flow, id);
            }
        }
        Ok(is_awaited)
    }

    /// Closes those whose reset has come.
    pub(super) fn close_awaited(&mut self, conntrack: &mut Conntrack) -> Result<(), TranslateError> {
        for awaited in mem::take(&mut self.broken_off.awaited) {
            let is_awaited = awaited.since.elapsed() < AWAITED;
            if is_awaited && self.close(&awaited.flow, conntrack)? == Some(awaited.id) {
                self.broken_off.awaited.push_back(awaited);
            }
        }
        Ok(())
    }

    /// Makes those established again that go on. To be called every second.
    pub(super) fn reopen(&mut self, conntrack: &mut Conntrack) -> Result<(), TranslateError> {
        for closed in mem::take(&mut self.broken_off.closed) {
            let age = closed.since.elapsed();
            // Programs forget a flow with each of its resets, and know it again by whatever else netfilter accepts of it.
            if age >= SETTLED && self.tables.flows.get(&closed.flow)?.is_some() {
                let tuple = tuple(&closed.flow);
                let entry = conntrack.entry(&tuple)?;
                if entry.is_some_and(|entry| entry.id == closed.id && entry.tcp == Some(TcpState::Closed)) {
                    conntrack.change(&tuple, TcpState::Established, Some(KEPT))?;
                }
            } else if age < FORGOTTEN {
                self.broken_off.closed.push_back(closed);
            }
        }
        Ok(())
    }

    /// Closes the connection of `flow` if its reset has come. If it has not, that is awaited of the entry with this id.
    fn close(&mut self, flow: &Flow<F>, conntrack: &mut Conntrack) -> Result<Option<u32>, TranslateError> {
        let tuple = tuple(flow);
        let entry = conntrack.entry(&tuple)?;
        // In another state the kernel has believed the reset, or a new connection is on its way.
        let Some(entry) = entry.filter(|entry| entry.tcp == Some(TcpState::Established)) else {
            return Ok(None);
        };
        if !may_be_reset(entry.left) {
            return Ok(Some(entry.id));
        }
        conntrack.change(&tuple, TcpState::Closed, None)?;
        watch(&mut self.broken_off.closed, *flow, entry.id);
        Ok(None)
    }
}

fn watch<F: TrieFamily>(flows: &mut VecDeque<Watched<F>>, flow: Flow<F>, id: u32) {
    if flows.len() == MOST {
        flows.pop_front();
    }
    flows.push_back(Watched { flow, id, since: Instant::now() });
}
