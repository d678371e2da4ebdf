//! The bits of a packet's mark (`skb->mark`) that are ours.
//!
//! All else on the host may use the other bits; and ours are on a packet only where they are of use. Of the 16
//! lower bits, those that no project is known to take are 0 to 6 and 12 (github.com/fwmark/registry): 7 is of AWS'
//! VPC CNI, 8 to 11 are Cilium's, 13 is the portmap plugin's and netavark's, 14 and 15 are Kubernetes'; from 16 on
//! there are Calico, Tailscale and Weave. Low bits are also in the small numbers that administrators choose.

/// Default of [`Marks::exempt`]: the highest of the low bits, which numbers below 64 have not. Whoever uses one
/// that has, must have put it on what a pod of this node sends to meet it.
pub const SNAT_EXEMPT_MARK: u32 = 0x40;

/// Default of [`Marks::flow`]: netfilter clears and sets it in whatever goes between pods, so it is the one bit
/// that nobody is known to use.
pub const FLOW_MARK: u32 = 0x1000;

/// Which bits they are on this node: one each, not the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    /// `from_pod` sets it on what pods send, through the host's stack, to a prefix of `snat_exempt_v4` or its twin.
    /// The first rule of nat POSTROUTING returns on it, unless kube-proxy's 0x4000 is there, too, which asks for
    /// masquerading.
    ///
    /// Nobody else can have set it on a pod's packet: a veth zeroes the mark of what leaves its namespace
    /// (net/core/skbuff.c, `skb_scrub_packet`). Programs that are attached ahead of ours at the same hook may use
    /// the other bits.
    pub exempt: u32,
    /// By it netfilter tells the programs at the ends of the kernel's path that it has accepted the packet as part of
    /// a flow in both directions, and has changed no address or port of it. One rule at the end of mangle POSTROUTING
    /// sets it, which what a filter drops does not reach; and what drops packets after that rule keeps them from
    /// those programs.
    ///
    /// On two stretches of the way where netfilter has not set it yet, it says something else. By it `from_underlay`
    /// tells `from_overlay` that it has checked a packet, its outer headers included, and leaves to the kernel's
    /// VXLAN device only to pop them. And by it, without [`Self::exempt`], `from_pod` tells `to_overlay` of an
    /// aggregate that it has handed to the VXLAN device itself, past the host's stack: what comes from a pod to
    /// another node by the stack has both.
    pub flow: u32,
}

impl Marks {
    /// Unless an operator says otherwise.
    pub const DEFAULT: Self = Self { exempt: SNAT_EXEMPT_MARK, flow: FLOW_MARK };

    /// Both bits.
    #[inline(always)]
    pub const fn both(self) -> u32 {
        self.exempt | self.flow
    }

    /// Whether a packet with `mark` is an aggregate's that `from_pod` may have handed to the VXLAN device.
    #[inline(always)]
    pub const fn is_handed_over(self, mark: u32) -> bool {
        mark & self.both() == self.flow
    }

    /// `mark` as `from_pod` hands a packet with it to the VXLAN device.
    #[inline(always)]
    pub const fn handed_over(self, mark: u32) -> u32 {
        mark & !self.exempt | self.flow
    }
}

impl Default for Marks {
    fn default() -> Self {
        Self::DEFAULT
    }
}
