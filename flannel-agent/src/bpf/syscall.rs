//! bpf(2) itself, and the option of sockets that takes a program, for what aya does not ask of them.
#![expect(unsafe_code, reason = "the attributes of bpf(2), and the value of an option, are pointers")]

use std::os::fd::{AsRawFd as _, BorrowedFd};

use nix::{errno::Errno, libc};

/// Gives `command` (include/uapi/linux/bpf.h, `enum bpf_cmd`) its part of `union bpf_attr`, and returns the kernel's
/// answer: a descriptor for commands that open something.
///
/// # Errors
/// The kernel's.
///
/// # Safety
/// `T` must be laid out as the kernel's part for `command`, and the pointers in `attributes` must be good for what that does
/// with them.
pub(super) unsafe fn bpf<T>(command: libc::c_long, attributes: &mut T) -> Result<libc::c_long, Errno> {
    // SAFETY: the length of the attributes is theirs, and the caller vouches for the rest.
    let answer =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    Errno::result(answer)
}

/// Has the kernel give `socket` only what `program` lets through.
///
/// # Errors
/// The kernel's, as where the program is none of that kind.
pub(super) fn filter(socket: BorrowedFd<'_>, program: BorrowedFd<'_>) -> Result<(), Errno> {
    let program: libc::c_int = program.as_raw_fd();
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the value of this option is a descriptor, as long as is said, and only read.
    let answer = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_BPF,
            std::ptr::from_ref(&program).cast(),
            length,
        )
    };
    Errno::result(answer).map(drop)
}
