//! The Kubernetes API as one store of leases among others.

use std::{convert::Infallible, time::Duration};

use tokio::sync::watch::Receiver;

use super::{KubeError, KubeStore, KubeWatch, NodeKeeper, OwnNode, net_config};
use crate::{
    config::NetworkConfig,
    lease::{
        BadConfig, Heard, Lease, LeaseAttrs, LeaseStore, Mended, Notice, OwnedLease as _, ThisNode,
        alloc::Identity,
    },
};

/// For notices that are on their way when the agent ends.
const LAST_WORDS: Duration = Duration::from_secs(3);

impl LeaseStore for KubeStore {
    type Own = OwnNode;
    type Watch = KubeWatch;
    type Keeper = NodeKeeper;
    type Error = KubeError;

    const SERVER: &'static str = "the Kubernetes API";

    async fn network_config(&self) -> Result<NetworkConfig, KubeError> {
        let read = net_config::read(&self.net_config);
        if let Err(error) = &read {
            self.tell(Notice { reason: "NetworkConfigRefused", text: error.to_string() });
        }
        read
    }

    async fn this_node(&self) -> Result<ThisNode, KubeError> {
        let looked_up = self.look_up().await;
        if let Err(error @ KubeError::Annotation(_)) = &looked_up {
            self.tell(Notice { reason: "AnnotationRefused", text: error.to_string() });
        }
        looked_up
    }

    async fn acquire(
        &self,
        config: &NetworkConfig,
        attrs: &LeaseAttrs,
        _identity: Identity,
    ) -> Result<OwnNode, KubeError> {
        let taken = self.take(config, attrs).await;
        if let Err(error @ (KubeError::PodCidr(_) | KubeError::OutsideNetwork { .. })) = &taken {
            self.tell(Notice { reason: "PodCIDRRefused", text: error.to_string() });
        }
        taken
    }

    /// The Nodes are all there are: a cluster has no other list of them.
    fn watch(&self, own: &OwnNode, _inherited: Vec<Lease>) -> KubeWatch {
        self.start_watch(own.subnet())
    }

    fn keep(&self, own: OwnNode) -> NodeKeeper {
        self.start_keeper(own)
    }

    fn trouble(&self) -> Receiver<Option<String>> {
        self.api.trouble().shown()
    }

    fn heard(&self) -> Receiver<Heard> {
        self.api.heard().subscribe()
    }

    fn mended(&self) -> Receiver<Mended> {
        self.mended.subscribe()
    }

    fn bad_config(&self) -> Receiver<Option<BadConfig>> {
        self.bad_config.subscribe()
    }

    async fn report_config_changes(&self, in_force: NetworkConfig) -> Infallible {
        net_config::report_changes(&self.net_config, in_force, &self.bad_config).await
    }

    fn ready(&self) {
        self.ready.send_replace(true);
    }

    fn tell(&self, notice: Notice) {
        self.events.tell(notice);
    }

    async fn told(&self) {
        self.events.flush(LAST_WORDS).await;
    }
}
