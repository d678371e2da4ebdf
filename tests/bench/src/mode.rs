//! The dataplanes that are compared.

use std::fmt;

use clap::ValueEnum;
use flannel_lab::FastPath;

use super::Scenario;

/// One dataplane between two nodes that share a veth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Mode {
    /// Node to node, no overlay.
    Bare,
    /// The same with flannel's rules, which every node of a cluster has; in Kubernetes with kube-proxy's, too.
    BareRules,
    /// Pod to pod by the kernel alone, no netfilter.
    Kernel,
    /// The same with flannel's rules: what stock flannel is.
    KernelRules,
    /// The same with an nft flowtable over all devices of each node, to which rules give established flows.
    Flowtable,
    /// Pod to pod, agent with --fast-path=off --ip-masq.
    Off,
    /// Pod to pod, agent with --fast-path=overlay --ip-masq.
    Overlay,
    /// Pod to pod, agent with --fast-path=flow --ip-masq.
    Flow,
    /// Pod to pod, agent with --fast-path=all --ip-masq.
    All,
}

impl Mode {
    /// All of them.
    pub const EACH: [Self; 9] = [
        Self::Bare,
        Self::BareRules,
        Self::Kernel,
        Self::KernelRules,
        Self::Flowtable,
        Self::Off,
        Self::Overlay,
        Self::Flow,
        Self::All,
    ];

    /// As tables call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bare => "nodes, bare network",
            Self::BareRules => "nodes + flannel's rules",
            Self::Kernel => "kernel's path",
            Self::KernelRules => "kernel's path + flannel's rules (stock)",
            Self::Flowtable => "stock + nft flowtable",
            Self::Off => "agent, off",
            Self::Overlay => "agent, overlay",
            Self::Flow => "agent, flow",
            Self::All => "agent, all",
        }
    }

    /// As flags and files call it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::BareRules => "bare-rules",
            Self::Kernel => "kernel",
            Self::KernelRules => "kernel-rules",
            Self::Flowtable => "flowtable",
            Self::Off => "off",
            Self::Overlay => "overlay",
            Self::Flow => "flow",
            Self::All => "all",
        }
    }

    /// Whether it is measured between nodes: then it is the same however pods' packets would travel.
    pub(super) fn is_of_nodes(self) -> bool {
        matches!(self, Self::Bare | Self::BareRules)
    }

    /// How the agent runs, where there is one.
    pub(super) fn fast_path(self) -> Option<FastPath> {
        match self {
            Self::Bare | Self::BareRules | Self::Kernel | Self::KernelRules | Self::Flowtable => None,
            Self::Off => Some(FastPath::Off),
            Self::Overlay => Some(FastPath::Overlay),
            Self::Flow => Some(FastPath::Flow),
            Self::All => Some(FastPath::All),
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A dataplane in a scenario: what is built once and measured in turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Case {
    /// How packets travel.
    pub scenario: Scenario,
    /// What moves them.
    pub mode: Mode,
}

impl Case {
    /// `mode` in `scenario`; between nodes that is the same for several scenarios.
    pub fn new(scenario: Scenario, mode: Mode) -> Self {
        let scenario = if mode.is_of_nodes() { scenario.of_nodes(mode) } else { scenario };
        Self { scenario, mode }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.scenario.name(), self.mode)
    }
}
