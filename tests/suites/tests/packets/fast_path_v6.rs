//! IPv6 past the host's stack: which way packets go, proved by counters, and that they arrive as they were sent.

use std::{thread::sleep, time::Duration};

use anyhow::{Context as _, Result, ensure};
use flannel_common::reason::{Direction, Reason};
use flannel_lab::{
    AgentOptions, CONVERGENCE, Cluster, Etcd, FastPath, Lab,
    counters::Counters,
    eventually, in_lab,
    traffic::{
        Dialogue, Paced,
        dialogue::listen,
        every_kind_both_ways, overlay_frame,
        ping::ping,
        tcp,
        udp::{self, Receiver},
        wire::Wire,
    },
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

fn host_gw(etcd: &Etcd) -> Result<()> {
    etcd.configure_dual("host-gw")
}

fn direct_routing(etcd: &Etcd) -> Result<()> {
    etcd.configure_dual_direct_routing()
}

fn egress(counters: &Counters, reason: Reason) -> u64 {
    counters.get(Direction::Egress, reason).packets
}

fn ingress(counters: &Counters, reason: Reason) -> u64 {
    counters.get(Direction::Ingress, reason).packets
}

/// Two nodes with all of flannel's rules; returns when packets of IPv6 go past the stack both ways.
fn start(lab: &Lab, fast_path: FastPath, configure: fn(&Etcd) -> Result<()>) -> Result<Cluster> {
    let flags = vec!["--ip-masq".to_owned(), "--flow-refresh=1".to_owned()];
    let cluster = Cluster::start_v6(lab, 2, AgentOptions { fast_path, flags }, configure)?;
    ready(&cluster, fast_path)?;
    Ok(cluster)
}

fn ready(cluster: &Cluster, fast_path: FastPath) -> Result<()> {
    cluster.await_fast_path_v6(0, 1, fast_path)?;
    cluster.await_fast_path_v6(1, 0, fast_path)
}

/// A transfer's segments leave in aggregates by the device, and everything small by itself.
fn bulk_is_fast(cluster: &Cluster) -> Result<()> {
    let [a, b] = [cluster.members[0].pod_v6()?, cluster.members[1].pod_v6()?];
    let [sent, received] = cluster.counted(|| tcp::bulk(&a, &b, BULK).map(drop))?;
    let fast = egress(&sent, Reason::EncapDevice) + egress(&sent, Reason::EncapPod);
    ensure!(fast > SEGMENTS * 9 / 10, "{sent}");
    ensure!(egress(&sent, Reason::EncapDevice) > SEGMENTS / 2, "{sent}");
    ensure!(egress(&sent, Reason::Ipv6Aggregate) < SEGMENTS / 10, "{sent}");
    ensure!(ingress(&received, Reason::DeliverPod) > SEGMENTS * 9 / 10, "{received}");
    ensure!(egress(&received, Reason::EncapPod) > 10, "{received}");
    Ok(())
}

/// Batches of UDP, which the device alone can pop, reach the pod past the rest of the stack.
fn batches_are_fast(cluster: &Cluster) -> Result<()> {
    let [a, b] = [cluster.members[0].pod_v6()?, cluster.members[1].pod_v6()?];
    let [sent, received] = cluster.counted(|| udp::gso(&a, &b, 1382, 40, 5, Receiver::Plain))?;
    ensure!(egress(&sent, Reason::EncapDevice) > 100, "{sent}");
    ensure!(ingress(&received, Reason::DeliverOverlay) > 100, "{received}");
    Ok(())
}

#[test]
fn all_takes_every_packet_past_the_stack() -> Result<()> {
    in_lab(|lab| {
        let cluster = start(lab, FastPath::All, v6_only)?;
        let [a, b] = [cluster.members[0].pod_v6()?, cluster.members[1].pod_v6()?];
        for counters in cluster.counted(|| ping(&a, &b, 56).map(drop))? {
            let both = (egress(&counters, Reason::EncapPod), ingress(&counters, Reason::DeliverPod));
            ensure!(both.0 >= 1 && both.1 >= 1, "{counters}");
        }
        bulk_is_fast(&cluster)?;
        batches_are_fast(&cluster)?;
        every_kind_both_ways(&a, &b)
    })
}

#[test]
fn flow_takes_accepted_flows_past_the_stack() -> Result<()> {
    in_lab(|lab| {
        let cluster = start(lab, FastPath::Flow, dual)?;
        let [a, b] = [cluster.members[0].pod_v6()?, cluster.members[1].pod_v6()?];
        bulk_is_fast(&cluster)?;
        batches_are_fast(&cluster)?;
        // ICMPv6 is the kernel's; its packets get their headers at the device all the same.
        let [sent, _] = cluster.counted(|| ping(&a, &b, 56).map(drop))?;
        ensure!(egress(&sent, Reason::FlowProtocol) >= 1, "{sent}");
        ensure!(egress(&sent, Reason::EncapOverlay) >= 1, "{sent}");
        every_kind_both_ways(&a, &b)?;
        // IPv4 beside it is what it was.
        cluster.await_fast_path(0, 1, FastPath::Flow)
    })
}

/// A pod that forwards is noticed by what it sends, and from then on gets aggregates that the kernel has decapsulated.
#[test]
fn a_pod_that_forwards() -> Result<()> {
    in_lab(|lab| {
        let cluster = start(lab, FastPath::Flow, dual)?;
        let [a, router] = [cluster.members[0].pod_v6()?, cluster.members[1].pod_v6()?];
        bulk_is_fast(&cluster).context("before it forwards")?;
        let nested = lab.behind(&router)?;
        every_kind_both_ways(&a, &nested)?;
        let [_, received] = cluster.counted(|| tcp::bulk(&a, &nested, BULK).map(drop))?;
        ensure!(ingress(&received, Reason::PodForwards) > SEGMENTS / 2, "{received}");
        ensure!(ingress(&received, Reason::DeliverOverlay) > SEGMENTS / 2, "{received}");
        let learned =
            cluster.members.iter().map(|member| Ok(egress(&member.counters()?, Reason::ForwarderLearned)));
        let learned = learned.collect::<Result<Vec<_>>>()?;
        ensure!(learned[0] == 0 && learned[1] > 0, "forwarders learned by node: {learned:?}");
        Ok(())
    })
}

/// Every segment goes out and comes in as it is, past the stack.
fn goes_direct(lab: &Lab, fast_path: FastPath, configure: fn(&Etcd) -> Result<()>) -> Result<()> {
    let cluster = start(lab, fast_path, configure)?;
    let [a, b] = [cluster.members[0].pod_v6()?, cluster.members[1].pod_v6()?];
    let [sent, received] = cluster.counted(|| tcp::bulk(&a, &b, BULK).map(drop))?;
    let ([out, _, tunnelled, _], [answered, handed, _, decapsulated]) =
        (sent.past_the_stack(), received.past_the_stack());
    ensure!(out > BULK / 1440 * 9 / 10 && handed > BULK / 1440 * 9 / 10, "{sent}\n{received}");
    ensure!(answered > 10 && tunnelled == 0 && decapsulated == 0, "{sent}\n{received}");
    let subnet = cluster.members[1].node.subnet_env_v6()?.subnet;
    let route = cluster.members[0].node.netns().ip(&format!("-6 route show {subnet}"))?;
    let via = format!("{subnet} via {} dev eth0 ", cluster.members[1].node.address_v6());
    ensure!(route.starts_with(&via), "{route} instead of {via}");
    every_kind_both_ways(&a, &b)
}

#[test]
fn host_gw_takes_accepted_flows_past_the_stack() -> Result<()> {
    in_lab(|lab| goes_direct(lab, FastPath::Flow, host_gw))
}

#[test]
fn direct_routing_takes_every_packet_past_the_stack() -> Result<()> {
    in_lab(|lab| goes_direct(lab, FastPath::All, direct_routing))
}

/// What is denied before is never fast, and what is denied later is no longer.
#[test]
fn policies_of_ip6tables_hold() -> Result<()> {
    const DENIED: u16 = 7777;
    in_lab(|lab| {
        let cluster = start(lab, FastPath::Flow, dual)?;
        let [a, b] = [cluster.members[0].pod_v6()?, cluster.members[1].pod_v6()?];
        for (member, end) in [(&cluster.members[0], "-s"), (&cluster.members[1], "-d")] {
            let address = if end == "-s" { &a } else { &b }.address().to_string();
            let change = |how: &str, rule: &[&str]| {
                let words = [&["--wait", how, "FORWARD", end, &address], rule].concat();
                member.node.netns().run("ip6tables", &words).map(drop)
            };
            let port = DENIED.to_string();
            let rule = ["-p", "tcp", "--dport", &port, "-j", "REJECT"];
            change("-I", &rule)?;
            let listener = listen(&b, DENIED)?;
            for _ in 0..3 {
                let outcome = Dialogue::through(&a, 0, b.socket_address(DENIED), &[&listener]);
                ensure!(outcome.is_err(), "what a policy denies was let through");
            }
            ensure!(listener.accept().is_err(), "a connection that a policy denies arrived");
            change("-D", &rule)?;
            let mut dialogue = Dialogue::through(&a, 0, b.socket_address(DENIED), &[&listener])?;
            let counted = cluster.counted(|| dialogue.exchanges(20))?;
            ensure!(egress(&counted[0], Reason::EncapPod) >= 20, "{}", counted[0]);
            // The acceptance of what is established lasts as long as `--flow-refresh`.
            change("-I", &["-j", "DROP"])?;
            eventually(CONVERGENCE, "a policy stops what is established", || {
                ensure!(dialogue.exchange_within(Duration::from_millis(300)).is_err(), "it goes on");
                Ok(())
            })?;
            change("-D", &["-j", "DROP"])?;
        }
        Ok(())
    })
}

/// The nodes' interfaces compute no checksum and cut no aggregate, as the plainest card: what is on the wire is then
/// as any receiver sees it, and all of it is right.
#[test]
fn checksums_on_the_wire() -> Result<()> {
    in_lab(|lab| {
        let cluster = start(lab, FastPath::All, dual)?;
        let [a, b] = [cluster.members[0].pod_v6()?, cluster.members[1].pod_v6()?];
        for member in &cluster.members {
            let off = ["-K", "eth0", "tx", "off", "tso", "off", "gso", "off"];
            member.node.netns().run("ethtool", &off)?;
        }
        let wire = Wire::open(&lab.underlay()?, "node2")?;
        let [counters, _] = cluster.counted(|| {
            tcp::bulk(&a, &b, 8 << 20)?;
            tcp::bulk(&b, &a, 8 << 20)?;
            [1, 63, 64, 1380].iter().try_for_each(|size| udp::echo(&a, &b, *size, 50))
        })?;
        // All of UDP; of TCP only what is no aggregate, which depends on the load of the machine.
        ensure!(egress(&counters, Reason::EncapPod) >= 200, "{counters}");
        ensure!(egress(&counters, Reason::EncapDevice) > 1_000, "{counters}");
        let mut seen = [0; 2];
        for frame in wire.drain()? {
            let checked = overlay_frame::check(&frame);
            match checked.with_context(|| format!("{:02x?}", &frame[..frame.len().min(130)]))? {
                Some(6) => seen[0] += 1,
                Some(17) => seen[1] += 1,
                _ => {}
            }
        }
        // Both ways go by here; the socket may have had no room for all.
        ensure!(seen[0] > 4_000 && seen[1] > 200, "{seen:?} packets of TCP and UDP on the wire");
        Ok(())
    })
}

/// From time to time the kernel decapsulates a packet that is delivered past the rest of the stack. Where it has
/// verified the outer checksum by the bytes, its sum goes along into the pod, which believes the sum.
#[test]
fn a_sum_over_the_whole_packet_is_right_in_the_pod() -> Result<()> {
    in_lab(|lab| {
        let cluster = start(lab, FastPath::Flow, dual)?;
        let [a, b] = [cluster.members[0].pod_v6()?, cluster.members[1].pod_v6()?];
        // What is cut up by its sender has a checksum of the sender's making: no device is left to make one.
        let way = a.netns().ip(&format!("-6 route get {}", b.address()))?;
        let gateway = way.split_whitespace().skip_while(|word| *word != "via").nth(1).context(way.clone())?;
        a.netns().ip(&format!("-6 route add {} via {gateway} mtu 1300", b.address()))?;
        let cut_up = |packets: u64, sent: &Counters| -> Result<()> {
            let routes = || a.netns().ip("-6 route show table all").unwrap_or_default();
            ensure!(egress(sent, Reason::Fragment) >= 2 * packets, "{sent}{}", routes());
            Ok(())
        };
        eventually(CONVERGENCE, "the pod cuts up what is larger than its route says", || {
            let [sent, _] = cluster.counted(|| udp::echo(&a, &b, 1382, 3))?;
            cut_up(3, &sent)
        })?;
        let [sent, received] = cluster.counted(|| {
            let traffic = Paced::start(&a, &b, 100, 1382)?;
            sleep(Duration::from_secs(4));
            traffic.stop()?.check_lossless()
        })?;
        cut_up(300, &sent)?;
        ensure!(ingress(&received, Reason::DeliverOverlay) >= 2, "{received}");
        Ok(())
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
        cluster.await_reachable_v6(std::slice::from_ref(&pod))?;
        let ours = cluster.members[0].pod_v6()?;
        let [counters, _] = cluster.counted(|| every_kind_both_ways(&ours, &pod))?;
        ensure!(egress(&counters, Reason::EncapPod) > 100, "{counters}");
        ensure!(egress(&counters, Reason::EncapDevice) > 100, "{counters}");
        ensure!(ingress(&counters, Reason::DeliverPod) > 100, "{counters}");
        Ok(())
    })
}

/// Programs and maps stay while the agent is away, and the next one takes them over.
#[test]
fn a_killed_agent_loses_nothing() -> Result<()> {
    for fast_path in [FastPath::Flow, FastPath::All] {
        in_lab(|lab| {
            let mut cluster = start(lab, fast_path, dual)?;
            let [a, b] = [cluster.members[0].pod_v6()?, cluster.members[1].pod_v6()?];
            let traffic = Paced::usual(&a, &b)?;
            sleep(Duration::from_millis(300));
            cluster.members[0].agent.kill()?;
            // Nothing but what is pinned moves packets now.
            let [counters, _] = cluster.counted(|| {
                sleep(Duration::from_millis(700));
                Ok(())
            })?;
            ensure!(egress(&counters, Reason::EncapPod) > 50, "{counters}");
            ensure!(ingress(&counters, Reason::DeliverPod) > 50, "{counters}");
            cluster.members[0].agent.start_again()?;
            ready(&cluster, fast_path)?;
            traffic.stop()?.check_lossless()
        })
        .with_context(|| format!("--fast-path={}", fast_path.name()))?;
    }
    Ok(())
}
