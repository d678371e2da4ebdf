//! What contradicts itself between the stores: an operator has to say which of both counts.

use std::{collections::BTreeMap, net::IpAddr};

use super::{
    super::ctl::Etcdctl,
    item::{Item, Name, Store, attrs},
    stores::{Items, Stores},
};
use crate::lease::LeaseSubnet;

/// Says what is wrong and what to type.
pub(super) struct Judge<'a> {
    pub(super) stores: &'a Stores,
    pub(super) ctl: [&'a Etcdctl; 2],
}

impl Judge<'_> {
    /// The two stores have something else under one key.
    pub(super) fn of_one_key(&self, name: &Name, item: &Item) -> String {
        let Some(subnet) = name.subnet() else {
            return format!(
                "the network configs of v2 and v3 differ: write the right one to the store that has the wrong one, or \
                 delete it there: {}; {}",
                self.removal(Store::V2, name),
                self.removal(Store::V3, name)
            );
        };
        let (v2, v3) = (holder(item, Store::V2), holder(item, Store::V3));
        format!(
            "{subnet} is leased to {} in v2 and to {} in v3: stop flannel on the node that is to get another subnet, and \
             delete its lease: {}; {}",
            text(v2),
            text(v3),
            self.removal(Store::V2, name),
            self.removal(Store::V3, name)
        )
    }

    /// Leases of one store that exclude leases of the other under other keys.
    pub(super) fn between_keys(&self, items: &Items) -> BTreeMap<Name, String> {
        let only = |store: Store| -> Vec<(&Name, LeaseSubnet, Option<IpAddr>)> {
            let there = |item: &Item| item.of(store).is_some() && item.of(store.other()).is_none();
            let of = |(name, item)| Some((name, Name::subnet(name)?, holder(item, store)));
            items.iter().filter(|(_, item)| there(item)).filter_map(of).collect()
        };
        let (only_v2, only_v3) = (only(Store::V2), only(Store::V3));
        let mut found = BTreeMap::new();
        for (name, subnet, node) in &only_v2 {
            for (other_name, other, other_node) in &only_v3 {
                let one_node = node.is_some() && node == other_node;
                if !one_node && !subnet.overlaps(other) {
                    continue;
                }
                let what = match one_node {
                    true => format!(
                        "node {} holds {subnet} in v2 and {other} in v3: delete the one that is not in its \
                         /run/flannel/subnet.env",
                        text(*node)
                    ),
                    false => format!(
                        "{subnet} of {} in v2 and {other} of {} in v3 overlap: stop flannel on the node that is to get \
                         another subnet, and delete its lease",
                        text(*node),
                        text(*other_node)
                    ),
                };
                let (v2, v3) = (self.removal(Store::V2, name), self.removal(Store::V3, other_name));
                let what = format!("{what}: {v2}; {v3}");
                found.insert((*name).clone(), what.clone());
                found.insert((*other_name).clone(), what);
            }
        }
        found
    }

    fn removal(&self, store: Store, name: &Name) -> String {
        self.ctl[store as usize].for_removal(store == Store::V2, &self.stores.key(name))
    }
}

fn holder(item: &Item, store: Store) -> Option<IpAddr> {
    item.of(store).and_then(attrs).and_then(|attrs| attrs.node_address())
}

fn text(node: Option<IpAddr>) -> String {
    node.map_or_else(|| "somebody whose lease cannot be read".to_owned(), |node| node.to_string())
}
