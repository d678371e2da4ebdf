//! A key and its value, as either API of etcd tells it.

use std::time::SystemTime;

use etcd_client::{GetResponse, KeyValue};

/// A key that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) key: Vec<u8>,
    pub(super) value: Vec<u8>,
    /// Of the last write: the revision of v3, the `modifiedIndex` of v2.
    pub(super) revision: i64,
    /// Of the write that made it: the revision of v3, the `createdIndex` of v2.
    pub(super) created: i64,
    pub(super) end: End,
}

/// When a key ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It stays.
    Never,
    /// With a lease of v3's, of this id: the end takes a request.
    Lease(i64),
    /// At this time, which v2 tells with the key.
    At(SystemTime),
}

impl From<&KeyValue> for Entry {
    fn from(kv: &KeyValue) -> Self {
        Self {
            key: kv.key().to_vec(),
            value: kv.value().to_vec(),
            revision: kv.mod_revision(),
            created: kv.create_revision(),
            end: if kv.lease() == 0 { End::Never } else { End::Lease(kv.lease()) },
        }
    }
}

/// What was read at one moment.
pub(super) struct Listing {
    /// Of the store then.
    pub(super) revision: i64,
    /// Which cluster's store it is; 0 when it does not say.
    pub(super) cluster: u64,
    pub(super) entries: Vec<Entry>,
}

impl From<&GetResponse> for Listing {
    fn from(response: &GetResponse) -> Self {
        let (revision, cluster) =
            response.header().map_or((0, 0), |header| (header.revision(), header.cluster_id()));
        Self { revision, cluster, entries: response.kvs().iter().map(Entry::from).collect() }
    }
}
