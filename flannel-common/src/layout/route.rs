//! Where a pod subnet lives.

use bytemuck::{CheckedBitPattern, NoUninit, Pod, Zeroable};

/// Key of `routes_v4`: a pod subnet.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct SubnetV4 {
    /// Length of the prefix in bits, 0 to 32.
    pub prefix_len: u32,
    /// Network address, host bits zero, network order.
    pub network: [u8; 4],
}

impl SubnetV4 {
    /// The subnet of `prefix_len` bits that holds `address`. Lengths above 32 count as 32.
    #[inline(always)]
    pub fn of(address: [u8; 4], prefix_len: u32) -> Self {
        let mask = prefix_mask(prefix_len);
        Self { prefix_len, network: (u32::from_be_bytes(address) & mask).to_be_bytes() }
    }

    /// Whether `address` lies in this subnet.
    #[inline(always)]
    pub fn contains(&self, address: [u8; 4]) -> bool {
        (u32::from_be_bytes(address) ^ u32::from_be_bytes(self.network)) & prefix_mask(self.prefix_len) == 0
    }
}

#[inline(always)]
const fn prefix_mask(prefix_len: u32) -> u32 {
    if prefix_len == 0 { 0 } else { u32::MAX << (32 - if prefix_len > 32 { 32 } else { prefix_len }) }
}

/// How packets reach a peer.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, NoUninit, CheckedBitPattern)]
pub enum PeerKind {
    /// Only the kernel knows: the programs leave its packets alone.
    Kernel = 0,
    /// Through VXLAN (RFC 7348).
    Vxlan = 1,
    /// Through a route of the underlay, next hop rewritten.
    Direct = 2,
}

/// Value of `routes_v4`: the node that a pod subnet is leased to.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, NoUninit, CheckedBitPattern)]
pub struct PeerV4 {
    /// How packets reach it.
    pub kind: PeerKind,
    /// Public address of the peer: destination of the outer header.
    pub vtep: [u8; 4],
    /// VXLAN network identifier, 0 to 2^24-1.
    pub vni: u32,
    /// Interface of the underlay the peer is reached by.
    pub ifindex: u32,
    /// Address on that interface's link whose MAC the frame goes to: a gateway, or the peer itself.
    pub next_hop: [u8; 4],
    /// Largest outer IP packet the underlay carries to this peer, bytes.
    pub mtu: u32,
    /// MAC of the peer's VXLAN device, as its lease publishes it: inner destination.
    pub vtep_mac: [u8; 6],
    /// MAC of our own VXLAN device: inner source.
    pub local_mac: [u8; 6],
}

/// Value of `vteps`, whose key is the peer's public address, network order: the subnet that inner
/// sources of this VTEP must come from.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct VtepV4 {
    /// The peer's pod subnet.
    pub subnet: SubnetV4,
}

super::assert_layout!(SubnetV4, 8, 4);
super::assert_layout!(PeerV4, 36, 4);
super::assert_layout!(VtepV4, 8, 4);
