//! The object's maps and programs, through the verifier and into the kernel.

use std::collections::BTreeMap;

use aya::{
    Ebpf, EbpfLoader,
    maps::Map,
    programs::{Program, ProgramError, ProgramFd},
};
use flannel_common::{
    map::{
        ASKED_V4, ASKED_V6, BROKEN_OFF_V4, BROKEN_OFF_V6, CARRIER_CONSTANT, FLOW_MARK_CONSTANT,
        SNAT_EXEMPT_MARK_CONSTANT,
    },
    mark::Marks,
    path::{Carrier, Hook},
};

use super::{Features, LoadError, LogLevel};

/// What the programs log goes there: the name is aya-log's.
const LOG_MAP: &str = "AYA_LOGS";

/// The rings that the agent reads from the programs it has loaded, which nobody else finds.
const READ_MAPS: [&str; 5] = [ASKED_V4, ASKED_V6, BROKEN_OFF_V4, BROKEN_OFF_V6, LOG_MAP];

/// Loads the maps of `object`, whose programs log at `level`, use `marks` and put packets into what `carrier` says.
pub(super) fn load_object(
    loader: EbpfLoader<'_>,
    object: &[u8],
    level: LogLevel,
    marks: Marks,
    carrier: Carrier,
) -> Result<Ebpf, LoadError> {
    let (level, carrier) = (level.number(), carrier.number());
    // For no longer than these constants live.
    let mut loader = loader;
    Ok(loader
        .override_global("AYA_LOG_LEVEL", &level, true)
        .override_global(SNAT_EXEMPT_MARK_CONSTANT, &marks.exempt, true)
        .override_global(FLOW_MARK_CONSTANT, &marks.flow, true)
        .override_global(CARRIER_CONSTANT, &carrier, true)
        .load(object)?)
}

/// Loads all programs that run with `features`.
pub(super) fn load_programs(ebpf: &mut Ebpf, features: &Features) -> Result<(), LoadError> {
    for hook in Hook::ALL.into_iter().filter(|hook| features.can_run(*hook)) {
        loaded(ebpf, hook.program())?;
    }
    Ok(())
}

/// The program of that name, which this loads unless it is.
fn loaded<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Program, LoadError> {
    let program = ebpf.program_mut(name).ok_or(LoadError::Missing(name))?;
    let done = match program {
        Program::SchedClassifier(program) => program.load(),
        Program::Xdp(program) => program.load(),
        Program::SocketFilter(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    };
    match done {
        // Tried already.
        Ok(()) | Err(ProgramError::AlreadyLoaded) => Ok(program),
        Err(error) => Err(LoadError::Program { program: name, error: error.into() }),
    }
}

/// A descriptor of the program of that name, which this loads unless it is; it outlives `ebpf`.
pub(super) fn descriptor(ebpf: &mut Ebpf, name: &'static str) -> Result<ProgramFd, LoadError> {
    let refused = |error: ProgramError| LoadError::Program { program: name, error: error.into() };
    loaded(ebpf, name)?.fd().map_err(refused)?.try_clone().map_err(LoadError::Wait)
}

pub(super) fn program(ebpf: &mut Ebpf, hook: Hook) -> Result<&mut Program, LoadError> {
    let name = hook.program();
    ebpf.program_mut(name).ok_or(LoadError::Missing(name))
}

/// The ids of the rings that the agent reads.
pub(super) fn read_maps(ebpf: &Ebpf) -> Result<BTreeMap<&'static str, u32>, LoadError> {
    READ_MAPS.into_iter().map(|name| Ok((name, ring_id(ebpf, name)?))).collect()
}

/// The kernel's id of the ring `name`.
pub(super) fn ring_id(ebpf: &Ebpf, name: &'static str) -> Result<u32, LoadError> {
    match ebpf.map(name) {
        Some(Map::RingBuf(map)) => Ok(map.info()?.id()),
        _ => Err(LoadError::Missing(name)),
    }
}
