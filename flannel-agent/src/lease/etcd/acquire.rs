//! Getting a subnet.

use std::{collections::BTreeMap, net::Ipv4Addr, time::SystemTime};

use etcd_client::{Client, Txn, TxnOp};
use ipnetwork::Ipv4Network;
use tracing::{info, warn};

use super::{
    EtcdError, EtcdStore, RETRY, Said, TRIES,
    claim::{Claim, Seen, Unreadable},
};
use crate::{
    config::NetworkConfig,
    lease::{
        LeaseAttrs, LeaseSubnet,
        alloc::{self, Choice, Held, OutOfSubnets, Take},
        wire::parse_lease_key,
    },
    utc::utc,
};

/// The lease we hold.
#[derive(Clone, Debug, PartialEq)]
pub struct OwnLease {
    /// What we hold.
    pub subnet: LeaseSubnet,
    /// What we published.
    pub attrs: LeaseAttrs,
    /// When it ends unless renewed; `None` for a reservation.
    pub expiration: Option<SystemTime>,
    pub(super) seen: Seen,
}

/// No subnet for this node.
#[derive(Debug, thiserror::Error)]
pub enum AcquireError {
    /// All are taken.
    #[error(transparent)]
    OutOfSubnets(#[from] OutOfSubnets),
    /// The network has no IPv4.
    #[error("EnableIPv4: false is not built yet: leases are IPv4")]
    NoIpv4,
    /// The lease has no address.
    #[error("--public-ip: 0.0.0.0 is not an address that other nodes can send to: give this node's own")]
    NoPublicIp,
    /// Other nodes were faster, every time.
    #[error("another node took each of the {TRIES} subnets that were tried: start this node again")]
    Races,
    /// etcd refused.
    #[error(transparent)]
    Etcd(#[from] EtcdError),
}

/// What is below `<prefix>/subnets`.
struct Listed {
    held: Vec<Held>,
    seen: BTreeMap<LeaseSubnet, Seen>,
}

impl EtcdStore {
    /// Takes a subnet for the node of `attrs`: the one it holds, else `previous`, else a free one. Waits while
    /// etcd does not answer, and logs each distinct reason once.
    pub async fn acquire(
        &self,
        config: &NetworkConfig,
        attrs: &LeaseAttrs,
        previous: Option<Ipv4Network>,
    ) -> Result<OwnLease, AcquireError> {
        let mut said = Said::default();
        let mut lost = 0;
        while lost < TRIES {
            match self.try_acquire(config, attrs, previous).await {
                Ok(Some(own)) => return Ok(own),
                Ok(None) => lost += 1,
                Err(AcquireError::Etcd(problem @ EtcdError::Unreachable { .. })) => {
                    if said.is_news(&problem) {
                        warn!(error = %problem, "no lease yet; asking again every second");
                    }
                    tokio::time::sleep(RETRY).await;
                }
                Err(problem) => return Err(problem),
            }
        }
        Err(AcquireError::Races)
    }

    /// One attempt; `None` when another node was faster.
    async fn try_acquire(
        &self,
        config: &NetworkConfig,
        attrs: &LeaseAttrs,
        previous: Option<Ipv4Network>,
    ) -> Result<Option<OwnLease>, AcquireError> {
        let pool = config.ipv4.as_ref().ok_or(AcquireError::NoIpv4)?;
        if attrs.public_ip.is_unspecified() {
            return Err(AcquireError::NoPublicIp);
        }
        let Listed { held, seen } = self.list().await?;
        let Choice { take, release, previous_refused } =
            alloc::choose(pool, attrs.public_ip, previous, &held, &mut rand::rng())?;
        if let Some(subnet) = release {
            info!(%subnet, public_ip = %attrs.public_ip, "our lease does not fit the network config any more: giving it back");
            self.release(&subnet, seen.get(&subnet).cloned().unwrap_or_default()).await?;
        }
        if let (Some(previous), Some(reason)) = (previous, previous_refused) {
            warn!(%previous, %reason, "cannot have the previous subnet again");
        }
        let subnet = LeaseSubnet { v4: Some(take.subnet()), v6: None };
        let before = seen.get(&subnet).cloned().unwrap_or_default();
        match self.claim(&subnet, attrs, before, Unreadable::Leave).await? {
            Claim::Ours { seen, expiration } => {
                let why = match take {
                    Take::Own(_) => "it is leased to our public address",
                    Take::Previous(_) => "it was ours before, and is free",
                    Take::Free(_) => "it is free",
                };
                let until = expiration.map_or_else(|| "no end: a reservation".to_owned(), utc);
                info!(%subnet, why, until, "lease acquired");
                Ok(Some(OwnLease { subnet, attrs: attrs.clone(), expiration, seen }))
            }
            Claim::Held(holder) => {
                info!(%subnet, holder = holder.map(|ip: Ipv4Addr| ip.to_string()), "another node was faster; trying another subnet");
                Ok(None)
            }
        }
    }

    async fn list(&self) -> Result<Listed, EtcdError> {
        let response = self.get("list the leases", self.leases_key().into_bytes(), true).await?;
        let mut listed = Listed { held: Vec::new(), seen: BTreeMap::new() };
        for kv in response.kvs() {
            let key = String::from_utf8_lossy(kv.key());
            // What has no subnet takes none; the watch is what tells the user of it.
            let Ok(subnet) = parse_lease_key(&key) else { continue };
            let holder = LeaseAttrs::from_json(kv.value()).ok().map(|attrs| attrs.public_ip);
            listed.held.push(Held { subnet, holder });
            if key == self.lease_key(&subnet) {
                listed.seen.insert(subnet, Seen::of(kv));
            }
        }
        Ok(listed)
    }

    /// Deletes our lease, if nobody has written to it since.
    async fn release(&self, subnet: &LeaseSubnet, seen: Seen) -> Result<(), EtcdError> {
        let key = self.lease_key(subnet);
        let txn = Txn::new().when(seen.still(&key)).and_then([TxnOp::delete(key, None)]);
        let ask = |mut client: Client| {
            let txn = txn.clone();
            async move { client.txn(txn).await }
        };
        self.members.call("give our lease back", ask).await.map(|_| ())
    }
}
