//! Packets that the host routes or queues by a mark or class: each of them, not one now and then.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use flannel_common::reason::{Direction, Reason};
use flannel_lab::{
    CONVERGENCE, Cluster, FastPath, Lab, Node, eventually, in_lab,
    traffic::{Dialogue, dialogue::listen},
};

use crate::{counted, with_rules};

const REFRESH: Duration = Duration::from_secs(2);
/// Of the server whose packets rules mark.
const PORT: u16 = 7100;
const MARK: &str = "0x200000/0x200000";
/// What is sent to the class that rules choose.
const CLASS: &str = "1:20";

#[test]
fn a_mark_or_class_that_the_host_goes_by_keeps_each_packet_on_the_kernels_path() -> Result<()> {
    for mode in [FastPath::Off, FastPath::Overlay, FastPath::Flow] {
        in_lab(|lab| each_packet(lab, mode)).with_context(|| format!("--fast-path={}", mode.name()))?;
    }
    Ok(())
}

fn each_packet(lab: &Lab, mode: FastPath) -> Result<()> {
    let cluster = with_rules(lab, lab.etcd()?, 1, mode, REFRESH)?;
    cluster.await_dataplane(mode.into())?;
    let [a, b] = [cluster.members[0].pod()?, cluster.members[1].pod()?];
    let node = &cluster.members[0].node;
    let listener = listen(&b, PORT)?;
    let chosen = || Dialogue::through(&a, 0, b.socket_address(PORT), &[&listener]);
    let mut other = Dialogue::open(&a, &b)?;
    let mut running = chosen()?;
    running.exchanges(20)?;

    // Routing by a mark, which is the outer packet's, too.
    let mark = format!("FORWARD -p tcp --dport {PORT} -j MARK --set-mark {MARK}");
    node.iptables(&format!("-t mangle -I {mark}"))?;
    node.netns().ip("route add unreachable default table 98")?;
    node.netns().ip(&format!("rule add fwmark {MARK} table 98"))?;
    eventually(CONVERGENCE, "the marked flow has stopped", || {
        ensure!(running.exchange_within(Duration::from_millis(300)).is_err(), "it goes on");
        Ok(())
    })?;
    is_fast(&cluster, mode, &mut other).context("beside a rule for marks")?;
    node.netns().ip(&format!("rule del fwmark {MARK} table 98"))?;
    eventually(CONVERGENCE, "a mark that nobody goes by is no reason", || {
        is_fast(&cluster, mode, &mut chosen()?)
    })?;

    // Filters on another interface, as on a card below a bond.
    node.netns().ip("link add lower type bridge")?;
    tc(node, "qdisc add dev lower clsact")?;
    tc(node, "filter add dev lower egress prio 1 protocol all u32 match u32 0 0 classid 1:1")?;
    if mode != FastPath::Off {
        let mut marked = chosen()?;
        eventually(CONVERGENCE, "marked packets are the kernel's", || {
            let [sent, _] = counted(&cluster, || marked.exchanges(100))?;
            ensure!(sent.get(Direction::Egress, Reason::HostMark).packets >= 100, "{sent}");
            Ok(())
        })?;
    }
    is_fast(&cluster, mode, &mut other).context("beside filters by marks")?;
    node.netns().ip("link del lower")?;

    // Queueing by a class.
    for words in [
        "qdisc add dev eth0 root handle 1: htb default 10",
        "class add dev eth0 parent 1: classid 1:10 htb rate 1gbit",
        "class add dev eth0 parent 1: classid 1:20 htb rate 1gbit",
    ] {
        tc(node, words)?;
    }
    let mut running = chosen()?;
    node.iptables(&format!("-t mangle -D {mark}"))?;
    let class = format!("POSTROUTING -p tcp --dport {PORT} -j CLASSIFY --set-class {CLASS}");
    node.iptables(&format!("-t mangle -A {class}"))?;
    is_queued(&cluster, mode, &mut running)?;
    is_fast(&cluster, mode, &mut other).context("beside a class")
}

fn tc(node: &Node, words: &str) -> Result<String> {
    node.netns().run("tc", &words.split_whitespace().collect::<Vec<_>>())
}

/// The flow's packets all take the fast path, where there is one.
fn is_fast(cluster: &Cluster, mode: FastPath, flow: &mut Dialogue) -> Result<()> {
    // Enough for acceptance that has become stale to be renewed.
    flow.exchanges(20)?;
    let reason = match mode {
        FastPath::Overlay => Reason::EncapOverlay,
        FastPath::Flow => Reason::EncapPod,
        FastPath::Off | FastPath::All => return Ok(()),
    };
    let [sent, _] = counted(cluster, || flow.exchanges(100))?;
    ensure!(sent.get(Direction::Egress, reason).packets >= 90, "{sent}");
    Ok(())
}

/// As soon as the agent knows, the flow's packets are each in the class.
fn is_queued(cluster: &Cluster, mode: FastPath, flow: &mut Dialogue) -> Result<()> {
    let node = &cluster.members[0].node;
    eventually(CONVERGENCE, "each packet is in its class", || {
        let before = in_class(node)?;
        if mode == FastPath::Off {
            flow.exchanges(100)?;
        } else {
            let [sent, _] = counted(cluster, || flow.exchanges(100))?;
            let left = sent.get(Direction::Egress, Reason::HostMark).packets;
            ensure!(left >= 100, "{left} are left to the kernel: {sent}");
        }
        let queued = in_class(node)? - before;
        ensure!(queued >= 100, "{queued} of 100");
        Ok(())
    })
}

/// Packets that have been in the class, by its counter.
fn in_class(node: &Node) -> Result<u64> {
    let listing = tc(node, "-s class show dev eth0")?;
    let (_, class) = listing.split_once(&format!("class htb {CLASS} ")).context("no such class")?;
    // "Sent 1260 bytes 15 pkt (dropped 0, ..."
    let packets = class.split_once(" bytes ").and_then(|(_, rest)| rest.split_once(" pkt"));
    packets.with_context(|| listing.clone())?.0.parse().context("packets")
}
