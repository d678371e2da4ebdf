//! The API of etcd that leases are kept by, v3 or v2: what the rest of the store asks of either.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use etcd_client::{Client, Compare, CompareOp, PutOptions, Txn, TxnOp, TxnOpResponse};

use super::{
    EtcdError, EtcdStore, LeaseTiming,
    entry::{End, Entry, Listing},
    get,
    key_watch::{KeyEvent, KeyWatch},
    members::Members,
    seen::Seen,
    v2,
};

/// Where requests go.
#[derive(Clone)]
pub(super) enum Server {
    V3(Arc<Members>),
    V2(Arc<v2::Members>),
}

/// How a conditional write ended.
pub(super) enum Written {
    /// What is there now, and how long it lives; `None` for without end.
    Done { revision: i64, ttl: Option<Duration> },
    /// This is there instead, and nothing was written.
    Otherwise(Option<Entry>),
}

/// A lease of v3's that was granted for a write and not used yet: its id and how long it lives.
pub(super) type Granted = Option<(i64, Duration)>;

/// One write of a lease.
pub(super) struct Put<'a> {
    pub(super) key: &'a str,
    pub(super) value: &'a str,
    pub(super) seen: &'a Seen,
    /// The start of the keys of all leases, and the revision after which none of them may have been made.
    pub(super) unless_new: Option<(&'a str, i64)>,
}

impl EtcdStore {
    /// The start of all requests.
    pub(super) fn server(&self) -> Server {
        match self.api() {
            super::EtcdApi::V2 => Server::V2(self.v2.clone()),
            _ => Server::V3(self.members.clone()),
        }
    }

    /// Follows a key, or all of that start.
    pub(super) fn follow(&self, what: &'static str, key: String, prefix: bool) -> Keys {
        match self.server() {
            Server::V3(members) => Keys::V3(Box::new(KeyWatch::new(members, what, key, prefix))),
            Server::V2(members) => Keys::V2(Box::new(v2::KeyPoll::new(members, what, key, prefix))),
        }
    }

    /// Follows the leases of all nodes.
    pub(super) fn follow_leases(&self) -> Keys {
        match self.follow("the leases of all nodes", self.leases_key(), true) {
            Keys::V3(keys) => Keys::V3(Box::new(keys.telling(self.heard.clone()))),
            Keys::V2(keys) => Keys::V2(Box::new(keys.telling(self.heard.clone()))),
        }
    }

    /// Our address is another: what is connected from the old one is given up instead of waited for.
    pub(super) async fn moved(&self) {
        match self.server() {
            Server::V3(members) => members.moved().await,
            Server::V2(members) => members.moved().await,
        }
    }
}

impl Server {
    /// Reads a key, or all that begin with it (v2: all below it).
    pub(super) async fn read(
        &self,
        what: &'static str,
        key: &str,
        prefix: bool,
    ) -> Result<Listing, EtcdError> {
        match self {
            Self::V3(members) => read_v3(members, what, key, prefix).await,
            Self::V2(members) => members.read(what, key, prefix).await,
        }
    }

    /// Writes one key, on condition.
    pub(super) async fn put(
        &self,
        put: &Put<'_>,
        timing: &LeaseTiming,
        granted: &mut Granted,
    ) -> Result<Written, EtcdError> {
        match self {
            Self::V3(members) => put_v3(members, put, timing, granted).await,
            Self::V2(members) => put_v2(members, put, timing).await,
        }
    }

    /// Deletes a key, if nobody has written to it since.
    pub(super) async fn delete(&self, what: &'static str, key: &str, seen: &Seen) -> Result<(), EtcdError> {
        match self {
            Self::V3(members) => {
                let txn = Txn::new().when(seen.still(key)).and_then([TxnOp::delete(key, None)]);
                let ask = |mut client: Client| {
                    let txn = txn.clone();
                    async move { client.txn(txn).await }
                };
                members.call(what, ask).await.map(|_| ())
            }
            Self::V2(members) => members.delete(what, key, seen).await.map(drop),
        }
    }

    /// When a key ends; `None` if it does not. A lease that etcd will not tell of is taken to be as long as ours are.
    pub(super) async fn end_of(&self, end: End, timing: &LeaseTiming) -> Option<SystemTime> {
        let (id, members) = match (end, self) {
            (End::Never, _) => return None,
            (End::At(end), _) => return Some(end),
            (End::Lease(id), Self::V3(members)) => (id, members),
            (End::Lease(_), Self::V2(_)) => return Some(SystemTime::now() + timing.ttl),
        };
        let now = SystemTime::now();
        let ask = |mut client: Client| async move { client.lease_time_to_live(id, None).await };
        let ttl = match members.call("read the end of our lease", ask).await {
            Ok((answer, _)) => u64::try_from(answer.ttl()).ok().map(Duration::from_secs),
            Err(_) => None,
        };
        Some(now + ttl.unwrap_or(timing.ttl))
    }
}

/// Reads a key of v3, or all that begin with it.
pub(super) async fn read_v3(
    members: &Members,
    what: &'static str,
    key: &str,
    prefix: bool,
) -> Result<Listing, EtcdError> {
    let (response, _) = get(members, what, key.as_bytes(), prefix).await?;
    Ok(Listing::from(&response))
}

async fn put_v3(
    members: &Members,
    put: &Put<'_>,
    timing: &LeaseTiming,
    granted: &mut Granted,
) -> Result<Written, EtcdError> {
    let (id, ttl) = match (put.seen.permanent, *granted) {
        (true, _) => (0, None),
        (false, Some((id, ttl))) => (id, Some(ttl)),
        (false, None) => {
            let (id, ttl) = grant(members, timing).await?;
            *granted = Some((id, ttl));
            (id, Some(ttl))
        }
    };
    let guard = put.unless_new.map(|(leases, revision)| {
        Compare::create_revision(leases, CompareOp::Less, revision + 1).with_prefix()
    });
    let write = TxnOp::put(put.key, put.value, Some(PutOptions::new().with_lease(id)));
    let read = TxnOp::get(put.key, None);
    let conditions: Vec<Compare> = put.seen.still(put.key).into_iter().chain(guard).collect();
    let txn = Txn::new().when(conditions).and_then([write]).or_else([read]);
    let written = members
        .call("write our lease", |mut client: Client| {
            let txn = txn.clone();
            async move { client.txn(txn).await }
        })
        .await?
        .0;
    if written.succeeded() {
        let revision = written.header().map_or(0, |header| header.revision());
        return Ok(Written::Done { revision, ttl });
    }
    Ok(Written::Otherwise(match written.op_responses().into_iter().next() {
        Some(TxnOpResponse::Get(found)) => found.kvs().first().map(Entry::from),
        _ => None,
    }))
}

/// A new lease of etcd's, for one write. Those of earlier writes are left to expire.
async fn grant(members: &Members, timing: &LeaseTiming) -> Result<(i64, Duration), EtcdError> {
    let ttl = i64::try_from(timing.ttl.as_secs()).unwrap_or(i64::MAX).max(1);
    let (granted, _) = members
        .call("grant a lease", |mut client: Client| async move { client.lease_grant(ttl, None).await })
        .await?;
    let seconds = u64::try_from(granted.ttl()).unwrap_or(0);
    Ok((granted.id(), Duration::from_secs(seconds)))
}

/// v2 knows no condition on other keys: [`EtcdStore::claim`] looks at them after the write.
async fn put_v2(members: &v2::Members, put: &Put<'_>, timing: &LeaseTiming) -> Result<Written, EtcdError> {
    let ttl = (!put.seen.permanent).then_some(timing.ttl);
    if let v2::Written::Done { revision } =
        members.write("write our lease", put.key, put.value, put.seen, ttl).await?
    {
        return Ok(Written::Done { revision, ttl });
    }
    let found = members.read("read our lease", put.key, false).await?;
    Ok(Written::Otherwise(found.entries.into_iter().next()))
}

/// Keys that are followed.
pub(super) enum Keys {
    V3(Box<KeyWatch>),
    V2(Box<v2::KeyPoll>),
}

impl Keys {
    /// Waits for the next happening. Cancel safe.
    pub(super) async fn next(&mut self) -> KeyEvent {
        match self {
            Self::V3(keys) => keys.next().await,
            Self::V2(keys) => keys.next().await,
        }
    }
}
