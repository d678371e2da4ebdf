//! Programs that are attached to netfilter's hooks, by their links (Linux 6.4): in which network namespace is not told.
#![expect(unsafe_code, reason = "aya knows no such links; attributes of bpf(2) are pointers")]

use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use nix::{errno::Errno, libc};

use super::syscall::bpf;
use crate::{netlink::NetfilterProgram, values::Family};

/// Numbers of commands, and of the kind of link (include/uapi/linux/bpf.h, `enum bpf_cmd`, `enum bpf_link_type`).
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const LINK_GET_FD_BY_ID: libc::c_long = 30;
const LINK_GET_NEXT_ID: libc::c_long = 31;
const OF_NETFILTER: u32 = 10;
/// NFPROTO_IPV4, NFPROTO_IPV6.
const IPV4: u32 = 2;
const IPV6: u32 = 10;

/// The part of `union bpf_attr` for the first two commands.
#[repr(C)]
#[derive(Default)]
struct Id {
    id: u32,
    next: u32,
    flags: u32,
}

/// The part for the third.
#[repr(C)]
struct Asked {
    fd: u32,
    length: u32,
    info: u64,
}

/// The beginning of `struct bpf_link_info`, with its part `netfilter`.
#[repr(C, align(8))]
#[derive(Default)]
struct Info {
    kind: u32,
    id: u32,
    program: u32,
    unused: u32,
    family: u32,
    hook: u32,
    priority: i32,
    flags: u32,
}

const _: () = assert!(size_of::<Info>() == 32 && size_of::<Asked>() == 16);

/// Those of all network namespaces.
///
/// # Errors
/// The kernel's answer: `EPERM` without CAP_SYS_ADMIN.
pub fn netfilter_programs() -> Result<Vec<NetfilterProgram>, Errno> {
    let mut found = Vec::new();
    let mut attributes = Id::default();
    loop {
        // SAFETY: the attributes are the kernel's for this command, and hold no pointer.
        match unsafe { bpf(LINK_GET_NEXT_ID, &mut attributes) } {
            Ok(_) => {}
            // There is no further one, or a kernel that knows no links.
            Err(Errno::ENOENT | Errno::EINVAL) => return Ok(found),
            Err(error) => return Err(error),
        }
        attributes.id = attributes.next;
        found.extend(at_netfilter(attributes.id));
    }
}

/// What is attached by link `id`; `None` where that is elsewhere, or it has gone meanwhile.
fn at_netfilter(id: u32) -> Option<NetfilterProgram> {
    let mut attributes = Id { id, ..Id::default() };
    // SAFETY: the attributes are the kernel's for this command, and hold no pointer.
    let fd = unsafe { bpf(LINK_GET_FD_BY_ID, &mut attributes) }.ok()?;
    // SAFETY: the kernel has just opened this descriptor for us.
    let link = unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).ok()?) };
    let mut info = Info::default();
    let mut asked = Asked {
        fd: link.as_raw_fd().cast_unsigned(),
        length: size_of::<Info>() as u32,
        info: std::ptr::from_mut(&mut info) as u64,
    };
    // SAFETY: `info` has room for as many bytes as is said, and outlives the call.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut asked) }.ok()?;
    let family = match info.family {
        IPV4 => Family::V4,
        IPV6 => Family::V6,
        _ => return None,
    };
    (info.kind == OF_NETFILTER).then_some(NetfilterProgram { family, hook: info.hook, program: info.program })
}
