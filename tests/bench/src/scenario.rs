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
    /// IPv4 pods over the udp backend. The kernel's path is a loop as stock flannel's: two system calls a packet.
    Udp,
    /// IPv6 pods over VXLAN.
    Ipv6,
    /// A Service's address, which the client's node translates by kube-proxy's rules, over VXLAN.
    Service,
    /// The same by the rules of kube-proxy's nftables mode.
    ServiceNftables,
    /// Two IPv4 pods of one node.
    SameNode,
    /// From an IPv4 pod to the other node itself, which takes the pod for the pod's node: masqueraded.
    Outside,
    /// IPv4 pods over VXLAN on nodes of Kubernetes: a real API server and kube-proxy, agents of kube-flannel's DaemonSet.
    Kubernetes,
    /// There, a Service of the API server's, which the real kube-proxy translates.
    KubernetesService,
}

impl Scenario {
    /// All of them.
    pub const EACH: [Self; 10] = [
        Self::Vxlan,
        Self::HostGw,
        Self::Udp,
        Self::Ipv6,
        Self::Service,
        Self::ServiceNftables,
        Self::SameNode,
        Self::Outside,
        Self::Kubernetes,
        Self::KubernetesService,
    ];

    /// Those that are compared unless told otherwise. An API server for each dataplane of the others would take from
    /// every figure of these, too; what else there is has a run of its own ([`crate::services`]).
    pub const USUAL: [Self; 4] = [Self::Vxlan, Self::HostGw, Self::Ipv6, Self::Service];

    /// As tables call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vxlan => "VXLAN",
            Self::HostGw => "host-gw",
            Self::Udp => "UDP",
            Self::Ipv6 => "IPv6 over VXLAN",
            Self::Service => "Service over VXLAN",
            Self::ServiceNftables => "Service by nftables over VXLAN",
            Self::SameNode => "pods of one node",
            Self::Outside => "pod to the outside",
            Self::Kubernetes => "VXLAN in Kubernetes",
            Self::KubernetesService => "Service in Kubernetes",
        }
    }

    /// As flags and files call it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Vxlan => "vxlan",
            Self::HostGw => "host-gw",
            Self::Udp => "udp",
            Self::Ipv6 => "ipv6",
            Self::Service => "service",
            Self::ServiceNftables => "service-nftables",
            Self::SameNode => "same-node",
            Self::Outside => "outside",
            Self::Kubernetes => "kubernetes",
            Self::KubernetesService => "kubernetes-service",
        }
    }

    /// The scenario whose nodes, without pods, this one is compared with in `mode`: of the same address family, and with
    /// the same rules, where there are any.
    pub fn of_nodes(self, mode: Mode) -> Self {
        match self {
            Self::Ipv6 => Self::Ipv6,
            Self::Kubernetes | Self::KubernetesService if mode != Mode::Bare => Self::Kubernetes,
            _ => Self::Vxlan,
        }
    }

    /// Whether its nodes are Kubernetes's.
    pub fn is_of_kubernetes(self) -> bool {
        matches!(self, Self::Kubernetes | Self::KubernetesService)
    }

    /// Whether clients find the server by a Service's address.
    pub(super) fn has_service(self) -> bool {
        matches!(self, Self::Service | Self::ServiceNftables | Self::KubernetesService)
    }

    /// How many pods each node needs.
    pub(super) fn pods(self) -> usize {
        if self == Self::SameNode { 2 } else { 1 }
    }

    /// Whether its packets travel between pods of two nodes: the programs move what is of accepted flows there.
    pub(super) fn is_between_nodes(self) -> bool {
        !matches!(self, Self::SameNode | Self::Outside)
    }

    /// What is compared unless told otherwise: all that differs with the first, for the others what tells whether they
    /// keep up.
    pub(super) fn usual_modes(self) -> &'static [Mode] {
        match self {
            Self::Vxlan => {
                &[Mode::Bare, Mode::BareRules, Mode::KernelRules, Mode::Overlay, Mode::Flow, Mode::All]
            }
            Self::Kubernetes => &[Mode::Bare, Mode::BareRules, Mode::KernelRules, Mode::Flow, Mode::All],
            // Between its nodes is a veth pair, where the programs leave all to the agent.
            Self::Udp => &[Mode::Bare, Mode::BareRules, Mode::KernelRules, Mode::Off],
            Self::ServiceNftables | Self::SameNode | Self::Outside => {
                &[Mode::Bare, Mode::BareRules, Mode::KernelRules, Mode::Flowtable, Mode::Flow]
            }
            Self::HostGw | Self::Ipv6 | Self::Service | Self::KubernetesService => {
                &[Mode::Bare, Mode::BareRules, Mode::KernelRules, Mode::Flow]
            }
        }
    }
}
