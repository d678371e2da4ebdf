//! The entry point at tc ingress, external interface: what other nodes send.

use aya_ebpf::{macros::classifier, programs::TcContext};
use flannel_common::path;

use crate::trace;

/// tc ingress, external interface: what other nodes send.
#[classifier]
#[inline(always)]
fn from_underlay(ctx: TcContext) -> i32 {
    trace::of_tc!(&ctx, FromUnderlay, path::from_underlay::run)
}
