//! What the programs know of this node.

use bytemuck::{CheckedBitPattern, NoUninit};

use super::{Subnet, per_family};
use crate::family::{V4, V6};

/// How far packets may skip the host's stack.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, NoUninit, CheckedBitPattern)]
pub enum FastPath {
    /// Not at all: the kernel's VXLAN device does the work.
    Off = 0,
    /// Only the tunnel device is skipped; netfilter and routing see every packet.
    Overlay = 1,
    /// Flows that netfilter has accepted skip the stack.
    Flow = 2,
    /// Every pod-to-pod packet skips the stack.
    All = 3,
}

impl FastPath {
    /// Whether packets may skip the stack at pods, for which the programs must know where those are.
    pub const fn finds_pods(self) -> bool {
        matches!(self, Self::Flow | Self::All)
    }

    /// As `--fast-path` has it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Overlay => "overlay",
            Self::Flow => "flow",
            Self::All => "all",
        }
    }
}

/// What XDP does with VXLAN from an address that no lease names.
#[repr(u32)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, NoUninit, CheckedBitPattern)]
pub enum UnknownVtep {
    /// Nothing: the packet goes the kernel's way.
    #[default]
    Off = 0,
    /// Counts it and lets it pass.
    Count = 1,
    /// Drops it.
    Drop = 2,
}

impl UnknownVtep {
    /// As `--xdp-unknown-vtep` has it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Count => "count",
            Self::Drop => "drop",
        }
    }
}

/// Bits by which something on the host routes or queues packets.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, NoUninit, CheckedBitPattern)]
pub struct Heeded {
    /// Of `skb->mark`. Our own bits are never meant.
    pub marks: u32,
    /// Of `skb->priority`.
    pub classes: u32,
}

/// How many different prefix lengths the programs look up. A cluster has one `SubnetLen`; more appear
/// only while it is being changed.
pub const PREFIX_LENGTHS: usize = 4;

per_family! {
    /// Value of `config_v4` and `config_v6`, whose only key is 0: what the programs know of this node in the cluster's
    /// network of a family.
    pub struct Config<F>, ConfigBits: repr(C) {
        /// What the operator asked for.
        pub fast_path: FastPath,
        /// UDP port of the tunnel, host order, 1 to 65535; 0 where none with a port is in use.
        pub port: u32,
        /// Our own public address: source of outer headers, and the only outer destination accepted.
        pub vtep: F::Address,
        /// The cluster's pod network: every lease lies in it.
        pub network: Subnet<F>,
        /// This node's pod subnet.
        pub subnet: Subnet<F>,
        /// VXLAN network identifier accepted from other nodes, 0 to 2^24-1.
        pub vni: u32,
        /// How long netfilter's acceptance of a TCP flow holds, ms.
        pub tcp_refresh: u32,
        /// How long netfilter's acceptance of a UDP flow holds, ms.
        pub udp_refresh: u32,
        /// Lowest UDP source port of outer headers, host order (`net.ipv4.ip_local_port_range`, which is for both
        /// families).
        pub source_port_min: u32,
        /// End of that range as the kernel's formula uses it: exclusive, host order, never 0.
        pub source_port_max: u32,
        /// Our VXLAN device of this family, by which decapsulated packets come in that netfilter has to see, and to which
        /// aggregates over IPv6 are handed; 0 while it is not known.
        pub overlay_ifindex: u32,
        /// Packets with any of these bits are left to the kernel.
        pub heeded: Heeded,
        /// What XDP does with VXLAN from unknown addresses; of no meaning to the programs at other hooks.
        pub unknown_vtep: UnknownVtep,
        /// Lengths of the leased prefixes, bits, longest first, zero after the last: the lengths a lookup
        /// tries. Leases of further lengths take the kernel path.
        pub prefix_lengths: [u8; PREFIX_LENGTHS],
        /// MAC of our own VXLAN device: the inner destination accepted from other nodes.
        pub local_mac: [u8; 6],
        /// Always zero: keeps the size a multiple of four.
        pub reserved: [u8; 2],
    }
}

super::assert_layout!(Heeded, 8, 4);
super::assert_layout!(Config<V4>, 76, 4);
super::assert_layout!(Config<V6>, 120, 8);
