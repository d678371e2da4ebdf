//! Where a local pod is.

use bytemuck::{Pod, Zeroable};

/// Value of `pods_v4` and `pods_v6`, whose key is the pod's address, network order.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct PodPlace {
    /// Host side of the pod's veth.
    pub ifindex: u32,
    /// Largest IP packet that the kernel's way to the pod carries, bytes: what its bridge, or a route, lets pass.
    pub mtu: u32,
    /// MAC of the pod; of one without MACs, as behind a netkit in L3 mode, one that nobody sends to.
    pub mac: [u8; 6],
    /// MAC of the pod's gateway: source of frames the pod receives.
    pub gateway_mac: [u8; 6],
}

super::assert_layout!(PodPlace, 20, 4);
