//! The entry point at tc ingress, host side of a pod's veth: what the pod sends.

use aya_ebpf::{macros::classifier, programs::TcContext};
use flannel_common::path::{self, Hook};

use crate::{ctx::Skb, maps::Maps, trace};

/// tc ingress, host side of a pod's veth: what the pod sends.
#[classifier]
fn from_pod(ctx: TcContext) -> i32 {
    trace::of_tc(&ctx, Hook::FromPod, || path::from_pod::run(Skb::of(&ctx), &Maps))
}
