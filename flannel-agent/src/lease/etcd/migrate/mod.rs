//! Moving the leases of a cluster from etcd's v2 store to its v3 store while every node runs.
//!
//! ```text
//! v2: config, subnets/* ─▶ Follower ─ decide ─▶ Stores ─▶ v3: config, subnets/*, migration/*
//!                        ◀─                            ◀─
//! ```
//!
//! Leases are copied before the configuration, so that a node which finds that in v3 finds all leases there. From then on
//! what a node writes to either store is written to the other. A note in v3 says of each key when both stores were the same
//! and where its node writes it: there it ends when it ends. So nothing but the stores is needed to go on after a crash.

use std::{net::IpAddr, sync::Arc};

use tracing::info;

use self::{
    conflicts::Judge,
    decide::Step,
    follow::{Follower, step},
    item::{Item, Name},
    lock::Lock,
    stores::{Items, Outcome, Stores},
};
use super::{EtcdError, EtcdOptions, EtcdStore, RETRY, TRIES, ctl::Etcdctl, entry::End};
pub use item::Store;
pub use look::{Held, Look, Row};

mod conflicts;
mod decide;
mod follow;
mod item;
mod lock;
mod look;
mod stores;

/// Why leases cannot be moved.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// A store does not answer, or refuses.
    #[error(transparent)]
    Etcd(#[from] EtcdError),
    /// There is nothing to move.
    #[error(
        "the v2 store has no {key}: there is no cluster in it to move; check --etcd-endpoints and --etcd-prefix, \
         unless it was moved before"
    )]
    NothingInV2 {
        /// The key of the configuration.
        key: String,
    },
    /// The stores contradict each other.
    #[error("nothing was written, as the stores contradict each other: {}", .0.join(" | "))]
    Conflicts(Vec<String>),
    /// Nodes are still in v2.
    #[error(
        "not finished: these nodes keep their leases in v2, or may do so: {}. Move them first, with etcd-migrate running; \
         or, if they are gone for good or have reservations and have moved, add --force", .0.join(", ")
    )]
    NotMoved(Vec<String>),
    /// Leases are in v2 only.
    #[error("not finished: v3 lacks {}: run etcd-migrate without --finish first", .0.join(", "))]
    NotCopied(Vec<String>),
    /// Nodes are in v3.
    #[error(
        "not undone: these leases are kept in v3 by their nodes: {}. Move the nodes back first, with etcd-migrate running: \
         restart them with --etcd-api=v2", .0.join(", ")
    )]
    Moved(Vec<String>),
    /// Others write all the time.
    #[error("{0} was changed by others each time it was to be deleted: run this again")]
    Unsettled(String),
}

/// A migration, of one cluster.
pub struct Migration {
    stores: Stores,
    from: Arc<Etcdctl>,
    to: Arc<Etcdctl>,
    v3: EtcdStore,
}

impl Migration {
    /// From the v2 store of the etcd in `options` to its v3 store, or to that of another etcd, at `to`.
    ///
    /// # Errors
    /// When the options are wrong. Nothing is asked yet.
    pub fn connect(options: &EtcdOptions, to: Option<&str>) -> Result<Self, EtcdError> {
        let v2 = EtcdStore::connect(options)?;
        let v3 = match to {
            None => v2.clone(),
            Some(endpoints) => {
                EtcdStore::connect(&EtcdOptions { endpoints: endpoints.to_owned(), ..options.clone() })?
            }
        };
        Ok(Self { stores: Stores::new(&v2, &v3), from: v2.ctl.clone(), to: v3.ctl.clone(), v3 })
    }

    /// What there is in both stores, and what would be done about it. Writes nothing.
    ///
    /// # Errors
    /// When a store does not answer, or there is nothing to move.
    pub async fn look(&self) -> Result<Look, MigrateError> {
        let items = self.read().await?;
        let judge = self.judge();
        let between = judge.between_keys(&items);
        let mut look = Look::default();
        for (name, item) in &items {
            let step = step(&self.stores, name, item).await?;
            let ends = [self.stores.end(item.v2.as_ref()).await?, self.stores.end(item.v3.as_ref()).await?];
            let conflict = match step {
                Step::Conflict => Some(judge.of_one_key(name, item)),
                _ => between.get(name).cloned(),
            };
            look.rows.push(Row::new(name, item, ends, &step, conflict.is_some()));
            if let Some(conflict) = conflict.filter(|text| !look.conflicts.contains(text)) {
                look.conflicts.push(conflict);
            }
        }
        Ok(look)
    }

    /// Copies what there is, and keeps both stores in step until the last node keeps its lease in v3.
    ///
    /// # Errors
    /// When there is nothing to move, when the stores contradict each other before anything was copied, or when etcd
    /// refuses. While it does not answer, this waits.
    pub async fn run(&self) -> Result<(), MigrateError> {
        self.read().await?;
        self.locked(async |lock: Vec<u8>| {
            let items = self.read().await?;
            let begun = items.get(&Name::Config).is_some_and(|item| item.synced.is_some());
            if !begun {
                let conflicts = self.look().await?.conflicts;
                if !conflicts.is_empty() {
                    return Err(MigrateError::Conflicts(conflicts));
                }
            }
            info!(keys = items.len(), resumed = begun, "keeping etcd's v2 and v3 stores in step");
            Ok(Follower::new(&self.stores, self.judge(), items, lock).run().await?)
        })
        .await
    }

    /// Removes what the v2 store has, and the notes; `force` also where nodes may still be in it. Says how many leases.
    ///
    /// # Errors
    /// When nodes are still in v2, or v3 lacks something.
    pub async fn finish(&self, force: bool) -> Result<usize, MigrateError> {
        self.locked(async |lock: Vec<u8>| {
            let mut items = self.stores.read_all().await?;
            let lacking = of(&items, |item| item.v2.is_some() && item.v3.is_none());
            if !lacking.is_empty() {
                return Err(MigrateError::NotCopied(lacking));
            }
            let staying = of(&items, |item| {
                item.v2.is_some() && item.synced.is_none_or(|synced| synced.home == Store::V2)
            });
            if !force && !staying.is_empty() {
                return Err(MigrateError::NotMoved(staying));
            }
            self.remove(&mut items, Store::V2, &lock).await
        })
        .await
    }

    /// Removes the copies that v3 has, and the notes: as before the migration. Says how many leases.
    ///
    /// # Errors
    /// When nodes keep their leases in v3.
    pub async fn undo(&self) -> Result<usize, MigrateError> {
        self.locked(async |lock: Vec<u8>| {
            let mut items = self.stores.read_all().await?;
            let moved = of(&items, |item| {
                let copy = item.synced.is_some_and(|synced| synced.home == Store::V2);
                item.v3.is_some() && !(copy && item.unchanged(Store::V3))
            });
            if !moved.is_empty() {
                return Err(MigrateError::Moved(moved));
            }
            self.remove(&mut items, Store::V3, &lock).await
        })
        .await
    }

    /// Deletes everything from one store: the configuration first, so that no node starts there any more.
    async fn remove(&self, items: &mut Items, from: Store, lock: &[u8]) -> Result<usize, MigrateError> {
        let mut removed = 0;
        let names: Vec<Name> = items.keys().rev().cloned().collect();
        for name in names {
            let Some(item) = items.get_mut(&name) else { continue };
            let had = item.of(from).is_some();
            let mut tries = 0;
            while item.of(from).is_some() || item.synced.is_some() {
                let outcome = match item.of(from) {
                    Some(_) => self.stores.delete(&name, item, from, lock).await?,
                    None => self.stores.forget(&name, item, lock).await?,
                };
                tries += 1;
                if outcome != Outcome::Done && tries >= TRIES {
                    return Err(MigrateError::Unsettled(self.stores.key(&name)));
                }
            }
            if had && name != Name::Config {
                removed += 1;
            }
            info!(key = self.stores.key(&name), from = from.label(), "removed");
        }
        Ok(removed)
    }

    /// Does `work`, which gets the value of the lock, while no other migration is at work.
    async fn locked<T>(
        &self,
        work: impl AsyncFnOnce(Vec<u8>) -> Result<T, MigrateError>,
    ) -> Result<T, MigrateError> {
        let mut lock = loop {
            match Lock::take(self.v3.members.clone(), self.stores.lock_key()).await {
                Ok(lock) => break lock,
                Err(EtcdError::Unreachable { .. }) => tokio::time::sleep(RETRY).await,
                Err(error) => return Err(error.into()),
            }
        };
        let value = lock.value.clone();
        let result = tokio::select! {
            result = work(value) => result,
            error = lock.keep() => Err(error.into()),
        };
        lock.release().await;
        result
    }

    async fn read(&self) -> Result<Items, MigrateError> {
        let items = self.stores.read_all().await?;
        let config = items.get(&Name::Config);
        match config.is_some_and(|item| item.v2.is_some() || item.synced.is_some()) {
            true => Ok(items),
            false => Err(MigrateError::NothingInV2 { key: self.stores.key(&Name::Config) }),
        }
    }

    fn judge(&self) -> Judge<'_> {
        Judge { stores: &self.stores, ctl: [&self.from, &self.to] }
    }
}

/// The leases of which `is` holds, each with its node.
fn of(items: &Items, is: impl Fn(&Item) -> bool) -> Vec<String> {
    let leases = items.iter().filter(|(name, item)| **name != Name::Config && is(item));
    let text = |(name, item): (&Name, &Item)| {
        let entry = item.v3.as_ref().or(item.v2.as_ref());
        let node: Option<IpAddr> = entry.and_then(item::attrs).and_then(|attrs| attrs.node_address());
        let node = node.map_or_else(|| "nobody known".to_owned(), |node| node.to_string());
        let reserved = if entry.is_some_and(|entry| entry.end == End::Never) { ", reserved" } else { "" };
        let subnet = name.subnet().map_or_else(|| name.key(), |subnet| subnet.to_string());
        format!("{subnet} ({node}{reserved})")
    };
    leases.map(text).collect()
}
