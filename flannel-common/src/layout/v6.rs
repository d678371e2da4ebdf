//! The same maps for pods' IPv6 packets, which travel over a device and an outer header of their own.
//!
//! Every address stands at a multiple of eight bytes: on a program's stack LLVM moves it as two words, which the
//! verifier takes there only where they are aligned.

use bytemuck::{CheckedBitPattern, NoUninit, Pod, Zeroable};

use super::{FastPath, FlowProtocol, PREFIX_LENGTHS, PeerKind, UnknownVtep};

/// An IPv6 address as a key: of `pods_v6` and `vteps_v6`.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct AddressV6 {
    /// In network order.
    pub octets: [u8; 16],
}

impl AddressV6 {
    /// The address with these octets.
    pub const fn new(octets: [u8; 16]) -> Self {
        Self { octets }
    }

    /// The address of two words, the bytes of each in the order of memory.
    #[inline(always)]
    pub fn of_halves(halves: [u64; 2]) -> Self {
        Self { octets: bytemuck::cast(halves) }
    }

    /// As two words, the bytes of each in the order of memory.
    #[inline(always)]
    pub fn halves(self) -> [u64; 2] {
        bytemuck::cast(self)
    }
}

/// Key of `routes_v6`: a pod subnet.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct SubnetV6 {
    /// Length of the prefix in bits, 0 to 128.
    pub prefix_len: u64,
    /// Network address, host bits zero.
    pub network: AddressV6,
}

impl SubnetV6 {
    /// The subnet of `prefix_len` bits that holds `address`. Lengths above 128 count as 128.
    #[inline(always)]
    pub fn of(address: AddressV6, prefix_len: u32) -> Self {
        let [high, low] = address.halves();
        let prefix_len = u64::from(prefix_len);
        let mask = prefix_mask(prefix_len);
        Self { prefix_len, network: AddressV6::of_halves([high & mask[0], low & mask[1]]) }
    }

    /// Whether `address` lies in this subnet.
    #[inline(always)]
    pub fn contains(&self, address: AddressV6) -> bool {
        let ([high, low], [own_high, own_low]) = (address.halves(), self.network.halves());
        let mask = prefix_mask(self.prefix_len);
        ((high ^ own_high) & mask[0]) | ((low ^ own_low) & mask[1]) == 0
    }
}

/// The bits of a prefix, as [`AddressV6::halves`].
#[inline(always)]
const fn prefix_mask(prefix_len: u64) -> [u64; 2] {
    [half_mask(prefix_len).to_be(), half_mask(prefix_len.saturating_sub(64)).to_be()]
}

/// The upper `bits` of a word, all of them from 64 on.
#[inline(always)]
const fn half_mask(bits: u64) -> u64 {
    if bits == 0 { 0 } else { u64::MAX << (64 - if bits > 64 { 64 } else { bits }) }
}

/// Value of `routes_v6`: the node that a pod subnet is leased to.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, NoUninit, CheckedBitPattern)]
pub struct PeerV6 {
    /// How packets reach it.
    pub kind: PeerKind,
    /// VXLAN network identifier, 0 to 2^24-1.
    pub vni: u32,
    /// Public address of the peer: destination of the outer header.
    pub vtep: AddressV6,
    /// Address on the link of the underlay whose MAC the frame goes to: a gateway, often a link-local one, or
    /// the peer itself.
    pub next_hop: AddressV6,
    /// Interface of the underlay the peer is reached by.
    pub ifindex: u32,
    /// Largest outer IP packet the underlay carries to this peer, bytes.
    pub mtu: u32,
    /// MAC of the peer's VXLAN device for IPv6, as its lease publishes it: inner destination.
    pub vtep_mac: [u8; 6],
    /// MAC of our own such device: inner source.
    pub local_mac: [u8; 6],
    /// Always zero: keeps the size a multiple of eight.
    pub reserved: [u8; 4],
}

/// Value of `vteps_v6`, whose key is the peer's public address: the subnet that inner sources of this VTEP must
/// come from.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct VtepV6 {
    /// The peer's pod subnet.
    pub subnet: SubnetV6,
}

/// Key of `flows_v6`: a flow as a local pod sees it, whichever way a packet of it travels.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, NoUninit, CheckedBitPattern)]
pub struct FlowV6 {
    /// Address of the pod.
    pub local: AddressV6,
    /// Address of the other end.
    pub remote: AddressV6,
    /// Port of the pod, host order.
    pub local_port: u16,
    /// Port of the other end, host order.
    pub remote_port: u16,
    /// Protocol.
    pub protocol: FlowProtocol,
}

impl super::FlowKey for FlowV6 {
    type Address = AddressV6;
}

/// Value of `config_v6`, whose only key is 0: what the programs know of this node in the cluster's IPv6 network.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, NoUninit, CheckedBitPattern)]
pub struct ConfigV6 {
    /// What the operator asked for.
    pub fast_path: FastPath,
    /// VXLAN UDP port, host order, 1 to 65535.
    pub port: u32,
    /// Our own public address: source of outer headers, and the only outer destination accepted.
    pub vtep: AddressV6,
    /// The cluster's pod network: every lease lies in it.
    pub network: SubnetV6,
    /// This node's pod subnet.
    pub subnet: SubnetV6,
    /// VXLAN network identifier accepted from peers, 0 to 2^24-1.
    pub vni: u32,
    /// How long netfilter's acceptance of a TCP flow holds, ms.
    pub tcp_refresh: u32,
    /// How long netfilter's acceptance of a UDP flow holds, ms.
    pub udp_refresh: u32,
    /// Lowest UDP source port of outer headers, host order (`net.ipv4.ip_local_port_range`, which is for both
    /// families).
    pub source_port_min: u32,
    /// End of that range as the kernel's formula uses it: exclusive, host order.
    pub source_port_max: u32,
    /// Our VXLAN device for IPv6, to which aggregates are handed; 0 while it is not known.
    pub overlay_ifindex: u32,
    /// What XDP does with VXLAN from unknown addresses; of no meaning to the programs at other hooks.
    pub unknown_vtep: UnknownVtep,
    /// Lengths of the leased prefixes, bits, longest first, zero after the last.
    pub prefix_lengths: [u8; PREFIX_LENGTHS],
    /// MAC of our own VXLAN device for IPv6: the inner destination accepted from peers.
    pub local_mac: [u8; 6],
    /// Always zero: keeps the size a multiple of eight.
    pub reserved: [u8; 2],
}

super::assert_layout!(AddressV6, 16, 8);
super::assert_layout!(SubnetV6, 24, 8);
super::assert_layout!(PeerV6, 64, 8);
super::assert_layout!(VtepV6, 24, 8);
super::assert_layout!(FlowV6, 40, 8);
super::assert_layout!(ConfigV6, 112, 8);
