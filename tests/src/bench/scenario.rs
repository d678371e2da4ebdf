//! The ways packets travel between nodes.

use clap::ValueEnum;

use super::Mode;

/// What is between client and server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Scenario {
    /// IPv4 pods over VXLAN.
    Vxlan,
    /// IPv4 pods over routes to nodes on the same link.
    HostGw,
    /// IPv6 pods over VXLAN.
    Ipv6,
    /// A Service's address, which the client's node translates by kube-proxy's rules, over VXLAN.
    Service,
}

impl Scenario {
    /// All of them.
    pub const EACH: [Self; 4] = [Self::Vxlan, Self::HostGw, Self::Ipv6, Self::Service];

    /// As tables call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vxlan => "VXLAN",
            Self::HostGw => "host-gw",
            Self::Ipv6 => "IPv6 over VXLAN",
            Self::Service => "Service over VXLAN",
        }
    }

    /// As flags and files call it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Vxlan => "vxlan",
            Self::HostGw => "host-gw",
            Self::Ipv6 => "ipv6",
            Self::Service => "service",
        }
    }

    /// The scenario whose nodes, without pods, this one is compared with: of the same address family.
    pub fn of_nodes(self) -> Self {
        match self {
            Self::Vxlan | Self::HostGw | Self::Service => Self::Vxlan,
            Self::Ipv6 => Self::Ipv6,
        }
    }

    /// What is compared unless told otherwise: all that differs with the first, for the others what tells whether they
    /// keep up.
    pub(super) fn usual_modes(self) -> &'static [Mode] {
        match self {
            Self::Vxlan => {
                &[Mode::Bare, Mode::BareRules, Mode::KernelRules, Mode::Overlay, Mode::Flow, Mode::All]
            }
            Self::HostGw | Self::Ipv6 | Self::Service => {
                &[Mode::Bare, Mode::BareRules, Mode::KernelRules, Mode::Flow]
            }
        }
    }
}
