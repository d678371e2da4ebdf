//! In place of [`trace`](../trace.rs): nothing is told of packets, and nothing is spent on it.

use aya_ebpf::programs::{TcContext, XdpContext};
use flannel_common::{path::Hook, reason::Reason};

use crate::size::Size;

/// What happens at a hook of tc.
#[inline(always)]
pub(crate) fn of_tc(_: &TcContext, _: Hook, run: impl FnOnce() -> i32) -> i32 {
    run()
}

/// What happens at a hook of XDP.
#[inline(always)]
pub(crate) fn of_xdp(_: &XdpContext, _: Hook, run: impl FnOnce() -> u32) -> u32 {
    run()
}

/// A packet is counted.
#[inline(always)]
pub(crate) fn counted(_: Reason, _: Size) {}
