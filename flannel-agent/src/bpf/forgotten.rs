//! The program that forgets flows with their entries of connection tracking (`forgotten`).

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd},
};

use aya::{Ebpf, programs::ProgramFd};
use flannel_common::map::FORGOTTEN;

use super::{LoadError, object::descriptor, syscall::filter};

/// Filter of a socket that hears of entries that go. It forgets the flow of each in the maps of the loaded programs, and lets
/// notices through of those that are translated.
pub struct ForgottenFlows {
    program: ProgramFd,
}

impl ForgottenFlows {
    /// By the program of `ebpf`, which is loaded.
    pub(super) fn of(ebpf: &mut Ebpf) -> Result<Self, LoadError> {
        Ok(Self { program: descriptor(ebpf, FORGOTTEN)? })
    }

    /// Has the program look at what comes for `socket`, for as long as that is open.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn attach(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        Ok(filter(socket, self.program.as_fd())?)
    }
}
