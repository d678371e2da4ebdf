//! The entry point at tc egress, host side of a pod's veth: what the kernel path brings the pod.

use aya_ebpf::{macros::classifier, programs::TcContext};
use flannel_common::path::{self, Hook};

use crate::{ctx::Skb, maps::Maps, trace};

/// tc egress, host side of a pod's veth: what the kernel path brings the pod.
#[classifier]
fn to_pod(ctx: TcContext) -> i32 {
    trace::of_tc(&ctx, Hook::ToPod, || path::to_pod::run(Skb::of(&ctx), &Maps))
}
