//! Writing our own lease, and only over nothing or our own.

use std::{net::IpAddr, time::SystemTime};

use super::{
    EtcdError, EtcdStore, TRIES,
    entry::Entry,
    keep::is_of_one_device,
    seen::Seen,
    server::{Put, Server, Written},
};
use crate::lease::{LeaseAttrs, LeaseSubnet, wire::parse_lease_key};

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
        let is_held = self.unreadable == Unreadable::Mend;
        found.same_node(self.attrs)
            || self.before.is_some_and(|before| found.same_node(before))
            || (is_held && is_of_one_device(found, self.attrs))
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
        let (key, leases, server) = (self.lease_key(write.subnet), self.leases_key(), self.server());
        let value = write.attrs.to_json();
        let guard = write.unless_new_since;
        let mut granted = None;
        for _ in 0..TRIES {
            // Reckoned from before the request: never later than etcd has it.
            let asked = SystemTime::now();
            let unless_new = guard.map(|revision| (leases.as_str(), revision));
            let put = Put { key: &key, value: &value, seen: &seen, unless_new };
            let found = match server.put(&put, &self.timing, &mut granted).await? {
                Written::Done { revision, ttl } => {
                    let expiration = ttl.map(|ttl| asked + ttl);
                    let seen = Seen { revision, value: value.into_bytes(), permanent: seen.permanent };
                    if guard.is_some() && self.is_late(&server, write.subnet, &key, &seen).await? {
                        return Ok(Claim::Overtaken);
                    }
                    return Ok(Claim::Ours { seen, expiration });
                }
                Written::Otherwise(found) => found,
            };
            let now = match found {
                None => Seen::default(),
                Some(kv) => match LeaseAttrs::from_json(&kv.value) {
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

    /// Whether a lease made before ours has part of it, where the write could not be made conditional on that: then
    /// ours is taken back. Of two nodes that write at once and look after it, one sees the other, and it is the later
    /// one that yields.
    async fn is_late(
        &self,
        server: &Server,
        subnet: &LeaseSubnet,
        key: &str,
        seen: &Seen,
    ) -> Result<bool, EtcdError> {
        if let Server::V3(_) = server {
            return Ok(false);
        }
        let all = server.read("list the leases", &self.leases_key(), true).await?.entries;
        let Some(created) = all.iter().find(|entry| entry.key == key.as_bytes()).map(|entry| entry.created)
        else {
            return Ok(true);
        };
        let earlier = |entry: &&Entry| entry.created < created && entry.key != key.as_bytes();
        let late = all.iter().filter(earlier).any(|entry| {
            parse_lease_key(&String::from_utf8_lossy(&entry.key)).is_ok_and(|other| other.overlaps(subnet))
        });
        if late {
            server.delete("give our lease back", key, seen).await?;
        }
        Ok(late)
    }
}
