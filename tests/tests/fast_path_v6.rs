//! IPv6 past the host's stack: which way packets go, proved by counters, and that they arrive as they were sent.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use flannel_common::reason::{Direction, Reason};
use flannel_tests::{
    counters::Counters,
    eventually,
    lab::{AgentOptions, CONVERGENCE, Cluster, Etcd, FastPath, Lab, Member, in_lab},
    traffic::{Endpoint, every_kind_both_ways, ping::ping, tcp, udp},
};

/// Bytes of the transfer whose packets are counted, and the least segments it takes.
const BULK: u64 = 32 << 20;
const SEGMENTS: u64 = BULK / 1358;

fn dual(etcd: &Etcd) -> Result<()> {
    etcd.configure_dual("vxlan")
}

fn v6_only(etcd: &Etcd) -> Result<()> {
    etcd.configure_v6_only("vxlan")
}

fn v6(member: &Member) -> Result<Endpoint> {
    member.pods.first().context("a node without pods")?.endpoint_v6()
}

/// What both nodes count while `work` is done.
fn counted(cluster: &Cluster, work: impl FnOnce() -> Result<()>) -> Result<[Counters; 2]> {
    let [a, b] = [&cluster.members[0], &cluster.members[1]];
    let before = [a.counters()?, b.counters()?];
    work()?;
    Ok([a.counters()?.since(&before[0]), b.counters()?.since(&before[1])])
}

fn egress(counters: &Counters, reason: Reason) -> u64 {
    counters.get(Direction::Egress, reason).packets
}

fn ingress(counters: &Counters, reason: Reason) -> u64 {
    counters.get(Direction::Ingress, reason).packets
}

/// Waits until packets of both nodes' pods go past the stack: the agent finds a pod in its own time.
fn ready(cluster: &Cluster) -> Result<()> {
    let [a, b] = [v6(&cluster.members[0])?, v6(&cluster.members[1])?];
    eventually(CONVERGENCE, "IPv6 goes past the stack both ways", || {
        let both = counted(cluster, || udp::echo(&a, &b, 56, 3))?;
        for counters in &both {
            let fast = egress(counters, Reason::EncapPod) > 0 && ingress(counters, Reason::DeliverPod) > 0;
            ensure!(fast, "{counters}");
        }
        Ok(())
    })
}

fn start(lab: &Lab, fast_path: FastPath, configure: fn(&Etcd) -> Result<()>) -> Result<Cluster> {
    let flags = vec!["--ip-masq".to_owned()];
    let cluster = Cluster::start_v6(lab, 2, AgentOptions { fast_path, flags }, configure)?;
    ready(&cluster)?;
    Ok(cluster)
}

/// A transfer's segments leave in aggregates by the device, and everything small by itself.
fn bulk_is_fast(cluster: &Cluster) -> Result<()> {
    let [a, b] = [v6(&cluster.members[0])?, v6(&cluster.members[1])?];
    let [sent, received] = counted(cluster, || tcp::bulk(&a, &b, BULK).map(drop))?;
    let fast = egress(&sent, Reason::EncapDevice) + egress(&sent, Reason::EncapPod);
    ensure!(fast > SEGMENTS * 9 / 10, "{sent}");
    ensure!(egress(&sent, Reason::EncapDevice) > SEGMENTS / 2, "{sent}");
    ensure!(egress(&sent, Reason::Ipv6Aggregate) < SEGMENTS / 10, "{sent}");
    ensure!(ingress(&received, Reason::DeliverPod) > SEGMENTS * 9 / 10, "{received}");
    ensure!(egress(&received, Reason::EncapPod) > 10, "{received}");
    Ok(())
}

#[test]
fn all_takes_every_packet_past_the_stack() -> Result<()> {
    in_lab(|lab| {
        let cluster = start(lab, FastPath::All, dual)?;
        let [a, b] = [v6(&cluster.members[0])?, v6(&cluster.members[1])?];
        for counters in counted(&cluster, || ping(&a, &b, 56).map(drop))? {
            let both = (egress(&counters, Reason::EncapPod), ingress(&counters, Reason::DeliverPod));
            ensure!(both.0 >= 1 && both.1 >= 1, "{counters}");
        }
        bulk_is_fast(&cluster)?;
        every_kind_both_ways(&a, &b)
    })
}

#[test]
fn flow_takes_accepted_flows_past_the_stack() -> Result<()> {
    in_lab(|lab| {
        let cluster = start(lab, FastPath::Flow, dual)?;
        let [a, b] = [v6(&cluster.members[0])?, v6(&cluster.members[1])?];
        bulk_is_fast(&cluster)?;
        // ICMPv6 is the kernel's; its packets get their headers at the device all the same.
        let [sent, _] = counted(&cluster, || ping(&a, &b, 56).map(drop))?;
        ensure!(egress(&sent, Reason::FlowProtocol) >= 1, "{sent}");
        ensure!(egress(&sent, Reason::EncapOverlay) >= 1, "{sent}");
        every_kind_both_ways(&a, &b)
    })
}

#[test]
fn a_policy_of_ip6tables_stops_a_flow_that_skips_the_stack() -> Result<()> {
    in_lab(|lab| {
        let flags = vec!["--ip-masq".to_owned(), "--flow-refresh=1".to_owned()];
        let options = AgentOptions { fast_path: FastPath::Flow, flags };
        let cluster = Cluster::start_v6(lab, 2, options, dual)?;
        ready(&cluster)?;
        let [a, b] = [v6(&cluster.members[0])?, v6(&cluster.members[1])?];
        udp::echo(&a, &b, 56, 3)?;
        let netns = cluster.members[0].node.netns();
        netns.run("ip6tables", &["-I", "FORWARD", "-s", &a.address().to_string(), "-j", "DROP"])?;
        std::thread::sleep(Duration::from_secs(2));
        ensure!(udp::echo(&a, &b, 56, 3).is_err(), "the policy was passed by");
        Ok(())
    })
}

#[test]
fn a_cluster_of_ipv6_alone_is_fast() -> Result<()> {
    in_lab(|lab| {
        let cluster = start(lab, FastPath::All, v6_only)?;
        bulk_is_fast(&cluster)?;
        every_kind_both_ways(&v6(&cluster.members[0])?, &v6(&cluster.members[1])?)
    })
}

/// A stock node verifies what it gets, and drops what has a wrong outer checksum.
#[test]
fn a_stock_peer_takes_and_sends_what_skips_the_stack_here() -> Result<()> {
    in_lab(|lab| {
        let cluster = start(lab, FastPath::All, dual)?;
        let node = lab.dual_node()?;
        let mut stock = node.stock()?;
        let stock_v6 = node.stock_v6()?;
        stock_v6.publish(&stock, &cluster.etcd)?;
        stock.sync(&cluster.etcd)?;
        stock_v6.sync(&cluster.etcd)?;
        let its_pod = node.pod("pod1")?;
        let pod = its_pod.endpoint_v6()?;
        cluster.await_reachable_v6(&[pod.clone()])?;
        let ours = v6(&cluster.members[0])?;
        let [counters, _] = counted(&cluster, || every_kind_both_ways(&ours, &pod))?;
        ensure!(egress(&counters, Reason::EncapPod) > 100, "{counters}");
        ensure!(egress(&counters, Reason::EncapDevice) > 100, "{counters}");
        ensure!(ingress(&counters, Reason::DeliverPod) > 100, "{counters}");
        Ok(())
    })
}
