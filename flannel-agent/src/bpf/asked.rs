//! Flows about which the programs ask the agent how netfilter translates them.

use std::time::Duration;

use aya::{
    Ebpf,
    maps::{MapData, RingBuf},
};
use bytemuck::{CheckedBitPattern, checked};
use flannel_common::{
    family::{V4, V6},
    layout::Flow,
    map::{ASKED_V4, ASKED_V6},
};
use tokio::time::sleep;

use super::LoadError;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(50);
/// The most that are told at once: what more there is comes next.
const MOST: usize = 512;

/// What the programs ask. Their questions wait in the kernel, as far as there is room; a flow that lasts is asked about
/// again.
pub struct Asked {
    v4: RingBuf<MapData>,
    v6: RingBuf<MapData>,
}

/// Some of it, of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AskedFlows {
    /// Of IPv4.
    V4(Vec<Flow<V4>>),
    /// Of IPv6.
    V6(Vec<Flow<V6>>),
}

impl Asked {
    /// Takes the questions out of the loaded programs.
    pub(super) fn of(ebpf: &mut Ebpf) -> Result<Self, LoadError> {
        let mut take = |name: &'static str| -> Result<_, LoadError> {
            let map = ebpf.take_map(name).ok_or(LoadError::Missing(name))?;
            Ok(RingBuf::try_from(map)?)
        };
        Ok(Self { v4: take(ASKED_V4)?, v6: take(ASKED_V6)? })
    }

    /// Waits for questions. Cancel safe.
    ///
    /// They lie in memory, and looking there costs nothing. To be woken for each would cost the programs more than the
    /// pause costs a flow that lasts.
    pub async fn next(&mut self) -> AskedFlows {
        loop {
            let flows = read(&mut self.v4);
            if !flows.is_empty() {
                return AskedFlows::V4(flows);
            }
            let flows = read(&mut self.v6);
            if !flows.is_empty() {
                return AskedFlows::V6(flows);
            }
            sleep(PAUSE).await;
        }
    }
}

fn read<T: CheckedBitPattern>(ring: &mut RingBuf<MapData>) -> Vec<T> {
    let mut flows = Vec::new();
    while flows.len() < MOST
        && let Some(item) = ring.next()
    {
        flows.extend(checked::try_pod_read_unaligned::<T>(&item));
    }
    flows
}
