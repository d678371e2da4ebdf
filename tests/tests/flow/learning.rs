//! Flows become fast once netfilter has accepted them both ways, and carry what they carried before.

use std::{fs, time::Duration};

use anyhow::{Result, ensure};
use flannel_common::{map::FLOW_MARK, reason::Reason};
use flannel_tests::{
    eventually,
    lab::{CONVERGENCE, Cluster, FastPath, in_lab},
    traffic::{Dialogue, every_kind_both_ways, tcp, udp},
};
use nix::sys::socket::{setsockopt, sockopt::Mark};

use crate::{cluster, counted, fast, packets};

const REFRESH: Duration = Duration::from_secs(30);
/// Bytes of the transfer whose packets are counted, and the least segments it takes.
const BULK: u64 = 32 << 20;
const SEGMENTS: u64 = BULK / 1398;

#[test]
fn every_kind_of_traffic_is_carried() -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster(lab, 1, REFRESH)?;
        let [a, b] = [&cluster.members[0], &cluster.members[1]];
        every_kind_both_ways(&a.pod()?, &b.pod()?)?;
        every_kind_both_ways(&a.node.overlay_endpoint()?, &b.pod()?)
    })
}

#[test]
fn tcp_is_fast_both_ways_after_the_handshake() -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster(lab, 1, REFRESH)?;
        let [a, b] = [cluster.members[0].pod()?, cluster.members[1].pod()?];
        let counted = counted(&cluster, || tcp::bulk(&a, &b, BULK).map(drop))?;
        let [[sent, acknowledged], [answered, delivered]] = [fast(&counted[0]), fast(&counted[1])];
        // All but the first few.
        ensure!(sent > SEGMENTS * 9 / 10 && delivered > SEGMENTS * 9 / 10, "{} {}", counted[0], counted[1]);
        ensure!(acknowledged > 10 && answered > 10, "{} {}", counted[0], counted[1]);
        for counters in &counted {
            // The handshake and the end of the connection stay with the kernel.
            ensure!(packets(counters, Reason::FlowControl) >= 2, "{counters}");
            ensure!(packets(counters, Reason::FlowLearned) >= 2, "{counters}");
        }
        Ok(())
    })
}

#[test]
fn udp_is_fast_both_ways_after_the_first_answer() -> Result<()> {
    const DATAGRAMS: u64 = 500;
    in_lab(|lab| {
        let cluster = cluster(lab, 1, REFRESH)?;
        let [a, b] = [cluster.members[0].pod()?, cluster.members[1].pod()?];
        let counted = counted(&cluster, || udp::echo(&a, &b, 200, DATAGRAMS))?;
        for counters in &counted {
            // Without an answer yet there is no flow, and with it each direction is learned by one packet.
            let [out, back] = fast(counters);
            ensure!(out >= DATAGRAMS - 5 && back >= DATAGRAMS - 5, "{counters}");
            ensure!(packets(counters, Reason::FlowUnknown) >= 2, "{counters}");
        }
        Ok(())
    })
}

/// An idle connection, and one that is used rarely, are renewed by their own packets.
#[test]
fn flows_are_renewed_by_their_own_packets() -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster(lab, 1, Duration::from_secs(1))?;
        let [a, b] = [cluster.members[0].pod()?, cluster.members[1].pod()?];
        let mut dialogue = Dialogue::open(&a, &b)?;
        let counted = counted(&cluster, || {
            (0..80).try_for_each(|_| {
                std::thread::sleep(Duration::from_millis(50));
                dialogue.exchanges(5)
            })
        })?;
        for counters in &counted {
            ensure!(packets(counters, Reason::FlowStale) >= 3, "{counters}");
            let [out, back] = fast(counters);
            ensure!(out > 300 && back > 300, "{counters}");
        }
        Ok(())
    })
}

/// Without the rule, be it that the node keeps none or that nobody loaded it, nothing is ever fast.
#[test]
fn without_the_rule_nothing_is_learned() -> Result<()> {
    in_lab(|lab| {
        let cluster = Cluster::start(lab, 2, 1, FastPath::Flow)?;
        for member in &cluster.members {
            member.node.load_flannel_rules()?;
        }
        let [a, b] = [cluster.members[0].pod()?, cluster.members[1].pod()?];
        let counted = counted(&cluster, || every_kind_both_ways(&a, &b))?;
        for counters in &counted {
            ensure!(fast(counters) == [0, 0] && packets(counters, Reason::FlowLearned) == 0, "{counters}");
            ensure!(packets(counters, Reason::FlowUnknown) > 0, "{counters}");
        }
        Ok(())
    })
}

/// Packets that a pod marks itself lose the mark on their way out of it.
#[test]
fn a_pod_cannot_open_the_gate() -> Result<()> {
    in_lab(|lab| {
        let cluster = Cluster::start(lab, 2, 1, FastPath::Flow)?;
        for member in &cluster.members {
            // Connection tracking is on, but nothing marks.
            member.node.load_flannel_rules()?;
        }
        let [a, b] = [cluster.members[0].pod()?, cluster.members[1].pod()?];
        let mut dialogue = Dialogue::open(&a, &b)?;
        for end in [&dialogue.client, &dialogue.server] {
            setsockopt(end, Mark, &FLOW_MARK)?;
        }
        let counted = counted(&cluster, || dialogue.exchanges(50))?;
        for counters in &counted {
            ensure!(fast(counters) == [0, 0] && packets(counters, Reason::FlowLearned) == 0, "{counters}");
        }
        Ok(())
    })
}

/// The agent tells connection tracking to put up with what it does not see, as soon as there is any.
#[test]
fn connection_tracking_is_made_tolerant() -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster(lab, 1, REFRESH)?;
        let node = cluster.members[0].node.netns();
        let directory = "/proc/sys/net/netfilter/nf_conntrack_tcp";
        let read = |name: &str| -> Result<u64> {
            let path = format!("{directory}_{name}");
            node.inside(|| Ok(fs::read_to_string(&path)?.trim().parse()?))
        };
        eventually(CONVERGENCE, "connection tracking is tolerant", || {
            let found = (read("be_liberal")?, read("ignore_invalid_rst")?);
            ensure!(found == (1, 1), "{found:?}");
            Ok(())
        })?;
        // Undone by another's hand, it is done again.
        node.sysctl("net/netfilter/nf_conntrack_tcp_be_liberal", "0")?;
        eventually(Duration::from_secs(45), "it is tolerant again", || {
            ensure!(read("be_liberal")? == 1);
            Ok(())
        })?;
        ensure!(cluster.members[0].agent.log().contains("connection tracking made tolerant"));
        Ok(())
    })
}
