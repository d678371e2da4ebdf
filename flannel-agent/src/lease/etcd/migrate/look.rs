//! What an operator sees of the migration.

use std::{net::IpAddr, time::SystemTime};

use super::{
    decide::Step,
    item::{Item, Name, Store, attrs},
};
use crate::lease::etcd::entry::End;

/// What there is, and what would be done.
#[derive(Clone, Debug, Default)]
pub struct Look {
    /// Leases, then the configuration.
    pub rows: Vec<Row>,
    /// What an operator has to resolve.
    pub conflicts: Vec<String>,
}

/// One key.
#[derive(Clone, Debug)]
pub struct Row {
    /// The subnet that is leased, or `config`.
    pub name: String,
    /// The node that holds it.
    pub node: Option<IpAddr>,
    /// What v2 and v3 have.
    pub stores: [Held; 2],
    /// Where its node keeps it, as far as is known; `None` for what is in one store only and was never copied.
    pub home: Option<Store>,
    /// What is to be done about it.
    pub to_do: &'static str,
}

/// Whether a store has a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// It has not.
    Absent,
    /// It has, without end.
    Reserved,
    /// It has, until then.
    Until(SystemTime),
}

impl Row {
    pub(super) fn new(name: &Name, item: &Item, ends: [End; 2], step: &Step, conflicts: bool) -> Self {
        let held = |store: Store| match (item.of(store), ends[store as usize]) {
            (None, _) => Held::Absent,
            (Some(_), End::At(end)) => Held::Until(end),
            (Some(_), End::Never | End::Lease(_)) => Held::Reserved,
        };
        let entry = item.v3.as_ref().or(item.v2.as_ref());
        Self {
            name: match name {
                Name::Config => "config".to_owned(),
                Name::Lease(key) => name.subnet().map_or_else(|| key.clone(), |subnet| subnet.to_string()),
            },
            node: entry.and_then(attrs).and_then(|attrs| attrs.node_address()),
            stores: [held(Store::V2), held(Store::V3)],
            home: item.synced.map(|synced| synced.home),
            to_do: if conflicts { "resolve the conflict" } else { step.label() },
        }
    }

    /// Whether it is a lease that ends.
    pub fn ends(&self) -> bool {
        self.name != "config" && !self.stores.contains(&Held::Reserved)
    }
}

impl Step {
    /// As people read it.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Self::None => "nothing",
            Self::Copy { to: Store::V3, .. } => "copy to v3",
            Self::Copy { to: Store::V2, .. } => "copy to v2",
            Self::Delete { from: Store::V3 } => "delete from v3",
            Self::Delete { from: Store::V2 } => "delete from v2",
            Self::Note { .. } | Self::Forget => "note it",
            Self::Leave => "leave it",
            Self::Conflict => "resolve the conflict",
        }
    }
}
