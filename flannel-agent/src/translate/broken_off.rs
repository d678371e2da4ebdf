//! Connections that are broken off while they are fast.
//!
//! Connection tracking has not seen how far such a connection has come. So it cannot tell a reset that ends it from one that
//! somebody forges: it keeps the connection as established, for ten seconds (`nf_conntrack_tcp_packet` in
//! net/netfilter/nf_conntrack_proto_tcp.c). The end of the connection can: it believes only a reset that has the number it
//! expects (RFC 5961). So the socket of its pod is asked.
//!
//! Where that is gone, the connection is over. A new one between the same ports would count as part of it: with its
//! translation, and past rules for new ones. So it gets the state here that the kernel itself gives a connection that it
//! has followed. The rest is the kernel's: a SYN that comes then begins a connection of its own, and one that has come
//! before goes on, for its SYN-ACK sets the state again.
//!
//! Where the socket is as it was, so is the connection: it is kept for as long as before, and what the programs have
//! forgotten of it for its reset is put back, so that they tell of the next one, too.
//!
//! An end that has lost a connection may send a SYN between the same ports. The other end answers that by what makes the
//! first one reset the old connection, before it sends its SYN again.
//!
//! Some pods have no such socket: they forward for others, or translate by themselves. Their connections count as over, and
//! become established again if they go on.

use std::{mem, time::Duration};

use flannel_common::{
    layout::{Flow, Permit},
    packet::headers::folded,
    path::acceptance::LONG_AGO,
};

use super::{
    TranslateError,
    ends::PodEnds,
    flows::{TranslatedFlows, tuple},
    watched::{Watched, watch},
};
use crate::{
    bpf::{PodEnd, TrieFamily},
    host::conntrack::TcpTimeouts,
    netlink::{Conntrack, TcpState},
};

/// For so long the reset may come that is to come, and what it does to a socket shows: a SYN is sent again after one second,
/// and after two more.
const AWAITED: Duration = Duration::from_secs(3);
/// After so long a reset has reached its end, on a node that is not overloaded.
const ARRIVED: Duration = Duration::from_millis(20);
/// After so long nothing comes any more that was on its way when the connection was reset.
const SETTLED: Duration = Duration::from_secs(1);
/// After so long connection tracking forgets it, as a rule, if nothing has come.
const FORGOTTEN: Duration = Duration::from_secs(10);
/// For so long a connection is kept that goes on, until its next packet on the kernel path sets the usual time.
const KEPT: Duration = Duration::from_secs(300);
impl<F: TrieFamily> TranslatedFlows<F> {
    /// Closes the connections of these flows, which may be broken off, as far as their ends say so. True where
    /// [`Self::look_again`] is to be called for some.
    pub(super) async fn break_off(
        &mut self,
        flows: &[Flow<F>],
        conntrack: &mut Conntrack,
        ends: &mut PodEnds,
    ) -> Result<bool, TranslateError> {
        let timeouts = TcpTimeouts::now();
        let mut is_awaited = false;
        for flow in flows {
            self.forget(flow)?;
            let Some(entry) = conntrack.entry(&tuple(flow))? else { continue };
            let watched = Watched::new(*flow, entry.id);
            if let Some(watched) = self.judge(watched, timeouts, conntrack, ends).await? {
                is_awaited = true;
                watch(&mut self.broken_off.awaited, watched);
            }
        }
        Ok(is_awaited)
    }

    /// Looks again at those whose reset had not come, or had not reached their ends.
    pub(super) async fn look_again(
        &mut self,
        timeouts: TcpTimeouts,
        conntrack: &mut Conntrack,
        ends: &mut PodEnds,
    ) -> Result<(), TranslateError> {
        for awaited in mem::take(&mut self.broken_off.awaited) {
            if awaited.since.elapsed() < AWAITED
                && let Some(awaited) = self.judge(awaited, timeouts, conntrack, ends).await?
            {
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
                    conntrack.change(&tuple, Some(TcpState::Established), Some(KEPT))?;
                }
            } else if age < FORGOTTEN {
                self.broken_off.closed.push_back(closed);
            }
        }
        Ok(())
    }

    /// Closes the connection if its reset has come and its end has believed it, and keeps it if its end has not. Returns it if
    /// it is to be looked at again.
    async fn judge(
        &mut self,
        mut watched: Watched<F>,
        timeouts: TcpTimeouts,
        conntrack: &mut Conntrack,
        ends: &mut PodEnds,
    ) -> Result<Option<Watched<F>>, TranslateError> {
        let flow = &watched.flow;
        let tuple = tuple(flow);
        let Some(entry) = conntrack.entry(&tuple)?.filter(|entry| entry.id == watched.id) else {
            return Ok(None);
        };
        // In another state a new connection is on its way, or it ends in peace.
        let Some(state) = entry.tcp else { return Ok(None) };
        let is_reset = state == TcpState::Closed || entry.left <= timeouts.after_reset;
        if !is_reset && !watched.is_kept {
            return Ok(Some(watched));
        }
        let end = ends.of(&self.tables, flow).await?;
        match (state, end) {
            (TcpState::Established, PodEnd::Gone) => {
                conntrack.change(&tuple, Some(TcpState::Closed), None)?;
                watch(&mut self.broken_off.closed, Watched::new(*flow, entry.id));
                return Ok(None);
            }
            (_, PodEnd::Gone) => return Ok(None),
            _ if !is_reset || watched.since.elapsed() < ARRIVED => return Ok(Some(watched)),
            _ => {}
        }
        let restored = match (state, end) {
            (TcpState::Established, _) => Some((None, timeouts.established)),
            (_, PodEnd::Open) => Some((Some(TcpState::Established), timeouts.established)),
            (_, PodEnd::HalfClosed) => Some((Some(TcpState::CloseWait), timeouts.close_wait)),
            _ => None,
        };
        if let Some((state, kept)) = restored {
            // First: a reset that comes between the two is told of.
            self.put_back(flow, conntrack)?;
            conntrack.change(&tuple, state, Some(kept))?;
            watched.is_kept = true;
        }
        Ok(Some(watched))
    }

    /// Lets the programs know of `flow` as of one that was accepted long ago, and how it is translated.
    fn put_back(&mut self, flow: &Flow<F>, conntrack: &mut Conntrack) -> Result<(), TranslateError> {
        self.learn(flow, conntrack)?;
        let Some(place) = self.tables.pods.get(&flow.local)? else { return Ok(()) };
        if self.tables.flows.get(flow)?.is_none() {
            let gateway = match self.tables.pods.get(&flow.remote)? {
                // Of this node, too.
                Some(other) => other.ifindex,
                None => folded(&place.gateway_mac),
            };
            let permit = Permit {
                egress: LONG_AGO,
                ingress: LONG_AGO,
                ifindex: place.ifindex,
                gateway,
                ..Permit::default()
            };
            self.tables.flows.put(flow, &permit)?;
        }
        Ok(())
    }
}
