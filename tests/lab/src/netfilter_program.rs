//! A program of eBPF at one of netfilter's hooks (Linux 6.4), which no tool attaches and which aya does not know.
#![expect(unsafe_code, reason = "attributes of bpf(2) are pointers")]

use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use anyhow::{Context as _, Result};
use nix::{errno::Errno, libc};

use super::Netns;

/// Commands, kind of program and place (include/uapi/linux/bpf.h).
const PROG_LOAD: libc::c_long = 5;
const LINK_CREATE: libc::c_long = 28;
const OF_NETFILTER: u32 = 32;
const AT_NETFILTER: u32 = 45;
/// NFPROTO_IPV4, NF_INET_FORWARD; behind all filters.
const IPV4: u32 = 2;
const FORWARD: u32 = 2;
const PRIORITY: i32 = 10;
/// `r0 = 1` (NF_ACCEPT), `exit`.
const ACCEPT: [u64; 2] = [0x1_0000_00b7, 0x95];

#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    length: u32,
    instructions: u64,
    license: u64,
    log: [u32; 6],
    name: [u8; 16],
    ifindex: u32,
    place: u32,
}

#[repr(C)]
#[derive(Default)]
struct Link {
    program: u32,
    target: u32,
    place: u32,
    flags: u32,
    family: u32,
    hook: u32,
    priority: i32,
    netfilter_flags: u32,
}

const _: () = assert!(size_of::<Load>() == 72 && size_of::<Link>() == 32);

/// It accepts each packet of IPv4 that a node forwards, as long as this is held.
#[derive(Debug)]
pub struct NetfilterProgram {
    _link: OwnedFd,
}

impl NetfilterProgram {
    /// Attaches it in `netns`.
    ///
    /// # Errors
    /// The kernel refuses, as before Linux 6.4.
    pub fn attach(netns: &Netns) -> Result<Self> {
        let license = c"GPL";
        let mut load = Load {
            kind: OF_NETFILTER,
            length: ACCEPT.len() as u32,
            instructions: ACCEPT.as_ptr() as u64,
            license: license.as_ptr() as u64,
            place: AT_NETFILTER,
            ..Load::default()
        };
        let program = bpf(PROG_LOAD, &mut load).context("load a program for netfilter")?;
        let mut link = Link {
            program: program.as_raw_fd().cast_unsigned(),
            place: AT_NETFILTER,
            family: IPV4,
            hook: FORWARD,
            priority: PRIORITY,
            ..Link::default()
        };
        let link = netns.inside(|| bpf(LINK_CREATE, &mut link).context("attach it"))?;
        Ok(Self { _link: link })
    }
}

/// One of the two commands, with the part of `union bpf_attr` that is its own.
fn bpf<T>(command: libc::c_long, attributes: &mut T) -> Result<OwnedFd> {
    // SAFETY: the attributes are as long as is said, and what they point to outlives the call.
    let answer =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    let fd = i32::try_from(Errno::result(answer)?)?;
    // SAFETY: both commands answer with a descriptor that is the caller's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
