//! How full the maps are.

use aya::maps::MapInfo;
use flannel_common::map::{
    FLOWS_V4, FLOWS_V6, FORWARDERS, PODS_V4, PODS_V6, ROUTES_V4, ROUTES_V6, SNAT_EXEMPT_V4, SNAT_EXEMPT_V6,
    TRANSLATIONS_V4, TRANSLATIONS_V6, TUNNELS_V4, TUNNELS_V6, VTEPS_V4, VTEPS_V6,
};

use super::{FamilyTables, MapFault, Pins, Tables, TrieFamily};

/// How full a map is.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct MapFill {
    /// Its name.
    pub map: &'static str,
    /// Entries there are.
    pub entries: usize,
    /// Entries there is room for.
    pub room: usize,
    /// A full map drops what was idle longest, instead of refusing what is new.
    pub forgets: bool,
}

impl MapFill {
    /// How full it is, 0 to 1.
    pub fn ratio(&self) -> f64 {
        if self.room == 0 { 0.0 } else { self.entries as f64 / self.room as f64 }
    }
}

/// How full each of the maps pinned at `pins` is, of those that are used. The entries are counted by reading them.
///
/// # Errors
/// When a map is not there or cannot be read.
pub fn fill(pins: &Pins, tables: &Tables) -> Result<Vec<MapFill>, MapFault> {
    let mut counted = Vec::new();
    of_family(
        &tables.v4,
        [ROUTES_V4, VTEPS_V4, PODS_V4, SNAT_EXEMPT_V4, FLOWS_V4, TRANSLATIONS_V4, TUNNELS_V4],
        &mut counted,
    )?;
    of_family(
        &tables.v6,
        [ROUTES_V6, VTEPS_V6, PODS_V6, SNAT_EXEMPT_V6, FLOWS_V6, TRANSLATIONS_V6, TUNNELS_V6],
        &mut counted,
    )?;
    counted.push((FORWARDERS, tables.forwarders.entries()?.len()));
    let mut fills = Vec::new();
    for (map, entries) in counted {
        let info = MapInfo::from_pin(pins.map(map)).map_err(|error| MapFault::Kernel { map, error })?;
        let room = info.max_entries() as usize;
        // Those of a family that the cluster has not have no room for anything.
        if room > 1 {
            fills.push(MapFill {
                map,
                entries,
                room,
                forgets: matches!(map, FLOWS_V4 | FLOWS_V6 | FORWARDERS),
            });
        }
    }
    Ok(fills)
}

fn of_family<F: TrieFamily>(
    tables: &FamilyTables<F>,
    [routes, vteps, pods, exempt, flows, translations, tunnels]: [&'static str; 7],
    counted: &mut Vec<(&'static str, usize)>,
) -> Result<(), MapFault> {
    counted.extend([
        (routes, tables.routes.entries()?.len()),
        (vteps, tables.vteps.entries()?.len()),
        (pods, tables.pods.entries()?.len()),
        (exempt, tables.exempt.entries()?.len()),
        (flows, tables.flows.entries()?.len()),
        (translations, tables.translations.entries()?.len()),
        (tunnels, tables.tunnels.entries()?.len()),
    ]);
    Ok(())
}
