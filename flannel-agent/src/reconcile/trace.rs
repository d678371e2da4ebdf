//! Lets the programs tell of packets while somebody asks for it again and again.

use std::{path::Path, time::Duration};

use tokio::time::Instant;
use tracing::{info, warn};

use super::{Reconciler, host::Host};
use crate::{control::snapshot::TraceMaps, datapath::Datapath, lease::LeaseSource};

/// So long after the last request the programs are put back: whoever looks asks each second.
const PATIENCE: Duration = Duration::from_secs(3);

/// Who looks at packets.
#[derive(Clone, Copy, Debug)]
pub(super) struct Looking {
    /// The process.
    by: u32,
    /// When it will be taken for gone.
    pub(super) until: Instant,
}

impl<D: Datapath, H: Host, L: LeaseSource> Reconciler<D, H, L> {
    /// Lets the programs tell of packets to process `by`.
    pub(super) fn trace(&mut self, by: u32) -> Result<Option<TraceMaps>, String> {
        // Whoever has ended makes room at once, where processes of ours see each other.
        let is_there = |looking: &Looking| Path::new("/proc").join(looking.by.to_string()).exists();
        if let Some(looking) = self.looking.filter(|looking| looking.by != by && is_there(looking)) {
            return Err(format!(
                "process {} looks at packets already: end that first, since the programs have one filter",
                looking.by
            ));
        }
        let ids = self.datapath.begin_trace()?;
        if self.looking.is_none_or(|looking| looking.by != by) {
            info!(by, "the programs tell of packets, for as long as this process looks");
        }
        self.looking = Some(Looking { by, until: Instant::now() + PATIENCE });
        Ok(ids.map(|ids| TraceMaps { filter: ids.filter, ring: ids.ring, sums: ids.sums, state: ids.state }))
    }

    /// Nobody looks any more.
    pub(super) fn end_trace(&mut self) {
        self.looking = None;
        match self.datapath.end_trace() {
            Ok(()) => info!("nobody looks at packets any more: the programs are back"),
            // What is not as planned is put right.
            Err(error) => {
                warn!(error, "the programs are not back everywhere yet");
                self.schedule.node_changed(Instant::now());
            }
        }
    }
}
