//! Which programs an interface runs at its tcx hooks (Linux 6.6), and a netkit at one of its own, in their order:
//! BPF_PROG_QUERY.
//!
//! The kernel tells the numbers of programs to whoever has CAP_NET_ADMIN, and opens them, which their names take, only
//! for CAP_SYS_ADMIN; aya asks for both at once.
#![expect(unsafe_code, reason = "bpf(2) is asked for what aya asks otherwise; its attributes are pointers")]

use nix::{errno::Errno, libc};

use super::syscall::bpf;
use crate::netlink::TcSide;

/// Where an interface runs programs that are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookOfPrograms {
    /// At a tcx hook.
    Tcx(TcSide),
    /// On what a netkit's primary end sends to the other one (Linux 6.7).
    NetkitPrimary,
}

/// Number of the command, and of the places asked about (include/uapi/linux/bpf.h, `enum bpf_cmd`,
/// `enum bpf_attach_type`).
const PROG_QUERY: libc::c_long = 16;
const TCX_INGRESS: u32 = 46;
const TCX_EGRESS: u32 = 47;
const NETKIT_PRIMARY: u32 = 54;
/// So many programs may be at one hook (include/linux/bpf_mprog.h, BPF_MPROG_MAX).
const MOST: usize = 64;

/// The `query` part of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    target_ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    /// Room on the way in, programs on the way out.
    count: u32,
    reserved: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

const _: () = assert!(size_of::<Attributes>() == 64);

/// The numbers of the programs at one hook of an interface, in the order in which packets meet them; none where there is no
/// such interface, it is not the primary end of a netkit, or the kernel has no such hook.
///
/// # Errors
/// The kernel's answer: `EPERM` without CAP_NET_ADMIN.
pub(super) fn programs(ifindex: u32, hook: HookOfPrograms) -> Result<Vec<u32>, Errno> {
    let mut ids = [0u32; MOST];
    let mut attributes = Attributes {
        target_ifindex: ifindex,
        attach_type: match hook {
            HookOfPrograms::Tcx(TcSide::Ingress) => TCX_INGRESS,
            HookOfPrograms::Tcx(TcSide::Egress) => TCX_EGRESS,
            HookOfPrograms::NetkitPrimary => NETKIT_PRIMARY,
        },
        prog_ids: ids.as_mut_ptr() as u64,
        count: MOST as u32,
        ..Attributes::default()
    };
    // SAFETY: the attributes are as long as is said, and `ids` has room for `count` numbers and outlives the call.
    match unsafe { bpf(PROG_QUERY, &mut attributes) } {
        Ok(_) => Ok(ids[..(attributes.count as usize).min(MOST)].to_vec()),
        Err(Errno::EINVAL | Errno::ENOENT | Errno::ENODEV) => Ok(Vec::new()),
        // It is no netkit, or the other end of one.
        Err(Errno::ENXIO | Errno::EACCES) if hook == HookOfPrograms::NetkitPrimary => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}
