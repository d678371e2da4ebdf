//! The entry point at tc ingress, host side of a pod's veth: what the pod sends.

use aya_ebpf::{macros::classifier, programs::TcContext};
use flannel_common::path;

use crate::{ctx::Skb, maps::Maps};

/// tc ingress, host side of a pod's veth: what the pod sends.
#[classifier]
fn from_pod(ctx: TcContext) -> i32 {
    path::from_pod::run(Skb::of(&ctx), &Maps)
}
