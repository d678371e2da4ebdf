//! The entry point at tc ingress, external interface: what other nodes send.

use aya_ebpf::{macros::classifier, programs::TcContext};
use flannel_common::path::{self, Hook};

use crate::{ctx::Skb, maps::Maps, trace};

/// tc ingress, external interface: what other nodes send.
#[classifier]
fn from_underlay(ctx: TcContext) -> i32 {
    trace::of_tc(&ctx, Hook::FromUnderlay, || path::from_underlay::run(Skb::of(&ctx), &Maps))
}
