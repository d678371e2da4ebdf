//! Getting a subnet.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, SystemTime},
};

use tracing::{info, warn};

use super::{
    EtcdError, EtcdStore, LastMessage, RETRY, TRIES,
    claim::{Claim, Unreadable, Write},
    seen::Seen,
};
use crate::{
    config::NetworkConfig,
    lease::{
        LeaseAttrs, LeaseSubnet,
        alloc::{self, Choice, Held, Holder, Identity, OutOfSubnets, Why},
        wire::parse_lease_key,
    },
    values::utc,
};

/// Attempts of a dual-stack node before giving up, when leases of others appear every time.
const CROWD: usize = 200;
/// The longest pause between these.
const JOSTLE: Duration = Duration::from_millis(200);

/// The lease we hold.
#[derive(Clone, Debug, PartialEq)]
pub struct OwnLease {
    /// What we hold.
    pub subnet: LeaseSubnet,
    /// What we published.
    pub attrs: LeaseAttrs,
    /// When it ends unless renewed; `None` for a reservation.
    pub expiration: Option<SystemTime>,
    /// The store had no lease of this node.
    pub newcomer: bool,
    /// The address that it had under which this node was thought to be known before.
    pub moved_from: Option<IpAddr>,
    pub(super) seen: Seen,
}

/// No subnet for this node.
#[derive(Debug, thiserror::Error)]
pub enum AcquireError {
    /// All are taken.
    #[error(transparent)]
    OutOfSubnets(#[from] OutOfSubnets),
    /// The lease has no IPv4 address, and the network has IPv4.
    #[error("--public-ip: 0.0.0.0 is not an address that other nodes can send to: give this node's own")]
    NoPublicIp,
    /// The lease has no IPv6 address, and the network has IPv6.
    #[error(
        "--public-ipv6: EnableIPv6 is true, and this node has no IPv6 address to publish: give its interface a \
         global one, or name one with --public-ipv6"
    )]
    NoPublicIpv6,
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
    /// Revision of the store then.
    revision: i64,
}

/// How one attempt ended.
enum Attempt {
    Ours(OwnLease),
    /// Another node took the subnet.
    Lost,
    /// Another node took some subnet, which may be part of ours.
    Overtaken,
}

impl EtcdStore {
    /// Takes a subnet for the node of `attrs`, which is `identity`: the one it holds, else the previous one, else a
    /// free one. Waits while etcd does not answer, and logs each distinct reason once.
    pub async fn acquire_lease(
        &self,
        config: &NetworkConfig,
        attrs: &LeaseAttrs,
        identity: impl Into<Identity>,
    ) -> Result<OwnLease, AcquireError> {
        let identity = identity.into();
        if config.ipv4.is_some() && attrs.public_ip.is_unspecified() {
            return Err(AcquireError::NoPublicIp);
        }
        if config.ipv6.is_some() && attrs.public_ipv6.is_none_or(|v6| v6.is_unspecified()) {
            return Err(AcquireError::NoPublicIpv6);
        }
        let mut said = LastMessage::default();
        let (mut lost, mut overtaken) = (0, 0);
        while lost < TRIES && overtaken < CROWD {
            match self.try_acquire(config, attrs, &identity).await {
                Ok(Attempt::Ours(own)) => return Ok(own),
                Ok(Attempt::Lost) => lost += 1,
                Ok(Attempt::Overtaken) => {
                    overtaken += 1;
                    tokio::time::sleep(JOSTLE.mul_f64(rand::random())).await;
                }
                Err(AcquireError::Etcd(problem @ EtcdError::Unreachable { .. })) => {
                    if said.is_news(&problem) {
                        warn!(error = %problem, "no lease yet; trying again every second");
                    }
                    tokio::time::sleep(RETRY).await;
                }
                Err(problem) => return Err(problem),
            }
        }
        Err(AcquireError::Races)
    }

    async fn try_acquire(
        &self,
        config: &NetworkConfig,
        attrs: &LeaseAttrs,
        identity: &Identity,
    ) -> Result<Attempt, AcquireError> {
        let Listed { held, seen, revision } = self.list().await?;
        let Choice { subnet, why, release, refused, misnamed } =
            alloc::choose(config, Holder::of(attrs), identity, &held, &mut rand::rng())?;
        if let Some(old) = release {
            info!(subnet = %old, public_ip = %attrs.public_ip, "our lease no longer fits the network config: releasing it");
            self.release(&old, seen.get(&old).cloned().unwrap_or_default()).await?;
        }
        if let Some(other) = misnamed {
            warn!(
                subnet = %other, public_ip = %attrs.public_ip,
                "the lease of another node has our address, which must have moved here: that node keeps the lease. If \
                the address is virtual, name this node's own with --iface=ADDRESS or --public-ip"
            );
        }
        for (previous, reason) in refused {
            warn!(%previous, %reason, "cannot get the previous subnet again");
        }
        let before = seen.get(&subnet).cloned().unwrap_or_default();
        let new = matches!(why, Why::Previous | Why::Free);
        let write = Write {
            subnet: &subnet,
            attrs,
            before: None,
            unreadable: Unreadable::Leave,
            unless_new_since: (new && subnet.v4.is_some() && subnet.v6.is_some()).then_some(revision),
        };
        match self.claim(write, before).await? {
            Claim::Ours { seen, expiration } => {
                let until = expiration.map_or_else(|| "no end: a reservation".to_owned(), utc);
                let moved_from = if let Why::Moved { from } = why { Some(from) } else { None };
                let why = match why {
                    Why::Own => "it is leased to our public address",
                    Why::Moved { from } => {
                        let now = attrs.node_address().map(|address| address.to_string());
                        info!(%subnet, before = %from, now, "this node's address has changed; it keeps its subnet, as its subnet file and its VXLAN device or other address show that it is the same node");
                        "it is leased to this node as it was before"
                    }
                    Why::Previous => "it was ours before, and is free",
                    Why::Free => "it is free",
                };
                info!(%subnet, why, until, "lease acquired");
                Ok(Attempt::Ours(OwnLease {
                    subnet,
                    attrs: attrs.clone(),
                    expiration,
                    newcomer: new,
                    moved_from,
                    seen,
                }))
            }
            Claim::Held(holder) => {
                info!(%subnet, holder = holder.map(|address| address.to_string()), "another node was faster; trying another subnet");
                Ok(Attempt::Lost)
            }
            Claim::Overtaken => Ok(Attempt::Overtaken),
        }
    }

    async fn list(&self) -> Result<Listed, EtcdError> {
        let found = self.server().read("list the leases", &self.leases_key(), true).await?;
        let revision = found.revision;
        let mut listed = Listed { held: Vec::new(), seen: BTreeMap::new(), revision };
        for kv in &found.entries {
            let key = String::from_utf8_lossy(&kv.key);
            // What has no subnet takes none; the watch is what tells the user of it.
            let Ok(subnet) = parse_lease_key(&key) else { continue };
            let holder = LeaseAttrs::from_json(&kv.value).ok().map(|attrs| Holder::of(&attrs));
            listed.held.push(Held { subnet, holder });
            if key == self.lease_key(&subnet) {
                listed.seen.insert(subnet, Seen::of(kv));
            }
        }
        Ok(listed)
    }

    /// Deletes our lease, if nobody has written to it since.
    async fn release(&self, subnet: &LeaseSubnet, seen: Seen) -> Result<(), EtcdError> {
        self.server().delete("give our lease back", &self.lease_key(subnet), &seen).await
    }
}
