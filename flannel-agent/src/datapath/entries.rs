//! The entries of plans in the maps of the programs.

use std::{collections::BTreeSet, mem::discriminant};

use tracing::debug;

use crate::{
    bpf::{FamilyTables, MapFault, TrieFamily},
    plan::{Change, Entry, EntryFamily, EntryKey, Maps, ObjectKey},
};

/// What the maps of a family hold.
pub(super) fn read<F: TrieFamily>(tables: &FamilyTables<F>) -> Result<Maps<F>, MapFault> {
    Ok(Maps {
        config: tables.config.get()?,
        routes: tables.routes.entries()?,
        vteps: tables.vteps.entries()?,
        pods: tables.pods.entries()?,
        exempt: tables.exempt.entries()?,
    })
}

/// Writes the entries of this family among `changes`, in their order, many at once where a cluster has many; one result
/// for each.
pub(super) fn put<F: TrieFamily + EntryFamily>(
    tables: &mut FamilyTables<F>,
    changes: &[Change],
) -> Vec<Result<(), MapFault>> {
    let entry = |change: &Change| match change {
        Change::PutEntry(entry) => F::entry(*entry),
        _ => None,
    };
    let entries: Vec<Entry<F>> = changes.iter().filter_map(entry).collect();
    let mut results = Vec::with_capacity(entries.len());
    for run in entries.chunk_by(|a, b| discriminant(a) == discriminant(b)) {
        match run[0] {
            Entry::Route(..) => {
                let routes = run.iter().filter_map(|entry| match entry {
                    Entry::Route(subnet, route) => Some((*subnet, *route)),
                    _ => None,
                });
                results.extend(tables.routes.put_all(&routes.collect::<Vec<_>>()));
            }
            Entry::Vtep(..) => {
                let vteps = run.iter().filter_map(|entry| match entry {
                    Entry::Vtep(address, vtep) => Some((*address, *vtep)),
                    _ => None,
                });
                results.extend(tables.vteps.put_all(&vteps.collect::<Vec<_>>()));
            }
            _ => results.extend(run.iter().map(|entry| put_one(tables, entry))),
        }
    }
    results
}

fn put_one<F: TrieFamily>(tables: &mut FamilyTables<F>, entry: &Entry<F>) -> Result<(), MapFault> {
    match entry {
        Entry::Config(config) => tables.config.put(config),
        Entry::Route(subnet, route) => tables.routes.put(subnet, route),
        Entry::Vtep(address, vtep) => tables.vteps.put(address, vtep),
        Entry::Pod(address, place) => tables.pods.put(address, place),
        Entry::Exempt(prefix, why) => tables.exempt.put(prefix, why),
    }
}

/// Removes an entry; one that is absent is gone already.
pub(super) fn delete<F: TrieFamily>(tables: &mut FamilyTables<F>, key: &EntryKey<F>) -> Result<(), MapFault> {
    match key {
        EntryKey::Config => tables.config.clear(),
        EntryKey::Route(subnet) => tables.routes.remove(subnet),
        // What the programs have noted of it goes along.
        EntryKey::Vtep(address) => tables.vteps.remove(address).and_then(|()| tables.tunnels.remove(address)),
        EntryKey::Pod(address) => tables.pods.remove(address),
        EntryKey::Exempt(prefix) => tables.exempt.remove(prefix),
    }
}

/// Removes the flows of pods that `changes` are about. None of them lets a packet skip the stack any more, since they
/// name another veth, so what cannot be removed only takes up room until the map needs it.
pub(super) fn forget_flows<F: TrieFamily + EntryFamily>(tables: &mut FamilyTables<F>, changes: &[Change]) {
    let pod = |change: &Change| match change.key() {
        ObjectKey::Entry(key) => match F::key(key)? {
            EntryKey::Pod(address) => Some(address),
            _ => None,
        },
        _ => None,
    };
    let moved: BTreeSet<F::Address> = changes.iter().filter_map(pod).collect();
    if moved.is_empty() {
        return;
    }
    match tables.flows.remove_all(|flow| moved.contains(&flow.local) || moved.contains(&flow.remote)) {
        Ok(0) => {}
        Ok(flows) => debug!(flows, "forgot flows of pods that are gone"),
        Err(error) => debug!(%error, "flows of pods that are gone stay until their room is needed"),
    }
}
