//! A datapath in memory: a double for tests, with failures on demand.

use std::collections::{BTreeMap, BTreeSet};

use super::{ChangeError, Datapath, ObserveError};
use crate::{
    backend::Objects,
    plan::{AnyEntry, AnyEntryKey, BpfState, Change, ObjectKey, State},
    values::Family,
};

/// Holds a [`State`] as the kernel would: what is on a device goes with it, and its neighbours go when its
/// MAC changes.
#[derive(Debug, Default)]
pub struct MemoryDatapath {
    /// What is there now.
    pub state: State,
    /// Changes of these objects fail that many times.
    pub failures: BTreeMap<ObjectKey, u32>,
    /// So many observations fail.
    pub blind: u32,
    /// Every change that was asked for, failed ones included.
    pub log: Vec<Change>,
    /// How often the whole state was read.
    pub observations: u64,
    /// How often its eBPF half alone was read.
    pub looks: u64,
    /// How often acceptance was ended.
    pub acceptance_ends: u64,
    /// So many ends of acceptance fail.
    pub acceptance_failures: u32,
}

impl MemoryDatapath {
    /// A datapath that starts with `state`.
    pub fn holding(state: State) -> Self {
        Self { state, ..Self::default() }
    }

    fn make(&mut self, change: &Change) -> Result<(), ChangeError> {
        self.log.push(change.clone());
        if let Some(left) = self.failures.get_mut(&change.key()).filter(|left| **left > 0) {
            *left -= 1;
            return Err(ChangeError::Injected);
        }
        let state = &mut self.state;
        let on_device = matches!(
            change.key(),
            ObjectKey::Address(_) | ObjectKey::Neighbour(_) | ObjectKey::Fdb(..) | ObjectKey::Route(_)
        );
        if on_device && change.device().is_none_or(|family| !state.devices.contains_key(&family)) {
            return if change.is_removal() { Ok(()) } else { Err(ChangeError::Blocked) };
        }
        match change.clone() {
            Change::PutDevice(device) => {
                let before = state.devices.insert(device.family(), device.clone());
                state.adapt(device.family(), before.as_ref(), Some(&device));
            }
            Change::DeleteDevice(family) => {
                let before = state.devices.remove(&family);
                state.adapt(family, before.as_ref(), None);
            }
            Change::PutAddress(address) => insert(&mut state.addresses, address),
            Change::DeleteAddress(address) => remove(&mut state.addresses, &address),
            Change::PutFdb { mac, public_ip } => put(&mut state.fdb, (Family::of(public_ip), mac), public_ip),
            Change::DeleteFdb { mac, public_ip } => delete(&mut state.fdb, &(Family::of(public_ip), mac)),
            Change::PutNeighbour { address, mac } => put(&mut state.neighbours, address, mac),
            Change::DeleteNeighbour(address) => delete(&mut state.neighbours, &address),
            Change::PutRoute { subnet, via } => {
                delete(&mut state.direct_routes, &subnet);
                put(&mut state.routes, subnet, via);
            }
            Change::PutDirectRoute { subnet, route } => {
                delete(&mut state.routes, &subnet);
                put(&mut state.direct_routes, subnet, route);
            }
            Change::DeleteDirectRoute { subnet, .. } => delete(&mut state.direct_routes, &subnet),
            Change::DeleteRoute { subnet, .. } => delete(&mut state.routes, &subnet),
            Change::PutObject(id, object) => put(&mut state.objects, id, object),
            Change::DeleteObject(id, _) => delete(&mut state.objects, &id),
            Change::PutEntry(AnyEntry::V4(entry)) => state.bpf.v4.put(entry),
            Change::PutEntry(AnyEntry::V6(entry)) => state.bpf.v6.put(entry),
            Change::DeleteEntry(AnyEntryKey::V4(key)) => state.bpf.v4.remove(&key),
            Change::DeleteEntry(AnyEntryKey::V6(key)) => state.bpf.v6.remove(&key),
            Change::Attach { ifindex, hook } => insert(&mut state.bpf.hooks, (ifindex, hook)),
            Change::Detach { ifindex, hook } => remove(&mut state.bpf.hooks, &(ifindex, hook)),
        }
        Ok(())
    }
}

impl Datapath for MemoryDatapath {
    async fn observe(&mut self) -> Result<State, ObserveError> {
        self.observations += 1;
        if self.blind > 0 {
            self.blind -= 1;
            return Err(ObserveError::Injected);
        }
        Ok(self.state.clone())
    }

    async fn observe_bpf(&mut self) -> Result<Option<BpfState>, ObserveError> {
        self.looks += 1;
        Ok(Some(self.state.bpf.clone()))
    }

    async fn observe_objects(&mut self) -> Result<Option<Objects>, ObserveError> {
        Ok(Some(self.state.objects.clone()))
    }

    async fn end_acceptance(&mut self) -> Result<(), ChangeError> {
        if self.acceptance_failures > 0 {
            self.acceptance_failures -= 1;
            return Err(ChangeError::Injected);
        }
        self.acceptance_ends += 1;
        Ok(())
    }

    async fn apply(&mut self, changes: &[Change]) -> Vec<Result<(), ChangeError>> {
        changes.iter().map(|change| self.make(change)).collect()
    }
}

fn put<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: V) {
    map.insert(key, value);
}

fn delete<K: Ord, V>(map: &mut BTreeMap<K, V>, key: &K) {
    map.remove(key);
}

fn insert<T: Ord>(set: &mut BTreeSet<T>, item: T) {
    set.insert(item);
}

fn remove<T: Ord>(set: &mut BTreeSet<T>, item: &T) {
    set.remove(item);
}
