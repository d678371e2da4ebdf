//! etcd as one store of leases among others.

use std::{convert::Infallible, time::SystemTime};

use tokio::sync::watch::Receiver;

use super::{AcquireError, EtcdApi, EtcdStore, EtcdWatch, Inherited, LeaseKeeper, OwnLease, OwnLeaseReport};
use crate::{
    config::NetworkConfig,
    lease::{
        BadConfig, Heard, KeptLease, Lease, LeaseAttrs, LeaseEnd, LeaseStore, LeaseSubnet, Mended,
        OwnedLease, Unusable, alloc::Identity,
    },
};

impl LeaseStore for EtcdStore {
    type Own = OwnLease;
    type Watch = EtcdWatch;
    type Keeper = LeaseKeeper;
    type Error = AcquireError;

    const SERVER: &'static str = "etcd";

    async fn network_config(&self) -> Result<NetworkConfig, AcquireError> {
        Ok(self.wait_for_network_config().await?)
    }

    async fn acquire(
        &self,
        config: &NetworkConfig,
        attrs: &LeaseAttrs,
        identity: Identity,
    ) -> Result<OwnLease, AcquireError> {
        self.acquire_lease(config, attrs, identity).await
    }

    fn watch(&self, own: &OwnLease, inherited: Vec<Lease>) -> EtcdWatch {
        self.watch_after(own.subnet, Inherited { leases: inherited, newcomer: own.newcomer })
    }

    fn keep(&self, own: OwnLease) -> LeaseKeeper {
        self.keep_lease(own)
    }

    fn trouble(&self) -> Receiver<Option<String>> {
        self.trouble.subscribe()
    }

    async fn look(&self) -> Result<(), String> {
        if self.api() == EtcdApi::Auto {
            return Ok(());
        }
        let answer = self.server().read("ask whether it answers", &self.config_key(), false).await;
        answer.map(drop).map_err(|problem| problem.to_string())
    }

    fn heard(&self) -> Receiver<Heard> {
        self.heard.subscribe()
    }

    fn expiration(&self) -> Receiver<Option<SystemTime>> {
        self.expiration.subscribe()
    }

    fn mended(&self) -> Receiver<Mended> {
        self.mended.subscribe()
    }

    fn unusable(&self) -> Receiver<Vec<Unusable>> {
        self.unusable.subscribe()
    }

    fn bad_config(&self) -> Receiver<Option<BadConfig>> {
        self.bad_config.subscribe()
    }

    async fn report_config_changes(&self, in_force: NetworkConfig) -> Infallible {
        self.watch_network_config(in_force).await
    }
}

impl OwnedLease for OwnLease {
    fn subnet(&self) -> LeaseSubnet {
        self.subnet
    }
}

impl KeptLease for LeaseKeeper {
    fn update(&self, attrs: LeaseAttrs) {
        self.publish(attrs);
    }

    async fn ended(&mut self) -> LeaseEnd {
        loop {
            match self.report().await {
                OwnLeaseReport::Renewed { .. } | OwnLeaseReport::Retaken { .. } => {}
                OwnLeaseReport::Lost(lost) => return LeaseEnd::Lost(lost.into()),
            }
        }
    }
}
