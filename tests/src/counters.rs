//! What a node's programs counted.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context as _, Result};
use aya::maps::{Map, MapData, PerCpuArray};
use flannel_common::map;

/// Packets and bytes of one counter, over all CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets as on the wire: a GSO aggregate counts its segments.
    pub packets: u64,
    /// Bytes, Ethernet header included.
    pub bytes: u64,
}

/// Every slot of the counters pinned below `bpffs`, by its number; those that are zero left out.
pub fn read(bpffs: &Path) -> Result<BTreeMap<u32, Count>> {
    let path = bpffs.join(map::PIN_DIRECTORY).join(map::LAYOUT_VERSION).join("maps").join(map::COUNTERS);
    let data = MapData::from_pin(&path).with_context(|| format!("open {}", path.display()))?;
    let array: PerCpuArray<_, [u64; 2]> =
        Map::PerCpuArray(data).try_into().with_context(|| format!("{} is no counter", path.display()))?;
    let mut counts = BTreeMap::new();
    for slot in 0..array.len() {
        let mut sum = Count::default();
        for [packets, bytes] in array.get(&slot, 0).with_context(|| format!("read slot {slot}"))?.iter() {
            sum.packets += packets;
            sum.bytes += bytes;
        }
        if sum != Count::default() {
            counts.insert(slot, sum);
        }
    }
    Ok(counts)
}
