//! What stood at our key when it was last looked at: the condition of the next write.

use etcd_client::{Compare, CompareOp};

use super::entry::{End, Entry};

/// What stands at our key, as far as we know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// Revision of the last write; 0 when there is nothing.
    pub(super) revision: i64,
    /// What was written. The revision alone does not tell one store from another put in its place.
    pub(super) value: Vec<u8>,
    /// It is a reservation: a key that an administrator made without an end.
    pub(super) permanent: bool,
}

impl Seen {
    pub(super) fn of(kv: &Entry) -> Self {
        Self { revision: kv.revision, value: kv.value.clone(), permanent: kv.end == End::Never }
    }

    /// The condition of a transaction that nothing has changed.
    pub(super) fn still(&self, key: &str) -> Vec<Compare> {
        match self.revision {
            0 => vec![Compare::version(key, CompareOp::Equal, 0)],
            revision => vec![
                Compare::mod_revision(key, CompareOp::Equal, revision),
                Compare::value(key, CompareOp::Equal, self.value.clone()),
            ],
        }
    }
}
