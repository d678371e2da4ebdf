//! The entry point at tc ingress, external interface: what other nodes send.

use aya_ebpf::{macros::classifier, programs::TcContext};
use flannel_common::path;

use crate::{ctx::Skb, maps::Maps};

/// tc ingress, external interface: what other nodes send.
#[classifier]
fn from_underlay(ctx: TcContext) -> i32 {
    path::from_underlay::run(Skb::of(&ctx), &Maps)
}
