//! Why the kernel does not take the programs.

use std::io;

use aya::{EbpfError, maps::MapError, programs::ProgramError};
use nix::errno::Errno;

use super::{FilterError, PinError};
use crate::host::privileges::too_few_files;

/// Programs that could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The pins cannot be made.
    #[error(transparent)]
    Pins(#[from] PinError),
    /// The object or its maps were refused.
    #[error("the kernel refused the maps, or the object is damaged: {}", chain(.0))]
    Object(#[from] EbpfError),
    /// The object lacks a program: it was built from other sources.
    #[error("the object has no program {0}: rebuild it with `cargo xtask build-ebpf`")]
    Missing(&'static str),
    /// The agent cannot wait for what the programs tell: it has no more file descriptors, as a rule.
    #[error("cannot wait for what the programs tell: {0}")]
    Wait(#[source] io::Error),
    /// The verifier, or the lack of a privilege.
    #[error("the kernel refused program {program}: {}", chain(.error))]
    Program {
        /// Which.
        program: &'static str,
        /// Its answer, with the verifier's log.
        error: Box<ProgramError>,
    },
}

impl From<MapError> for LoadError {
    fn from(error: MapError) -> Self {
        Self::Object(error.into())
    }
}

/// Hooks that cannot be listed, or given up.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// Those of pinned links.
    #[error(transparent)]
    Pins(#[from] PinError),
    /// Those of filters.
    #[error(transparent)]
    Filters(#[from] FilterError),
}

/// The programs cannot tell of packets.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// This binary has no such programs.
    #[error("the agent was built around a ready-made object, without the programs that tell of packets")]
    NotBuilt,
    /// The kernel does not take them.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// It is not known where the programs are.
    #[error(transparent)]
    Hooks(#[from] HookError),
    /// They would tell the agent nothing: the ring that it reads is not theirs.
    #[error("the kernel gave the programs that tell of packets a map {0} of their own")]
    NotShared(&'static str),
    /// They could not be attached; the others are.
    #[error("{0}")]
    Attach(String),
}

/// An error and what caused it, in one line, with the remedy where that is the same whatever was tried.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        let errno = cause.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
        if errno == Some(Errno::EMFILE as i32) {
            text.push_str(&format!("; {}", too_few_files()));
        }
        next = cause.source();
    }
    text
}
