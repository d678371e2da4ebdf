//! Which flows netfilter has accepted.

use bytemuck::{CheckedBitPattern, NoUninit, Pod, Zeroable};

use super::per_family;
use crate::family::{Family, V4, V6};

/// Protocols whose flows are known: those with ports.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, NoUninit, CheckedBitPattern)]
pub enum FlowProtocol {
    /// By its number (IANA).
    Tcp = 6,
    /// By its number (IANA).
    Udp = 17,
}

per_family! {
    /// Key of `flows_v4` and `flows_v6`: a flow as a local pod sees it, whichever way a packet of it travels. Of two local
    /// pods it is the one whose veth has the lower index.
    ///
    /// Aligned to eight bytes: on a program's stack LLVM writes two fields at once, which the verifier takes there
    /// only where they are aligned.
    pub struct Flow<F>, FlowBits: repr(C, align(8)) {
        /// Address of the pod, network order.
        pub local: F::Address,
        /// Address of the other end, network order.
        pub remote: F::Address,
        /// Port of the pod, host order.
        pub local_port: u16,
        /// Port of the other end, host order.
        pub remote_port: u16,
        /// Protocol.
        pub protocol: FlowProtocol,
    }
}

impl<F: Family> Flow<F> {
    /// The same flow as the other end sees it.
    #[inline(always)]
    pub const fn reversed(&self) -> Self {
        Self {
            local: self.remote,
            remote: self.local,
            local_port: self.remote_port,
            remote_port: self.local_port,
            protocol: self.protocol,
        }
    }
}

/// Value of `flows_v4` and `flows_v6`: when netfilter last accepted a packet of the flow, by direction.
///
/// Times are of the kernel's coarse monotonic clock (`ktime_get_coarse_ns`), ns; 0 is never.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Permit {
    /// Of the pod's packets.
    pub egress: u64,
    /// Of packets for the pod.
    pub ingress: u64,
    /// The pod's veth then: one with another veth is another pod, and inherits nothing.
    pub ifindex: u32,
    /// The MAC of the pod's gateway then, folded ([`crate::packet::headers::folded`]): what the pod sends to another
    /// station, another pod that forwards for it, was not accepted. Where both ends are local pods, the other one's veth.
    pub gateway: u32,
    /// For which of the pod's packets ([`crate::path::fields`]).
    pub sent: u32,
    /// For which of those to it.
    pub received: u32,
    /// `skb->priority` with which the pod's packets leave the kernel path: forwarding makes it from IPv4's TOS, and rules
    /// may set it.
    pub priority: u32,
    /// Zero.
    pub reserved: u32,
}

super::assert_layout!(FlowProtocol, 4, 4);
super::assert_layout!(Flow<V4>, 16, 8);
super::assert_layout!(Flow<V6>, 40, 8);
super::assert_layout!(Permit, 40, 8);
