//! What the programs tell of packets, read by whoever looks.

use std::{collections::BTreeMap, time::Duration};

use aya::maps::{Array, Map, MapData, MapError, PerCpuArray, PerCpuHashMap, PerCpuValues, RingBuf};
use flannel_common::{
    layout::{
        Counter,
        trace::{TRACE_OFF, TraceFilter, TraceKey, TraceRecord, TraceState},
    },
    map::{TRACE_FILTER, TRACE_RING, TRACE_STATE, TRACE_SUMS},
};
use tokio::time::sleep;

use super::{MapFault, TraceMapIds, raw::Raw};

/// How often the ring is looked at: it has room for what comes meanwhile, and a person sees no delay.
const LOOK: Duration = Duration::from_millis(10);

/// Packets that were not told of, since what is wanted was said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Untold {
    /// For the rate's sake.
    pub limited: u64,
    /// For lack of room in the ring.
    pub lost: u64,
}

/// The maps of the programs that tell of packets.
pub struct TraceMaps {
    filter: Array<MapData, Raw<TraceFilter>>,
    ring: RingBuf<MapData>,
    sums: PerCpuHashMap<MapData, Raw<TraceKey>, [u64; 2]>,
    state: PerCpuArray<MapData, Raw<TraceState>>,
}

fn fault(map: &'static str) -> impl Fn(MapError) -> MapFault {
    move |error| MapFault::Kernel { map, error }
}

impl TraceMaps {
    /// Those of these ids.
    ///
    /// # Errors
    /// When one is gone, or another than it should be.
    pub fn open(ids: TraceMapIds) -> Result<Self, MapFault> {
        let open = |map, id| MapData::from_id(id).map_err(fault(map));
        let filter = Map::Array(open(TRACE_FILTER, ids.filter)?);
        let ring = Map::RingBuf(open(TRACE_RING, ids.ring)?);
        let sums = Map::PerCpuLruHashMap(open(TRACE_SUMS, ids.sums)?);
        let state = Map::PerCpuArray(open(TRACE_STATE, ids.state)?);
        Ok(Self {
            filter: Array::try_from(filter).map_err(fault(TRACE_FILTER))?,
            ring: RingBuf::try_from(ring).map_err(fault(TRACE_RING))?,
            sums: PerCpuHashMap::try_from(sums).map_err(fault(TRACE_SUMS))?,
            state: PerCpuArray::try_from(state).map_err(fault(TRACE_STATE))?,
        })
    }

    /// From now on, the programs tell of what `filter` says. What they told whoever looked before, and was not read, is
    /// forgotten.
    ///
    /// # Errors
    /// When the kernel does not take it.
    pub fn want(&mut self, filter: &TraceFilter) -> Result<(), MapFault> {
        self.stop()?;
        while self.ring.next().is_some() {}
        // Neither what counted against their rate nor what was not told to them is ours.
        let cpus = self.state.get(&0, 0).map_err(fault(TRACE_STATE))?.len();
        let anew = PerCpuValues::try_from(vec![Raw::of(TraceState::default()); cpus]);
        let anew = anew.map_err(|error| fault(TRACE_STATE)(error.into()))?;
        self.state.set(0, anew, 0).map_err(fault(TRACE_STATE))?;
        self.set(filter)
    }

    fn set(&mut self, filter: &TraceFilter) -> Result<(), MapFault> {
        self.filter.set(0, Raw::of(*filter), 0).map_err(fault(TRACE_FILTER))
    }

    /// They tell of nothing any more.
    ///
    /// # Errors
    /// As those of [`Self::want`].
    pub fn stop(&mut self) -> Result<(), MapFault> {
        self.set(&TraceFilter { mode: TRACE_OFF, ..TraceFilter::default() })
    }

    /// The packets since this was last asked, once there is one; those of one CPU in their order. Cancel safe. Needs a Tokio
    /// runtime.
    pub async fn records(&mut self) -> Vec<TraceRecord> {
        loop {
            let records = self.told();
            if !records.is_empty() {
                return records;
            }
            sleep(LOOK).await;
        }
    }

    /// The same as far as there are any already.
    pub fn told(&mut self) -> Vec<TraceRecord> {
        let mut records = Vec::new();
        while let Some(item) = self.ring.next() {
            // A record of another length is none.
            records.extend(bytemuck::try_pod_read_unaligned::<TraceRecord>(&item).ok());
        }
        records
    }

    /// Packets and bytes by what they are told apart by, over all CPUs, since the beginning. One that gives way to another
    /// meanwhile is left out.
    pub fn sums(&self) -> BTreeMap<TraceKey, Counter> {
        let mut sums = BTreeMap::new();
        for (key, cpus) in self.sums.iter().flatten() {
            let Some(key) = key.value() else { continue };
            let sum = cpus.iter().fold(Counter::default(), |sum, [packets, bytes]| Counter {
                packets: sum.packets.wrapping_add(*packets),
                bytes: sum.bytes.wrapping_add(*bytes),
            });
            sums.insert(key, sum);
        }
        sums
    }

    /// The packets that were not told of since [`Self::want`].
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn untold(&self) -> Result<Untold, MapFault> {
        let cpus = self.state.get(&0, 0).map_err(fault(TRACE_STATE))?;
        let states = cpus.iter().filter_map(Raw::value);
        Ok(states.fold(Untold::default(), |sum, state| Untold {
            limited: sum.limited + state.limited,
            lost: sum.lost + state.lost,
        }))
    }
}
