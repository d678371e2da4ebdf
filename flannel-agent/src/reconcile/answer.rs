//! What is told to those who ask at the control socket.

use std::collections::{BTreeMap, BTreeSet};

use flannel_common::family::{V4, V6};
use ipnetwork::IpNetwork;
use rand::seq::IteratorRandom as _;

use super::{Reconciler, host::Host, journal::route};
use crate::{
    backend::{ObjectId, Stage},
    control::{Question, snapshot},
    datapath::Datapath,
    lease::{LeaseSource, LeaseSubnet},
    plan::{EntryFamily, EntryKey, ObjectKey, Peer, PeerRoute, delta},
    values::Family,
};

/// So many of one kind are listed in a snapshot; the others are counted.
const LISTED: usize = 100;

impl<D: Datapath, H: Host, L: LeaseSource> Reconciler<D, H, L> {
    /// Answers. Whoever asked may be gone.
    pub(super) async fn answer(&mut self, question: Question) {
        match question {
            Question::Dataplane(answer) => drop(answer.send(self.dataplane())),
            Question::Peers(answer) => drop(answer.send(self.peers())),
            Question::Sample(named, number, answer) => drop(answer.send(self.sample(&named, number))),
            Question::Trace(by, answer) => drop(answer.send(self.trace(by))),
            Question::Drift(answer) => drop(answer.send(self.drift().await)),
        }
    }

    /// The peers of these subnets that there are, and others, chosen by chance.
    fn sample(&self, named: &[IpNetwork], number: usize) -> Vec<snapshot::Peer> {
        let named_ones = named.iter().filter_map(|subnet| self.plan.peers.get_key_value(subnet));
        let others = self.plan.peers.iter().filter(|(subnet, _)| !named.contains(subnet));
        let chosen = others.choose_multiple(&mut rand::rng(), number);
        let all = named_ones.chain(chosen);
        all.map(|(subnet, peer)| self.told_peer(*subnet, peer, Vec::new())).collect()
    }

    fn dataplane(&self) -> snapshot::Dataplane {
        let plan = &self.plan;
        let waiting: BTreeSet<IpNetwork> = self.pending_of_peers().into_keys().collect();
        let restored = self.journal.restored();
        let hooked = plan.hooked.iter().take(LISTED).map(|((_, stretch), hooked)| snapshot::Hooked {
            interface: hooked.interface.clone(),
            hook: hooked.hook.to_string(),
            left: stretch.to_string(),
        });
        let pending = self.pending.entries().take(LISTED).map(|(change, error, attempts)| {
            snapshot::Pending { change: change.to_string(), error: error.to_owned(), attempts }
        });
        let programs = plan.state.bpf.hooks.iter();
        let last_restored = restored.last.iter();
        snapshot::Dataplane {
            synced: self.leases.is_some(),
            settled: self.settled.is_reached(),
            passes: self.summary.borrow().passes,
            peers: plan.followed(),
            peers_pending: waiting.len(),
            faults: plan.faults(),
            skipped: self.skipped().take(LISTED).collect(),
            pending_total: self.pending.len(),
            pending: pending.collect(),
            last_error: self.pending.last_error().or_else(|| self.summary.borrow().last_error.clone()),
            on_kernel: plan.on_kernel.len(),
            hooked: hooked.collect(),
            programs: programs
                .map(|(ifindex, hook)| snapshot::Program {
                    name: hook.program().to_owned(),
                    ifindex: *ifindex,
                })
                .collect(),
            pods: plan.state.bpf.v4.pods.len() + plan.state.bpf.v6.pods.len(),
            restored: restored.count,
            last_restored: last_restored
                .map(|(at, what)| snapshot::Restored { at: snapshot::unix(*at), what: what.clone() })
                .collect(),
        }
    }

    fn skipped(&self) -> impl Iterator<Item = snapshot::Skipped> {
        self.plan.skipped.iter().map(|((lease, family), why)| snapshot::Skipped {
            lease: lease.to_string(),
            family: family.to_string(),
            reason: why.to_string(),
            fault: why.is_fault(),
            remedy: why.remedy().to_owned(),
        })
    }

    fn peers(&self) -> snapshot::Peers {
        let mut pending = self.pending_of_peers();
        let peers =
            self.plan.peers.iter().map(|(subnet, peer)| {
                self.told_peer(*subnet, peer, pending.remove(subnet).unwrap_or_default())
            });
        snapshot::Peers { peers: peers.collect(), skipped: self.skipped().collect() }
    }

    fn told_peer(&self, subnet: IpNetwork, peer: &Peer, pending: Vec<String>) -> snapshot::Peer {
        let hop = self.next_hops.get(&peer.public_ip).and_then(|hop| hop.ok());
        snapshot::Peer {
            subnet,
            node: self.node_of(peer.lease),
            public_ip: peer.public_ip,
            way: match peer.route {
                PeerRoute::Objects => self.local.backend.options().kind(),
                _ => route(peer),
            }
            .to_owned(),
            mac: peer.mac.map(|mac| mac.to_string()),
            on_kernel: self.plan.on_kernel.get(&subnet).map(ToString::to_string),
            next_hop: hop.map(|hop| snapshot::NextHop {
                address: hop.address,
                ifindex: hop.ifindex,
                mtu: hop.mtu,
            }),
            pending,
            probe: None,
        }
    }

    /// The name of the node that holds a lease.
    fn node_of(&self, lease: LeaseSubnet) -> Option<String> {
        self.leases.as_ref()?.get(&lease)?.node.as_deref().map(str::to_owned)
    }

    async fn drift(&mut self) -> snapshot::Drift {
        if self.leases.is_none() {
            let error = Some("the leases have not been read: nothing is planned yet".to_owned());
            return snapshot::Drift { error, ..snapshot::Drift::default() };
        }
        let observed = match self.datapath.observe().await {
            Ok(observed) => observed,
            Err(error) => {
                return snapshot::Drift { error: Some(error.to_string()), ..snapshot::Drift::default() };
            }
        };
        let errors: BTreeMap<ObjectKey, &str> =
            self.pending.entries().map(|(change, error, _)| (change.key(), error)).collect();
        let differences = delta(&self.plan.state, &observed).into_iter().map(|change| {
            let error = errors.get(&change.key()).map(|error| (*error).to_owned());
            snapshot::Difference { change: change.to_string(), error }
        });
        snapshot::Drift { differences: differences.collect(), error: None }
    }

    /// What failed of each peer, by its subnet.
    fn pending_of_peers(&self) -> BTreeMap<IpNetwork, Vec<String>> {
        let mut of_peers = BTreeMap::<IpNetwork, Vec<String>>::new();
        if self.pending.is_empty() {
            return of_peers;
        }
        let failed: BTreeMap<ObjectKey, String> = self
            .pending
            .entries()
            .map(|(change, error, _)| (change.key(), format!("cannot {change}: {error}")))
            .collect();
        for (subnet, peer) in &self.plan.peers {
            let of_peer: Vec<String> =
                objects_of(*subnet, peer).iter().filter_map(|key| failed.get(key).cloned()).collect();
            if !of_peer.is_empty() {
                of_peers.insert(*subnet, of_peer);
            }
        }
        of_peers
    }
}

/// The objects that are there for one peer.
fn objects_of(subnet: IpNetwork, peer: &Peer) -> Vec<ObjectKey> {
    let family = Family::of_network(subnet);
    let mut keys = vec![
        ObjectKey::Route(subnet),
        ObjectKey::DirectRoute(subnet),
        ObjectKey::Neighbour(subnet.network()),
        ObjectKey::Object(ObjectId { stage: Stage::Peer, network: subnet }),
        ObjectKey::Object(ObjectId { stage: Stage::Route, network: subnet }),
    ];
    keys.extend(peer.mac.map(|mac| ObjectKey::Fdb(family, mac)));
    match family {
        Family::V4 => entries_of::<V4>(subnet, peer, &mut keys),
        Family::V6 => entries_of::<V6>(subnet, peer, &mut keys),
    }
    keys
}

fn entries_of<F: EntryFamily>(subnet: IpNetwork, peer: &Peer, keys: &mut Vec<ObjectKey>) {
    let route = F::subnet_key(subnet).map(EntryKey::Route);
    let vtep = F::address_key(peer.public_ip).map(EntryKey::Vtep);
    keys.extend([route, vtep].into_iter().flatten().map(|key| ObjectKey::Entry(F::any_key(key))));
}
