//! How many entries each map has room for: what a map has room for is memory of the agent's control group, used or not.

use std::collections::BTreeMap;

use aya::maps::MapInfo;
use flannel_common::{
    layout::FastPath,
    map::{
        CONFIG_V4, CONFIG_V6, COUNTERS, FLOWS_V4, FLOWS_V6, FORWARDERS, HOLD, MAX_EXEMPT, MAX_FLOWS,
        MAX_PEERS, MAX_PODS, MAX_TRANSLATIONS, PODS_V4, PODS_V6, ROUTES_V4, ROUTES_V6, SNAT_EXEMPT_V4,
        SNAT_EXEMPT_V6, TRANSLATIONS_V4, TRANSLATIONS_V6, TUNNELS_V4, TUNNELS_V6, VTEPS_V4, VTEPS_V6,
    },
    reason,
};

use super::{Pins, Tables};

/// For a map that nothing is written to: the kernel makes none without an entry.
const UNUSED: u32 = 1;

/// What the maps have room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapSizes {
    v4: FamilySizes,
    v6: FamilySizes,
}

/// What the maps of one family have room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FamilySizes {
    /// Subnets of other nodes.
    routes: u32,
    flows: u32,
}

impl Default for MapSizes {
    /// Everything, as the object has it.
    fn default() -> Self {
        let all = FamilySizes { routes: MAX_PEERS, flows: MAX_FLOWS };
        Self { v4: all, v6: all }
    }
}

impl MapSizes {
    /// What a node needs that is in a network of these families, has packets skip the host's stack by `fast_path`, and
    /// is to remember `flows` of each family.
    pub fn of(fast_path: FastPath, has_v4: bool, has_v6: bool, flows: u32) -> Self {
        let if_needed = |needed: bool, entries: u32| if needed { entries } else { UNUSED };
        let remembers = fast_path == FastPath::Flow;
        let of_family = |is_used: bool| FamilySizes {
            routes: if_needed(is_used, MAX_PEERS),
            flows: if_needed(is_used && remembers, flows),
        };
        Self { v4: of_family(has_v4), v6: of_family(has_v6) }
    }

    /// The number of entries of a pinned map; `None` for a name that none has.
    pub(super) fn entries(&self, map: &str) -> Option<u32> {
        Some(match map {
            ROUTES_V4 | VTEPS_V4 | TUNNELS_V4 => self.v4.routes,
            ROUTES_V6 | VTEPS_V6 | TUNNELS_V6 => self.v6.routes,
            FLOWS_V4 => self.v4.flows,
            FLOWS_V6 => self.v6.flows,
            // Their memory is that of the entries there are.
            PODS_V4 | PODS_V6 | FORWARDERS => MAX_PODS,
            // Where no flow is remembered, none is translated.
            TRANSLATIONS_V4 => self.v4.flows.min(MAX_TRANSLATIONS),
            TRANSLATIONS_V6 => self.v6.flows.min(MAX_TRANSLATIONS),
            SNAT_EXEMPT_V4 | SNAT_EXEMPT_V6 => MAX_EXEMPT,
            CONFIG_V4 | CONFIG_V6 | HOLD => 1,
            COUNTERS => reason::COUNTERS,
            _ => return None,
        })
    }
}

/// How full a map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapSize {
    /// Entries there are.
    pub entries: usize,
    /// Entries there is room for.
    pub capacity: u32,
}

/// How full each map is that is pinned at `pins` and whose entries come and go; one that cannot be read is left out.
pub fn map_sizes(pins: &Pins) -> BTreeMap<&'static str, MapSize> {
    let Ok(tables) = Tables::open(pins) else { return BTreeMap::new() };
    let size = |(map, entries)| {
        let capacity = MapInfo::from_pin(pins.map(map)).ok()?.max_entries();
        Some((map, MapSize { entries, capacity }))
    };
    tables.counts().into_iter().filter_map(size).collect()
}

#[cfg(test)]
mod tests {
    use flannel_common::map::PINNED_MAPS;

    use super::*;

    #[test]
    fn what_a_node_does_not_use_has_no_room() {
        let flows = |sizes: MapSizes| (sizes.entries(FLOWS_V4), sizes.entries(FLOWS_V6));
        let peers = |sizes: MapSizes| (sizes.entries(ROUTES_V4), sizes.entries(VTEPS_V6));
        let v4 = MapSizes::of(FastPath::Flow, true, false, 4_096);
        assert_eq!((flows(v4), peers(v4)), ((Some(4_096), Some(1)), (Some(MAX_PEERS), Some(1))));
        let v6 = MapSizes::of(FastPath::Flow, false, true, 4_096);
        assert_eq!((flows(v6), peers(v6)), ((Some(1), Some(4_096)), (Some(1), Some(MAX_PEERS))));
        for fast_path in [FastPath::Overlay, FastPath::All, FastPath::Off] {
            let both = MapSizes::of(fast_path, true, true, 4_096);
            assert_eq!((flows(both), peers(both)), ((Some(1), Some(1)), (Some(MAX_PEERS), Some(MAX_PEERS))));
        }
        for map in PINNED_MAPS {
            assert!(MapSizes::default().entries(map).is_some(), "{map} has no size");
        }
    }
}
