//! `--fast-path=flow`: what netfilter has accepted skips the host's stack, and nothing else does.

use std::time::Duration;

use anyhow::{Context as _, Result};
use flannel_common::reason::{Direction, Reason};
use flannel_lab::{
    AgentOptions, Cluster, Dataplane, Etcd, FastPath, Lab, Member, PREFIX, Xdp, counters::Counters, in_lab,
};

mod classes;
mod detours;
mod endings;
mod forgotten;
mod forwarding;
mod gaps;
mod hooks;
mod kube_proxy;
mod learning;
mod marks;
mod places;
mod pod_routes;
mod pods;
mod policy;
mod resets;
mod rules;
mod services;
mod switched;
mod translated;
mod traps;
mod underlay;

/// Runs `test` in a lab for each of `xdps`, behind which `flow` is tried.
fn behind(xdps: &[Xdp], test: impl Fn(&Lab, Xdp) -> Result<()>) -> Result<()> {
    xdps.iter()
        .try_for_each(|xdp| in_lab(|lab| test(lab, *xdp)).with_context(|| format!("--xdp={}", xdp.name())))
}

/// Two nodes with `pods` pods each and all of flannel's rules; what netfilter accepts holds for `refresh`.
/// Returns when flows become fast both ways.
fn cluster(lab: &Lab, pods: usize, refresh: Duration) -> Result<Cluster> {
    cluster_behind(Xdp::Off, lab, pods, refresh)
}

/// The same behind XDP.
fn cluster_behind(xdp: Xdp, lab: &Lab, pods: usize, refresh: Duration) -> Result<Cluster> {
    start(xdp, lab, lab.etcd()?, pods, refresh)
}

fn start(xdp: Xdp, lab: &Lab, etcd: Etcd, pods: usize, refresh: Duration) -> Result<Cluster> {
    let dataplane = FastPath::Flow.with(xdp);
    let cluster = with_rules(lab, etcd, pods, dataplane, refresh)?;
    cluster.await_dataplane(dataplane)?;
    Ok(cluster)
}

/// The same with nft in the place of iptables.
fn nftables_cluster(lab: &Lab, pods: usize, refresh: Duration) -> Result<Cluster> {
    start(Xdp::Off, lab, nftables_etcd(lab)?, pods, refresh)
}

/// An etcd whose configuration tells agents to write their rules with nft.
fn nftables_etcd(lab: &Lab) -> Result<Etcd> {
    let etcd = lab.etcd()?;
    let config = r#"{"Network":"10.244.0.0/16","EnableNFTables":true,"Backend":{"Type":"vxlan"}}"#;
    etcd.put(&format!("{PREFIX}/config"), config)?;
    Ok(etcd)
}

/// The same as [`cluster`], but returns when pods reach each other and agents have found them.
fn learning(lab: &Lab, etcd: Etcd, pods: usize, refresh: Duration) -> Result<Cluster> {
    with_rules(lab, etcd, pods, FastPath::Flow, refresh)
}

/// Two nodes with all of flannel's rules, whose pods reach each other and are found by their agents.
fn with_rules(
    lab: &Lab,
    etcd: Etcd,
    pods: usize,
    dataplane: impl Into<Dataplane>,
    refresh: Duration,
) -> Result<Cluster> {
    let dataplane = dataplane.into();
    let refresh = format!("--flow-refresh={}", refresh.as_secs());
    let options = AgentOptions::new(dataplane, &["--ip-masq", &refresh]);
    let mut members = Vec::new();
    for _ in 0..2 {
        let node = lab.node()?;
        let agent = node.agent(&etcd, options.clone())?;
        let pods = (1..=pods).map(|number| node.pod(&format!("pod{number}"))).collect::<Result<_>>()?;
        members.push(Member { pods, agent, node });
    }
    let cluster = Cluster { members, etcd };
    cluster.await_reachable(&[])?;
    if dataplane.fast_path == FastPath::Flow {
        cluster.await_pods()?;
    }
    Ok(cluster)
}

/// What both nodes count while `work` is done.
fn counted(cluster: &Cluster, work: impl FnOnce() -> Result<()>) -> Result<[Counters; 2]> {
    cluster.counted(work)
}

/// Packets of pods that skipped the stack on their way out, and in.
fn fast(counters: &Counters) -> [u64; 2] {
    [
        counters.get(Direction::Egress, Reason::EncapPod).packets,
        counters.get(Direction::Ingress, Reason::DeliverPod).packets,
    ]
}

/// Packets of pods that were translated and skipped the stack on their way out, and in.
fn translated_fast(counters: &Counters) -> [u64; 2] {
    Direction::ALL.map(|direction| counters.get(direction, Reason::Translated).packets)
}

/// Packets counted for `reason`, either way.
fn packets(counters: &Counters, reason: Reason) -> u64 {
    Direction::ALL.into_iter().map(|direction| counters.get(direction, reason).packets).sum()
}
