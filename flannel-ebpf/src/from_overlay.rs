//! The entry point at tc ingress, flannel.<vni> and flannel-v6.<vni>: what the kernel has decapsulated.

use aya_ebpf::{macros::classifier, programs::TcContext};
use flannel_common::path;

use crate::trace;

/// tc ingress, flannel.<vni> and flannel-v6.<vni>: what the kernel has decapsulated.
#[classifier]
#[inline(always)]
fn from_overlay(ctx: TcContext) -> i32 {
    trace::of_tc!(&ctx, FromOverlay, path::from_overlay::run)
}
