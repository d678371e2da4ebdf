//! How long the programs go on by themselves, and what they go by.

use bytemuck::{Pod, Zeroable};

/// The one element of `hold`, which a running agent puts off each second.
///
/// Maps that nobody keeps up to date grow wrong as nodes come and go, while the kernel's own path may be kept
/// up by somebody else: stock flannel, to which the node was rolled back.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
pub struct Hold {
    /// When the programs leave every packet to the kernel, ns on the kernel's monotonic clock
    /// (`ktime_get_coarse_ns`, CLOCK_MONOTONIC).
    pub until: u64,
    /// What was noted of flows and tunnels up to this time counts no more, ns on the same clock; 0 where all of it does.
    /// At that time something had changed that decides about packets on the kernel path, such as a route.
    pub since: u64,
}

impl Hold {
    /// No end, and no beginning.
    pub const FOREVER: Self = Self { until: u64::MAX, since: 0 };
}

super::assert_layout!(Hold, 16, 8);
