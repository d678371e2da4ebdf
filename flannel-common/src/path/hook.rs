//! Where packets are seen.

use crate::{map, reason::Direction};

/// The hooks a decision is made at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// tc ingress, host side of a pod's veth.
    FromPod,
    /// tc egress, flannel.<vni> and flannel-v6.<vni>.
    ToOverlay,
    /// tc ingress, external interface.
    FromUnderlay,
    /// tc ingress, flannel.<vni>.
    FromOverlay,
    /// tc egress, host side of a pod's veth.
    ToPod,
    /// tc egress, external interface.
    ToUnderlay,
    /// XDP in the driver of the external interface.
    XdpUnderlay,
    /// Generic XDP on the external interface: behind the making and merging of packets, where decapsulation
    /// gains nothing, so that only unknown VTEPs are looked for.
    XdpGeneric,
}

impl Hook {
    /// All hooks.
    pub const ALL: [Self; 8] = [
        Self::FromPod,
        Self::ToOverlay,
        Self::FromUnderlay,
        Self::FromOverlay,
        Self::ToPod,
        Self::ToUnderlay,
        Self::XdpUnderlay,
        Self::XdpGeneric,
    ];

    /// Whether it is one of XDP; the others are of tc.
    pub const fn is_xdp(self) -> bool {
        matches!(self, Self::XdpUnderlay | Self::XdpGeneric)
    }

    /// Name of the program at this hook, which is also the name of its pinned link.
    pub const fn program(self) -> &'static str {
        match self {
            Self::FromPod => map::FROM_POD,
            Self::ToOverlay => map::TO_OVERLAY,
            Self::FromUnderlay => map::FROM_UNDERLAY,
            Self::FromOverlay => map::FROM_OVERLAY,
            Self::ToPod => map::TO_POD,
            Self::ToUnderlay => map::TO_UNDERLAY,
            Self::XdpUnderlay => map::XDP_UNDERLAY,
            Self::XdpGeneric => map::XDP_GENERIC,
        }
    }

    /// Which way the packets travel that it sees, from a pod's point of view.
    pub const fn direction(self) -> Direction {
        match self {
            Self::FromPod | Self::ToOverlay | Self::ToUnderlay => Direction::Egress,
            Self::FromUnderlay | Self::FromOverlay | Self::ToPod | Self::XdpUnderlay | Self::XdpGeneric => {
                Direction::Ingress
            }
        }
    }
}
