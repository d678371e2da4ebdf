//! The program that forgets flows with their entries of connection tracking (`forgotten`).

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd},
};

use aya::{
    Ebpf,
    programs::{ProgramError, ProgramFd, SocketFilter},
};
use flannel_common::map::FORGOTTEN;

use super::{LoadError, syscall::filter};

/// Filter of a socket that hears of entries that go. It forgets the flow of each in the maps of the loaded programs, and lets
/// notices through of those that are translated.
pub struct ForgottenFlows {
    program: ProgramFd,
}

impl ForgottenFlows {
    /// By the program of `ebpf`, which is loaded.
    pub(super) fn of(ebpf: &mut Ebpf) -> Result<Self, LoadError> {
        let refused = |error: ProgramError| LoadError::Program { program: FORGOTTEN, error: Box::new(error) };
        let program = ebpf.program_mut(FORGOTTEN).ok_or(LoadError::Missing(FORGOTTEN))?;
        let program: &mut SocketFilter = program.try_into().map_err(refused)?;
        match program.load() {
            Ok(()) | Err(ProgramError::AlreadyLoaded) => {}
            Err(error) => return Err(refused(error)),
        }
        let program = program.fd().map_err(refused)?.try_clone().map_err(LoadError::Wait)?;
        Ok(Self { program })
    }

    /// Has the program look at what comes for `socket`, for as long as that is open.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn attach(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        Ok(filter(socket, self.program.as_fd())?)
    }
}
