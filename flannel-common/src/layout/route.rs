//! Where a pod subnet lives.

use bytemuck::{CheckedBitPattern, NoUninit};

use super::per_family;
use crate::family::{Address as _, Family, V4, V6};

per_family! {
    /// A prefix: key of `routes_v4` and `routes_v6`, a pod subnet.
    pub struct Subnet<F>, SubnetBits: repr(C) {
        /// Length of the prefix in bits, 0 to 32 or 128.
        pub prefix_len: F::PrefixLen,
        /// Network address, host bits zero, network order.
        pub network: F::Address,
    }
}

/// A prefix of IPv4.
pub type SubnetV4 = Subnet<V4>;
/// A prefix of IPv6.
pub type SubnetV6 = Subnet<V6>;

impl<F: Family> Subnet<F> {
    /// The subnet of `prefix_len` bits that holds `address`. Lengths above the address' own count as that.
    #[inline(always)]
    pub fn of(address: F::Address, prefix_len: u32) -> Self {
        Self { prefix_len: prefix_len.into(), network: address.masked(prefix_len.into()) }
    }

    /// Whether `address` lies in this subnet.
    #[inline(always)]
    pub fn contains(&self, address: F::Address) -> bool {
        address.shares_prefix(self.network, self.prefix_len.into())
    }
}

/// How packets reach the node that a pod subnet is leased to.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, NoUninit, CheckedBitPattern)]
pub enum RouteKind {
    /// Only the kernel knows: the programs leave its packets alone.
    Kernel = 0,
    /// Through VXLAN (RFC 7348).
    Vxlan = 1,
    /// Through a route of the underlay, next hop rewritten.
    Direct = 2,
    /// In UDP, as it is.
    Udp = 3,
    /// Behind another IPv4 header, as it is (RFC 2003).
    Ipip = 4,
}

per_family! {
    /// Value of `routes_v4` and `routes_v6`: the way to the node that a pod subnet is leased to.
    pub struct Route<F>, RouteBits: repr(C) {
        /// How packets reach it.
        pub kind: RouteKind,
        /// VXLAN network identifier, 0 to 2^24-1.
        pub vni: u32,
        /// Public address of that node: destination of the outer header.
        pub vtep: F::Address,
        /// Address on the link of the underlay whose MAC the frame goes to: a gateway, with IPv6 often a link-local
        /// one, or the node itself.
        pub next_hop: F::Address,
        /// Interface of the underlay that the node is reached by.
        pub ifindex: u32,
        /// Largest outer IP packet the underlay carries to the node, bytes.
        pub mtu: u32,
        /// MAC of the node's VXLAN device for this family, as its lease publishes it: inner destination.
        pub vtep_mac: [u8; 6],
        /// MAC of our own such device: inner source.
        pub local_mac: [u8; 6],
        /// Always zero: keeps the size a multiple of eight.
        pub reserved: [u8; 4],
    }
}

per_family! {
    /// Value of `vteps_v4` and `vteps_v6`, whose key is a node's public address: the subnet that inner sources of this VTEP
    /// must come from.
    pub struct Vtep<F>, VtepBits: repr(C) {
        /// The node's pod subnet.
        pub subnet: Subnet<F>,
    }
}

super::assert_layout!(SubnetV4, 8, 4);
super::assert_layout!(SubnetV6, 24, 8);
super::assert_layout!(Route<V4>, 40, 4);
super::assert_layout!(Route<V6>, 64, 8);
super::assert_layout!(Vtep<V4>, 8, 4);
super::assert_layout!(Vtep<V6>, 24, 8);
