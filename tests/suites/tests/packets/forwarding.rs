//! The agent's dataplane carries everything the kernel's carries, on every fast path, and says so in its
//! counters.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use flannel_agent::bpf::TcAttach;
use flannel_common::reason::{Direction, Reason};
use flannel_lab::{
    AgentOptions, CONVERGENCE, Cluster, FastPath, Lab, eventually, in_lab,
    traffic::{every_kind, every_kind_both_ways, ping::ping, tcp},
};

/// Bytes of the transfer whose packets are counted, and the least segments it takes.
const BULK: u64 = 32 << 20;
const SEGMENTS: u64 = BULK / 1398;

fn pods_and_hosts(lab: &Lab, options: impl Into<AgentOptions>) -> Result<()> {
    let options = options.into();
    let fast_path = options.fast_path;
    let cluster = Cluster::start(lab, 2, 1, options)?;
    cluster.await_fast_path(0, 1, fast_path)?;
    cluster.await_fast_path(1, 0, fast_path)?;
    let [a, b] = [&cluster.members[0], &cluster.members[1]];
    every_kind_both_ways(&a.pod()?, &b.pod()?)?;

    // A node reaches remote pods from the address its peers can answer to.
    let host_a = a.node.overlay_endpoint()?;
    let source = host_a.source_towards(&b.pod()?)?;
    ensure!(
        source == host_a.address(),
        "packets to remote pods leave from {source}, not {}",
        host_a.address()
    );
    every_kind_both_ways(&host_a, &b.pod()?).context("host to remote pod")?;
    every_kind_both_ways(&a.pod()?, &b.node.overlay_endpoint()?).context("pod to remote host")?;
    // A pod also reaches another node by its own address.
    ping(&a.pod()?, &b.node.underlay_endpoint(), 56)?;
    Ok(())
}

#[test]
fn all_carries_every_kind_of_traffic() -> Result<()> {
    in_lab(|lab| pods_and_hosts(lab, FastPath::All))
}

#[test]
fn flow_carries_every_kind_of_traffic() -> Result<()> {
    in_lab(|lab| pods_and_hosts(lab, FastPath::Flow))
}

#[test]
fn each_carries_every_kind_of_traffic_by_clsact() -> Result<()> {
    for fast_path in [FastPath::All, FastPath::Flow, FastPath::Overlay] {
        in_lab(|lab| pods_and_hosts(lab, fast_path.attached_by(TcAttach::Clsact)))?;
    }
    Ok(())
}

#[test]
fn overlay_carries_every_kind_of_traffic() -> Result<()> {
    in_lab(|lab| pods_and_hosts(lab, FastPath::Overlay))
}

#[test]
fn off_carries_every_kind_of_traffic() -> Result<()> {
    in_lab(|lab| pods_and_hosts(lab, FastPath::Off))
}

/// The same with flannel's iptables rules loaded, as every real node has them.
#[test]
fn all_carries_every_kind_of_traffic_beside_flannels_rules() -> Result<()> {
    in_lab(|lab| {
        let cluster = Cluster::start(lab, 2, 1, FastPath::All)?;
        for member in &cluster.members {
            member.node.load_flannel_rules()?;
        }
        cluster.await_fast_path(0, 1, FastPath::All)?;
        every_kind_both_ways(&cluster.members[0].pod()?, &cluster.members[1].pod()?)
    })
}

#[test]
fn all_takes_large_packets_past_the_stack_at_both_ends() -> Result<()> {
    large_packets_go_past_the_stack(FastPath::All.into())
}

#[test]
fn all_takes_large_packets_past_the_stack_at_both_ends_by_clsact() -> Result<()> {
    large_packets_go_past_the_stack(FastPath::All.attached_by(TcAttach::Clsact))
}

fn large_packets_go_past_the_stack(options: AgentOptions) -> Result<()> {
    in_lab(|lab| {
        let cluster = Cluster::start(lab, 2, 1, options)?;
        cluster.await_fast_path(0, 1, FastPath::All)?;
        cluster.await_fast_path(1, 0, FastPath::All)?;
        let [a, b] = [&cluster.members[0], &cluster.members[1]];
        let before = [a.counters()?, b.counters()?];
        tcp::bulk(&a.pod()?, &b.pod()?, BULK)?;
        let [at_a, at_b] = [a.counters()?.since(&before[0]), b.counters()?.since(&before[1])];
        let sent = at_a.get(Direction::Egress, Reason::EncapPod);
        let delivered = at_b.get(Direction::Ingress, Reason::DeliverPod);
        ensure!(sent.packets >= SEGMENTS && sent.bytes > BULK, "{at_a}");
        ensure!(delivered.packets >= SEGMENTS && delivered.bytes > BULK, "{at_b}");
        // Acknowledgements come back the same way.
        ensure!(at_b.get(Direction::Egress, Reason::EncapPod).packets > 0, "{at_b}");
        ensure!(at_a.get(Direction::Ingress, Reason::DeliverPod).packets > 0, "{at_a}");
        Ok(())
    })
}

#[test]
fn overlay_leaves_pods_to_the_stack_and_encapsulates_for_it() -> Result<()> {
    in_lab(|lab| {
        let cluster = Cluster::start(lab, 2, 1, FastPath::Overlay)?;
        cluster.await_fast_path(0, 1, FastPath::Overlay)?;
        let [a, b] = [&cluster.members[0], &cluster.members[1]];
        let before = [a.counters()?, b.counters()?];
        tcp::bulk(&a.pod()?, &b.pod()?, BULK)?;
        let [at_a, at_b] = [a.counters()?.since(&before[0]), b.counters()?.since(&before[1])];
        ensure!(at_a.get(Direction::Egress, Reason::EncapOverlay).packets >= SEGMENTS, "{at_a}");
        ensure!(at_a.get(Direction::Egress, Reason::EncapPod).packets == 0, "{at_a}");
        ensure!(at_b.get(Direction::Ingress, Reason::DeliverPod).packets == 0, "{at_b}");
        Ok(())
    })
}

/// A pod that appears after the agent has started is found, and one that goes is forgotten: its address
/// works again for the next pod that gets it.
#[test]
fn pods_come_and_go_while_the_agent_runs() -> Result<()> {
    in_lab(|lab| {
        let mut cluster = Cluster::start(lab, 2, 1, FastPath::All)?;
        cluster.await_fast_path(0, 1, FastPath::All)?;
        for name in ["second", "third"] {
            let pod = cluster.members[0].node.pod(name)?;
            every_kind(&pod.endpoint(), &cluster.members[1].pod()?)?;
            let gone = std::mem::replace(&mut cluster.members[0].pods, vec![pod]);
            for pod in gone {
                pod.remove()?;
            }
            cluster.await_fast_path(0, 1, FastPath::All)?;
            cluster.await_fast_path(1, 0, FastPath::All)?;
        }
        every_kind_both_ways(&cluster.members[0].pod()?, &cluster.members[1].pod()?)?;
        // The external interface, flannel.1, and the one pod that is left.
        let links = cluster.members[0].agent.bpffs().join("flannel/v4/links");
        eventually(CONVERGENCE, "links of pods that are gone are unpinned", || {
            let pinned = fs::read_dir(&links)?.count();
            ensure!(pinned == 3, "{pinned} interfaces have pins");
            Ok(())
        })
    })
}

/// Pods of one node never leave it.
#[test]
fn pods_of_one_node_talk_over_its_bridge() -> Result<()> {
    in_lab(|lab| {
        let cluster = Cluster::start(lab, 1, 2, FastPath::All)?;
        let pods = cluster.pods();
        let before = cluster.members[0].counters()?;
        every_kind_both_ways(&pods[0], &pods[1])?;
        let counted = cluster.members[0].counters()?.since(&before);
        ensure!(counted.get(Direction::Egress, Reason::EncapPod).packets == 0, "{counted}");
        Ok(())
    })
}
