//! `--fast-path=flow`: what netfilter has accepted skips the host's stack, and nothing else does.

use std::time::Duration;

use anyhow::Result;
use flannel_common::reason::{Direction, Reason};
use flannel_tests::{
    counters::Counters,
    lab::{AgentOptions, Cluster, Etcd, FastPath, Lab, Member, PREFIX},
};

mod endings;
mod gaps;
mod kube_proxy;
mod learning;
mod pods;
mod policy;
mod services;

/// Two nodes with `pods` pods each and all of flannel's rules; what netfilter accepts holds for `refresh`.
/// Returns when flows become fast both ways.
fn cluster(lab: &Lab, pods: usize, refresh: Duration) -> Result<Cluster> {
    let etcd = lab.etcd()?;
    start(lab, etcd, pods, refresh)
}

fn start(lab: &Lab, etcd: Etcd, pods: usize, refresh: Duration) -> Result<Cluster> {
    let cluster = learning(lab, etcd, pods, refresh)?;
    ready(&cluster)?;
    Ok(cluster)
}

/// The same with nft in the place of iptables.
fn nftables_cluster(lab: &Lab, pods: usize, refresh: Duration) -> Result<Cluster> {
    start(lab, nftables_etcd(lab)?, pods, refresh)
}

/// An etcd whose configuration tells agents to write their rules with nft.
fn nftables_etcd(lab: &Lab) -> Result<Etcd> {
    let etcd = lab.etcd()?;
    let config = r#"{"Network":"10.244.0.0/16","EnableNFTables":true,"Backend":{"Type":"vxlan"}}"#;
    etcd.put(&format!("{PREFIX}/config"), config)?;
    Ok(etcd)
}

/// The same as [`cluster`], but returns when pods reach each other.
fn learning(lab: &Lab, etcd: Etcd, pods: usize, refresh: Duration) -> Result<Cluster> {
    with_rules(lab, etcd, pods, FastPath::Flow, refresh)
}

/// Two nodes with all of flannel's rules, whose pods reach each other.
fn with_rules(lab: &Lab, etcd: Etcd, pods: usize, fast_path: FastPath, refresh: Duration) -> Result<Cluster> {
    let mut members = Vec::new();
    for _ in 0..2 {
        let node = lab.node()?;
        let flags = vec!["--ip-masq".to_owned(), format!("--flow-refresh={}", refresh.as_secs())];
        let agent = node.agent(&etcd, AgentOptions { fast_path, flags })?;
        let pods = (1..=pods).map(|number| node.pod(&format!("pod{number}"))).collect::<Result<_>>()?;
        members.push(Member { pods, agent, node });
    }
    let cluster = Cluster { members, etcd };
    cluster.await_reachable(&[])?;
    Ok(cluster)
}

fn ready(cluster: &Cluster) -> Result<()> {
    cluster.await_fast_path(0, 1, FastPath::Flow)?;
    cluster.await_fast_path(1, 0, FastPath::Flow)
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

/// Packets counted for `reason`, either way.
fn packets(counters: &Counters, reason: Reason) -> u64 {
    Direction::ALL.into_iter().map(|direction| counters.get(direction, reason).packets).sum()
}
