//! The entry point at tc egress, flannel.<vni> and flannel-v6.<vni>: what the kernel routed into the overlay.

use aya_ebpf::{macros::classifier, programs::TcContext};
use flannel_common::path::{self, Hook};

use crate::{ctx::Skb, maps::Maps, trace};

/// tc egress, flannel.<vni> and flannel-v6.<vni>: what the kernel routed into the overlay.
#[classifier]
fn to_overlay(ctx: TcContext) -> i32 {
    trace::of_tc(&ctx, Hook::ToOverlay, || path::to_overlay::run(Skb::of(&ctx), &Maps))
}
