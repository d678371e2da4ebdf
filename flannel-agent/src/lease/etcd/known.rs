//! The keys as they were when they were last known: what tells the store that is found after an interruption from another
//! one in its place, emptied or restored from a backup. Its revision alone does not, once it has been written to: nor does
//! the id of its cluster, which is made of names and addresses.

use std::collections::BTreeMap;

use super::entry::{End, Entry};

/// How many keys, of those written last, are compared with the store's after an interruption. Each is some 100 bytes.
pub(super) const COMPARED: usize = 500;

/// The keys that are followed, without their values.
#[derive(Debug, Default)]
pub(super) struct Known {
    keys: BTreeMap<Vec<u8>, Mark>,
}

/// A write of a key. Two of different histories differ: no two leases of etcd's have one id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    revision: i64,
    created: i64,
    /// Of v3's leases; 0 for none.
    lease: i64,
}

impl From<&Entry> for Mark {
    fn from(entry: &Entry) -> Self {
        let lease = match entry.end {
            End::Lease(id) => id,
            End::Never | End::At(_) => 0,
        };
        Self { revision: entry.revision, created: entry.created, lease }
    }
}

impl Known {
    /// All there are.
    pub(super) fn all(&mut self, entries: &[Entry]) {
        self.keys = entries.iter().map(|entry| (entry.key.clone(), entry.into())).collect();
    }

    /// A key was written.
    pub(super) fn put(&mut self, entry: &Entry) {
        self.keys.insert(entry.key.clone(), entry.into());
    }

    /// A key was deleted.
    pub(super) fn deleted(&mut self, key: &[u8]) {
        self.keys.remove(key);
    }

    /// Whether a store that had `count` keys at the revision up to which all is known, and these `newest` ones of them, is
    /// the one that it was.
    pub(super) fn agree(&self, count: usize, newest: &[Entry]) -> bool {
        let same = |entry: &Entry| self.keys.get(&entry.key) == Some(&entry.into());
        count == self.keys.len() && newest.len() == count.min(COMPARED) && newest.iter().all(same)
    }

    /// Whether a store that holds `entries` now cannot be the one of which all was known up to `revision`: it has something
    /// from before that which was not there.
    pub(super) fn contradicted(&self, revision: i64, entries: &[Entry]) -> bool {
        entries.iter().any(|entry| {
            let known = self.keys.get(&entry.key);
            (entry.revision <= revision && known != Some(&entry.into()))
                || (entry.created <= revision && known.map(|known| known.created) != Some(entry.created))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &str, created: i64, revision: i64, lease: i64) -> Entry {
        Entry { key: key.into(), value: Vec::new(), revision, created, end: End::Lease(lease) }
    }

    fn known(entries: &[Entry]) -> Known {
        let mut known = Known::default();
        known.all(entries);
        known
    }

    #[test]
    fn the_same_store_agrees_and_another_does_not() {
        let was = [entry("a", 2, 2, 1), entry("b", 3, 5, 2)];
        let known = known(&was);
        assert!(known.agree(2, &was));
        assert!(!known.agree(1, &was[..1]), "one was lost");
        assert!(!known.agree(2, &[was[0].clone(), entry("c", 3, 5, 2)]), "another key");
        assert!(
            !known.agree(2, &[was[0].clone(), entry("b", 3, 5, 9)]),
            "written at the same time, by another"
        );
        let many: Vec<_> = (0..COMPARED as i64 + 9).map(|n| entry(&format!("{n:05}"), n, n, n)).collect();
        let mut of_many = Known::default();
        many.iter().for_each(|entry| of_many.put(entry));
        assert!(of_many.agree(many.len(), &many[9..]));
        of_many.deleted(b"00000");
        assert!(!of_many.agree(many.len(), &many[9..]));
    }

    #[test]
    fn what_happened_since_contradicts_nothing() {
        let known = known(&[entry("a", 2, 2, 1), entry("b", 3, 5, 2)]);
        assert!(!known.contradicted(6, &[]), "deleted");
        assert!(!known.contradicted(6, &[entry("a", 2, 7, 3), entry("b", 8, 9, 4), entry("c", 10, 10, 5)]));
        assert!(known.contradicted(6, &[entry("c", 6, 7, 3)]), "there was no such key");
        assert!(known.contradicted(6, &[entry("a", 4, 7, 3)]), "it was made earlier");
        assert!(known.contradicted(6, &[entry("b", 3, 4, 2)]), "it was written later");
        assert!(known.contradicted(6, &[entry("b", 3, 5, 9)]), "it was written with another lease");
    }
}
