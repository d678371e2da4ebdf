//! Attached nowhere: tries what the kernel makes of the flags that the other programs give it.

use aya_ebpf::{macros::classifier, programs::TcContext};

use crate::ctx::Skb;

/// Adds or removes room for outer headers.
#[classifier]
fn try_room(ctx: TcContext) -> i32 {
    Skb::of(&ctx).try_room()
}
