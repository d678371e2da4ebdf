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

/// The counters of the programs.
pub struct Counters(PerCpuArray<MapData, [u64; 2]>);

impl Counters {
    /// Those pinned at `pins`. Works without a running agent.
    ///
    /// # Errors
    /// When the map is not there or cannot be read.
    pub fn open(pins: &Pins) -> Result<Self, MapFault> {
        let failed = |error| MapFault::Kernel { map: COUNTERS, error };
        let map = MapData::from_pin(pins.map(COUNTERS)).map_err(failed)?;
        Ok(Self(PerCpuArray::try_from(Map::PerCpuArray(map)).map_err(failed)?))
    }

    /// What went one way for one reason.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn of(&self, direction: Direction, reason: Reason) -> Result<Traffic, MapFault> {
        let cpus = self.0.get(&slot(direction, reason), 0);
        let cpus = cpus.map_err(|error| MapFault::Kernel { map: COUNTERS, error })?;
        let (packets, bytes) = cpus.iter().fold((0u64, 0u64), |(p, b), [packets, bytes]| {
            (p.wrapping_add(*packets), b.wrapping_add(*bytes))
        });
        Ok(Traffic { direction, reason, packets, bytes })
    }
}

/// The counters pinned at `pins`: every direction and reason, those at zero included. Works without a
/// running agent.
///
/// # Errors
/// As those of [`Counters`].
pub fn read(pins: &Pins) -> Result<Vec<Traffic>, MapFault> {
    let counters = Counters::open(pins)?;
    let rows = Direction::ALL.into_iter().flat_map(|direction| {
        let reasons = Reason::ALL.iter().copied();
        reasons.map(move |reason| (direction, reason))
    });
    rows.map(|(direction, reason)| counters.of(direction, reason)).collect()
}
