//! Links, taken off their hooks at once: BPF_LINK_DETACH.
//!
//! A link whose pin is removed goes when the kernel gets to it, some milliseconds later; until then its hook is taken.
#![expect(unsafe_code, reason = "aya detaches a link by closing it alone; attributes of bpf(2) are pointers")]

use std::{
    ffi::CString,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use nix::{errno::Errno, libc};

use super::syscall::bpf;

/// Numbers of the commands (include/uapi/linux/bpf.h, `enum bpf_cmd`).
const OBJ_GET: libc::c_long = 7;
const LINK_DETACH: libc::c_long = 34;

/// The part of `union bpf_attr` for pinned objects.
#[repr(C)]
struct Pinned {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// The `link_detach` part.
#[repr(C)]
struct Detached {
    link_fd: u32,
}

/// Takes the link pinned at `path` off its hook. The pin stays, and holds nothing any more.
///
/// # Errors
/// There is none, or not of a kind that can be taken off.
pub(super) fn detach(path: &Path) -> Result<(), Errno> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
    let mut pinned = Pinned { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
    // SAFETY: `path` ends with a zero and outlives the call.
    let fd = i32::try_from(unsafe { bpf(OBJ_GET, &mut pinned) }?).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just opened it for us.
    let link = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut detached = Detached { link_fd: link.as_raw_fd().cast_unsigned() };
    // SAFETY: there is no pointer in the attributes, and the descriptor is open.
    unsafe { bpf(LINK_DETACH, &mut detached) }.map(drop)
}
