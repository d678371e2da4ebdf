//! Reading both stores, and writing one key of them on condition that nobody else has.
//!
//! With each write to v3 goes, in one transaction, a note below `<prefix>/migration`: it says that both stores are the same,
//! and where the key's node writes. Whoever starts again after a crash goes on from these notes.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use etcd_client::{Client, Compare, CompareOp, PutOptions, Txn, TxnOp, TxnOpResponse};
use serde::{Deserialize, Serialize};

use super::{
    super::{
        EtcdError, EtcdStore,
        entry::{End, Entry, Listing},
        join,
        key_watch::KeyWatch,
        members::Members,
        seen::Seen,
        server::{Keys, read_v3},
        v2,
    },
    item::{Item, Name, Store, Synced, left},
};

/// What lives no longer than this is not copied: it ends by itself.
const LAST_MOMENT: Duration = Duration::from_secs(2);

/// Both stores.
pub(super) struct Stores {
    pub(super) v2: Arc<v2::Members>,
    pub(super) v3: Arc<Members>,
    prefix: Arc<str>,
}

/// All that concerns flannel, at one moment.
pub(super) type Items = BTreeMap<Name, Item>;

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Done,
    /// Somebody else was faster: what is there now is in the item.
    Overtaken,
    /// Another process has the lock.
    NotOurs,
}

/// A note, as v3 holds it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Note {
    home: Store,
    v2_index: i64,
    /// 0 for the revision of the note itself: both were written by one transaction.
    v3_revision: i64,
}

impl Stores {
    pub(super) fn new(from: &EtcdStore, to: &EtcdStore) -> Self {
        Self { v2: from.v2.clone(), v3: to.members.clone(), prefix: from.prefix.clone() }
    }

    pub(super) fn key(&self, name: &Name) -> String {
        join(&self.prefix, &name.key())
    }

    fn note_key(&self, name: &Name) -> String {
        join(&self.prefix, &format!("migration/{}", name.key()))
    }

    pub(super) fn lock_key(&self) -> String {
        join(&self.prefix, "migration/lock")
    }

    /// Which of flannel's keys this is; `None` for another one.
    pub(super) fn name(&self, key: &[u8]) -> Option<Name> {
        let key = std::str::from_utf8(key).ok()?;
        if key == self.key(&Name::Config) {
            return Some(Name::Config);
        }
        let lease = key.strip_prefix(&join(&self.prefix, "subnets/"))?;
        (!lease.is_empty()).then(|| Name::Lease(lease.to_owned()))
    }

    /// Follows the leases of a store, or its configuration.
    pub(super) fn follow(&self, store: Store, leases: bool) -> Keys {
        let (what, key) = match leases {
            true => ("the leases of all nodes", join(&self.prefix, "subnets")),
            false => ("the network config", self.key(&Name::Config)),
        };
        match store {
            Store::V2 => Keys::V2(Box::new(v2::KeyPoll::new(self.v2.clone(), what, key, leases))),
            Store::V3 => Keys::V3(Box::new(KeyWatch::new(self.v3.clone(), what, key, leases))),
        }
    }

    /// Reads everything.
    pub(super) async fn read_all(&self) -> Result<Items, EtcdError> {
        let subnets = join(&self.prefix, "subnets");
        let config = self.key(&Name::Config);
        let mut items = Items::new();
        for listing in [
            self.v2.read("read the network config of v2", &config, false).await?,
            self.v2.read("list the leases of v2", &subnets, true).await?,
        ] {
            self.take(&mut items, Store::V2, listing);
        }
        for listing in [
            read_v3(&self.v3, "read the network config of v3", &config, false).await?,
            read_v3(&self.v3, "list the leases of v3", &subnets, true).await?,
        ] {
            self.take(&mut items, Store::V3, listing);
        }
        for (name, synced) in self.notes().await? {
            items.entry(name).or_default().synced = Some(synced);
        }
        Ok(items)
    }

    fn take(&self, items: &mut Items, store: Store, listing: Listing) {
        for entry in listing.entries {
            if let Some(name) = self.name(&entry.key) {
                items.entry(name).or_default().set(store, Some(entry), listing.revision);
            }
        }
    }

    /// What was noted. A note that cannot be read is none: then both stores are looked at as for the first time.
    async fn notes(&self) -> Result<Vec<(Name, Synced)>, EtcdError> {
        let start = join(&self.prefix, "migration/");
        let Listing { entries, .. } = read_v3(&self.v3, "list what was copied", &start, true).await?;
        let read = |entry: &Entry| {
            let key = std::str::from_utf8(&entry.key).ok()?;
            let key = join(&self.prefix, key.strip_prefix(&start)?);
            let name = self.name(key.as_bytes())?;
            let note: Note = serde_json::from_slice(&entry.value).ok()?;
            let v3 = if note.v3_revision == 0 { entry.revision } else { note.v3_revision };
            Some((name, Synced { home: note.home, v2: note.v2_index, v3 }))
        };
        Ok(entries.iter().filter_map(read).collect())
    }

    /// Reads one key of both stores again.
    pub(super) async fn read_again(&self, name: &Name, item: &mut Item) -> Result<(), EtcdError> {
        let key = self.key(name);
        let listing = self.v2.read("read a key of v2", &key, false).await?;
        item.set(Store::V2, listing.entries.into_iter().next(), listing.revision);
        let listing = read_v3(&self.v3, "read a key of v3", &key, false).await?;
        item.set(Store::V3, listing.entries.into_iter().next(), listing.revision);
        Ok(())
    }

    /// When an entry ends, where v3 has to be asked for it. What ends with a lease that is gone ends now.
    pub(super) async fn end(&self, entry: Option<&Entry>) -> Result<End, EtcdError> {
        let Some(End::Lease(id)) = entry.map(|entry| entry.end) else {
            return Ok(entry.map_or(End::Never, |entry| entry.end));
        };
        let now = SystemTime::now();
        let ask = |mut client: Client| async move { client.lease_time_to_live(id, None).await };
        let (answer, _) = self.v3.call("read the end of a lease", ask).await?;
        Ok(End::At(now + Duration::from_secs(u64::try_from(answer.ttl()).unwrap_or(0))))
    }

    /// Writes what the other store has into `to`, with what is left of its life.
    pub(super) async fn copy(
        &self,
        name: &Name,
        item: &mut Item,
        (to, home): (Store, Store),
        lock: &[u8],
    ) -> Result<Outcome, EtcdError> {
        let Some(source) = item.of(to.other()).cloned() else { return Ok(Outcome::Overtaken) };
        let end = self.end(Some(&source)).await?;
        let ttl = left(end, SystemTime::now());
        if ttl.is_some_and(|ttl| ttl <= LAST_MOMENT) {
            return Ok(Outcome::Done);
        }
        item.wiped = None;
        match to {
            Store::V3 => self.copy_to_v3(name, item, &source, (ttl, home), lock).await,
            Store::V2 => self.copy_to_v2(name, item, &source, (ttl, home), lock).await,
        }
    }

    async fn copy_to_v3(
        &self,
        name: &Name,
        item: &mut Item,
        source: &Entry,
        (ttl, home): (Option<Duration>, Store),
        lock: &[u8],
    ) -> Result<Outcome, EtcdError> {
        let id = match ttl {
            None => 0,
            Some(ttl) => {
                let seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
                let ask = |mut client: Client| async move { client.lease_grant(seconds, None).await };
                self.v3.call("grant a lease", ask).await?.0.id()
            }
        };
        let note = Note { home, v2_index: source.revision, v3_revision: 0 };
        let write = TxnOp::put(self.key(name), source.value.clone(), Some(PutOptions::new().with_lease(id)));
        let outcome = self.commit(name, item, [write, self.note(name, &note, id)], lock).await?;
        let Ok(revision) = outcome else { return Ok(outcome.err().unwrap_or(Outcome::Overtaken)) };
        let created = item.v3.as_ref().map_or(revision, |before| before.created);
        let end = if id == 0 { End::Never } else { End::Lease(id) };
        let key = self.key(name).into_bytes();
        item.set(
            Store::V3,
            Some(Entry { key, value: source.value.clone(), revision, created, end }),
            revision,
        );
        item.synced = Some(Synced { home, v2: source.revision, v3: revision });
        Ok(Outcome::Done)
    }

    async fn copy_to_v2(
        &self,
        name: &Name,
        item: &mut Item,
        source: &Entry,
        (ttl, home): (Option<Duration>, Store),
        lock: &[u8],
    ) -> Result<Outcome, EtcdError> {
        let (key, value) = (self.key(name), String::from_utf8_lossy(&source.value));
        let seen = item.v2.as_ref().map(Seen::of).unwrap_or_default();
        let written = self.v2.write("write a key of v2", &key, &value, &seen, ttl).await?;
        let v2::Written::Done { revision } = written else {
            self.read_again(name, item).await?;
            return Ok(Outcome::Overtaken);
        };
        let created = item.v2.as_ref().map_or(revision, |before| before.created);
        let end = ttl.map_or(End::Never, |ttl| End::At(SystemTime::now() + ttl));
        let (key, value) = (key.into_bytes(), source.value.clone());
        item.set(Store::V2, Some(Entry { key, value, revision, created, end }), revision);
        self.write_note(name, item, home, lock).await
    }

    /// Notes that both stores are the same.
    pub(super) async fn write_note(
        &self,
        name: &Name,
        item: &mut Item,
        home: Store,
        lock: &[u8],
    ) -> Result<Outcome, EtcdError> {
        let revision = |entry: Option<&Entry>| entry.map_or(0, |entry| entry.revision);
        let synced = Synced { home, v2: revision(item.v2.as_ref()), v3: revision(item.v3.as_ref()) };
        // It goes with the lease that it is about.
        let id = match item.v3.as_ref().map(|entry| entry.end) {
            Some(End::Lease(id)) => id,
            _ => 0,
        };
        let note = Note { home, v2_index: synced.v2, v3_revision: synced.v3 };
        let outcome = self.commit(name, item, [self.note(name, &note, id)], lock).await?;
        if outcome.is_ok() {
            item.synced = Some(synced);
        }
        Ok(outcome.err().unwrap_or(Outcome::Done))
    }

    fn note(&self, name: &Name, note: &Note, id: i64) -> TxnOp {
        // Writing to a string only fails for keys that are not strings, and there are none.
        let text = serde_json::to_string(note).unwrap_or_default();
        TxnOp::put(self.note_key(name), text, Some(PutOptions::new().with_lease(id)))
    }

    /// Deletes it from one store, unless it has changed since it was read, and what was noted of it.
    pub(super) async fn delete(
        &self,
        name: &Name,
        item: &mut Item,
        from: Store,
        lock: &[u8],
    ) -> Result<Outcome, EtcdError> {
        let key = self.key(name);
        let mut forget = vec![TxnOp::delete(self.note_key(name), None)];
        match from {
            Store::V3 => forget.push(TxnOp::delete(key, None)),
            Store::V2 => {
                let seen = item.v2.as_ref().map(Seen::of).unwrap_or_default();
                match self.v2.delete("delete a key of v2", &key, &seen).await? {
                    Some(revision) => item.set(Store::V2, None, revision),
                    None => self.read_again(name, item).await?,
                }
                if item.v2.is_some() {
                    return Ok(Outcome::Overtaken);
                }
            }
        }
        let outcome = self.commit(name, item, forget, lock).await?;
        if let Ok(revision) = outcome {
            if from == Store::V3 {
                item.set(Store::V3, None, revision);
            }
            item.synced = None;
        }
        Ok(outcome.err().unwrap_or(Outcome::Done))
    }

    /// Deletes what was noted.
    pub(super) async fn forget(
        &self,
        name: &Name,
        item: &mut Item,
        lock: &[u8],
    ) -> Result<Outcome, EtcdError> {
        let outcome = self.commit(name, item, [TxnOp::delete(self.note_key(name), None)], lock).await?;
        if outcome.is_ok() {
            item.synced = None;
        }
        Ok(outcome.err().unwrap_or(Outcome::Done))
    }

    /// Does `operations` in v3, where the key is as it was read and the lock is ours; says the revision then.
    async fn commit(
        &self,
        name: &Name,
        item: &mut Item,
        operations: impl Into<Vec<TxnOp>>,
        lock: &[u8],
    ) -> Result<Result<i64, Outcome>, EtcdError> {
        let key = self.key(name);
        let mut conditions = item.v3.as_ref().map(Seen::of).unwrap_or_default().still(&key);
        conditions.push(Compare::value(self.lock_key(), CompareOp::Equal, lock));
        let read = [TxnOp::get(self.lock_key(), None), TxnOp::get(key, None)];
        let txn = Txn::new().when(conditions).and_then(operations).or_else(read);
        let ask = |mut client: Client| {
            let txn = txn.clone();
            async move { client.txn(txn).await }
        };
        let answer = self.v3.call("write a key of v3", ask).await?.0;
        if answer.succeeded() {
            return Ok(Ok(answer.header().map_or(0, |header| header.revision())));
        }
        let mut found = answer.op_responses().into_iter().filter_map(|response| match response {
            TxnOpResponse::Get(found) => Some(found.kvs().first().cloned()),
            _ => None,
        });
        let holder = found.next().flatten();
        if holder.is_none_or(|kv| kv.value() != lock) {
            return Ok(Err(Outcome::NotOurs));
        }
        let revision = answer.header().map_or(0, |header| header.revision());
        item.set(Store::V3, found.next().flatten().as_ref().map(Entry::from), revision);
        Ok(Err(Outcome::Overtaken))
    }
}
