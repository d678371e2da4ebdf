//! What is to be done about one key: a pure function of what both stores have, and of when they last had the same.

use super::{
    super::entry::{End, Entry},
    item::{Item, Store, attrs, same_holder},
};
use std::time::Duration;

/// Two ends this near to each other are one: copies live for whole seconds.
const TOLERANCE: Duration = Duration::from_secs(5);

/// A step that brings both stores nearer to each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing: they are the same.
    None,
    /// Write what the other store has into `to`; from then on `home` is where its node writes.
    Copy { to: Store, home: Store },
    /// Delete it from this store: it has ended in the other, where its node wrote it.
    Delete { from: Store },
    /// They are the same; only that has to be noted.
    Note { home: Store },
    /// Neither has it any more; what was noted can go.
    Forget,
    /// Leave it: it is no lease, or nothing can be said for either side.
    Leave,
    /// Each store has something else, and which of them counts cannot be told from here.
    Conflict,
}

/// What to do about a lease. `ends` are of v2's and v3's entry.
pub(super) fn lease(item: &Item, [end_v2, end_v3]: [End; 2]) -> Step {
    let unreadable = |store| item.of(store).is_some_and(|entry| attrs(entry).is_none());
    let copy = |to: Store| match unreadable(to.other()) {
        // Stock flannel drops every peer over an entry that it cannot read.
        true => Step::Leave,
        false => Step::Copy { to, home: to.other() },
    };
    let newer = |tie: Step| match (&item.v2, &item.v3) {
        (Some(v2), Some(v3)) if !same_holder(v2, v3) => Step::Conflict,
        (Some(v2), Some(v3)) => match later(end_v2, end_v3) {
            Some(Store::V2) => copy(Store::V3),
            Some(Store::V3) => copy(Store::V2),
            None if same(v2, v3) => tie,
            // Two writes at one moment: the newer flannel is the one that stays.
            None => copy(Store::V2),
        },
        (Some(_), None) => copy(Store::V3),
        (None, Some(_)) => copy(Store::V2),
        (None, None) => Step::Forget,
    };
    let Some(synced) = item.synced else {
        return match item.is_gone() {
            true => Step::None,
            // Its node may still be one of v2.
            false => newer(Step::Note { home: Store::V2 }),
        };
    };
    let changed = match (item.unchanged(Store::V2), item.unchanged(Store::V3)) {
        (true, true) => return Step::None,
        (false, false) => return newer(Step::Note { home: Store::V3 }),
        (false, true) => Store::V2,
        (true, false) => Store::V3,
    };
    match (item.of(changed), item.of(changed.other())) {
        (None, None) => Step::Forget,
        (None, Some(_)) if item.wiped == Some(changed) || synced.home != changed => {
            Step::Copy { to: changed, home: synced.home }
        }
        (None, Some(_)) => Step::Delete { from: changed.other() },
        // Of another node, while the one that has it writes the other store.
        (Some(new), Some(old)) if synced.home != changed && !same_holder(new, old) => Step::Conflict,
        (Some(_), _) => copy(changed.other()),
    }
}

/// What to do about the network configuration. It has no end, and is deleted by nobody but an operator.
pub(super) fn config(item: &Item) -> Step {
    let equal = item.v2.as_ref().zip(item.v3.as_ref()).map(|(v2, v3)| same(v2, v3));
    match (&item.synced, &item.v2, &item.v3, equal) {
        (_, None, None, _) => {
            if item.synced.is_some() {
                Step::Forget
            } else {
                Step::None
            }
        }
        (None, Some(_), None, _) => Step::Copy { to: Store::V3, home: Store::V2 },
        (Some(synced), Some(_), None, _) | (Some(synced), None, Some(_), _)
            if item.wiped.is_some_and(|wiped| item.of(wiped).is_none()) =>
        {
            let to = if item.v2.is_none() { Store::V2 } else { Store::V3 };
            Step::Copy { to, home: synced.home }
        }
        (_, None, Some(_), _) | (_, Some(_), None, _) => Step::Leave,
        (None, .., Some(true)) => Step::Note { home: Store::V2 },
        (None, ..) => Step::Conflict,
        (Some(synced), .., equal) => match (item.unchanged(Store::V2), item.unchanged(Store::V3)) {
            (true, true) => Step::None,
            _ if equal == Some(true) => Step::Note { home: synced.home },
            (false, true) => Step::Copy { to: Store::V3, home: synced.home },
            (true, false) => Step::Copy { to: Store::V2, home: synced.home },
            (false, false) => Step::Conflict,
        },
    }
}

/// The store whose end is later, unless they are the same: every write gives a lease the same life, so that the later
/// end is the later write.
fn later(v2: End, v3: End) -> Option<Store> {
    match (v2, v3) {
        (End::At(a), End::At(b)) if a > b + TOLERANCE => Some(Store::V2),
        (End::At(a), End::At(b)) if b > a + TOLERANCE => Some(Store::V3),
        (End::At(_), End::Never) => Some(Store::V3),
        (End::Never, End::At(_)) => Some(Store::V2),
        _ => None,
    }
}

/// Whether both say the same, however it is written.
fn same(a: &Entry, b: &Entry) -> bool {
    let json = |entry: &Entry| serde_json::from_slice::<serde_json::Value>(&entry.value).ok();
    a.value == b.value || json(a).is_some_and(|a| Some(a) == json(b))
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::lease::etcd::migrate::item::Synced;

    fn entry(node: u8, revision: i64) -> Option<Entry> {
        let value = format!(r#"{{"PublicIP":"192.0.2.{node}","PublicIPv6":null}}"#).into_bytes();
        Some(Entry { key: Vec::new(), value, revision, created: revision, end: End::Never })
    }

    fn at(seconds: u64) -> End {
        End::At(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
    }

    fn synced(home: Store, v2: i64, v3: i64) -> Option<Synced> {
        Some(Synced { home, v2, v3 })
    }

    fn item(v2: Option<Entry>, v3: Option<Entry>, synced: Option<Synced>) -> Item {
        Item { v2, v3, synced, ..Item::default() }
    }

    const DAY: [u64; 2] = [86_400, 86_400];

    fn of(item: &Item, [v2, v3]: [u64; 2]) -> Step {
        lease(item, [at(v2), at(v3)])
    }

    const TO_V3: Step = Step::Copy { to: Store::V3, home: Store::V2 };
    const TO_V2: Step = Step::Copy { to: Store::V2, home: Store::V3 };

    #[test]
    fn at_the_first_look() {
        assert_eq!(of(&item(entry(1, 5), None, None), DAY), TO_V3);
        assert_eq!(of(&item(None, entry(1, 5), None), DAY), TO_V2);
        assert_eq!(of(&item(entry(1, 5), entry(1, 9), None), DAY), Step::Note { home: Store::V2 });
        assert_eq!(of(&item(entry(1, 5), entry(1, 9), None), [86_400, 80_000]), TO_V3, "the later end");
        assert_eq!(of(&item(entry(1, 5), entry(1, 9), None), [80_000, 86_400]), TO_V2);
        assert_eq!(of(&item(entry(1, 5), entry(2, 9), None), DAY), Step::Conflict);
        let damaged = Entry { value: b"{".to_vec(), ..entry(1, 5).unwrap() };
        assert_eq!(of(&item(Some(damaged), None, None), DAY), Step::Leave);
    }

    #[test]
    fn what_one_store_gets_goes_to_the_other() {
        let known = synced(Store::V2, 5, 9);
        assert_eq!(of(&item(entry(1, 5), entry(1, 9), known), DAY), Step::None);
        assert_eq!(of(&item(entry(1, 6), entry(1, 9), known), DAY), TO_V3, "renewed by a node of v2");
        assert_eq!(of(&item(entry(2, 6), entry(1, 9), known), DAY), TO_V3, "another node of v2 has it now");
        assert_eq!(of(&item(entry(1, 5), entry(1, 10), known), DAY), TO_V2, "its node has moved");
        assert_eq!(of(&item(entry(1, 5), entry(2, 10), known), DAY), Step::Conflict);
        let moved = synced(Store::V3, 5, 9);
        assert_eq!(of(&item(entry(1, 6), entry(1, 9), moved), DAY), TO_V3, "its node has moved back");
        assert_eq!(of(&item(entry(2, 6), entry(1, 9), moved), DAY), Step::Conflict);
    }

    #[test]
    fn a_lease_ends_where_its_node_wrote_it() {
        let known = synced(Store::V2, 5, 9);
        assert_eq!(of(&item(None, entry(1, 9), known), DAY), Step::Delete { from: Store::V3 });
        assert_eq!(of(&item(entry(1, 5), None, known), DAY), TO_V3, "a copy that somebody deleted");
        let moved = synced(Store::V3, 5, 9);
        assert_eq!(of(&item(entry(1, 5), None, moved), DAY), Step::Delete { from: Store::V2 });
        assert_eq!(of(&item(None, entry(1, 9), moved), DAY), TO_V2);
        assert_eq!(of(&item(None, None, known), DAY), Step::Forget);
        let emptied = Item { wiped: Some(Store::V2), ..item(None, entry(1, 9), known) };
        assert_eq!(of(&emptied, DAY), Step::Copy { to: Store::V2, home: Store::V2 });
    }

    #[test]
    fn after_both_have_changed() {
        let known = synced(Store::V2, 5, 9);
        assert_eq!(
            of(&item(entry(1, 6), entry(1, 10), known), DAY),
            Step::Note { home: Store::V3 },
            "killed before it was noted"
        );
        assert_eq!(of(&item(entry(1, 6), entry(1, 10), known), [90_000, 86_400]), TO_V3);
        assert_eq!(of(&item(entry(1, 6), entry(2, 10), known), DAY), Step::Conflict);
        assert_eq!(of(&item(entry(1, 6), None, known), DAY), TO_V3);
        assert_eq!(of(&item(None, entry(2, 10), known), DAY), TO_V2);
    }

    #[test]
    fn a_reservation_outlives_a_lease() {
        let both = item(entry(1, 5), entry(1, 9), None);
        assert_eq!(lease(&both, [End::Never, at(9)]), TO_V3);
        assert_eq!(lease(&both, [at(9), End::Never]), TO_V2);
    }

    #[test]
    fn configurations() {
        let json = |text: &str, revision| {
            Some(Entry { value: text.as_bytes().to_vec(), ..entry(1, revision).unwrap() })
        };
        let a = r#"{"Network":"10.3.0.0/16"}"#;
        let other = r#"{"Network":"10.4.0.0/16"}"#;
        assert_eq!(config(&item(json(a, 5), None, None)), TO_V3);
        assert_eq!(config(&item(None, json(a, 5), None)), Step::Leave);
        let spaced = r#"{ "Network": "10.3.0.0/16" }"#;
        assert_eq!(config(&item(json(a, 5), json(spaced, 9), None)), Step::Note { home: Store::V2 });
        assert_eq!(config(&item(json(a, 5), json(other, 9), None)), Step::Conflict);
        let known = synced(Store::V2, 5, 9);
        assert_eq!(config(&item(json(other, 6), json(a, 9), known)), TO_V3);
        assert_eq!(
            config(&item(json(a, 5), json(other, 10), known)),
            Step::Copy { to: Store::V2, home: Store::V2 }
        );
        assert_eq!(config(&item(json(a, 6), json(other, 10), known)), Step::Conflict);
        assert_eq!(config(&item(None, json(a, 9), known)), Step::Leave, "finished, or on the way to it");
    }
}
