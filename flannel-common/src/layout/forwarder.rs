//! Which pods forward for others.

use bytemuck::{Pod, Zeroable};

/// Value of `forwarders`, whose key is the index of the host side of a pod's veth.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Forwarder {
    /// When the pod was last seen to forward, ns of the kernel's coarse monotonic clock
    /// (`ktime_get_coarse_ns`).
    pub seen: u64,
}

super::assert_layout!(Forwarder, 8, 8);
