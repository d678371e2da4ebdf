//! Attached nowhere: asks a pod's socket how its connection is.

use aya_ebpf::{macros::classifier, programs::TcContext};

use crate::ctx::Skb;

/// The state of a TCP socket; 0 where there is none.
#[classifier]
fn socket_state(ctx: TcContext) -> i32 {
    Skb::of(&ctx).socket_state()
}
