//! Connection tracking does not see every packet: nothing it drops for that, and nothing stalls.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use flannel_common::reason::Reason;
use flannel_lab::{
    CONVERGENCE, Cluster, FastPath, eventually, in_lab,
    traffic::{Dialogue, Paced, tcp::Stream},
};

use crate::{
    cluster, counted, fast, packets,
    resets::{LONG, known},
    services::Service,
    translated::await_fast,
};

/// Both nodes drop what connection tracking calls INVALID, and count it.
fn strict(cluster: &Cluster) -> Result<()> {
    cluster.members.iter().try_for_each(|member| member.node.drop_invalid())
}

/// What has been dropped as INVALID on both nodes.
pub(crate) fn invalid(cluster: &Cluster) -> Result<u64> {
    let mut dropped = 0;
    for member in &cluster.members {
        let listing = member.node.netns().run("iptables", &["-w", "-L", "FORWARD", "-v", "-x", "-n"])?;
        let rules = listing.lines().filter(|line| line.contains("INVALID"));
        dropped += rules.filter_map(|line| line.split_whitespace().next()?.parse::<u64>().ok()).sum::<u64>();
    }
    Ok(dropped)
}

#[test]
fn a_long_transfer_never_stalls() -> Result<()> {
    in_lab(|lab| {
        let mut cluster = cluster(lab, 1, Duration::from_secs(1))?;
        strict(&cluster)?;
        let [a, b] = [cluster.members[0].pod()?, cluster.members[1].pod()?];
        let streams = [Stream::start(&a, &b)?, Stream::start(&b, &a)?];
        let mut rare = Dialogue::open(&a, &b)?;
        sleep(Duration::from_secs(1));
        let before = [cluster.members[0].counters()?, cluster.members[1].counters()?];
        for round in 0..6 {
            rare.exchange()?;
            sleep(Duration::from_millis(1300));
            if round == 2 {
                let agent = &mut cluster.members[0].agent;
                agent.kill()?;
                sleep(Duration::from_millis(700));
                agent.start_again()?;
            }
            if round == 4 {
                cluster.members[1].node.netns().run("conntrack", &["-F"])?;
            }
        }
        let after = [
            cluster.members[0].counters()?.since(&before[0]),
            cluster.members[1].counters()?.since(&before[1]),
        ];
        for stream in streams {
            let (bytes, longest) = stream.stop()?;
            // What stalls does so for good, or is sent again later each time; a busy machine takes its time, too.
            ensure!(longest < Duration::from_secs(3), "stood still for {longest:?} after {bytes} bytes");
        }
        for counters in &after {
            ensure!(packets(counters, Reason::FlowStale) >= 4, "{counters}");
            let all: u64 = fast(counters).into_iter().sum();
            ensure!(all > packets(counters, Reason::FlowStale) * 20, "{counters}");
        }
        let dropped = invalid(&cluster)?;
        ensure!(dropped == 0, "{dropped} packets were dropped as INVALID");
        Ok(())
    })
}

/// Somebody takes the tolerance away that the flows need, again and again: it is back before connections give up. What
/// is lost until then is sent again, later each time.
#[test]
fn strictness_that_comes_back_does_not_stay() -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster(lab, 1, Duration::from_secs(1))?;
        strict(&cluster)?;
        let [a, b] = [cluster.members[0].pod()?, cluster.members[1].pod()?];
        let streams = [Stream::start(&a, &b)?, Stream::start(&b, &a)?];
        for _ in 0..3 {
            sleep(Duration::from_millis(1700));
            for member in &cluster.members {
                member.node.netns().sysctl("net/netfilter/nf_conntrack_tcp_be_liberal", "0")?;
            }
        }
        // A sender whose every attempt met a node without tolerance has waited twice as long each time.
        eventually(CONVERGENCE, "tolerance is back", || {
            for member in &cluster.members {
                let liberal = member.node.netns().read_sysctl("net/netfilter/nf_conntrack_tcp_be_liberal")?;
                ensure!(liberal == "1", "{}: {liberal}", member.node.name());
            }
            Ok(())
        })?;
        for stream in streams {
            let before = stream.received();
            eventually(2 * CONVERGENCE, "the stream goes on", || {
                ensure!(stream.received() > before, "nothing after {before} bytes");
                Ok(())
            })?;
            stream.stop()?;
        }
        Ok(())
    })
}

/// An idle connection is remembered as long as any other, though connection tracking missed what came last.
#[test]
fn idle_connections_are_not_forgotten() -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster(lab, 1, Duration::from_secs(1))?;
        let [a, b] = [cluster.members[0].pod()?, cluster.members[1].pod()?];
        let mut dialogue = Dialogue::open(&a, &b)?;
        // It has seen the beginning, and then a packet each second.
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(4) {
            dialogue.exchange()?;
            sleep(Duration::from_millis(70));
        }
        let port = dialogue.client.local_addr()?.port().to_string();
        for member in &cluster.members {
            let listing = member.node.netns().run("conntrack", &["-L", "-p", "tcp", "--sport", &port])?;
            let fields: Vec<&str> = listing.split_whitespace().collect();
            ensure!(fields.get(3) == Some(&"ESTABLISHED"), "{listing}");
            let left: u64 = fields[2].parse()?;
            // With data that it believes not acknowledged it would be 300 s.
            ensure!(left > 3_600, "forgotten in {left} s: {listing}");
        }
        Ok(())
    })
}

/// Of a connection that became fast in the middle connection tracking believes the data lost that it has not seen acknowledged.
/// It forgets that soon, and with it how a Service's address is translated.
#[test]
fn connections_that_rest_are_not_forgotten() -> Result<()> {
    const SOON: u64 = 20;
    in_lab(|lab| {
        let cluster = cluster(lab, 2, Duration::from_secs(30))?;
        for member in &cluster.members {
            for timeout in ["unacknowledged", "max_retrans"] {
                let setting = format!("net/netfilter/nf_conntrack_tcp_timeout_{timeout}");
                member.node.netns().sysctl(&setting, &SOON.to_string())?;
            }
        }
        let service = Service::new(&cluster, false)?;
        let (mut dialogue, port) = eventually(CONVERGENCE, "data counts as lost", || {
            let mut dialogue = service.connection(0)?;
            await_fast(&cluster, || dialogue.exchanges(10))?;
            let port = dialogue.client.local_addr()?.port().to_string();
            let found = known(&cluster.members, "ipv4", &port)?;
            ensure!(found[0].1 <= SOON, "{found:?}");
            Ok((dialogue, port))
        })?;
        eventually(2 * CONVERGENCE, "it is kept as long as any other", || {
            let found = known(&cluster.members, "ipv4", &port)?;
            ensure!(found.iter().all(|(_, left, _)| *left > LONG), "{found:?}");
            Ok(())
        })?;
        dialogue.exchanges(10)
    })
}

/// From one fast path to the next, back and forth, no packet is lost, and connections go on.
#[test]
fn other_fast_paths_take_over_without_loss() -> Result<()> {
    in_lab(|lab| {
        let mut cluster = cluster(lab, 1, Duration::from_secs(2))?;
        strict(&cluster)?;
        let [a, b] = [cluster.members[0].pod()?, cluster.members[1].pod()?];
        let trickle = Paced::usual(&a, &b)?;
        let mut dialogue = Dialogue::open(&a, &b)?;
        for fast_path in [
            FastPath::All,
            FastPath::Flow,
            FastPath::Off,
            FastPath::Flow,
            FastPath::Overlay,
            FastPath::Flow,
            FastPath::All,
        ] {
            for member in &mut cluster.members {
                member.agent.terminate()?;
                member.agent.set_flag("fast-path", fast_path.name());
                member.agent.start_again()?;
                dialogue.exchanges(20)?;
            }
            cluster.await_fast_path(0, 1, fast_path)?;
            dialogue.exchanges(200)?;
        }
        trickle.stop()?.check_lossless()
    })
}

/// Killed and started again, an agent finds the flows as they were.
#[test]
fn flows_outlive_the_agent() -> Result<()> {
    in_lab(|lab| {
        let mut cluster = cluster(lab, 1, Duration::from_secs(30))?;
        strict(&cluster)?;
        let [a, b] = [cluster.members[0].pod()?, cluster.members[1].pod()?];
        let trickle = Paced::usual(&a, &b)?;
        let mut dialogue = Dialogue::open(&a, &b)?;
        dialogue.exchanges(50)?;
        for member in 0..2 {
            cluster.members[member].agent.kill()?;
            let without = counted(&cluster, || dialogue.exchanges(100))?;
            cluster.members[member].agent.start_again()?;
            let with = counted(&cluster, || dialogue.exchanges(100))?;
            for counters in without.iter().chain(&with) {
                // What was accepted before an agent starts counts no more: a packet each way is accepted anew.
                ensure!(fast(counters).into_iter().all(|packets| packets >= 95), "{counters}");
                ensure!(packets(counters, Reason::FlowUnknown) == 0, "{counters}");
            }
        }
        cluster.await_dataplane(FastPath::Flow.into())?;
        let report = trickle.stop()?;
        report.check_lossless()?;
        ensure!(report.forward.longest_gap < CONVERGENCE, "{report}");
        Ok(())
    })
}
