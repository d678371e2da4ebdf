//! Leases in a file: a list of nodes, the same on every node, for a cluster that only its operator changes. Neither
//! etcd nor Kubernetes is needed.
//!
//! ```text
//! file ─▶ look, twice a second ─▶ Cluster::parse ─▶ the last good one ─▶ this node, peers, network config
//! ```
//!
//! Nobody writes to it here, so each node's MAC has to be known without asking the node: it is in the file, or follows
//! from the subnet (see [`cluster`]), and the node gives it to its device.

use std::{
    convert::Infallible,
    fs,
    net::{IpAddr, UdpSocket},
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use tokio::sync::watch;
use tracing::warn;

use super::{
    KeptLease, Lease, LeaseAttrs, LeaseEnd, LeaseEvent, LeaseSource, LeaseStore, LeaseSubnet, OwnedLease,
    ThisNode, alloc::Identity, config_report::ConfigReport,
};
use crate::{config::NetworkConfig, telemetry::LastMessage};

pub use cluster::{Cluster, ClusterError, ClusterNode};

pub mod cluster;
mod look;
#[cfg(test)]
mod tests;

const HOST_NAME: &str = "/proc/sys/kernel/hostname";

/// The last good content of the file; `None` before the first.
type Known = watch::Receiver<Option<Arc<Cluster>>>;

/// The file, looked at as long as this lives.
#[derive(Debug)]
pub struct FileStore {
    path: PathBuf,
    /// `NODE_NAME`.
    name: Option<String>,
    known: Known,
    trouble: watch::Receiver<Option<String>>,
    /// Which node this is, once that is known.
    own: OnceLock<String>,
}

/// Which node this is cannot be told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "--lease-file {path}: the addresses of several nodes are this one's ({nodes}): say which it is by the variable \
     NODE_NAME"
)]
pub struct Ambiguous {
    path: String,
    nodes: String,
}

impl FileStore {
    /// Begins to look at `path`. This node is the one called `name`, else the one with an address that is ours, else
    /// the one with our host name. Needs a tokio runtime.
    pub fn open(path: PathBuf, name: Option<String>) -> Self {
        let (known, trouble) = look::follow(path.clone());
        Self { path, name: name.filter(|name| !name.is_empty()), known, trouble, own: OnceLock::new() }
    }

    /// This node, as the file has it now.
    fn find(&self, cluster: &Cluster) -> Result<Option<ClusterNode>, Ambiguous> {
        if let Some(name) = self.own.get().or(self.name.as_ref()) {
            return Ok(cluster.node(name).cloned());
        }
        let ours: Vec<&ClusterNode> =
            cluster.nodes.iter().filter(|node| node.addresses().any(is_ours)).collect();
        match ours.as_slice() {
            [node] => return Ok(Some((*node).clone())),
            [] => {}
            several => {
                let nodes: Vec<&str> = several.iter().map(|node| node.name.as_str()).collect();
                return Err(Ambiguous { path: self.path.display().to_string(), nodes: nodes.join(", ") });
            }
        }
        let host = fs::read_to_string(HOST_NAME).unwrap_or_default();
        Ok(cluster.node(host.trim()).cloned())
    }

    /// Waits until the file has this node.
    async fn own_node(&self) -> Result<ClusterNode, Ambiguous> {
        let mut known = self.known.clone();
        let mut said = LastMessage::default();
        loop {
            let cluster = next(&mut known, |cluster| cluster.clone()).await;
            if let Some(node) = self.find(&cluster)? {
                let _ = self.own.set(node.name.clone());
                return Ok(node);
            }
            let names: Vec<&str> = cluster.nodes.iter().map(|node| node.name.as_str()).take(10).collect();
            if said.is_news(&names.join(", ")) {
                warn!(
                    file = %self.path.display(), nodes = names.join(", "), wanted = self.name,
                    "this node is not in the lease file: waiting for it. It is known by the variable NODE_NAME, by its \
                     publicIP, or by the host's name"
                );
            }
            if known.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

/// The content of the file, marked as seen, as soon as there is one.
async fn next<T>(known: &mut Known, of: impl Fn(&Arc<Cluster>) -> T) -> T {
    loop {
        let found = known.borrow_and_update().as_ref().map(&of);
        if let Some(found) = found {
            return found;
        }
        if known.changed().await.is_err() {
            // Nobody looks any more: the runtime is about to end.
            std::future::pending::<()>().await;
        }
    }
}

/// Whether an interface of ours has `address`: only such a one can be bound to.
fn is_ours(address: IpAddr) -> bool {
    !address.is_unspecified() && UdpSocket::bind((address, 0)).is_ok()
}

impl LeaseStore for FileStore {
    type Own = OwnNode;
    type Watch = FileWatch;
    type Keeper = FileKeeper;
    type Error = Ambiguous;

    const SERVER: &'static str = "the lease file";

    async fn network_config(&self) -> Result<NetworkConfig, Ambiguous> {
        Ok(next(&mut self.known.clone(), |cluster| cluster.config.clone()).await)
    }

    async fn this_node(&self) -> Result<ThisNode, Ambiguous> {
        let attrs = self.own_node().await?.lease.attrs;
        let public_ip = Some(attrs.public_ip).filter(|address| !address.is_unspecified());
        Ok(ThisNode { public_ip, public_ipv6: attrs.public_ipv6, published: Some(attrs), settled: true })
    }

    async fn acquire(&self, _: &NetworkConfig, _: &LeaseAttrs, _: Identity) -> Result<OwnNode, Ambiguous> {
        self.own_node().await.map(OwnNode)
    }

    /// The file names all nodes there are.
    fn watch(&self, own: &OwnNode, _inherited: Vec<Lease>) -> FileWatch {
        let own = own.subnet();
        let mut known = self.known.clone();
        known.mark_changed();
        FileWatch { known, name: self.own.get().cloned().unwrap_or_default(), own }
    }

    fn keep(&self, OwnNode(own): OwnNode) -> FileKeeper {
        let mut known = self.known.clone();
        known.mark_changed();
        FileKeeper { file: self.path.display().to_string(), known, own, said: LastMessage::default() }
    }

    fn trouble(&self) -> watch::Receiver<Option<String>> {
        self.trouble.clone()
    }

    async fn report_config_changes(&self, in_force: NetworkConfig) -> Infallible {
        let mut report = ConfigReport::new(format!("network in {}", self.path.display()), in_force);
        let mut known = self.known.clone();
        loop {
            let json = next(&mut known, |cluster| cluster.network.clone()).await;
            // One that cannot be used is trouble with the file, in which all the leases are.
            let _ = report.sees(Some(json.as_bytes()), |_| String::new());
            if known.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }
}

/// This node, as the file has it.
#[derive(Clone, Debug, PartialEq)]
pub struct OwnNode(ClusterNode);

impl OwnedLease for OwnNode {
    fn subnet(&self) -> LeaseSubnet {
        self.0.lease.subnet
    }
}

/// The other nodes: a snapshot of them with each good content of the file.
#[derive(Debug)]
pub struct FileWatch {
    known: Known,
    name: String,
    own: LeaseSubnet,
}

impl LeaseSource for FileWatch {
    async fn next(&mut self) -> LeaseEvent {
        if self.known.changed().await.is_err() {
            return std::future::pending().await;
        }
        let cluster = next(&mut self.known, Arc::clone).await;
        let ours = |node: &&ClusterNode| node.name == self.name || node.lease.subnet == self.own;
        let peers: Vec<Lease> =
            cluster.nodes.iter().filter(|node| !ours(node)).map(|node| node.lease.clone()).collect();
        LeaseEvent::Snapshot(peers)
    }
}

/// Looks whether the file still says of this node what it runs with.
#[derive(Debug)]
pub struct FileKeeper {
    file: String,
    known: Known,
    own: ClusterNode,
    said: LastMessage,
}

impl KeptLease for FileKeeper {
    fn update(&self, attrs: LeaseAttrs) {
        if attrs != self.own.lease.attrs {
            warn!(
                file = self.file,
                node = self.own.name,
                here = attrs.to_json(),
                in_file = self.own.lease.attrs.to_json(),
                "this node is not what the lease file says any more, and other nodes go by the file: correct it there"
            );
        }
    }

    async fn ended(&mut self) -> LeaseEnd {
        loop {
            if self.known.changed().await.is_err() {
                return std::future::pending().await;
            }
            let found = next(&mut self.known, |cluster| cluster.node(&self.own.name).cloned()).await;
            match found {
                Some(node) if node == self.own => drop(self.said.is_over()),
                Some(node) => {
                    return LeaseEnd::Replaced { old: self.own.lease.subnet, new: node.lease.subnet };
                }
                None if self.said.is_news("gone") => warn!(
                    file = self.file,
                    node = self.own.name,
                    "this node is not in the lease file any more: other nodes stop sending to its pods. It goes on as \
                     it is, in case that is a slip; stop the agent if it is not"
                ),
                None => {}
            }
        }
    }
}
