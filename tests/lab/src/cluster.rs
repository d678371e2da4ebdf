//! Nodes that run the agent, and their pods.

use std::{thread, time::Duration};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use flannel_agent::bpf::{Pins, Tables};
use flannel_common::{
    path::Hook,
    reason::{Direction, Reason},
};

use super::{Agent, AgentOptions, Dataplane, Etcd, FastPath, Lab, Node, PREFIX, Pod, Xdp};
use crate::{
    counters::Counters,
    traffic::{Endpoint, ping::ping, reachability, udp},
    wait::eventually,
};

/// How long a change may take to reach every node.
pub const CONVERGENCE: Duration = Duration::from_secs(15);

/// A node that runs the agent.
#[derive(Debug)]
pub struct Member {
    /// Its pods. First, so that they are dropped before what they stand on.
    pub pods: Vec<Pod>,
    /// Its agent.
    pub agent: Agent,
    /// The machine.
    pub node: Node,
}

impl Member {
    /// Starts the agent on `node` and then `pods` pods, `pod1` and so on.
    pub fn start(node: Node, etcd: &Etcd, options: impl Into<AgentOptions>, pods: usize) -> Result<Self> {
        let agent = node.agent(etcd, options.into())?;
        let pods = (1..=pods).map(|number| node.pod(&format!("pod{number}"))).collect::<Result<_>>()?;
        Ok(Self { pods, agent, node })
    }

    /// Its first pod.
    pub fn pod(&self) -> Result<Endpoint> {
        self.pods.first().map(Pod::endpoint).with_context(|| format!("{} has no pods", self.node.name()))
    }

    /// Where XDP programs run on its external interface, as the kernel has it.
    pub fn xdp(&self) -> Result<Xdp> {
        let link = self.node.netns().ip("link show eth0")?;
        match link.split_whitespace().find(|word| word.starts_with("xdp")) {
            None => Ok(Xdp::Off),
            Some("xdp") => Ok(Xdp::Native),
            Some("xdpgeneric") => Ok(Xdp::Generic),
            Some(other) => bail!("{} has {other} on eth0", self.node.name()),
        }
    }

    /// Its first pod, by IPv6.
    pub fn pod_v6(&self) -> Result<Endpoint> {
        self.pods.first().with_context(|| format!("{} has no pods", self.node.name()))?.endpoint_v6()
    }

    /// What its programs have counted.
    pub fn counters(&self) -> Result<Counters> {
        Counters::read(self.agent.bpffs())
    }

    /// What they count while `work` is done.
    pub fn counted(&self, work: impl FnOnce() -> Result<()>) -> Result<Counters> {
        let before = self.counters()?;
        work()?;
        Ok(self.counters()?.since(&before))
    }
}

/// What these nodes count while `work` is done.
pub fn counted(members: &[Member], work: impl FnOnce() -> Result<()>) -> Result<Vec<Counters>> {
    let read = || members.iter().map(Member::counters).collect::<Result<Vec<_>>>();
    let before = read()?;
    work()?;
    Ok(read()?.iter().zip(&before).map(|(now, before)| now.since(before)).collect())
}

/// etcd, and nodes that all run the agent.
#[derive(Debug)]
pub struct Cluster {
    /// The nodes, in the order of their numbers.
    pub members: Vec<Member>,
    /// The store their leases are in.
    pub etcd: Etcd,
}

impl Cluster {
    /// `nodes` nodes with `pods` pods each, on the underlay's bridge; returns when all pods reach each other.
    pub fn start(lab: &Lab, nodes: usize, pods: usize, options: impl Into<AgentOptions>) -> Result<Self> {
        let etcd = lab.etcd()?;
        let nodes = (0..nodes).map(|_| lab.node()).collect::<Result<Vec<_>>>()?;
        Self::on(nodes, etcd, pods, &options.into())
    }

    /// The same, with leases in etcd's v2 store.
    pub fn start_v2(lab: &Lab, nodes: usize, options: impl Into<AgentOptions>) -> Result<Self> {
        let mut etcd = lab.etcd()?;
        etcd.configure_v2()?;
        let nodes = (0..nodes).map(|_| lab.node()).collect::<Result<Vec<_>>>()?;
        Self::on(nodes, etcd, 1, &options.into())
    }

    /// `nodes` nodes of a cluster that `configure` makes one of IPv6, alone or beside IPv4; returns when all pods reach
    /// each other by every family they have.
    pub fn start_v6(
        lab: &Lab,
        nodes: usize,
        options: impl Into<AgentOptions>,
        configure: impl FnOnce(&Etcd) -> Result<()>,
    ) -> Result<Self> {
        let etcd = lab.etcd()?;
        configure(&etcd)?;
        let nodes = (0..nodes).map(|_| lab.dual_node()).collect::<Result<Vec<_>>>()?;
        let cluster = Self::on(nodes, etcd, 1, &options.into())?;
        cluster.await_reachable_v6(&[])?;
        Ok(cluster)
    }

    /// Waits until all pods, and `others`, reach each other by IPv6.
    pub fn await_reachable_v6(&self, others: &[Endpoint]) -> Result<()> {
        let pods = self.members.iter().flat_map(|member| &member.pods);
        let pods = pods.map(Pod::endpoint_v6).collect::<Result<Vec<_>>>()?;
        let everyone = [pods, others.to_vec()].concat();
        eventually(CONVERGENCE, "everyone reaches everyone by IPv6", || {
            reachability(&everyone).check_complete()
        })
    }

    /// Two nodes joined by one veth, with etcd on the first.
    pub fn pair(lab: &Lab, pods: usize, options: impl Into<AgentOptions>) -> Result<Self> {
        let (a, b) = lab.pair()?;
        let etcd = lab.etcd_on(&a)?;
        Self::on(vec![a, b], etcd, pods, &options.into())
    }

    /// As [`Cluster::pair`], with another network configuration.
    pub fn pair_configured(
        lab: &Lab,
        pods: usize,
        config: &str,
        options: impl Into<AgentOptions>,
    ) -> Result<Self> {
        let (a, b) = lab.pair()?;
        let etcd = lab.etcd_on(&a)?;
        etcd.put(&format!("{PREFIX}/config"), config)?;
        Self::on(vec![a, b], etcd, pods, &options.into())
    }

    /// As [`Cluster::pair`], of both families over VXLAN; returns when pods reach each other by both.
    pub fn dual_pair(lab: &Lab, pods: usize, options: impl Into<AgentOptions>) -> Result<Self> {
        let (a, b) = lab.dual_pair()?;
        let etcd = lab.etcd_on(&a)?;
        etcd.configure_dual("vxlan")?;
        let cluster = Self::on(vec![a, b], etcd, pods, &options.into())?;
        cluster.await_reachable_v6(&[])?;
        Ok(cluster)
    }

    fn on(nodes: Vec<Node>, etcd: Etcd, pods: usize, options: &AgentOptions) -> Result<Self> {
        let members = thread::scope(|scope| {
            let start = |node| scope.spawn(|| Member::start(node, &etcd, options.clone(), pods));
            let threads: Vec<_> = nodes.into_iter().map(start).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().map_err(|_| anyhow!("panicked"))?)
                .collect::<Result<_>>()
        })?;
        let cluster = Self { members, etcd };
        cluster.await_reachable(&[])?;
        Ok(cluster)
    }

    /// Adds a node with one pod. The others may not know it yet.
    pub fn join(&mut self, lab: &Lab, fast_path: FastPath) -> Result<&mut Member> {
        let member = Member::start(lab.node()?, &self.etcd, fast_path, 1)?;
        self.members.push(member);
        self.members.last_mut().context("just pushed")
    }

    /// Leaves its processes running when this process ends.
    pub fn release(self) {
        self.etcd.release();
        for member in self.members {
            member.agent.release();
        }
    }

    /// What the first two nodes count while `work` is done.
    pub fn counted(&self, work: impl FnOnce() -> Result<()>) -> Result<[Counters; 2]> {
        counted(&self.members[..2], work)?.try_into().map_err(|_| anyhow!("a node too few"))
    }

    /// Every pod.
    pub fn pods(&self) -> Vec<Endpoint> {
        self.members.iter().flat_map(|member| &member.pods).map(Pod::endpoint).collect()
    }

    /// Waits until all pods, and `others`, reach each other.
    pub fn await_reachable(&self, others: &[Endpoint]) -> Result<()> {
        let everyone = [self.pods(), others.to_vec()].concat();
        eventually(CONVERGENCE, "everyone reaches everyone", || reachability(&everyone).check_complete())
    }

    /// Waits until each agent has found its node's pods. Until then they are the kernel's, and nothing is learned of their flows.
    pub fn await_pods(&self) -> Result<()> {
        self.members.iter().try_for_each(|member| {
            eventually(CONVERGENCE, "the agent finds each pod", || {
                let known = Tables::open(&Pins::under(member.agent.bpffs())?)?.v4.pods.entries()?;
                for pod in &member.pods {
                    ensure!(known.contains_key(&pod.address().octets()), "{} is not known", pod.name());
                }
                // It attaches one program after the other.
                let attached = member.node.netns().attachments()?;
                for hook in [Hook::FromPod, Hook::ToPod] {
                    let at = attached.keys().filter(|(_, program)| *program == hook.program()).count();
                    ensure!(at >= member.pods.len(), "{attached:?}");
                }
                Ok(())
            })
        })
    }

    /// Waits until packets between the first two nodes take the path that `dataplane` promises, both ways.
    pub fn await_dataplane(&self, dataplane: Dataplane) -> Result<()> {
        self.await_fast_path(0, 1, dataplane.fast_path)?;
        self.await_fast_path(1, 0, dataplane.fast_path)?;
        for member in &self.members {
            let xdp = member.xdp()?;
            ensure!(xdp == dataplane.xdp, "{}: {dataplane}, but {xdp:?}", member.node.name());
        }
        Ok(())
    }

    /// Waits until packets from `from`'s first pod to `to`'s take the path that `fast_path` promises, at
    /// both ends, be it through a tunnel or without. A pod is served by the kernel's path until the agent has
    /// found it.
    pub fn await_fast_path(&self, from: usize, to: usize, fast_path: FastPath) -> Result<()> {
        self.await_fast(from, to, fast_path, Member::pod)
    }

    /// As [`Cluster::await_fast_path`], by IPv6.
    pub fn await_fast_path_v6(&self, from: usize, to: usize, fast_path: FastPath) -> Result<()> {
        self.await_fast(from, to, fast_path, Member::pod_v6)
    }

    fn await_fast(
        &self,
        from: usize,
        to: usize,
        fast_path: FastPath,
        pod: fn(&Member) -> Result<Endpoint>,
    ) -> Result<()> {
        let (sender, receiver) = (&self.members[from], &self.members[to]);
        let (out, arriving) = match fast_path {
            FastPath::Off => return Ok(()),
            FastPath::Overlay => ([Reason::EncapOverlay].as_slice(), None),
            FastPath::Flow | FastPath::All => {
                ([Reason::EncapPod, Reason::RoutePod].as_slice(), Some([Reason::DeliverPod, Reason::HandPod]))
            }
        };
        let (a, b) = (pod(sender)?, pod(receiver)?);
        if fast_path == FastPath::Overlay {
            // Packets to other nodes are fast before the agent has found a pod. What it then attaches there, for VXLAN
            // that the pod makes itself, may cost a packet: a first qdisc stops an interface's queue for a moment
            // (qdisc_graft in net/sched/sch_api.c).
            for member in [sender, receiver] {
                eventually(CONVERGENCE, "from_pod is attached to each pod", || {
                    let attached = member.node.netns().attachments()?;
                    let pods =
                        attached.keys().filter(|(_, program)| *program == Hook::FromPod.program()).count();
                    ensure!(pods >= member.pods.len(), "{attached:?}");
                    Ok(())
                })?;
            }
        }
        eventually(CONVERGENCE, "an echo takes the fast path", || {
            let before = (sender.counters()?, receiver.counters()?);
            match fast_path {
                // A flow begins on the kernel's path, and only those with ports are learned.
                FastPath::Flow => udp::echo(&a, &b, 56, 3)?,
                _ => drop(ping(&a, &b, 56)?),
            }
            let after = (sender.counters()?.since(&before.0), receiver.counters()?.since(&before.1));
            let counted = |counters: &Counters, direction, reasons: &[Reason]| {
                reasons.iter().any(|reason| counters.get(direction, *reason).packets > 0)
            };
            ensure!(
                counted(&after.0, Direction::Egress, out)
                    && arriving.is_none_or(|reasons| counted(&after.1, Direction::Ingress, &reasons)),
                "sender counted {}receiver counted {}",
                after.0,
                after.1
            );
            Ok(())
        })
    }
}
