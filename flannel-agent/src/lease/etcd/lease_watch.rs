//! The leases of all others.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::Ordering,
    time::{Duration, SystemTime},
};

use tokio::{
    select,
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;

use super::{EtcdStore, entry::Entry, key_watch::KeyEvent, server::Keys};
use crate::{
    lease::{Lease, LeaseAttrs, LeaseEvent, LeaseSource, LeaseSubnet, Unusable, wire::parse_lease_key},
    values::shorten,
};

/// Events that wait for the consumer. When they are this many, etcd waits.
const QUEUE: usize = 64;
/// How long leases that a store has forgotten stay in force, unless leases live shorter.
const FORGOTTEN: Duration = Duration::from_secs(60 * 60);

/// The leases in etcd but our own.
pub struct EtcdWatch {
    events: mpsc::Receiver<LeaseEvent>,
    _task: AbortOnDropHandle<()>,
}

/// What was in force before this process.
#[derive(Clone, Debug, Default)]
pub struct Inherited {
    /// Leases that what is in the kernel stands for.
    pub leases: Vec<Lease>,
    /// The store had no lease of this node: it may never have had those.
    pub newcomer: bool,
}

impl EtcdStore {
    /// Watches the leases of all nodes but `own`, in a task that ends with the returned source.
    pub fn watch(&self, own: LeaseSubnet) -> EtcdWatch {
        self.watch_after(own, Inherited::default())
    }

    /// The same after a start that found leases in force. Those that the store lacks stay until their nodes write them,
    /// where it is another store than before: it did not know this node either, as when flannel's leases move from
    /// etcd's v2 store, or it lacks most of them, as one restored from a backup. Else their nodes have left, and so do
    /// they.
    pub fn watch_after(&self, own: LeaseSubnet, inherited: Inherited) -> EtcdWatch {
        let (sender, events) = mpsc::channel(QUEUE);
        let keys = self.follow_leases();
        let Inherited { leases, newcomer } = inherited;
        let last: BTreeMap<Vec<u8>, Lease> =
            leases.into_iter().map(|lease| (self.lease_key(&lease.subnet).into_bytes(), lease)).collect();
        let decoder = Decoder {
            store: self.clone(),
            own,
            unreadable: BTreeMap::new(),
            forgotten: last.keys().cloned().collect(),
            inherited: Some((last.len(), newcomer)),
            last,
            until: None,
        };
        EtcdWatch { events, _task: AbortOnDropHandle::new(tokio::spawn(run(keys, decoder, sender))) }
    }
}

impl LeaseSource for EtcdWatch {
    async fn next(&mut self) -> LeaseEvent {
        match self.events.recv().await {
            Some(event) => event,
            // The task only ends with us.
            None => std::future::pending().await,
        }
    }
}

async fn run(mut keys: Keys, mut decoder: Decoder, sender: mpsc::Sender<LeaseEvent>) {
    loop {
        let until = decoder.until;
        let late = async move {
            match until {
                Some(until) => sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        let event = select! {
            followed = keys.next() => match followed {
                KeyEvent::All(all) => Some(LeaseEvent::Snapshot(decoder.all(&all))),
                KeyEvent::Anew(all) => Some(LeaseEvent::Snapshot(decoder.anew(&all))),
                KeyEvent::Put(kv) => decoder.put(&kv),
                KeyEvent::Deleted { key, .. } => decoder.deleted(&key),
            },
            () = late => Some(LeaseEvent::Snapshot(decoder.forget())),
        };
        decoder.tell_unusable();
        if let Some(event) = event
            && sender.send(event).await.is_err()
        {
            return;
        }
    }
}

/// Turns keys and values into leases.
struct Decoder {
    store: EtcdStore,
    own: LeaseSubnet,
    /// What is not used and reported: by key, the value, and why.
    unreadable: BTreeMap<Vec<u8>, (Vec<u8>, String)>,
    /// The last lease of each key that could be. It stays in force while its successor cannot: whoever
    /// damaged the entry has not moved the node.
    last: BTreeMap<Vec<u8>, Lease>,
    /// Keys in `last` that the store does not hold, since it was emptied or restored from a backup. Their nodes
    /// are as alive as they were, and write their leases again when they notice.
    forgotten: BTreeSet<Vec<u8>>,
    /// When they are given up.
    until: Option<Instant>,
    /// How many there were before the first list, and whether the store did not know this node.
    inherited: Option<(usize, bool)>,
}

impl Decoder {
    fn all(&mut self, all: &[Entry]) -> Vec<Lease> {
        let present: BTreeSet<&[u8]> = all.iter().map(|entry| entry.key.as_slice()).collect();
        self.unreadable.retain(|key, _| present.contains(key.as_slice()));
        let forgotten = &self.forgotten;
        self.last.retain(|key, _| present.contains(key.as_slice()) || forgotten.contains(key));
        for kv in all {
            self.put(kv);
        }
        if let Some((total, newcomer)) = self.inherited.take() {
            self.judge_inherited(total, newcomer);
        }
        self.leases()
    }

    /// Decides what becomes of the leases in force at the start that the store lacks.
    fn judge_inherited(&mut self, total: usize, newcomer: bool) {
        let lacking = self.forgotten.len();
        if lacking == 0 {
            return;
        }
        let patience = match newcomer {
            // As long as they would last in the store that has them.
            true => self.store.timing.ttl,
            false if lacking > 1 && lacking * 2 > total => FORGOTTEN.min(self.store.timing.ttl),
            false => {
                let gone = std::mem::take(&mut self.forgotten);
                self.last.retain(|key, _| !gone.contains(key));
                return;
            }
        };
        self.until = Some(Instant::now() + patience);
        // Leases of etcd's have no end here: where two exclude each other, the store's is the one that counts.
        let end = SystemTime::now() + patience;
        for (key, lease) in &mut self.last {
            if self.forgotten.contains(key) {
                lease.expiration = Some(end);
            }
        }
        warn!(
            peers = lacking,
            patience = ?patience,
            "this node reaches peers that have no lease in etcd: are their leases elsewhere, as in etcd's v2 store, \
            or was etcd restored from a backup? Their routes stay until their nodes write leases here, or until \
            patience ends"
        );
    }

    /// All that another store holds, or the same in an older state: what it lacks was not taken back.
    fn anew(&mut self, all: &[Entry]) -> Vec<Lease> {
        let present: BTreeSet<&[u8]> = all.iter().map(|entry| entry.key.as_slice()).collect();
        self.forgotten = self.last.keys().filter(|key| !present.contains(key.as_slice())).cloned().collect();
        if !self.forgotten.is_empty() {
            let patience = FORGOTTEN.min(self.store.timing.ttl);
            self.until = Some(Instant::now() + patience);
            warn!(
                leases = self.forgotten.len(),
                patience = ?patience,
                "etcd has lost leases: was it emptied, or restored from a backup? They stay in force until their \
                nodes write them again, or until patience ends"
            );
        }
        self.all(all)
    }

    /// Gives up what nobody has written again.
    fn forget(&mut self) -> Vec<Lease> {
        self.until = None;
        let forgotten = std::mem::take(&mut self.forgotten);
        if !forgotten.is_empty() {
            warn!(
                leases = forgotten.len(),
                "giving up leases that etcd does not have and no node has written"
            );
        }
        self.last.retain(|key, _| !forgotten.contains(key));
        self.leases()
    }

    fn leases(&self) -> Vec<Lease> {
        let in_force = self.last.iter().filter(|(key, lease)| self.in_force(&lease.subnet) == Some(key));
        in_force.map(|(_, lease)| lease.clone()).collect()
    }

    /// The key whose lease of `subnet` counts. Upstream's pattern lets many keys name one subnet
    /// (`10.3.2.0-24`, `x10.3.2.0-24`); no node writes but the plain one.
    fn in_force(&self, subnet: &LeaseSubnet) -> Option<&Vec<u8>> {
        let plain = self.store.lease_key(subnet);
        let plain = self.last.get_key_value(plain.as_bytes()).map(|(key, _)| key);
        plain.or_else(|| self.last.iter().find(|(_, lease)| lease.subnet == *subnet).map(|(key, _)| key))
    }

    fn put(&mut self, kv: &Entry) -> Option<LeaseEvent> {
        let key = String::from_utf8_lossy(&kv.key);
        let subnet = match parse_lease_key(&key) {
            Ok(subnet) if subnet == self.own => return None,
            Ok(subnet) => subnet,
            Err(error) => return self.skip(kv, &error.to_string()),
        };
        let attrs = match LeaseAttrs::from_json(&kv.value) {
            Ok(attrs) => attrs,
            Err(error) => return self.skip(kv, &error.to_string()),
        };
        // The end of others' leases is etcd's business: it costs a request per lease, and nothing here
        // depends on it.
        let made = u64::try_from(kv.created).ok();
        let lease = Lease { subnet, attrs, expiration: None, made, node: None };
        self.forgotten.remove(&kv.key);
        self.last.insert(kv.key.clone(), lease.clone());
        if self.has_moved(&lease) {
            return Some(LeaseEvent::Snapshot(self.leases()));
        }
        match self.in_force(&subnet) {
            Some(other) if *other != kv.key => {
                let other = format!("{} names the same subnet and is used", String::from_utf8_lossy(other));
                self.skip(kv, &other)
            }
            _ => {
                self.unreadable.remove(&kv.key);
                Some(LeaseEvent::Upsert(lease))
            }
        }
    }

    /// Gives up the forgotten leases of a node that has another now, and those whose addresses it has; whether there
    /// were any.
    fn has_moved(&mut self, lease: &Lease) -> bool {
        let last = &mut self.last;
        let before = self.forgotten.len();
        self.forgotten.retain(|key| {
            let moved = last
                .get(key)
                .is_some_and(|old| old.attrs.same_node(&lease.attrs) || old.subnet.overlaps(&lease.subnet));
            if moved {
                last.remove(key);
            }
            !moved
        });
        self.forgotten.len() != before
    }

    fn deleted(&mut self, key: &[u8]) -> Option<LeaseEvent> {
        self.unreadable.remove(key);
        self.forgotten.remove(key);
        self.last.remove(key);
        let subnet = parse_lease_key(&String::from_utf8_lossy(key)).ok().filter(|it| *it != self.own)?;
        let other = self.in_force(&subnet).and_then(|other| self.last.get(other));
        Some(other.map_or(LeaseEvent::Remove(subnet), |lease| LeaseEvent::Upsert(lease.clone())))
    }

    /// Shows what cannot be used, as long as it is there. What is no lease by its key is nobody's.
    fn tell_unusable(&self) {
        let unusable = self.unreadable.iter().filter_map(|(key, (_, reason))| {
            let place = String::from_utf8_lossy(key).into_owned();
            let subnet = parse_lease_key(&place).ok()?;
            Some(Unusable { place, subnet, reason: reason.clone() })
        });
        let unusable: Vec<Unusable> = unusable.collect();
        self.store.unusable.send_if_modified(|told| {
            let is_news = *told != unusable;
            *told = unusable;
            is_news
        });
    }

    /// Counts and logs an entry that cannot be used, once as long as it stays the same.
    fn skip(&mut self, kv: &Entry, error: &str) -> Option<LeaseEvent> {
        let news = self.unreadable.insert(kv.key.clone(), (kv.value.clone(), error.to_owned()));
        if news.is_none_or(|(before, _)| before != kv.value) {
            self.store.undecodable.fetch_add(1, Ordering::Relaxed);
            let key = String::from_utf8_lossy(&kv.key);
            let value = shorten(&String::from_utf8_lossy(&kv.value), 200);
            warn!(%key, value, error, "skipping a lease that cannot be used; all others are used. Delete or correct it");
        }
        None
    }
}
