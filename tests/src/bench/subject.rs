//! Two nodes with one dataplane, ready to be measured.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use flannel_common::{
    path::flow,
    reason::{Class, Direction, Reason},
};
use ipnetwork::Ipv4Network;

use super::{Case, Mode, Scenario, service, workload::Workload};
use crate::{
    lab::{AgentOptions, Cluster, FastPath, Lab, Node, SubnetEnv, stock},
    traffic::{Endpoint, ping::ping, tcp, udp},
    wait::eventually,
};

/// How long packets may take to find the fast path.
const PATIENCE: Duration = Duration::from_secs(15);

/// Two nodes with one dataplane.
#[derive(Debug)]
pub struct Subject {
    case: Case,
    /// The agents, where there are any.
    cluster: Option<Cluster>,
    client: Endpoint,
    server: Endpoint,
    /// Where the client finds the server.
    target: IpAddr,
    lab: Lab,
}

/// What stands between two endpoints.
struct Built {
    cluster: Option<Cluster>,
    /// The client's node.
    node: Option<Node>,
    client: Endpoint,
    server: Endpoint,
}

impl Subject {
    /// Builds it in a lab of its own, and sends a little through it.
    pub(super) fn build(case: Case) -> Result<Self> {
        let lab = Lab::new()?;
        let Case { scenario, mode } = case;
        if scenario == Scenario::Ipv6 {
            bail!("the lab has no IPv6 yet");
        }
        let built = match (mode.fast_path(), scenario) {
            (Some(fast_path), _) => agents(&lab, scenario, fast_path)?,
            (None, _) if mode == Mode::Bare => bare(&lab)?,
            (None, Scenario::HostGw) => direct(&lab, mode)?,
            (None, _) => overlay(&lab, mode)?,
        };
        let Built { cluster, node, client, server } = built;
        ping(&client, &server, 56)?;
        tcp::bulk(&client, &server, 16 << 20)?;
        let mut target = IpAddr::from(server.address());
        if scenario == Scenario::Service && !mode.is_of_nodes() {
            let node = cluster.as_ref().map(|cluster| &cluster.members[0].node).or(node.as_ref());
            let node = node.context("no node to keep a Service's rules")?;
            service::load(node, server.address(), &Workload::PORTS)?;
            target = service::ADDRESS.into();
        }
        Ok(Self { case, cluster, client, server, target, lab })
    }

    /// What this is.
    pub fn case(&self) -> Case {
        self.case
    }

    /// Who sends.
    pub fn client(&self) -> &Endpoint {
        &self.client
    }

    /// Who receives.
    pub fn server(&self) -> &Endpoint {
        &self.server
    }

    /// The server's address as the client knows it.
    pub fn target(&self) -> IpAddr {
        self.target
    }

    /// The agents, where there are any.
    pub(super) fn cluster(&self) -> Option<&Cluster> {
        self.cluster.as_ref()
    }

    /// Share of packets that took the fast path, of all that the client's programs saw leave; `None` where
    /// there are no programs. It shows that a mode measured what its name says.
    pub(super) fn fast_share(&self) -> Result<Option<f64>> {
        let Some(cluster) = self.cluster.as_ref().filter(|_| self.case.mode != Mode::Off) else {
            return Ok(None);
        };
        let counters = cluster.members[0].counters()?;
        let fast = counters.packets(Direction::Egress, Class::Fast) as f64;
        // A packet that a pod's program leaves to the host's stack comes by again at the overlay, and counts
        // there.
        let left = [Reason::PodOnKernel, Reason::SnatExempt].into_iter().chain(flow::REFUSALS);
        let left: u64 = left.map(|reason| counters.get(Direction::Egress, reason).packets).sum();
        let kernel = counters.packets(Direction::Egress, Class::Kernel).saturating_sub(left) as f64;
        Ok(Some(fast / (fast + kernel).max(1.0)))
    }

    /// Removes it.
    pub(super) fn close(self) -> Result<()> {
        drop(self.cluster);
        self.lab.close()
    }
}

fn bare(lab: &Lab) -> Result<Built> {
    let (a, b) = lab.pair()?;
    Ok(Built { cluster: None, client: a.underlay_endpoint(), server: b.underlay_endpoint(), node: Some(a) })
}

/// The kernel's VXLAN, as stock flannel sets it up.
fn overlay(lab: &Lab, mode: Mode) -> Result<Built> {
    let (a, b) = lab.pair()?;
    stock::join(&mut [&mut a.stock()?, &mut b.stock()?])?;
    pods(a, b, mode)
}

/// The routes that stock flannel's host-gw sets up.
fn direct(lab: &Lab, mode: Mode) -> Result<Built> {
    let (a, b) = lab.pair()?;
    let network = Ipv4Network::new(Ipv4Addr::new(10, 244, 0, 0), 16)?;
    let subnet = |node: &Node| Ipv4Network::new(Ipv4Addr::new(10, 244, 200 + node.number(), 0), 24);
    for (node, peer) in [(&a, &b), (&b, &a)] {
        SubnetEnv { network, subnet: subnet(node)?, mtu: 1500, ip_masq: false }.write(&node.subnet_file())?;
        node.netns().ip(&format!("route add {} via {} dev eth0", subnet(peer)?, peer.address()))?;
    }
    pods(a, b, mode)
}

fn pods(a: Node, b: Node, mode: Mode) -> Result<Built> {
    let ends = [a.pod("pod1")?.endpoint(), b.pod("pod1")?.endpoint()];
    if mode != Mode::Kernel {
        a.load_flannel_rules()?;
        b.load_flannel_rules()?;
    }
    let [client, server] = match mode {
        Mode::BareRules => [a.underlay_endpoint(), b.underlay_endpoint()],
        _ => ends,
    };
    Ok(Built { cluster: None, client, server, node: Some(a) })
}

fn agents(lab: &Lab, scenario: Scenario, fast_path: FastPath) -> Result<Built> {
    let options = AgentOptions { fast_path, flags: vec!["--ip-masq".to_owned()] };
    let config = match scenario {
        Scenario::HostGw => r#"{"Network":"10.244.0.0/16","Backend":{"Type":"host-gw"}}"#,
        Scenario::Vxlan | Scenario::Ipv6 | Scenario::Service => {
            r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#
        }
    };
    let cluster = Cluster::pair_configured(lab, 1, config, options)?;
    await_fast(&cluster, scenario, fast_path)?;
    let (client, server) = (cluster.members[0].pod()?, cluster.members[1].pod()?);
    Ok(Built { cluster: Some(cluster), node: None, client, server })
}

/// Waits until packets take the way that the mode's name promises, at both ends.
fn await_fast(cluster: &Cluster, scenario: Scenario, fast_path: FastPath) -> Result<()> {
    let ways = match (fast_path, scenario) {
        // Where there is no tunnel there is no tunnel's work to take over.
        (FastPath::Off, _) | (FastPath::Overlay, Scenario::HostGw) => return Ok(()),
        (FastPath::Overlay, _) => &[Direction::Egress][..],
        (FastPath::Flow | FastPath::All, _) => &Direction::ALL[..],
    };
    let [a, b] = [&cluster.members[0], &cluster.members[1]];
    eventually(PATIENCE, "packets take the fast path", || {
        let before = [a.counters()?, b.counters()?];
        udp::echo(&a.pod()?, &b.pod()?, 56, 3)?;
        for (member, before) in [a, b].into_iter().zip(&before) {
            let since = member.counters()?.since(before);
            for way in ways {
                let fast = since.packets(*way, Class::Fast);
                ensure!(
                    fast > 0,
                    "{}, {}: no packet took the fast path: {since}",
                    member.node.name(),
                    way.label()
                );
            }
        }
        Ok(())
    })
}
