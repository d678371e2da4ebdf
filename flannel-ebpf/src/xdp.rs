//! The entry points of XDP on the external interface: what other nodes send.

use aya_ebpf::{macros::xdp, programs::XdpContext};
use flannel_common::path;

use crate::trace;

/// XDP in the driver of the external interface: unknown VTEPs, and what can be decapsulated before packets are merged.
#[xdp(frags)]
#[inline(always)]
fn xdp_underlay(ctx: XdpContext) -> u32 {
    trace::of_xdp!(&ctx, XdpUnderlay, path::xdp::underlay)
}

/// Generic XDP on the external interface: unknown VTEPs.
///
/// Not for frames of several buffers: of those the kernel makes a copy that does not know the length of its
/// Ethernet header (net/core/skbuff.c, `skb_pp_cow_data`; seen with 6.18), so that programs of tc behind it see the
/// frame without one. For others it makes the frame one piece, and nothing is lost.
#[xdp]
#[inline(always)]
fn xdp_generic(ctx: XdpContext) -> u32 {
    trace::of_xdp!(&ctx, XdpGeneric, path::xdp::generic)
}
