//! Keeping both stores in step.

use std::collections::{BTreeMap, BTreeSet};

use tracing::{info, warn};

use super::{
    super::{EtcdError, LastMessage, RETRY, TRIES, entry::End, key_watch::KeyEvent},
    conflicts::Judge,
    decide::{self, Step},
    item::{Item, Name, Store, attrs},
    stores::{Items, Outcome, Stores},
};

/// Both stores while they are kept in step.
pub(super) struct Follower<'a> {
    stores: &'a Stores,
    judge: Judge<'a>,
    items: Items,
    /// What may have to be copied.
    due: BTreeSet<Name>,
    /// What an operator has to resolve, and was told.
    conflicts: BTreeMap<Name, String>,
    lock: Vec<u8>,
    said: LastMessage,
}

impl<'a> Follower<'a> {
    pub(super) fn new(stores: &'a Stores, judge: Judge<'a>, items: Items, lock: Vec<u8>) -> Self {
        let due = items.keys().cloned().collect();
        Self { stores, judge, items, due, conflicts: BTreeMap::new(), lock, said: LastMessage::default() }
    }

    /// Goes on until every node has moved.
    pub(super) async fn run(mut self) -> Result<(), EtcdError> {
        let [mut leases_v2, mut leases_v3] =
            [Store::V2, Store::V3].map(|store| self.stores.follow(store, true));
        let [mut config_v2, mut config_v3] =
            [Store::V2, Store::V3].map(|store| self.stores.follow(store, false));
        // Each tells first of all there is.
        let mut unheard = 4_u32;
        loop {
            let settled = self.settle().await?;
            if settled && unheard == 0 && self.all_moved() {
                return Ok(());
            }
            let pause = async move {
                match settled {
                    true => std::future::pending().await,
                    false => tokio::time::sleep(RETRY).await,
                }
            };
            let (store, event, leases) = tokio::select! {
                event = leases_v2.next() => (Store::V2, event, true),
                event = leases_v3.next() => (Store::V3, event, true),
                event = config_v2.next() => (Store::V2, event, false),
                event = config_v3.next() => (Store::V3, event, false),
                () = pause => continue,
            };
            if let KeyEvent::All(_) | KeyEvent::Anew(_) = event {
                unheard = unheard.saturating_sub(1);
            }
            self.take(store, event, leases);
            // What excluded something may be gone.
            self.due.extend(self.conflicts.keys().cloned());
        }
    }

    fn take(&mut self, store: Store, event: KeyEvent, leases: bool) {
        match event {
            KeyEvent::All(all) => self.take_all(store, all, leases, false),
            KeyEvent::Anew(all) => self.take_all(store, all, leases, true),
            KeyEvent::Put(entry) => {
                let Some(name) = self.stores.name(&entry.key) else { return };
                let item = self.items.entry(name.clone()).or_default();
                let revision = entry.revision;
                if item.is_news(store, revision) {
                    item.set(store, Some(entry), revision);
                    item.wiped = item.wiped.filter(|wiped| *wiped != store);
                    self.due.insert(name);
                }
            }
            KeyEvent::Deleted { key, revision } => {
                let Some(name) = self.stores.name(&key) else { return };
                let item = self.items.entry(name.clone()).or_default();
                if item.is_news(store, revision) {
                    item.set(store, None, revision);
                    self.due.insert(name);
                }
            }
        }
    }

    fn take_all(&mut self, store: Store, all: Vec<super::super::entry::Entry>, leases: bool, anew: bool) {
        let mut now: BTreeMap<Name, _> =
            all.into_iter().filter_map(|entry| Some((self.stores.name(&entry.key)?, entry))).collect();
        if anew {
            warn!(
                store = store.label(),
                "this store is another, or an older state of it: what it lacks is written again"
            );
        }
        for (name, item) in &mut self.items {
            if (*name == Name::Config) == leases {
                continue;
            }
            let entry = now.remove(name);
            let before = item.of(store).map(|entry| entry.revision);
            if anew || before != entry.as_ref().map(|entry| entry.revision) {
                let revision = entry.as_ref().map_or(0, |entry| entry.revision);
                if anew && before.is_some() && entry.is_none() {
                    item.wiped = Some(store);
                }
                item.set(store, entry, revision);
                self.due.insert(name.clone());
            }
        }
        for (name, entry) in now {
            let revision = entry.revision;
            self.items.entry(name.clone()).or_default().set(store, Some(entry), revision);
            self.due.insert(name);
        }
    }

    /// Does what is due; whether nothing of it is left but what others have to do.
    async fn settle(&mut self) -> Result<bool, EtcdError> {
        let between = self.judge.between_keys(&self.items);
        let mut left = BTreeSet::new();
        let mut late = Vec::new();
        // What has ended goes first: its subnet or its node may have another lease since.
        let mut due: Vec<Name> = std::mem::take(&mut self.due).into_iter().collect();
        due.sort_by_key(|name| {
            self.items.get(name).is_some_and(|item| item.v2.is_some() && item.v3.is_some())
        });
        due.sort_by_key(|name| {
            (*name == Name::Config, self.items.get(name).is_none_or(|item| item.synced.is_none()))
        });
        for name in due {
            if let Some(why) = between.get(&name) {
                self.refuse(name, why.clone());
                continue;
            }
            if name == Name::Config && !left.is_empty() {
                left.insert(name);
                continue;
            }
            match self.bring_together(&name).await {
                Ok(true) => late.push(name),
                Ok(false) => drop(left.insert(name)),
                Err(problem @ EtcdError::Unreachable { .. }) => {
                    if self.said.is_news(&problem) {
                        warn!(error = %problem, "the stores are not kept in step; trying again every second");
                    }
                    left.insert(name);
                }
                Err(problem) => return Err(problem),
            }
        }
        if left.is_empty() && self.said.is_over() {
            info!("the stores are kept in step again");
        }
        let settled = left.is_empty();
        self.due = left;
        Ok(settled)
    }

    fn refuse(&mut self, name: Name, why: String) {
        if self.conflicts.get(&name) != Some(&why) {
            warn!(key = self.stores.key(&name), "conflict, left as it is: {why}");
            self.conflicts.insert(name, why);
        }
    }

    /// Brings one key into step; whether it is.
    async fn bring_together(&mut self, name: &Name) -> Result<bool, EtcdError> {
        for _ in 0..TRIES {
            let Some(item) = self.items.get_mut(name) else { return Ok(true) };
            let step = step(self.stores, name, item).await?;
            let outcome = match step.clone() {
                Step::None => Outcome::Done,
                Step::Leave => {
                    let why = match name {
                        Name::Config => "one store has no network config any more: nodes cannot start there",
                        Name::Lease(_) => "not copied, as it cannot be read as a lease: correct or delete it",
                    };
                    if self.conflicts.get(name).map(String::as_str) != Some(why) {
                        warn!(key = self.stores.key(name), "{why}");
                        self.conflicts.insert(name.clone(), why.to_owned());
                    }
                    return Ok(true);
                }
                Step::Conflict => {
                    let why = self.judge.of_one_key(name, item);
                    self.refuse(name.clone(), why);
                    return Ok(true);
                }
                Step::Copy { to, home } => self.stores.copy(name, item, (to, home), &self.lock).await?,
                Step::Delete { from } => self.stores.delete(name, item, from, &self.lock).await?,
                Step::Note { home } => self.stores.write_note(name, item, home, &self.lock).await?,
                Step::Forget => self.stores.forget(name, item, &self.lock).await?,
            };
            match outcome {
                Outcome::Done => {
                    if self.conflicts.remove(name).is_some() {
                        info!(key = self.stores.key(name), "resolved");
                    }
                    tell(&self.stores.key(name), item, &step);
                    return Ok(true);
                }
                Outcome::Overtaken => {}
                Outcome::NotOurs => return Ok(false),
            }
        }
        Ok(false)
    }

    /// Whether all leases are kept in v3 by their nodes. Of those without an end nobody can tell.
    fn all_moved(&self) -> bool {
        self.conflicts.is_empty()
            && self.items.iter().all(|(name, item)| {
                let ends = item.v2.as_ref().or(item.v3.as_ref()).is_some_and(|entry| entry.end != End::Never);
                let moved = item.synced.is_some_and(|synced| synced.home == Store::V3);
                *name == Name::Config || item.is_gone() || !ends || moved
            })
    }
}

/// What is to be done about a key, by what is known of it.
pub(super) async fn step(stores: &Stores, name: &Name, item: &Item) -> Result<Step, EtcdError> {
    if *name == Name::Config {
        return Ok(decide::config(item));
    }
    let ends = match (&item.v2, &item.v3) {
        // Only where both have it is it asked which is the later.
        (Some(_), Some(_)) => [stores.end(item.v2.as_ref()).await?, stores.end(item.v3.as_ref()).await?],
        _ => [End::Never; 2],
    };
    Ok(decide::lease(item, ends))
}

fn tell(key: &str, item: &Item, step: &Step) {
    let node = item.v3.as_ref().or(item.v2.as_ref()).and_then(attrs).and_then(|attrs| attrs.node_address());
    let node = node.map(|node| node.to_string());
    match step {
        Step::Copy { to, home } => info!(key, node, to = to.label(), kept_in = home.label(), "copied"),
        Step::Delete { from } => {
            info!(key, from = from.label(), "deleted, as it has ended in the other store")
        }
        _ => {}
    }
}
