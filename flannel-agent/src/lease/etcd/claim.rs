//! Writing our own lease, and only over nothing or our own.

use std::{net::IpAddr, time::SystemTime};

use etcd_client::{Client, Compare, CompareOp, KeyValue, PutOptions, Txn, TxnOp, TxnOpResponse};

use super::{EtcdError, EtcdStore, TRIES};
use crate::lease::{LeaseAttrs, LeaseSubnet};

/// What stands at our key, as far as we know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// Revision of the last write; 0 when there is nothing.
    pub(super) revision: i64,
    /// What was written. The revision alone does not tell one store from another put in its place.
    value: Vec<u8>,
    /// It is a reservation: a key that an administrator made without an end.
    pub(super) permanent: bool,
}

impl Seen {
    pub(super) fn of(kv: &KeyValue) -> Self {
        Self { revision: kv.mod_revision(), value: kv.value().to_vec(), permanent: kv.lease() == 0 }
    }

    /// The condition of a transaction that nothing has changed.
    pub(super) fn still(&self, key: &str) -> Vec<Compare> {
        match self.revision {
            0 => vec![Compare::version(key, CompareOp::Equal, 0)],
            revision => vec![
                Compare::mod_revision(key, CompareOp::Equal, revision),
                Compare::value(key, CompareOp::Equal, self.value.clone()),
            ],
        }
    }
}

/// How a claim ended.
#[derive(Clone, Debug)]
pub(super) enum Claim {
    /// The lease is ours, as written now.
    Ours {
        seen: Seen,
        /// `None` for a reservation.
        expiration: Option<SystemTime>,
    },
    /// Another node holds it; `None` when what stands there cannot be decoded.
    Held(Option<IpAddr>),
    /// Other leases have appeared since the subnet was chosen: see [`Write::unless_new_since`].
    Overtaken,
}

/// What is to be written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Write<'a> {
    pub(super) subnet: &'a LeaseSubnet,
    pub(super) attrs: &'a LeaseAttrs,
    /// What we published before, if the node's address was another then: that is ours, too.
    pub(super) before: Option<&'a LeaseAttrs>,
    pub(super) unreadable: Unreadable,
    /// Only if no lease was created after this revision. Needed where leases can overlap under different keys,
    /// as those of two nodes with one IPv6 subnet and different IPv4 subnets would.
    pub(super) unless_new_since: Option<i64>,
}

impl Write<'_> {
    fn is_ours(&self, found: &LeaseAttrs) -> bool {
        found.same_node(self.attrs) || self.before.is_some_and(|before| found.same_node(before))
    }
}

/// What to do about an entry that cannot be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// Somebody's: leave it.
    Leave,
    /// Damage to the lease we hold: mend it.
    Mend,
}

impl EtcdStore {
    /// Writes our lease where `seen` is what stands there. If something else does, it is written over when it
    /// is ours too: from a request whose answer was lost, or an earlier run.
    pub(super) async fn claim(&self, write: Write<'_>, mut seen: Seen) -> Result<Claim, EtcdError> {
        let key = self.lease_key(write.subnet);
        let guard = write.unless_new_since.map(|revision| {
            Compare::create_revision(self.leases_key(), CompareOp::Less, revision + 1).with_prefix()
        });
        let mut granted = None;
        for _ in 0..TRIES {
            // Reckoned from before the request: never later than etcd has it.
            let asked = SystemTime::now();
            let (id, ttl) = match (seen.permanent, granted) {
                (true, _) => (0, None),
                (false, Some((id, ttl))) => (id, Some(ttl)),
                (false, None) => {
                    let (id, ttl) = self.grant().await?;
                    granted = Some((id, ttl));
                    (id, Some(ttl))
                }
            };
            let value = write.attrs.to_json();
            let put = TxnOp::put(key.clone(), value.clone(), Some(PutOptions::new().with_lease(id)));
            let get = TxnOp::get(key.clone(), None);
            let conditions: Vec<Compare> = seen.still(&key).into_iter().chain(guard.clone()).collect();
            let txn = Txn::new().when(conditions).and_then([put]).or_else([get]);
            let written = self
                .members
                .call("write our lease", |mut client: Client| {
                    let txn = txn.clone();
                    async move { client.txn(txn).await }
                })
                .await?
                .0;
            if written.succeeded() {
                let revision = written.header().map_or(0, |header| header.revision());
                let expiration = ttl.map(|ttl| asked + ttl);
                let seen = Seen { revision, value: value.into_bytes(), permanent: seen.permanent };
                return Ok(Claim::Ours { seen, expiration });
            }
            let found = match written.op_responses().into_iter().next() {
                Some(TxnOpResponse::Get(mut found)) => found.take_kvs().into_iter().next(),
                _ => None,
            };
            let now = match found {
                None => Seen::default(),
                Some(kv) => match LeaseAttrs::from_json(kv.value()) {
                    Ok(found) if write.is_ours(&found) => Seen::of(&kv),
                    Ok(found) => return Ok(Claim::Held(found.node_address())),
                    Err(_) if write.unreadable == Unreadable::Mend => Seen::of(&kv),
                    Err(_) => return Ok(Claim::Held(None)),
                },
            };
            if guard.is_some() && now == seen {
                return Ok(Claim::Overtaken);
            }
            seen = now;
        }
        Err(EtcdError::Unsettled { key })
    }

    /// A new etcd lease, for one write: its id and how long it lives. Those of earlier writes are left to expire.
    async fn grant(&self) -> Result<(i64, std::time::Duration), EtcdError> {
        let ttl = i64::try_from(self.timing.ttl.as_secs()).unwrap_or(i64::MAX).max(1);
        let (granted, _) = self
            .members
            .call("grant a lease", |mut client: Client| async move { client.lease_grant(ttl, None).await })
            .await?;
        let seconds = u64::try_from(granted.ttl()).unwrap_or(0);
        Ok((granted.id(), std::time::Duration::from_secs(seconds)))
    }
}
