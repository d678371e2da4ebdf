//! One key of flannel's, as either store has it.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::super::entry::{End, Entry};
use crate::lease::{LeaseAttrs, LeaseSubnet, wire::parse_lease_key};

/// What is kept in step, in the order in which it is: who finds the configuration in a store finds all leases there, too.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Name {
    /// What follows `subnets/`.
    Lease(String),
    /// The network configuration.
    Config,
}

impl Name {
    /// The key below flannel's prefix.
    pub(super) fn key(&self) -> String {
        match self {
            Self::Lease(name) => format!("subnets/{name}"),
            Self::Config => "config".to_owned(),
        }
    }

    /// What is leased, if it is a lease.
    pub(super) fn subnet(&self) -> Option<LeaseSubnet> {
        match self {
            Self::Lease(name) => parse_lease_key(name).ok(),
            Self::Config => None,
        }
    }
}

/// A store of etcd's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Store {
    /// What flannel 0.11 to 0.17 know.
    V2 = 0,
    /// What flannel knows from 0.18 on.
    V3 = 1,
}

impl Store {
    /// The other one.
    pub(super) fn other(self) -> Self {
        match self {
            Self::V2 => Self::V3,
            Self::V3 => Self::V2,
        }
    }

    /// As people write it.
    pub fn label(self) -> &'static str {
        match self {
            Self::V2 => "v2",
            Self::V3 => "v3",
        }
    }
}

/// When both stores were last the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Synced {
    /// The store whose node wrote what is in both: there the key's end is the lease's end.
    pub(super) home: Store,
    /// Index of the key's last write in v2 then.
    pub(super) v2: i64,
    /// Revision of the key's last write in v3 then.
    pub(super) v3: i64,
}

/// One key in both stores.
#[derive(Clone, Debug, Default)]
pub(super) struct Item {
    pub(super) v2: Option<Entry>,
    pub(super) v3: Option<Entry>,
    pub(super) synced: Option<Synced>,
    /// It went missing from that store with everything else in it, as from one that was emptied.
    pub(super) wiped: Option<Store>,
    /// What is told of the key up to these, of v2 and of v3, is known already.
    pub(super) floor: [i64; 2],
}

impl Item {
    /// What that store has.
    pub(super) fn of(&self, store: Store) -> Option<&Entry> {
        match store {
            Store::V2 => self.v2.as_ref(),
            Store::V3 => self.v3.as_ref(),
        }
    }

    fn of_mut(&mut self, store: Store) -> &mut Option<Entry> {
        match store {
            Store::V2 => &mut self.v2,
            Store::V3 => &mut self.v3,
        }
    }

    /// Takes over what that store has, as of this revision of the store.
    pub(super) fn set(&mut self, store: Store, entry: Option<Entry>, revision: i64) {
        *self.of_mut(store) = entry;
        self.floor[store as usize] = revision;
    }

    /// Whether what is told of this revision is news.
    pub(super) fn is_news(&self, store: Store, revision: i64) -> bool {
        revision > self.floor[store as usize]
    }

    /// Whether that store has what it had when both were the same.
    pub(super) fn unchanged(&self, store: Store) -> bool {
        let now = self.of(store).map_or(0, |entry| entry.revision);
        self.synced.is_some_and(|synced| {
            now == match store {
                Store::V2 => synced.v2,
                Store::V3 => synced.v3,
            }
        })
    }

    /// Whether nothing is left of it anywhere.
    pub(super) fn is_gone(&self) -> bool {
        self.v2.is_none() && self.v3.is_none() && self.synced.is_none()
    }
}

/// The lease that an entry holds; `None` for what cannot be read.
pub(super) fn attrs(entry: &Entry) -> Option<LeaseAttrs> {
    LeaseAttrs::from_json(&entry.value).ok()
}

/// Whether both are leases of one node.
pub(super) fn same_holder(a: &Entry, b: &Entry) -> bool {
    attrs(a).zip(attrs(b)).is_some_and(|(a, b)| a.same_node(&b))
}

/// What is left to live, `None` for without end. Of an entry whose end v3 keeps elsewhere, `end` has to be known.
pub(super) fn left(end: End, now: SystemTime) -> Option<Duration> {
    match end {
        End::At(end) => Some(end.duration_since(now).unwrap_or_default()),
        End::Never | End::Lease(_) => None,
    }
}
