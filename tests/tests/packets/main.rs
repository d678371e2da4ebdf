//! Packets that are not like others: large, odd, broken or forged. Whatever the fast path makes of them, what arrives
//! is what arrives on the kernel's path, and the counters say which way it came.

use anyhow::Result;
use flannel_common::{
    map::PIN_DIRECTORY,
    reason::{Direction, Reason},
};
use flannel_tests::{
    counters::Counters,
    lab::{AgentOptions, Cluster, FastPath, Lab, Member},
};

mod aggregates;
mod chaos;
mod errors;
mod forged;
mod offloads;

/// The fast paths on which pods' packets skip the stack.
const FAST: [FastPath; 2] = [FastPath::Flow, FastPath::All];

/// As on a node of a cluster, with all of flannel's rules.
fn options(fast_path: FastPath) -> AgentOptions {
    AgentOptions { fast_path, flags: vec!["--ip-masq".to_owned()] }
}

/// Two nodes with `pods` pods each; returns when packets take the fast path both ways.
fn cluster(lab: &Lab, fast_path: FastPath, pods: usize) -> Result<Cluster> {
    let cluster = Cluster::start(lab, 2, pods, options(fast_path))?;
    ready(&cluster, fast_path)?;
    Ok(cluster)
}

fn ready(cluster: &Cluster, fast_path: FastPath) -> Result<()> {
    cluster.await_fast_path(0, 1, fast_path)?;
    cluster.await_fast_path(1, 0, fast_path)
}

/// What the programs of `member` have counted: nothing where there are none.
fn counters(member: &Member) -> Result<Counters> {
    if member.agent.bpffs().join(PIN_DIRECTORY).try_exists()? {
        member.counters()
    } else {
        Ok(Counters::default())
    }
}

/// What both nodes count while `work` is done.
fn counted(cluster: &Cluster, work: impl FnOnce() -> Result<()>) -> Result<[Counters; 2]> {
    let [a, b] = [&cluster.members[0], &cluster.members[1]];
    let before = [counters(a)?, counters(b)?];
    work()?;
    Ok([counters(a)?.since(&before[0]), counters(b)?.since(&before[1])])
}

/// Packets from other nodes counted for `reason`.
fn arrived(counters: &Counters, reason: Reason) -> u64 {
    counters.get(Direction::Ingress, reason).packets
}

/// Packets for other nodes counted for `reason`.
fn left(counters: &Counters, reason: Reason) -> u64 {
    counters.get(Direction::Egress, reason).packets
}
