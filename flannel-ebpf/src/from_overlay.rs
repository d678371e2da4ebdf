//! The entry point at tc ingress, flannel.<vni> and flannel-v6.<vni>: what the kernel has decapsulated.

use aya_ebpf::{macros::classifier, programs::TcContext};
use flannel_common::path::{self, Hook};

use crate::{ctx::Skb, maps::Maps, trace};

/// tc ingress, flannel.<vni> and flannel-v6.<vni>: what the kernel has decapsulated.
#[classifier]
fn from_overlay(ctx: TcContext) -> i32 {
    trace::of_tc(&ctx, Hook::FromOverlay, || path::from_overlay::run(Skb::of(&ctx), &Maps))
}
