//! The dataplanes that are compared.

use std::fmt;

use anyhow::Result;
use clap::ValueEnum;
use flannel_common::{
    path::flow,
    reason::{Class, Direction, Reason},
};

use crate::{
    lab::{AgentOptions, Cluster, FastPath, Lab, stock},
    traffic::{Endpoint, ping::ping, tcp},
};

/// One dataplane between two nodes that share a veth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Mode {
    /// Node to node, no overlay.
    Bare,
    /// The same with flannel's iptables rules, which every node of a cluster has.
    BareRules,
    /// Pod to pod over the kernel's VXLAN, no netfilter.
    Kernel,
    /// The same with flannel's iptables rules: what stock flannel is.
    KernelRules,
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
    pub const EACH: [Self; 8] = [
        Self::Bare,
        Self::BareRules,
        Self::Kernel,
        Self::KernelRules,
        Self::Off,
        Self::Overlay,
        Self::Flow,
        Self::All,
    ];

    /// As tables call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare network",
            Self::BareRules => "bare network + flannel's rules",
            Self::Kernel => "kernel VXLAN",
            Self::KernelRules => "kernel VXLAN + flannel's rules",
            Self::Off => "agent, off",
            Self::Overlay => "agent, overlay",
            Self::Flow => "agent, flow",
            Self::All => "agent, all",
        }
    }

    fn fast_path(self) -> Option<FastPath> {
        match self {
            Self::Bare | Self::BareRules | Self::Kernel | Self::KernelRules => None,
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

/// Two nodes with one dataplane, ready to be measured.
#[derive(Debug)]
pub struct Subject {
    mode: Mode,
    /// The agents, where there are any.
    cluster: Option<Cluster>,
    client: Endpoint,
    server: Endpoint,
    lab: Lab,
}

impl Subject {
    /// Builds it in a lab of its own, and sends a little through it.
    pub(super) fn build(mode: Mode) -> Result<Self> {
        let lab = Lab::new()?;
        let (cluster, client, server) = match mode.fast_path() {
            Some(fast_path) => agents(&lab, fast_path)?,
            None if mode == Mode::Bare => {
                let (a, b) = lab.pair()?;
                (None, a.underlay_endpoint(), b.underlay_endpoint())
            }
            None => kernel(&lab, mode)?,
        };
        ping(&client, &server, 56)?;
        tcp::bulk(&client, &server, 16 << 20)?;
        Ok(Self { mode, cluster, client, server, lab })
    }

    /// Which dataplane this is.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Who sends.
    pub fn client(&self) -> &Endpoint {
        &self.client
    }

    /// Who receives.
    pub fn server(&self) -> &Endpoint {
        &self.server
    }

    /// Share of packets that took the fast path, of all that the client's programs saw leave; `None` where
    /// there are no programs. It shows that a mode measured what its name says.
    pub(super) fn fast_share(&self) -> Result<Option<f64>> {
        let Some(cluster) = self.cluster.as_ref().filter(|_| self.mode != Mode::Off) else { return Ok(None) };
        let counters = cluster.members[0].counters()?;
        let fast = counters.packets(Direction::Egress, Class::Fast) as f64;
        // A packet that a pod's program leaves to the host's stack comes by again at the overlay, and counts
        // there.
        let left = [Reason::PodOnKernel, Reason::SnatExempt].into_iter().chain(flow::REFUSALS);
        let left: u64 = left.map(|reason| counters.get(Direction::Egress, reason).packets).sum();
        let kernel = (counters.packets(Direction::Egress, Class::Kernel) - left) as f64;
        Ok(Some(fast / (fast + kernel).max(1.0)))
    }

    /// Removes it.
    pub(super) fn close(self) -> Result<()> {
        drop(self.cluster);
        self.lab.close()
    }
}

fn kernel(lab: &Lab, mode: Mode) -> Result<(Option<Cluster>, Endpoint, Endpoint)> {
    let (a, b) = lab.pair()?;
    stock::join(&mut [&mut a.stock()?, &mut b.stock()?])?;
    let pods = [a.pod("pod1")?, b.pod("pod1")?];
    if mode != Mode::Kernel {
        a.load_flannel_rules()?;
        b.load_flannel_rules()?;
    }
    Ok(match mode {
        Mode::BareRules => (None, a.underlay_endpoint(), b.underlay_endpoint()),
        _ => (None, pods[0].endpoint(), pods[1].endpoint()),
    })
}

fn agents(lab: &Lab, fast_path: FastPath) -> Result<(Option<Cluster>, Endpoint, Endpoint)> {
    let options = AgentOptions { fast_path, flags: vec!["--ip-masq".to_owned()] };
    let cluster = Cluster::pair(lab, 1, options)?;
    cluster.await_fast_path(0, 1, fast_path)?;
    cluster.await_fast_path(1, 0, fast_path)?;
    let (client, server) = (cluster.members[0].pod()?, cluster.members[1].pod()?);
    Ok((Some(cluster), client, server))
}
