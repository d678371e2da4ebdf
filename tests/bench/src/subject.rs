//! Two nodes with one dataplane, ready to be measured.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use flannel_common::{
    path::gate,
    reason::{Class, Direction, Reason},
};
use flannel_lab::{
    AgentOptions, Cluster, Etcd, FastPath, Lab, Member, Node, Pod, StockUdp, SubnetEnv, stock,
    traffic::{Endpoint, ping::ping, tcp, udp},
    wait::eventually,
};
use ipnetwork::Ipv4Network;

use super::{Case, Mode, Scenario, flowtable, kubernetes, service, surroundings::cpu_of, workload::Workload};

/// How long packets may take to find their way, and the fast path.
const PATIENCE: Duration = Duration::from_secs(15);

/// Two nodes with one dataplane.
#[derive(Debug)]
pub struct Subject {
    case: Case,
    built: Built,
    /// Where the client finds the server.
    target: IpAddr,
    lab: Lab,
}

/// Two endpoints, and what stands between them. What is dropped first stands on what is dropped later.
#[derive(Debug)]
struct Built {
    /// The nodes with agents, the client's first; none without.
    members: Vec<Member>,
    /// What serves tunnels in stock flannel's way.
    _stock: Vec<StockUdp>,
    /// The client's node, where it has no agent.
    node: Option<Node>,
    servers: Servers,
    client: Endpoint,
    server: Endpoint,
}

/// Where leases are, and what runs beside flannel.
#[derive(Debug)]
enum Servers {
    None,
    Etcd { _etcd: Etcd },
    Kubernetes(Box<kubernetes::Servers>),
}

impl Subject {
    /// Builds it in a lab of its own, and sends a little through it.
    pub(super) fn build(case: Case) -> Result<Self> {
        let lab = Lab::new()?;
        let Case { scenario, mode } = case;
        let built = match (mode.fast_path(), scenario) {
            (Some(fast_path), _) => agents(&lab, scenario, fast_path)?,
            (None, _) if mode == Mode::Bare => bare(&lab, scenario)?,
            (None, Scenario::Kubernetes | Scenario::KubernetesService) => stock_in_kubernetes(&lab, mode)?,
            (None, Scenario::HostGw) => direct(&lab, mode)?,
            (None, Scenario::Udp) => stock_udp(&lab, mode)?,
            (None, _) => overlay(&lab, scenario, mode)?,
        };
        let (client, server) = (&built.client, &built.server);
        // An address of IPv6 is used when nobody else has claimed it for a while.
        eventually(PATIENCE, "client and server reach each other", || ping(client, server, 56))?;
        tcp::bulk(client, server, 16 << 20)?;
        let mut target = server.address();
        if scenario.has_service() && !mode.is_of_nodes() {
            match &built.servers {
                Servers::Kubernetes(servers) => servers.serve(server.address_v4(), &Workload::PORTS)?,
                Servers::None | Servers::Etcd { .. } => {
                    let node = built.members.first().map(|member| &member.node).or(built.node.as_ref());
                    let node = node.context("no node to keep a Service's rules")?;
                    match scenario {
                        Scenario::ServiceNftables => {
                            service::load_nftables(node, server.address_v4(), &Workload::PORTS)?;
                        }
                        _ => service::load(node, server.address_v4(), &Workload::PORTS)?,
                    }
                }
            }
            target = service::ADDRESS.into();
        }
        Ok(Self { case, built, target, lab })
    }

    /// What this is.
    pub fn case(&self) -> Case {
        self.case
    }

    /// Who sends.
    pub fn client(&self) -> &Endpoint {
        &self.built.client
    }

    /// Who receives.
    pub fn server(&self) -> &Endpoint {
        &self.built.server
    }

    /// The server's address as the client knows it.
    pub fn target(&self) -> IpAddr {
        self.target
    }

    /// The nodes with agents, the client's first; none without.
    pub(super) fn members(&self) -> &[Member] {
        &self.built.members
    }

    /// CPU that the agent of the client's node has used so far; `None` where there is none, or none that is a process of
    /// ours.
    pub(super) fn agent_cpu(&self) -> Result<Option<Duration>> {
        match self.members().first().filter(|_| !self.case.scenario.is_of_kubernetes()) {
            Some(member) => cpu_of(member.agent.pid()?).map(Some),
            None => Ok(None),
        }
    }

    /// Share of packets that took the fast path, of all that the client's programs saw leave; `None` where
    /// there are no programs. It shows that a mode measured what its name says.
    pub(super) fn fast_share(&self) -> Result<Option<f64>> {
        let Some(member) = self.members().first().filter(|_| self.case.mode != Mode::Off) else {
            return Ok(None);
        };
        let counters = member.counters()?;
        let fast = counters.packets(Direction::Egress, Class::Fast) as f64;
        // A packet that a pod's program leaves to the host's stack comes by again at the overlay, and counts
        // there.
        let left = [Reason::PodOnKernel, Reason::SnatExempt].into_iter().chain(gate::REFUSALS);
        let left: u64 = left.map(|reason| counters.get(Direction::Egress, reason).packets).sum();
        let kernel = counters.packets(Direction::Egress, Class::Kernel).saturating_sub(left) as f64;
        Ok(Some(fast / (fast + kernel).max(1.0)))
    }

    /// Removes it.
    pub(super) fn close(self) -> Result<()> {
        drop(self.built);
        self.lab.close()
    }
}

/// Where traffic of the scenario starts and ends on the nodes themselves.
fn of_nodes(scenario: Scenario, nodes: [&Node; 2]) -> [Endpoint; 2] {
    match scenario {
        Scenario::Ipv6 => nodes.map(Node::underlay_endpoint_v6),
        _ => nodes.map(Node::underlay_endpoint),
    }
}

/// In a pod.
fn of_pod(scenario: Scenario, pod: &Pod) -> Result<Endpoint> {
    match scenario {
        Scenario::Ipv6 => pod.endpoint_v6(),
        _ => Ok(pod.endpoint()),
    }
}

/// Where traffic of the scenario starts and ends, on two nodes with these pods.
fn ends(scenario: Scenario, [a, b]: [(&Node, &[Pod]); 2]) -> Result<[Endpoint; 2]> {
    let pod = |(_, pods): (&Node, &[Pod]), number: usize| {
        of_pod(scenario, pods.get(number).context("a pod too few")?)
    };
    let to = match scenario {
        Scenario::SameNode => pod(a, 1)?,
        Scenario::Outside => b.0.underlay_endpoint(),
        _ => pod(b, 0)?,
    };
    Ok([pod(a, 0)?, to])
}

fn of_members(scenario: Scenario, members: &[Member]) -> Result<[Endpoint; 2]> {
    let [a, b] = members else { bail!("{} nodes are no pair", members.len()) };
    ends(scenario, [(&a.node, &a.pods), (&b.node, &b.pods)])
}

fn pair(lab: &Lab, scenario: Scenario) -> Result<(Node, Node)> {
    match scenario {
        Scenario::Ipv6 => lab.dual_pair(),
        _ => lab.pair(),
    }
}

fn bare(lab: &Lab, scenario: Scenario) -> Result<Built> {
    let (a, b) = pair(lab, scenario)?;
    let [client, server] = of_nodes(scenario, [&a, &b]);
    Ok(Built {
        members: Vec::new(),
        _stock: Vec::new(),
        node: Some(a),
        servers: Servers::None,
        client,
        server,
    })
}

/// The kernel's VXLAN, as stock flannel sets it up.
fn overlay(lab: &Lab, scenario: Scenario, mode: Mode) -> Result<Built> {
    let (a, b) = pair(lab, scenario)?;
    stock::join(&mut [&mut a.stock()?, &mut b.stock()?])?;
    if scenario == Scenario::Ipv6 {
        let (on_a, on_b) = (a.stock_v6()?, b.stock_v6()?);
        on_a.join(&on_b)?;
        on_b.join(&on_a)?;
    }
    pods(a, b, scenario, mode)
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
    pods(a, b, Scenario::HostGw, mode)
}

/// What stock flannel's udp backend sets up and serves.
fn stock_udp(lab: &Lab, mode: Mode) -> Result<Built> {
    let (a, b) = lab.pair()?;
    let stock = [a.stock_udp()?, b.stock_udp()?];
    StockUdp::join(&stock[0], &stock[1]);
    Ok(Built { _stock: stock.into(), ..pods(a, b, Scenario::Udp, mode)? })
}

fn pods(a: Node, b: Node, scenario: Scenario, mode: Mode) -> Result<Built> {
    let all = |node: &Node| -> Result<Vec<Pod>> {
        (1..=scenario.pods()).map(|number| node.pod(&format!("pod{number}"))).collect()
    };
    let ends = ends(scenario, [(&a, &all(&a)?), (&b, &all(&b)?)])?;
    for node in [&a, &b] {
        if mode != Mode::Kernel {
            node.load_flannel_rules()?;
        }
        if mode == Mode::Flowtable {
            flowtable::load(node)?;
        }
    }
    let [client, server] = match mode {
        Mode::BareRules => of_nodes(scenario, [&a, &b]),
        _ => ends,
    };
    Ok(Built {
        members: Vec::new(),
        _stock: Vec::new(),
        node: Some(a),
        servers: Servers::None,
        client,
        server,
    })
}

/// What stock flannel sets up on nodes of Kubernetes, each with kube-proxy.
fn stock_in_kubernetes(lab: &Lab, mode: Mode) -> Result<Built> {
    let ([a, b], [from, to], servers) = kubernetes::stock(lab, mode)?;
    let [client, server] = match mode {
        Mode::BareRules => of_nodes(Scenario::Kubernetes, [&a, &b]),
        _ => [from.endpoint(), to.endpoint()],
    };
    let servers = Servers::Kubernetes(servers.into());
    Ok(Built { members: Vec::new(), _stock: Vec::new(), node: Some(a), servers, client, server })
}

fn agents(lab: &Lab, scenario: Scenario, fast_path: FastPath) -> Result<Built> {
    let options = AgentOptions { fast_path, flags: vec!["--ip-masq".to_owned()] };
    let etcds = |Cluster { members, etcd }| (members, Servers::Etcd { _etcd: etcd });
    let (members, servers) = match scenario {
        Scenario::HostGw => {
            let config = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"host-gw"}}"#;
            etcds(Cluster::pair_configured(lab, 1, config, options)?)
        }
        Scenario::Udp => etcds(Cluster::pair_configured(lab, 1, r#"{"Network":"10.244.0.0/16"}"#, options)?),
        Scenario::Ipv6 => etcds(Cluster::dual_pair(lab, 1, options)?),
        Scenario::Vxlan
        | Scenario::Service
        | Scenario::ServiceNftables
        | Scenario::SameNode
        | Scenario::Outside => etcds(Cluster::pair(lab, scenario.pods(), options)?),
        Scenario::Kubernetes | Scenario::KubernetesService => {
            let (members, servers) = kubernetes::agents(lab, fast_path)?;
            (members.into(), Servers::Kubernetes(servers.into()))
        }
    };
    await_fast(&members, scenario, fast_path)?;
    let [client, server] = of_members(scenario, &members)?;
    Ok(Built { members, _stock: Vec::new(), node: None, servers, client, server })
}

/// Waits until packets take the way that the mode's name promises, at both ends.
fn await_fast(members: &[Member], scenario: Scenario, fast_path: FastPath) -> Result<()> {
    let ways = match (fast_path, scenario) {
        // Where there is no tunnel there is no tunnel's work to take over.
        (FastPath::Off, _) | (FastPath::Overlay, Scenario::HostGw) => return Ok(()),
        (FastPath::Flow, Scenario::SameNode) => &[Direction::Egress][..],
        _ if !scenario.is_between_nodes() => return Ok(()),
        (FastPath::Overlay, _) => &[Direction::Egress][..],
        (FastPath::Flow | FastPath::All, _) => &Direction::ALL[..],
    };
    // Of two pods of one node, only that node's programs see packets.
    let on = if scenario == Scenario::SameNode { members.get(..1).unwrap_or_default() } else { members };
    let [from, to] = of_members(scenario, members)?;
    eventually(PATIENCE, "packets take the fast path", || {
        let before = on.iter().map(Member::counters).collect::<Result<Vec<_>>>()?;
        udp::echo(&from, &to, 56, 3)?;
        for (member, before) in on.iter().zip(&before) {
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
