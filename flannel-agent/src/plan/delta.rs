//! The steps from an observed state to the desired one.

use std::collections::BTreeMap;

use super::{BpfState, Change, Entry, EntryFamily, EntryKey, Maps, State, VxlanDevice};
use crate::values::Family;

/// The changes that lead from `observed` to `desired`, in an order in which no packet is lost that
/// either state would deliver:
///
/// - what packets need comes before what sends them there: a forwarding entry before the neighbour that
///   resolves to its MAC, both before the route, and the kernel path before the programs that skip it;
/// - everything new is in place before anything old goes, and what goes, goes in the opposite order.
///
/// Empty exactly when the states are equal.
pub fn delta(desired: &State, observed: &State) -> Vec<Change> {
    let on_device = left_on_devices(desired, observed);
    let mut changes = Vec::new();
    changes.extend(
        news(&desired.devices, &observed.devices).map(|(_, device)| Change::PutDevice(device.clone())),
    );
    changes.extend(desired.addresses.difference(&on_device.addresses).copied().map(Change::PutAddress));
    changes.extend(
        news(&desired.fdb, &on_device.fdb).map(|(&(_, mac), &public_ip)| Change::PutFdb { mac, public_ip }),
    );
    changes.extend(
        news(&desired.neighbours, &on_device.neighbours)
            .map(|(&address, &mac)| Change::PutNeighbour { address, mac }),
    );
    changes.extend(
        news(&desired.routes, &on_device.routes).map(|(&subnet, &via)| Change::PutRoute { subnet, via }),
    );
    changes.extend(
        news(&desired.direct_routes, &observed.direct_routes)
            .map(|(&subnet, &route)| Change::PutDirectRoute { subnet, route }),
    );
    let put_objects = news(&desired.objects, &observed.objects);
    changes.extend(put_objects.map(|(id, object)| Change::PutObject(*id, object.clone())));
    put_bpf(&mut changes, &desired.bpf, &observed.bpf);

    delete_bpf(&mut changes, &desired.bpf, &observed.bpf);
    // In the opposite order of their stages.
    let gone_objects: Vec<_> = gone(&desired.objects, &observed.objects).collect();
    let gone_objects = gone_objects.into_iter().rev();
    changes.extend(gone_objects.map(|(id, object)| Change::DeleteObject(*id, object.clone())));
    changes.extend(
        gone(&desired.direct_routes, &observed.direct_routes)
            .map(|(&subnet, &route)| Change::DeleteDirectRoute { subnet, route }),
    );
    changes
        .extend(gone(&desired.devices, &observed.devices).map(|(&family, _)| Change::DeleteDevice(family)));
    changes.extend(
        gone(&desired.routes, &on_device.routes).map(|(&subnet, &via)| Change::DeleteRoute { subnet, via }),
    );
    changes.extend(
        gone(&desired.neighbours, &on_device.neighbours)
            .map(|(&address, _)| Change::DeleteNeighbour(address)),
    );
    changes.extend(
        gone(&desired.fdb, &on_device.fdb)
            .map(|(&(_, mac), &public_ip)| Change::DeleteFdb { mac, public_ip }),
    );
    changes.extend(on_device.addresses.difference(&desired.addresses).copied().map(Change::DeleteAddress));
    changes
}

fn put_bpf(changes: &mut Vec<Change>, desired: &BpfState, observed: &BpfState) {
    put_entries(changes, &desired.v4, &observed.v4);
    put_entries(changes, &desired.v6, &observed.v6);
    changes.extend(
        desired.hooks.difference(&observed.hooks).map(|&(ifindex, hook)| Change::Attach { ifindex, hook }),
    );
}

fn delete_bpf(changes: &mut Vec<Change>, desired: &BpfState, observed: &BpfState) {
    changes.extend(
        observed.hooks.difference(&desired.hooks).map(|&(ifindex, hook)| Change::Detach { ifindex, hook }),
    );
    delete_entries(changes, &desired.v6, &observed.v6);
    delete_entries(changes, &desired.v4, &observed.v4);
}

/// In the order in which the programs need them.
fn put_entries<F: EntryFamily>(changes: &mut Vec<Change>, desired: &Maps<F>, observed: &Maps<F>) {
    let mut put = |entry: Entry<F>| changes.push(Change::PutEntry(F::any(entry)));
    news(&desired.routes, &observed.routes).for_each(|(subnet, route)| put(Entry::Route(*subnet, *route)));
    news(&desired.vteps, &observed.vteps).for_each(|(address, vtep)| put(Entry::Vtep(*address, *vtep)));
    news(&desired.pods, &observed.pods).for_each(|(address, place)| put(Entry::Pod(*address, *place)));
    news(&desired.exempt, &observed.exempt).for_each(|(prefix, why)| put(Entry::Exempt(*prefix, *why)));
    // Last: with it the programs act, and XDP drops what comes from a VTEP it does not know.
    if desired.config != observed.config {
        desired.config.map(Entry::Config).into_iter().for_each(put);
    }
}

/// In the opposite order: without the configuration the programs touch no packet.
fn delete_entries<F: EntryFamily>(changes: &mut Vec<Change>, desired: &Maps<F>, observed: &Maps<F>) {
    let mut delete = |key: EntryKey<F>| changes.push(Change::DeleteEntry(F::any_key(key)));
    if desired.config.is_none() && observed.config.is_some() {
        delete(EntryKey::Config);
    }
    gone(&desired.exempt, &observed.exempt).for_each(|(prefix, _)| delete(EntryKey::Exempt(*prefix)));
    gone(&desired.pods, &observed.pods).for_each(|(address, _)| delete(EntryKey::Pod(*address)));
    gone(&desired.vteps, &observed.vteps).for_each(|(address, _)| delete(EntryKey::Vtep(*address)));
    gone(&desired.routes, &observed.routes).for_each(|(subnet, _)| delete(EntryKey::Route(*subnet)));
}

/// The entries of `desired` that `observed` lacks or has otherwise.
fn news<'a, K: Ord, V: PartialEq>(
    desired: &'a BTreeMap<K, V>,
    observed: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, &'a V)> {
    desired.iter().filter(|(key, value)| observed.get(key) != Some(*value))
}

/// The entries of `observed` that have no counterpart in `desired`.
fn gone<'a, K: Ord, V>(
    desired: &'a BTreeMap<K, V>,
    observed: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, &'a V)> {
    observed.iter().filter(|(key, _)| !desired.contains_key(key))
}

/// What is still on the devices when they have become as desired.
fn left_on_devices(desired: &State, observed: &State) -> State {
    let mut left = State {
        addresses: observed.addresses.clone(),
        neighbours: observed.neighbours.clone(),
        fdb: observed.fdb.clone(),
        routes: observed.routes.clone(),
        ..State::default()
    };
    for family in Family::BOTH {
        left.adapt(family, observed.devices.get(&family), desired.devices.get(&family));
    }
    left
}

impl State {
    /// Takes away what the kernel drops when the device `before` of `family` becomes `after`: everything with a
    /// device that goes, the neighbours with its MAC.
    pub(crate) fn adapt(
        &mut self,
        family: Family,
        before: Option<&VxlanDevice>,
        after: Option<&VxlanDevice>,
    ) {
        let stays = match (before, after) {
            (Some(before), Some(after)) if after.is_compatible(before) => {
                if before.mac == after.mac {
                    return;
                }
                true
            }
            // What is observed without a device of ours is on one that we have given up.
            (None, None) => return,
            _ => false,
        };
        self.neighbours.retain(|address, _| Family::of(*address) != family);
        if !stays {
            self.addresses.retain(|address| Family::of_network(*address) != family);
            self.fdb.retain(|(of, _), _| *of != family);
            self.routes.retain(|subnet, _| Family::of_network(*subnet) != family);
        }
    }
}
