//! In place of [`trace`](../trace.rs): nothing is told of packets, and nothing is spent on it.

use flannel_common::reason::Reason;

use crate::size::Size;

/// What happens at a hook of tc.
///
/// A macro, since a function that is passed to another is not inlined once it is large: each state that the verifier
/// keeps would cost memory for one frame more.
macro_rules! of_tc {
    ($ctx:expr, $hook:ident, $run:path) => {
        $run($crate::ctx::Skb::of($ctx), &$crate::maps::Maps)
    };
}
pub(crate) use of_tc;

/// What happens at a hook of XDP.
macro_rules! of_xdp {
    ($ctx:expr, $hook:ident, $run:path) => {
        $run($crate::ctx::Frame::of($ctx), &$crate::maps::Maps)
    };
}
pub(crate) use of_xdp;

/// A packet is counted.
#[inline(always)]
pub(crate) fn counted(_: Reason, _: Size) {}
