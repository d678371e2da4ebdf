//! Connections that are looked at again: those that were broken off, and those that rest.

use std::collections::VecDeque;

use flannel_common::layout::Flow;
use tokio::time::Instant;

use crate::bpf::TrieFamily;

/// The most that are looked at again, 64 bytes each: what takes longer than a packet is rare.
const MOST: usize = 4_096;

/// At least so many connections are looked at in a turn.
pub(super) const LOOKED_AT: usize = 250;

/// A connection that is looked at again.
pub(super) struct Watched<F: TrieFamily> {
    pub(super) flow: Flow<F>,
    /// Of its entry.
    pub(super) id: u32,
    pub(super) since: Instant,
    /// Its pod's socket has not believed the reset.
    pub(super) is_kept: bool,
}

/// Connections of a family that are looked at again, the oldest first.
pub(super) struct BrokenOffFlows<F: TrieFamily> {
    /// Their reset has not come yet, or their end may not have got it yet.
    pub(super) awaited: VecDeque<Watched<F>>,
    /// Their state was changed, and they may go on.
    pub(super) closed: VecDeque<Watched<F>>,
}

impl<F: TrieFamily> Default for BrokenOffFlows<F> {
    fn default() -> Self {
        Self { awaited: VecDeque::new(), closed: VecDeque::new() }
    }
}

impl<F: TrieFamily> BrokenOffFlows<F> {
    /// Connection tracking keeps the connection for no longer than one that was reset, and no program has told of that.
    pub(super) fn was_cut(&mut self, flow: Flow<F>, id: u32) {
        watch(&mut self.awaited, Watched::new(flow, id));
    }
}

impl<F: TrieFamily> Watched<F> {
    pub(super) fn new(flow: Flow<F>, id: u32) -> Self {
        Self { flow, id, since: Instant::now(), is_kept: false }
    }
}

pub(super) fn watch<F: TrieFamily>(flows: &mut VecDeque<Watched<F>>, watched: Watched<F>) {
    if flows.len() == MOST {
        flows.pop_front();
    }
    flows.push_back(watched);
}

/// Connections of a family that rest.
pub(super) struct RestingFlows<F: TrieFamily> {
    /// Those to be looked at.
    pub(super) left: VecDeque<Flow<F>>,
    /// So many are looked at in a turn.
    pub(super) at_once: usize,
    /// When the table of flows was last gone over.
    pub(super) since: Option<Instant>,
}

impl<F: TrieFamily> Default for RestingFlows<F> {
    fn default() -> Self {
        Self { left: VecDeque::new(), at_once: LOOKED_AT, since: None }
    }
}
