//! What the kernel's own path through the tunnel has been seen to do.

use bytemuck::{Pod, Zeroable};

/// Value of `tunnels_v4` and `tunnels_v6`, whose key is the public address of a peer, network order: when the kernel's
/// own VXLAN packets were last seen to leave for that peer, and to be delivered from it.
///
/// Times are of the kernel's coarse monotonic clock (`ktime_get_coarse_ns`), ns; 0 is never.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Tunnel {
    /// When one left by the external interface as the programs would have made and sent it.
    pub egress: u64,
    /// When one was delivered by the VXLAN device.
    pub ingress: u64,
    /// When one left that the programs would have made or sent otherwise.
    pub differs: u64,
    /// Largest outer IP packet that the kernel's route carries to the peer, bytes, path MTU included.
    pub mtu: u32,
    /// TTL or hop limit of the kernel's outer header, 1 to 255.
    pub ttl: u32,
}

super::assert_layout!(Tunnel, 32, 8);
