//! The leases of all other nodes.

use std::collections::BTreeMap;

use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use super::{
    annotations::AnnotationPrefix,
    api::ApiServer,
    node_lease::{Families, NoLease, lease_of},
    node_watch::{NodeEvent, Nodes},
    record::NodeRecord,
};
use crate::{
    lease::{Lease, LeaseEvent, LeaseSource, LeaseSubnet},
    values::shorten,
};

/// Events that wait for the consumer. When they are this many, the API server waits.
const QUEUE: usize = 64;
/// Longest reason in the log, in characters: it may quote an annotation.
const SHOWN: usize = 300;

/// The leases of a cluster's nodes but our own.
pub struct KubeWatch {
    events: mpsc::Receiver<LeaseEvent>,
    _task: AbortOnDropHandle<()>,
}

impl KubeWatch {
    pub(super) fn start(api: ApiServer, leases: NodeLeases) -> Self {
        let (sender, events) = mpsc::channel(QUEUE);
        let nodes = Nodes::follow(api, "the leases of all nodes", None);
        Self { events, _task: AbortOnDropHandle::new(tokio::spawn(run(nodes, leases, sender))) }
    }
}

impl LeaseSource for KubeWatch {
    async fn next(&mut self) -> LeaseEvent {
        match self.events.recv().await {
            Some(event) => event,
            // The task only ends with us.
            None => std::future::pending().await,
        }
    }
}

async fn run(mut nodes: Nodes, mut leases: NodeLeases, sender: mpsc::Sender<LeaseEvent>) {
    loop {
        let event = match nodes.next().await {
            NodeEvent::All(all) | NodeEvent::Anew(all) => Some(leases.all(&all)),
            NodeEvent::Put(node) => leases.put(&node),
            NodeEvent::Deleted(node) => leases.deleted(&node),
        };
        if let Some(event) = event
            && sender.send(event).await.is_err()
        {
            return;
        }
    }
}

/// What is known of one node.
#[derive(Debug, Default)]
struct Known {
    uid: String,
    /// Its last good lease. It stays in force while its annotations are damaged or gone: whoever did that has not
    /// moved the node.
    lease: Option<Lease>,
    /// What was said of its annotations.
    said: Option<String>,
}

/// Turns nodes into leases, of which no two have one subnet.
pub(super) struct NodeLeases {
    prefix: AnnotationPrefix,
    /// Our own node, whose lease is never reported.
    own: String,
    families: Families,
    nodes: BTreeMap<String, Known>,
    /// The nodes that have a subnet, in the order they got it: the first one's lease is in force. More than one is
    /// a mistake of whoever assigns them.
    holders: BTreeMap<LeaseSubnet, Vec<String>>,
}

impl NodeLeases {
    pub(super) fn new(prefix: AnnotationPrefix, own: String, families: Families) -> Self {
        Self { prefix, own, families, nodes: BTreeMap::new(), holders: BTreeMap::new() }
    }

    fn all(&mut self, all: &[NodeRecord]) -> LeaseEvent {
        let present: BTreeMap<&str, ()> = all.iter().map(|node| (node.name(), ())).collect();
        let gone: Vec<String> =
            self.nodes.keys().filter(|name| !present.contains_key(name.as_str())).cloned().collect();
        for name in gone {
            self.forget(&name);
        }
        for node in all {
            self.put(node);
        }
        self.snapshot()
    }

    /// What a node that is new or changed changes.
    fn put(&mut self, node: &NodeRecord) -> Option<LeaseEvent> {
        if node.name() == self.own {
            return None;
        }
        let mut known = self.nodes.remove(node.name()).unwrap_or_default();
        let before = known.lease.take();
        let same = known.uid == node.uid();
        known.uid = node.uid().to_owned();
        let now = match lease_of(node, &self.prefix, self.families) {
            Ok(lease) => {
                if known.said.take().is_some() {
                    info!(node = node.name(), "its annotations can be used again");
                }
                Some(lease)
            }
            Err(problem) => {
                let kept = before.clone().filter(|lease| same && self.may_stay(lease, node, &problem));
                self.say(node, &mut known, &problem, kept.is_some());
                kept
            }
        };
        known.lease = now.clone();
        self.nodes.insert(node.name().to_owned(), known);
        self.moved(node.name(), before, now)
    }

    fn deleted(&mut self, node: &NodeRecord) -> Option<LeaseEvent> {
        let before = self.nodes.remove(node.name())?.lease;
        self.moved(node.name(), before, None)
    }

    /// Whether the last good lease holds though its node tells none now. A node that has another subnet does not
    /// hold the old one.
    fn may_stay(&self, lease: &Lease, node: &NodeRecord, problem: &NoLease) -> bool {
        match problem {
            NoLease::NotManaged | NoLease::Unusable(_) => {
                let cidrs = node.pod_cidrs().map(|cidrs| self.families.of_these(cidrs)).ok();
                let held = |cidrs: LeaseSubnet| {
                    (lease.subnet.v4.is_none() || cidrs.v4 == lease.subnet.v4)
                        && (lease.subnet.v6.is_none() || cidrs.v6 == lease.subnet.v6)
                };
                cidrs.is_some_and(held)
            }
            NoLease::NoPodCidr | NoLease::PodCidr(_) => false,
        }
    }

    /// Logs what is wrong with a node, once as long as it stays so. That flannel has not been there yet is not.
    fn say(&self, node: &NodeRecord, known: &mut Known, problem: &NoLease, kept: bool) {
        let expected = matches!(problem, NoLease::NotManaged | NoLease::NoPodCidr) && !kept;
        let text = shorten(&problem.to_string(), SHOWN);
        if expected || known.said.as_ref() == Some(&text) {
            return;
        }
        if kept {
            warn!(
                node = node.name(),
                error = text,
                "its annotations cannot be used; its lease stays as it was. Its flanneld writes them again when it \
                starts"
            );
        } else {
            warn!(
                node = node.name(),
                error = text,
                "skipping a node that cannot be used; all others are used. Correct its annotations or its pod CIDRs"
            );
        }
        known.said = Some(text);
    }

    /// What it means that a node's lease is `now` and was `before`.
    fn moved(&mut self, name: &str, before: Option<Lease>, now: Option<Lease>) -> Option<LeaseEvent> {
        if before == now {
            return None;
        }
        let (old, new) = (before.map(|lease| lease.subnet), now.as_ref().map(|lease| lease.subnet));
        if old != new {
            if let Some(old) = old {
                self.give_up(name, old);
            }
            if let Some(new) = new {
                self.holders.entry(new).or_default().push(name.to_owned());
            }
        }
        let alone = |subnet: &LeaseSubnet| self.holders.get(subnet).is_none_or(|holders| holders.len() == 1);
        match (old, now) {
            (old, Some(lease)) if old.is_none_or(|old| old == lease.subnet) && alone(&lease.subnet) => {
                Some(LeaseEvent::Upsert(lease))
            }
            (Some(old), None) if !self.holders.contains_key(&old) => Some(LeaseEvent::Remove(old)),
            _ => {
                if let Some(first) = new.and_then(|new| self.holders.get(&new)?.first())
                    && first != name
                {
                    let subnet = new.map(|new| new.to_string());
                    warn!(
                        node = name,
                        subnet,
                        holder = first,
                        "skipping a node: another node has its pod CIDR already"
                    );
                }
                Some(self.snapshot())
            }
        }
    }

    fn forget(&mut self, name: &str) {
        if let Some(Known { lease: Some(lease), .. }) = self.nodes.remove(name) {
            self.give_up(name, lease.subnet);
        }
    }

    fn give_up(&mut self, name: &str, subnet: LeaseSubnet) {
        if let Some(holders) = self.holders.get_mut(&subnet) {
            holders.retain(|holder| holder != name);
            if holders.is_empty() {
                self.holders.remove(&subnet);
            }
        }
    }

    fn snapshot(&self) -> LeaseEvent {
        let first = self.holders.values().filter_map(|holders| holders.first());
        let leases = first.filter_map(|name| self.nodes.get(name)?.lease.clone());
        LeaseEvent::Snapshot(leases.collect())
    }
}

#[cfg(test)]
mod tests;
