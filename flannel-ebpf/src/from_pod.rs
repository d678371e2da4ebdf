//! The entry point at tc ingress, host side of a pod's veth: what the pod sends.

use aya_ebpf::{macros::classifier, programs::TcContext};
use flannel_common::path;

use crate::trace;

/// tc ingress, host side of a pod's veth: what the pod sends.
#[classifier]
#[inline(always)]
fn from_pod(ctx: TcContext) -> i32 {
    trace::of_tc!(&ctx, FromPod, path::from_pod::run)
}
