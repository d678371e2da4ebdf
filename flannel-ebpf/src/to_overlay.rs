//! The entry point at tc egress, flannel.<vni> and flannel-v6.<vni>: what the kernel routed into the overlay.

use aya_ebpf::{macros::classifier, programs::TcContext};
use flannel_common::path;

use crate::trace;

/// tc egress, flannel.<vni> and flannel-v6.<vni>: what the kernel routed into the overlay.
#[classifier]
#[inline(always)]
fn to_overlay(ctx: TcContext) -> i32 {
    trace::of_tc!(&ctx, ToOverlay, path::to_overlay::run)
}
