//! Filter of a socket of the agent: what connection tracking forgets is accepted no more.

use aya_ebpf::{macros::socket_filter, programs::SkBuffContext};
use flannel_common::{
    family::{V4, V6},
    path::forgotten::{self, Forgotten, WORDS},
};

use crate::notes::Noted as _;

/// What the kernel takes for the length of a notice: none of it, or all.
const KEPT: i64 = 0;
const TOLD: i64 = 0xffff_ffff;

/// Forgets the flow of a notice. Tells the agent of what it may know more about.
#[socket_filter]
fn forgotten(ctx: SkBuffContext) -> i64 {
    let Ok(notice) = ctx.load::<[u32; WORDS]>(0) else { return TOLD };
    let is_translated = match forgotten::read(&notice) {
        Forgotten::V4(flow) => V4::forget(&flow),
        Forgotten::V6(flow) => V6::forget(&flow),
        Forgotten::Other => false,
        Forgotten::Unread => true,
    };
    if is_translated { TOLD } else { KEPT }
}
