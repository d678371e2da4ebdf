//! bpf(2) itself, for what aya does not ask of it.
#![expect(unsafe_code, reason = "the attributes of bpf(2) are pointers")]

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
