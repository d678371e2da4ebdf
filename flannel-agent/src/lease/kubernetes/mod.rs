//! Leases on Kubernetes nodes, by the annotations and rules of flannel's kube subnet manager.
//!
//! ```text
//! options ─▶ KubeStore ─ network_config()        --net-config-path, as the ConfigMap is mounted
//!                      ├ this_node()             node-public-ip, and what our lease said before
//!                      ├ acquire() ─▶ OwnNode    spec.podCIDRs, and our annotations
//!                      ├ keep(own) ─▶ NodeKeeper our Node: annotations written back, another pod CIDR reported
//!                      └ watch(own) ─▶ KubeWatch a LeaseSource of all others
//! ```
//!
//! Kubernetes assigns the subnets; we only tell how packets reach ours. A lease lasts as long as its Node.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    sync::{
        OnceCell,
        watch::{Sender, channel},
    },
    time::{Instant, sleep},
};
use tracing::{info, warn};

pub use self::{
    annotations::AnnotationPrefix,
    identity::Identity,
    keep::{NodeKeeper, OwnNode},
    lease_watch::KubeWatch,
    options::KubeOptions,
};
use self::{
    annotations::{BadPrefix, NODE_PUBLIC_IP, NODE_PUBLIC_IPV6},
    api::{ApiError, ApiServer},
    events::NodeEvents,
    identity::Networks,
    lease_watch::NodeLeases,
    node_lease::{Families, published, to_annotate, unusable_overwrites},
    record::NodeRecord,
};
use super::{BadConfig, LeaseAttrs, LeaseSubnet, Mended, Notice, ThisNode, backoff::Backoff};
use crate::{
    config::{ConfigError, NetworkConfig},
    telemetry::LastMessage,
};

mod annotations;
mod api;
mod connect;
mod decode;
mod events;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod identity;
mod keep;
mod lease_watch;
mod net_config;
mod node_lease;
mod node_watch;
mod options;
mod record;
mod store;
mod trouble;

/// What is waited for where a node has none.
const POD_CIDR: &str = "the pod CIDR";

/// How long the API server may be out of reach at start, as with upstream.
const PATIENCE: Duration = Duration::from_secs(600);

/// What can go wrong with leases in the Kubernetes API.
#[derive(Debug, thiserror::Error)]
pub enum KubeError {
    /// `--kube-annotation-prefix` is wrong.
    #[error(transparent)]
    Prefix(#[from] BadPrefix),
    /// The API server cannot even be asked.
    #[error("cannot find the API server: {0}")]
    Connect(String),
    /// The environment does not say which node this is. The beginning is upstream's.
    #[error(
        "env variables POD_NAME and POD_NAMESPACE must be set, or NODE_NAME: they say which node this is. A \
         DaemonSet sets them by fieldRef"
    )]
    Nameless,
    /// The environment names what can be no object.
    #[error("{variable}: \"{value}\" is no name in Kubernetes: write the one that kubectl shows")]
    BadName {
        /// The variable.
        variable: &'static str,
        /// Its value.
        value: String,
    },
    /// There is no configuration.
    #[error("--net-config-path {path}: {error}; mount net-conf.json of the ConfigMap kube-flannel-cfg there")]
    NoConfig {
        /// Where it should stand.
        path: String,
        /// Why it cannot be read.
        error: std::io::Error,
    },
    /// The configuration is wrong.
    #[error("--net-config-path {path}: {error}")]
    Config {
        /// Where it stands.
        path: String,
        /// What is wrong.
        error: ConfigError,
    },
    /// The API server did not do what the start needs for [`PATIENCE`].
    #[error("{0}; tried for 10 min. Set CONT_WHEN_CACHE_NOT_READY=true to wait without a limit")]
    Api(ApiError),
    /// An annotation of an operator's on our node.
    #[error("{0}; write an address of this node, or remove the annotation")]
    Annotation(String),
    /// Our pod CIDRs are none.
    #[error("{0}")]
    PodCidr(String),
    /// Our pod CIDR and the network do not go together. The beginning is upstream's.
    #[error(
        "subnet \"{network}\" specified in the flannel net config doesn't contain \"{cidr}\" PodCIDR of the \
         \"{node}\" node: set Network to what kube-controller-manager has as --cluster-cidr"
    )]
    OutsideNetwork {
        /// `Network` or `IPv6Network`.
        network: String,
        /// What our node has.
        cidr: String,
        /// Our node.
        node: String,
    },
}

/// The lease store. Clones share connections.
#[derive(Clone)]
pub struct KubeStore {
    api: ApiServer,
    prefix: AnnotationPrefix,
    net_config: PathBuf,
    identity: Identity,
    /// Our node's name, once it is known.
    name: Arc<OnceCell<String>>,
    set_condition: bool,
    patient: bool,
    /// Pods can be started.
    ready: Arc<Sender<bool>>,
    /// What others have made of our annotations.
    mended: Sender<Mended>,
    /// What is wrong with the network configuration.
    bad_config: Sender<Option<BadConfig>>,
    events: NodeEvents,
}

impl KubeStore {
    /// Checks the options and reads the credentials. Connections are made when first needed, so the API server may
    /// start later. Needs a Tokio runtime from then on.
    ///
    /// # Errors
    /// What of the options cannot be used.
    pub async fn connect(options: &KubeOptions) -> Result<Self, KubeError> {
        Ok(Self::over(ApiServer::new(connect::client(options).await?), options))
    }

    fn over(api: ApiServer, options: &KubeOptions) -> Self {
        let name = Arc::new(OnceCell::new());
        if let Identity::Node(node) = &options.identity {
            // Empty until here.
            let _ = name.set(node.clone());
        }
        Self {
            events: NodeEvents::start(api.clone(), name.clone()),
            api,
            prefix: options.prefix.clone(),
            net_config: options.net_config.clone(),
            identity: options.identity.clone(),
            name,
            set_condition: options.set_condition,
            patient: options.patient,
            ready: Arc::new(channel(false).0),
            mended: Sender::new(Mended::default()),
            bad_config: Sender::new(None),
        }
    }

    /// The name of our node; asks for it, where only our pod is known, and waits for an answer.
    async fn node_name(&self) -> Result<String, KubeError> {
        let ask = || async {
            let Identity::Pod { namespace, name } = &self.identity else { return Err(KubeError::Nameless) };
            loop {
                let node = self.insist("this pod", || self.api.node_of_pod(namespace, name)).await?;
                if identity::is_name(&node) {
                    info!(node, "this pod's node");
                    return Ok(node);
                }
                sleep(Duration::from_secs(1)).await;
            }
        };
        self.name.get_or_try_init(ask).await.cloned()
    }

    /// Our Node; waits for an answer.
    async fn node(&self) -> Result<NodeRecord, KubeError> {
        let name = self.node_name().await?;
        self.insist("this node", || self.api.node(&name)).await
    }

    async fn look_up(&self) -> Result<ThisNode, KubeError> {
        let node = self.node().await?;
        Ok(ThisNode {
            public_ip: node.address(&self.prefix, NODE_PUBLIC_IP).map_err(KubeError::Annotation)?,
            public_ipv6: node.address(&self.prefix, NODE_PUBLIC_IPV6).map_err(KubeError::Annotation)?,
            published: published(&node, &self.prefix),
            settled: false,
        })
    }

    /// Waits until our node has a subnet, and tells there how packets reach it.
    async fn take(&self, config: &NetworkConfig, attrs: &LeaseAttrs) -> Result<OwnNode, KubeError> {
        let networks = Networks::of(config);
        let mut waiting = Backoff::default();
        let mut said = false;
        let (node, subnet) = loop {
            let node = self.node().await?;
            if let Some(subnet) = networks.subnet_of(&node)? {
                break (node, subnet);
            }
            if !said {
                let text = format!(
                    "node \"{}\" pod cidr not assigned: waiting for it. kube-controller-manager assigns one with \
                     --allocate-node-cidrs, or kubeadm init with --pod-network-cidr",
                    node.name()
                );
                warn!("{text}");
                self.api.trouble().has(POD_CIDR, &text);
                self.events.tell(Notice { reason: "NoPodCIDR", text });
                said = true;
            }
            sleep(waiting.failed()).await;
        };
        self.api.trouble().is_over(POD_CIDR);
        for problem in unusable_overwrites(&node, &self.prefix) {
            warn!(problem, "not used; publishing this node's own address");
        }
        let missing = to_annotate(&node, &self.prefix, attrs);
        let node = match missing.is_empty() {
            true => node,
            false => {
                let patch = keep::annotations_patch(&missing);
                let name = self.node_name().await?;
                let write = || self.api.patch_node_status(keep::ANNOTATE, &name, &patch);
                self.insist(keep::ANNOTATE, write).await?
            }
        };
        info!(%subnet, node = node.name(), "lease acquired: the subnet is this node's pod CIDR");
        Ok(OwnNode::new(node, subnet, attrs.clone(), networks))
    }

    fn start_watch(&self, own: LeaseSubnet) -> KubeWatch {
        // Nobody has a lease to watch beside before our node has been looked up.
        let name = self.name.get().cloned().unwrap_or_default();
        let leases = NodeLeases::new(self.prefix.clone(), name, Families::of(own));
        KubeWatch::start(self.api.clone(), leases)
    }

    /// Asks until there is an answer, for [`PATIENCE`] at most unless told to wait without an end. Logs each distinct
    /// reason once.
    async fn insist<T>(
        &self,
        part: &'static str,
        ask: impl AsyncFn() -> Result<T, ApiError>,
    ) -> Result<T, KubeError> {
        let begun = Instant::now();
        let mut backoff = Backoff::default();
        let mut said = LastMessage::default();
        loop {
            let error = match ask().await {
                Ok(answer) => {
                    self.api.trouble().is_over(part);
                    if said.is_over() {
                        info!(part, "the API server answers");
                    }
                    return Ok(answer);
                }
                Err(error) => error,
            };
            if !self.patient && begun.elapsed() > PATIENCE {
                return Err(KubeError::Api(error));
            }
            self.api.trouble().has(part, &error);
            if said.is_news(&error) {
                warn!(part, %error, "cannot go on without it; trying again");
            }
            sleep(backoff.failed()).await;
        }
    }
}
