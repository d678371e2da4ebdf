//! `--fast-path=flow`: what netfilter has accepted skips the host's stack, and nothing else does.

use std::time::Duration;

use anyhow::Result;
use flannel_common::reason::{Direction, Reason};
use flannel_tests::{
    counters::Counters,
    lab::{Cluster, FastPath, Lab},
};

mod endings;
mod gaps;
mod learning;
mod pods;
mod policy;
mod services;

/// Two nodes with `pods` pods each, flannel's rules, and the rule by which flows are learned; acceptance holds
/// for `refresh`. Returns when flows become fast both ways.
fn cluster(lab: &Lab, pods: usize, refresh: Duration) -> Result<Cluster> {
    let mut cluster = Cluster::start(lab, 2, pods, FastPath::Flow)?;
    for member in &mut cluster.members {
        member.node.load_flannel_rules()?;
        member.node.load_flow_rule()?;
        member.agent.terminate()?;
        member.agent.set_flag("flow-refresh", &refresh.as_secs().to_string());
        member.agent.start_again()?;
    }
    ready(&cluster)?;
    Ok(cluster)
}

fn ready(cluster: &Cluster) -> Result<()> {
    cluster.await_fast_path(0, 1, FastPath::Flow)?;
    cluster.await_fast_path(1, 0, FastPath::Flow)
}

/// What both nodes count while `work` is done.
fn counted(cluster: &Cluster, work: impl FnOnce() -> Result<()>) -> Result<[Counters; 2]> {
    let [a, b] = [&cluster.members[0], &cluster.members[1]];
    let before = [a.counters()?, b.counters()?];
    work()?;
    Ok([a.counters()?.since(&before[0]), b.counters()?.since(&before[1])])
}

/// Packets of pods that skipped the stack on their way out, and in.
fn fast(counters: &Counters) -> [u64; 2] {
    [
        counters.get(Direction::Egress, Reason::EncapPod).packets,
        counters.get(Direction::Ingress, Reason::DeliverPod).packets,
    ]
}

/// Packets counted for `reason`, either way.
fn packets(counters: &Counters, reason: Reason) -> u64 {
    Direction::ALL.into_iter().map(|direction| counters.get(direction, reason).packets).sum()
}
