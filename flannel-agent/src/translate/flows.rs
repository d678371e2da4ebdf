//! The translated flows of one family: what is known of them here, and what stands in the maps. What becomes of those
//! that are broken off, translated or not, is in [`super::broken_off`].

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    ops::Bound,
};

use flannel_common::layout::{Flow, Translation};
use ipnetwork::IpNetwork;
use tracing::debug;

use super::{
    TranslateError, judge,
    watched::{BrokenOffFlows, RestingFlows},
};
use crate::{
    bpf::{Pins, TranslationTables, TrieFamily},
    host::conntrack::TcpTimeouts,
    netlink::{Conntrack, ConntrackTuple, EndedEntry, TcpState},
};

/// The translated flows of a family.
pub(super) struct TranslatedFlows<F: TrieFamily> {
    pub(super) tables: TranslationTables<F>,
    /// The cluster's network, and this node's subnet of it.
    share: (IpNetwork, IpNetwork),
    /// As their pods know them.
    known: BTreeMap<Flow<F>, Translation<F>>,
    by_id: BTreeMap<u32, Flow<F>>,
    /// Where the next look begins.
    looked_to: Option<Flow<F>>,
    /// Connections that were broken off, translated or not.
    pub(super) broken_off: BrokenOffFlows<F>,
    /// Connections that rest, translated or not.
    pub(super) resting: RestingFlows<F>,
}

impl<F: TrieFamily> TranslatedFlows<F> {
    /// Takes over what an earlier agent has found.
    pub(super) fn open(pins: &Pins, share: (IpNetwork, IpNetwork)) -> Result<Self, TranslateError> {
        let mut tables = TranslationTables::open(pins)?;
        let found = tables.translations.entries()?;
        let (known, mut others): (BTreeMap<_, _>, BTreeMap<_, _>) =
            found.into_iter().partition(|(flow, _)| !share.0.contains(F::address(flow.remote)));
        for (flow, translation) in &known {
            others.remove(&translation.other_side(flow));
        }
        for flow in others.keys() {
            tables.translations.remove(flow)?;
        }
        let by_id = known.iter().map(|(flow, translation)| (translation.id, *flow)).collect();
        let (broken_off, resting) = (BrokenOffFlows::default(), RestingFlows::default());
        Ok(Self { tables, share, known, by_id, looked_to: None, broken_off, resting })
    }

    /// Finds out how `flow` is translated, and lets the programs do so if they can. It may also be a flow as the network
    /// knows it.
    pub(super) fn learn(&mut self, flow: &Flow<F>, conntrack: &mut Conntrack) -> Result<(), TranslateError> {
        if self.share.0.contains(F::address(flow.remote)) {
            let ConntrackTuple { protocol, source, destination } = tuple(flow);
            let answer = ConntrackTuple { protocol, source: destination, destination: source };
            let found = conntrack.entry(&answer)?.filter(|entry| entry.reply == answer);
            let service = found.map(|entry| entry.original.destination);
            let as_known = service.and_then(|service| {
                let remote = F::address_key(service.ip())?;
                Some(Flow { remote, remote_port: service.port(), ..*flow })
            });
            return match as_known.filter(|flow| !self.share.0.contains(F::address(flow.remote))) {
                Some(flow) => self.learn_known(&flow, conntrack),
                None => Ok(()),
            };
        }
        self.learn_known(flow, conntrack)
    }

    /// The same of a flow as its pod knows it.
    fn learn_known(&mut self, flow: &Flow<F>, conntrack: &mut Conntrack) -> Result<(), TranslateError> {
        let asked = tuple(flow);
        let Some(entry) = conntrack.entry(&asked)? else { return self.forget(flow) };
        let backend = match judge::backend(&entry, &asked, self.share) {
            Ok(backend) => backend,
            Err(refusal) => {
                debug!(?asked, ?refusal, "a translated flow stays on the kernel path");
                return self.forget(flow);
            }
        };
        let Some(address) = F::address_key(backend.ip()) else { return self.forget(flow) };
        let translation =
            Translation { remote: address, remote_port: backend.port(), reserved: 0, id: entry.id };
        // Asked about on its way out and on its way in.
        if self.known.get(flow) == Some(&translation) && self.tables.translations.get(flow)?.is_some() {
            return Ok(());
        }
        // Whatever was known by another translation, or of these ports without one, counts no more.
        self.forget(flow)?;
        let on_wire = translation.other_side(flow);
        self.tables.flows.remove(&on_wire)?;
        let back = Translation { remote: flow.remote, remote_port: flow.remote_port, ..translation };
        self.tables.translations.put(&on_wire, &back)?;
        self.known.insert(*flow, translation);
        self.by_id.insert(entry.id, *flow);
        self.tables.translations.put(flow, &translation)?;
        Ok(())
    }

    /// Whether any flow is translated.
    pub(super) fn is_translating(&self) -> bool {
        !self.known.is_empty()
    }

    /// This entry of connection tracking is gone, and its flow is accepted no more.
    pub(super) fn entry_ended(&mut self, entry: &EndedEntry) -> Result<(), TranslateError> {
        if let Some(flow) = entry.original.as_ref().and_then(flow::<F>) {
            self.tables.flows.remove(&flow)?;
            self.tables.flows.remove(&flow.reversed())?;
        }
        match self.by_id.get(&entry.id).copied() {
            Some(flow) => self.forget(&flow),
            None => Ok(()),
        }
    }

    /// No flow is accepted any more: it is not known whose entries are gone.
    pub(super) fn forget_accepted(&mut self) -> Result<(), TranslateError> {
        let accepted = self.tables.flows.keys_of(|_, permit| permit.egress != 0 && permit.ingress != 0)?;
        for flow in accepted {
            self.tables.flows.remove(&flow)?;
        }
        Ok(())
    }

    /// Looks at `most` of the flows, the next in turn, and forgets those whose entry is another, or gone.
    /// Whose entry is kept no longer than after a reset, its end is asked about.
    pub(super) fn look(
        &mut self,
        most: usize,
        timeouts: TcpTimeouts,
        conntrack: &mut Conntrack,
    ) -> Result<(), TranslateError> {
        let from = self.looked_to.map_or(Bound::Unbounded, Bound::Excluded);
        let some: Vec<_> = self
            .known
            .range((from, Bound::Unbounded))
            .take(most)
            .map(|(flow, translation)| (*flow, *translation))
            .collect();
        self.looked_to = some.last().map(|(flow, _)| *flow).filter(|_| some.len() == most);
        for (flow, translation) in some {
            let asked = tuple(&flow);
            let is_same = match conntrack.entry(&asked)? {
                Some(entry) => {
                    // A rule behind connection tracking may have dropped the reset, of which no program tells then.
                    if entry.tcp == Some(TcpState::Established)
                        && entry.left <= timeouts.after_reset
                        && timeouts.after_reset < timeouts.established
                    {
                        self.broken_off.was_cut(flow, entry.id);
                    }
                    let backend = judge::backend(&entry, &asked, self.share).ok();
                    entry.id == translation.id && backend == address(&translation)
                }
                None => false,
            };
            // The programs take it away when its connection begins anew or ends.
            if !is_same || self.tables.translations.get(&flow)?.is_none() {
                self.forget(&flow)?;
            }
        }
        Ok(())
    }

    /// Forgets how `flow` is translated, if it is.
    pub(super) fn forget(&mut self, flow: &Flow<F>) -> Result<(), TranslateError> {
        if let Some(translation) = self.known.remove(flow) {
            self.by_id.remove(&translation.id);
            self.tables.translations.remove(flow)?;
            self.tables.translations.remove(&translation.other_side(flow))?;
            self.tables.flows.remove(flow)?;
        }
        Ok(())
    }
}

/// The flow as its pod begins it.
pub(super) fn tuple<F: TrieFamily>(flow: &Flow<F>) -> ConntrackTuple {
    let end = |address: IpAddr, port| SocketAddr::new(address, port);
    ConntrackTuple {
        protocol: flow.protocol,
        source: end(F::address(flow.local), flow.local_port),
        destination: end(F::address(flow.remote), flow.remote_port),
    }
}

/// The flow as whoever began it knows it; `None` for one of the other family.
fn flow<F: TrieFamily>(tuple: &ConntrackTuple) -> Option<Flow<F>> {
    Some(Flow {
        local: F::address_key(tuple.source.ip())?,
        remote: F::address_key(tuple.destination.ip())?,
        local_port: tuple.source.port(),
        remote_port: tuple.destination.port(),
        protocol: tuple.protocol,
    })
}

fn address<F: TrieFamily>(translation: &Translation<F>) -> Option<SocketAddr> {
    Some(SocketAddr::new(F::address(translation.remote), translation.remote_port))
}
