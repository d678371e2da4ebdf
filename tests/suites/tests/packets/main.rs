//! Packets that are not like others: large, odd, broken or forged. Whatever the fast path makes of them, what arrives
//! is what arrives on the kernel's path, and the counters say which way it came.

use anyhow::{Context as _, Result};
use flannel_common::{
    map::PIN_DIRECTORY,
    reason::{Direction, Reason},
};
use flannel_lab::{AgentOptions, Cluster, Dataplane, FastPath, Lab, Member, Xdp, counters::Counters, in_lab};

mod aggregates;
mod chaos;
mod errors;
mod exempt;
mod explain;
mod fast_path_v6;
mod forged;
mod forwarding;
mod hostile;
mod offloads;
mod trace;
mod xdp;

/// Where pods' packets skip the stack: both such fast paths, and each program of XDP in front of one.
const FAST: [Dataplane; 4] = [
    FastPath::Flow.with(Xdp::Off),
    FastPath::All.with(Xdp::Off),
    FastPath::Flow.with(Xdp::Native),
    FastPath::All.with(Xdp::Generic),
];

/// Runs `test` in a lab for each of `dataplanes`.
fn on_each(
    dataplanes: impl IntoIterator<Item = Dataplane>,
    test: impl Fn(&Lab, Dataplane) -> Result<()>,
) -> Result<()> {
    dataplanes
        .into_iter()
        .try_for_each(|each| in_lab(|lab| test(lab, each)).with_context(|| each.to_string()))
}

/// As on a node of a cluster, with all of flannel's rules.
fn options(dataplane: Dataplane) -> AgentOptions {
    AgentOptions::new(dataplane, &["--ip-masq"])
}

/// Two nodes with `pods` pods each; returns when packets take the fast path both ways.
fn cluster(lab: &Lab, dataplane: Dataplane, pods: usize) -> Result<Cluster> {
    let cluster = Cluster::start(lab, 2, pods, options(dataplane))?;
    cluster.await_dataplane(dataplane)?;
    Ok(cluster)
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
