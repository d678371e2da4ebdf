//! Keeping our lease: our Node is followed, and its annotations say what they should.

use std::time::SystemTime;

use serde_json::{Map, Value, json};
use tokio::{
    select,
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};
use tokio_util::task::AbortOnDropHandle;
use tracing::{error, info, warn};

use super::{
    KubeStore,
    api::{ApiServer, by_name},
    identity::Networks,
    node_lease::{to_annotate, unusable_overwrites},
    node_watch::{NodeEvent, Nodes, is_earlier},
    record::NodeRecord,
};
use crate::{
    lease::{
        KeptLease, LeaseAttrs, LeaseEnd, LeaseSubnet, Notice, OwnedLease, backoff::Backoff, mending::Mending,
    },
    telemetry::LastMessage,
    values::{shorten, utc},
};

/// What is asked of the API server, for its failures.
pub(super) const ANNOTATE: &str = "annotate this node";
const SET_CONDITION: &str = "set this node's condition NetworkUnavailable";
/// Of what somebody has written in an annotation of ours, so many characters are shown.
const SHOWN: usize = 200;

/// Our Node, when it had our lease.
#[derive(Clone, Debug)]
pub struct OwnNode {
    node: NodeRecord,
    subnet: LeaseSubnet,
    attrs: LeaseAttrs,
    networks: Networks,
}

impl OwnNode {
    pub(super) fn new(node: NodeRecord, subnet: LeaseSubnet, attrs: LeaseAttrs, networks: Networks) -> Self {
        Self { node, subnet, attrs, networks }
    }
}

impl OwnedLease for OwnNode {
    fn subnet(&self) -> LeaseSubnet {
        self.subnet
    }
}

/// Keeps our annotations.
pub struct NodeKeeper {
    attrs: watch::Sender<LeaseAttrs>,
    ends: mpsc::Receiver<LeaseEnd>,
    _task: AbortOnDropHandle<()>,
}

impl KeptLease for NodeKeeper {
    fn update(&self, attrs: LeaseAttrs) {
        self.attrs.send_if_modified(|now| {
            let changed = *now != attrs;
            *now = attrs;
            changed
        });
    }

    async fn ended(&mut self) -> LeaseEnd {
        match self.ends.recv().await {
            Some(end) => end,
            // After the end there is nothing to wait for.
            None => std::future::pending().await,
        }
    }
}

impl KubeStore {
    /// Keeps `own` in a task that ends with the returned keeper.
    pub(super) fn start_keeper(&self, own: OwnNode) -> NodeKeeper {
        let (ender, ends) = mpsc::channel(1);
        let (attrs, changes) = watch::channel(own.attrs.clone());
        let name = own.node.name().to_owned();
        let nodes = Nodes::follow(self.api.clone(), "our own node", Some(by_name(&name)));
        let keep = Keep {
            store: self.clone(),
            name,
            subnet: own.subnet,
            attrs: own.attrs,
            networks: own.networks,
            node: Some(own.node),
            due: None,
            condition_of: None,
            backoff: Backoff::default(),
            mending: Mending::new(self.mended.clone()),
            said: LastMessage::default(),
            refused: LastMessage::default(),
        };
        NodeKeeper {
            attrs,
            ends,
            _task: AbortOnDropHandle::new(tokio::spawn(keep.run(nodes, changes, ender))),
        }
    }
}

struct Keep {
    store: KubeStore,
    name: String,
    subnet: LeaseSubnet,
    attrs: LeaseAttrs,
    networks: Networks,
    /// Our Node as it was last seen; `None` while there is none.
    node: Option<NodeRecord>,
    /// When to write next, if there is anything to write.
    due: Option<Instant>,
    /// The uid of the Node whose condition we have set.
    condition_of: Option<String>,
    backoff: Backoff,
    /// When what others undo is written again.
    mending: Mending,
    said: LastMessage,
    /// What was said of a subnet or an overwritten address that cannot be used.
    refused: LastMessage,
}

impl Keep {
    async fn run(
        mut self,
        mut nodes: Nodes,
        mut changes: watch::Receiver<LeaseAttrs>,
        ender: mpsc::Sender<LeaseEnd>,
    ) {
        let mut ready = self.store.ready.subscribe();
        loop {
            let due = self.due;
            let due = async move {
                match due {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let calm = self.mending.calm_at();
            let calm = async move {
                match calm {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let end = select! {
                () = ender.closed() => return,
                () = calm => {
                    self.mending.calm(Instant::now());
                    None
                }
                Ok(()) = changes.changed() => {
                    self.attrs = changes.borrow_and_update().clone();
                    self.due = Some(Instant::now());
                    None
                }
                Ok(()) = ready.changed() => {
                    self.due = Some(Instant::now());
                    None
                }
                () = due => {
                    self.write().await;
                    None
                }
                followed = nodes.next() => match followed {
                    NodeEvent::All(all) => match own_of(all, &self.name) {
                        Some(node) if self.is_old(&node) => None,
                        Some(node) => self.sees(node),
                        None => self.misses(),
                    },
                    NodeEvent::Anew(all) => match own_of(all, &self.name) {
                        Some(node) => self.sees(node),
                        None => self.misses(),
                    },
                    NodeEvent::Put(node) if node.name() == self.name => match self.is_old(&node) {
                        true => None,
                        false => self.sees(node),
                    },
                    NodeEvent::Deleted(node) if node.name() == self.name => self.misses(),
                    NodeEvent::Put(_) | NodeEvent::Deleted(_) => None,
                },
            };
            if let Some(end) = end {
                // Whoever reads it starts over.
                let _ = ender.send(end).await;
                return;
            }
        }
    }

    fn misses(&mut self) -> Option<LeaseEnd> {
        if self.node.take().is_some() {
            warn!(
                node = self.name,
                "our Node was deleted: other nodes drop their routes to our pods. It gets our annotations when it is \
                created again; until then everything here stays as it is"
            );
        }
        None
    }

    /// Whether we have seen a later state of it: the watch is behind what our own writes were answered with.
    fn is_old(&self, node: &NodeRecord) -> bool {
        let before = self.node.as_ref();
        before.is_some_and(|it| it.uid() == node.uid() && is_earlier(node.version(), it.version()))
    }

    fn sees(&mut self, node: NodeRecord) -> Option<LeaseEnd> {
        if self.node.is_none() {
            info!(node = self.name, "our Node exists again");
        }
        let unusable = match self.networks.subnet_of(&node) {
            Ok(Some(subnet)) if subnet == self.subnet => None,
            Ok(Some(new)) => {
                self.node = Some(node);
                return Some(LeaseEnd::Replaced { old: self.subnet, new });
            }
            Ok(None) => Some(format!("our Node has no pod CIDR any more; ours was {}", self.subnet)),
            Err(problem) => Some(problem.to_string()),
        };
        let overwrites = unusable_overwrites(&node, &self.store.prefix);
        let problems: Vec<String> = unusable.clone().into_iter().chain(overwrites).collect();
        if problems.is_empty() {
            self.refused.is_over();
        } else if self.refused.is_news(&problems.join("; ")) {
            let text = problems.join("; ");
            error!(node = self.name, problem = text, "our Node cannot be watched: everything stays as it is");
            self.store.events.tell(Notice { reason: "NodeRefused", text });
        }
        let missing = to_annotate(&node, &self.store.prefix, &self.attrs);
        // A subnet that is not ours is not to be announced as if it were.
        if unusable.is_some() {
            self.due = None;
        } else if !missing.is_empty() && self.due.is_none() {
            self.due = Some(self.next_write(&node, &missing));
        } else if self.condition_is_due(&node) && self.due.is_none() {
            self.due = Some(Instant::now());
        }
        self.node = Some(node);
        None
    }

    /// When to write again what somebody has changed: at once, but not each time to somebody who keeps changing it.
    fn next_write(&mut self, node: &NodeRecord, missing: &[(String, String)]) -> Instant {
        let now = Instant::now();
        let same = self.node.as_ref().is_none_or(|before| before.uid() == node.uid());
        if same && self.node.is_some() {
            let names: Vec<&str> = missing.iter().map(|(name, _)| name.as_str()).collect();
            let annotations = names.join(" ");
            if self.is_old(node) {
                warn!(
                    node = self.name,
                    annotations,
                    "our Node is as it was earlier: was the API server's etcd restored from a backup? Writing the \
                    annotations of our lease again"
                );
                return now;
            }
            let pause = self.mending.changed(now, || contested(&self.name, node, missing));
            warn!(
                node = self.name,
                annotations,
                pause = ?pause,
                "somebody has changed the annotations of our lease; writing them again. Is another flanneld running \
                on this node?"
            );
            return now + pause;
        }
        now
    }

    fn condition_is_due(&self, node: &NodeRecord) -> bool {
        self.store.set_condition
            && *self.store.ready.borrow()
            && self.condition_of.as_deref() != Some(node.uid())
    }

    /// Writes what is not as it should be.
    async fn write(&mut self) {
        self.due = None;
        let Some(node) = self.node.clone() else { return };
        let missing = to_annotate(&node, &self.store.prefix, &self.attrs);
        if !missing.is_empty() {
            let patch = annotations_patch(&missing);
            if !self.patch(ANNOTATE, &patch).await {
                return;
            }
            info!(node = self.name, subnet = %self.subnet, "annotations written");
        }
        if self.condition_is_due(&node)
            && self.patch(SET_CONDITION, &condition_patch(SystemTime::now())).await
        {
            info!(node = self.name, "condition NetworkUnavailable set to False");
            self.condition_of = Some(node.uid().to_owned());
        }
    }

    /// Whether it worked; if not, it is tried again later.
    async fn patch(&mut self, what: &'static str, patch: &Value) -> bool {
        let api: &ApiServer = &self.store.api;
        match api.patch_node_status(what, &self.name, patch).await {
            Ok(node) => {
                api.trouble().is_over(what);
                if self.said.is_over() {
                    info!(what, "the API server accepts it now");
                }
                self.backoff.succeeded();
                if self.node.as_ref().is_some_and(|before| before.uid() == node.uid()) {
                    self.node = Some(node);
                }
                true
            }
            // Our Node is gone. When it is there again, it is written.
            Err(error) if error.is_absent() => false,
            Err(error) => {
                api.trouble().has(what, &error);
                if self.said.is_news(&error) {
                    warn!(what, %error, "trying again");
                }
                self.due = Some(Instant::now() + self.backoff.failed());
                false
            }
        }
    }
}

/// What somebody writes again and again on our Node, where `missing` should stand.
fn contested(name: &str, node: &NodeRecord, missing: &[(String, String)]) -> String {
    let found = missing.iter().map(|(annotation, should)| {
        let found = node.annotated(annotation).unwrap_or("nothing");
        format!("{annotation} is {} and should be {should}", shorten(found, SHOWN))
    });
    let found: Vec<String> = found.collect();
    format!("somebody else writes the annotations of our Node {name} again and again: {}", found.join("; "))
}

fn own_of(all: Vec<NodeRecord>, name: &str) -> Option<NodeRecord> {
    all.into_iter().find(|node| node.name() == name)
}

/// What sets annotations, and leaves others alone.
pub(super) fn annotations_patch(annotations: &[(String, String)]) -> Value {
    let annotations: Map<String, Value> =
        annotations.iter().map(|(name, value)| (name.clone(), Value::from(value.as_str()))).collect();
    json!({"metadata": {"annotations": annotations}})
}

/// What upstream sets when it is up: without it, nodes of some clouds take no pods.
fn condition_patch(now: SystemTime) -> Value {
    json!({"status": {"conditions": [{
        "type": "NetworkUnavailable",
        "status": "False",
        "reason": "FlannelIsUp",
        "message": "Flannel is running on this node",
        "lastTransitionTime": utc(now),
        "lastHeartbeatTime": utc(now),
    }]}})
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As flannel was seen to send it.
    #[test]
    fn patches_as_upstreams() {
        let annotations =
            [("f.io/backend-data".to_owned(), r#"{"VNI":1,"VtepMAC":"5e:60:bd:18:41:f3"}"#.to_owned())];
        assert_eq!(
            annotations_patch(&annotations).to_string(),
            r#"{"metadata":{"annotations":{"f.io/backend-data":"{\"VNI\":1,\"VtepMAC\":\"5e:60:bd:18:41:f3\"}"}}}"#
        );
        let condition = condition_patch(SystemTime::UNIX_EPOCH);
        assert_eq!(condition["status"]["conditions"][0]["lastTransitionTime"], "1970-01-01T00:00:00Z");
        assert_eq!(condition["status"]["conditions"][0]["message"], "Flannel is running on this node");
    }
}
