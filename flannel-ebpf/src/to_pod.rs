//! The entry point at tc egress, host side of a pod's veth: what the kernel path brings the pod.

use aya_ebpf::{macros::classifier, programs::TcContext};
use flannel_common::path;

use crate::trace;

/// tc egress, host side of a pod's veth: what the kernel path brings the pod.
#[classifier]
#[inline(always)]
fn to_pod(ctx: TcContext) -> i32 {
    trace::of_tc!(&ctx, ToPod, path::to_pod::run)
}
