//! Where plans meet the kernel.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
};

use crate::{
    backend::{BackendError, Objects},
    bpf::TraceMapIds,
    netlink::NetlinkError,
    plan::{BpfState, Change, ForeignHook, State},
};

pub mod ebpf;
mod entries;
pub mod kernel;
pub mod memory;
mod stray;

pub use stray::Stray;

/// What holds a [`State`]: the kernel, or a double of it.
pub trait Datapath: Send {
    /// Reads what is there. Only objects recognisable as ours are part of it.
    fn observe(&mut self) -> impl Future<Output = Result<State, ObserveError>> + Send;

    /// Reads the eBPF half alone, which gives no notice when it changes. `None` where there is none.
    fn observe_bpf(&mut self) -> impl Future<Output = Result<Option<BpfState>, ObserveError>> + Send {
        async { Ok(None) }
    }

    /// Reads the backend's own objects alone, of which most give no notice either. `None` where it has none.
    fn observe_objects(&mut self) -> impl Future<Output = Result<Option<Objects>, ObserveError>> + Send {
        async { Ok(None) }
    }

    /// Programs of others at `interfaces`, which give no notice when they come and go, by interface.
    fn foreign_programs(
        &mut self,
        interfaces: &BTreeSet<u32>,
    ) -> impl Future<Output = Result<BTreeMap<u32, BTreeSet<ForeignHook>>, ObserveError>> + Send {
        let _ = interfaces;
        async { Ok(BTreeMap::new()) }
    }

    /// Lets what netfilter has accepted, and what was seen of tunnels, count no more: packets take the kernel path until
    /// it has let them pass anew.
    ///
    /// # Errors
    /// When the map that says so cannot be written.
    fn end_acceptance(&mut self) -> impl Future<Output = Result<(), ChangeError>> + Send {
        async { Ok(()) }
    }

    /// Lets the programs tell of packets, in maps of these ids; `None` while they are being loaded.
    ///
    /// # Errors
    /// Why they cannot.
    fn begin_trace(&mut self) -> Result<Option<TraceMapIds>, String> {
        Err("there are no programs: all packets take the kernel path".to_owned())
    }

    /// They tell of packets no more.
    ///
    /// # Errors
    /// When that has to be tried again.
    fn end_trace(&mut self) -> Result<(), String> {
        Ok(())
    }

    /// Makes `changes` in their order, which [`crate::plan::delta`] decides; one result for each. A change
    /// that fails does not keep those after it from being tried, unless they cannot succeed without it.
    fn apply(&mut self, changes: &[Change]) -> impl Future<Output = Vec<Result<(), ChangeError>>> + Send;
}

/// The state of the kernel could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// The kernel half.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The eBPF half: maps or links.
    #[error("{0}")]
    Bpf(String),
    /// The backend's own objects.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// A failure that a test asked for.
    #[error("injected failure")]
    Injected,
}

/// A change could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// By the kernel's verdict on a netlink request.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// It cannot succeed before an earlier one has, which failed.
    #[error("the change it depends on failed")]
    Blocked,
    /// The interface of this index, which it is about, is no more: the next look will not ask for it again.
    #[error("interface {0} is gone")]
    Gone(u32),
    /// What makes the backend's own objects could not.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// A map or a program refused.
    #[error("{0}")]
    Bpf(String),
    /// This datapath has no such thing: programs where there is only the kernel.
    #[error("this datapath cannot do that")]
    Unsupported,
    /// A failure that a test asked for.
    #[error("injected failure")]
    Injected,
}
