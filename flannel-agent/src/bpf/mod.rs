//! The programs and their maps: loaded, pinned, attached, read.

mod asked;
mod attach;
mod attached;
mod attachment;
mod batch;
mod claim;
mod clsact;
mod counters;
mod error;
mod features;
mod fill;
mod forgotten;
pub mod hold;
mod layouts;
mod link;
mod loader;
mod log;
mod maps;
mod mount_place;
mod netfilter;
mod object;
mod others;
mod pins;
mod prefixes;
mod query;
mod raw;
mod run_times;
mod sizes;
mod sockets;
mod syscall;
mod tables;
mod trace_maps;
mod traced;

pub use asked::{Asked, BrokenOff, ToldFlows};
pub use attach::{AttachError, detach_all, remove_all};
pub use attached::{AttachedProgram, attached};
pub use attachment::{Attachment, TcAttach};
pub use claim::PinsClaim;
pub use clsact::{FilterError, FilterPlace};
pub(crate) use clsact::{foreign, sides};
pub use counters::{Counters, Traffic, read as read_counters};
pub use error::{HookError, LoadError, TraceError};
pub use features::{Feature, Features};
pub use fill::{MapFill, fill};
pub use forgotten::ForgottenFlows;
pub use loader::{ProgramSummary, Programs};
pub use log::LogLevel;
pub use maps::MapFault;
pub use netfilter::netfilter_programs;
pub use others::ForeignProgram;
pub(crate) use others::tcx_of_others;
pub use pins::{PinError, Pins};
pub use prefixes::TrieFamily;
pub use query::HookOfPrograms;
pub use run_times::{RunTimes, Runs};
pub use sizes::{MapSize, MapSizes, map_sizes};
pub use sockets::{PodEnd, PodSockets};
pub use tables::{FamilyTables, Tables, TranslationTables};
pub use trace_maps::{TraceMaps, Untold};
pub use traced::TraceMapIds;

/// The compiled programs.
pub const OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/flannel-ebpf.o"));

/// The same programs, which tell of packets; empty where this binary was built around a ready-made object.
const TRACE_OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/flannel-ebpf-trace.o"));
