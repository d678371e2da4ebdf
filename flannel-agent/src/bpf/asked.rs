//! Flows of which the programs tell the agent: about which they ask how netfilter translates them, and which are broken off.

use std::{io, time::Duration};

use aya::{
    Ebpf,
    maps::{MapData, RingBuf},
};
use bytemuck::{CheckedBitPattern, checked};
use flannel_common::{
    family::{V4, V6},
    layout::Flow,
    map::{ASKED_V4, ASKED_V6, BROKEN_OFF_V4, BROKEN_OFF_V6},
};
use tokio::{io::unix::AsyncFd, select, time::sleep};

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

/// Some flows of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToldFlows {
    /// Of IPv4.
    V4(Vec<Flow<V4>>),
    /// Of IPv6.
    V6(Vec<Flow<V6>>),
}

impl Asked {
    /// Takes the questions out of the loaded programs.
    pub(super) fn of(ebpf: &mut Ebpf) -> Result<Self, LoadError> {
        Ok(Self { v4: take(ebpf, ASKED_V4)?, v6: take(ebpf, ASKED_V6)? })
    }

    /// Waits for questions. Cancel safe.
    ///
    /// They lie in memory, and looking there costs nothing. To be woken for each would cost the programs more than the
    /// pause costs a flow that lasts.
    pub async fn next(&mut self) -> ToldFlows {
        loop {
            let flows = read(&mut self.v4);
            if !flows.is_empty() {
                return ToldFlows::V4(flows);
            }
            let flows = read(&mut self.v6);
            if !flows.is_empty() {
                return ToldFlows::V6(flows);
            }
            sleep(PAUSE).await;
        }
    }
}

/// The flows that are broken off while they are fast. A client may begin anew from the same port at once, so the
/// programs wake who waits.
pub struct BrokenOff {
    v4: AsyncFd<RingBuf<MapData>>,
    v6: AsyncFd<RingBuf<MapData>>,
}

impl BrokenOff {
    /// Takes them out of the loaded programs. Needs a Tokio runtime.
    #[expect(
        deprecated,
        reason = "a ring keeps its one file open for as long as it lives; the other way is unsafe"
    )]
    pub(super) fn of(ebpf: &mut Ebpf) -> Result<Self, LoadError> {
        let mut waited_for =
            |name| -> Result<_, LoadError> { AsyncFd::new(take(ebpf, name)?).map_err(LoadError::Wait) };
        Ok(Self { v4: waited_for(BROKEN_OFF_V4)?, v6: waited_for(BROKEN_OFF_V6)? })
    }

    /// Waits for some. Cancel safe.
    ///
    /// # Errors
    /// The kernel does not let the agent wait.
    pub async fn next(&mut self) -> Result<ToldFlows, io::Error> {
        select! {
            flows = some(&mut self.v4) => flows.map(ToldFlows::V4),
            flows = some(&mut self.v6) => flows.map(ToldFlows::V6),
        }
    }
}

/// Waits for flows in a ring. Cancel safe: what is read is returned at once.
async fn some<T: CheckedBitPattern>(ring: &mut AsyncFd<RingBuf<MapData>>) -> io::Result<Vec<T>> {
    loop {
        let mut ready = ring.readable_mut().await?;
        let flows = read(ready.get_inner_mut());
        if !flows.is_empty() {
            return Ok(flows);
        }
        ready.clear_ready();
    }
}

fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<RingBuf<MapData>, LoadError> {
    let map = ebpf.take_map(name).ok_or(LoadError::Missing(name))?;
    Ok(RingBuf::try_from(map)?)
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
