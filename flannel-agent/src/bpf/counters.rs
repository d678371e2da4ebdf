//! Traffic by direction and reason, summed over CPUs.

use aya::maps::{Map, MapData, PerCpuArray};
use flannel_common::{
    map::COUNTERS,
    reason::{Direction, Reason, slot},
};

use super::{MapFault, Pins};

/// One row: what went one way for one reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// Which way.
    pub direction: Direction,
    /// Why.
    pub reason: Reason,
    /// Packets as on the wire.
    pub packets: u64,
    /// Bytes of their frames.
    pub bytes: u64,
}

/// The counters pinned at `pins`: every direction and reason, those at zero included. Works without a
/// running agent.
///
/// # Errors
/// When the map is not there or cannot be read.
pub fn read(pins: &Pins) -> Result<Vec<Traffic>, MapFault> {
    let failed = |error| MapFault::Kernel { map: COUNTERS, error };
    let map = MapData::from_pin(pins.map(COUNTERS)).map_err(failed)?;
    let map: PerCpuArray<MapData, [u64; 2]> = PerCpuArray::try_from(Map::PerCpuArray(map)).map_err(failed)?;
    let mut rows = Vec::new();
    for direction in Direction::ALL {
        for reason in Reason::ALL.iter().copied() {
            let cpus = map.get(&slot(direction, reason), 0).map_err(failed)?;
            let (packets, bytes) = cpus.iter().fold((0u64, 0u64), |(p, b), [packets, bytes]| {
                (p.wrapping_add(*packets), b.wrapping_add(*bytes))
            });
            rows.push(Traffic { direction, reason, packets, bytes });
        }
    }
    Ok(rows)
}
