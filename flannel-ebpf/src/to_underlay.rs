//! The entry point at tc egress, external interface: what the kernel path sends to other nodes, in VXLAN or without a
//! tunnel.

use aya_ebpf::{macros::classifier, programs::TcContext};
use flannel_common::path;

use crate::trace;

/// tc egress, external interface: what the kernel path sends to other nodes, in VXLAN or without a tunnel.
#[classifier]
#[inline(always)]
fn to_underlay(ctx: TcContext) -> i32 {
    trace::of_tc!(&ctx, ToUnderlay, path::to_underlay::run)
}
