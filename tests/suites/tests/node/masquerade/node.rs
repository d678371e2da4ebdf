//! Nodes whose host has rules of its own.

use std::time::Duration;

use anyhow::Result;
use flannel_lab::{AgentOptions, Cluster, Etcd, FastPath, Lab, Member, Node, PREFIX};

/// How long rules may take to come back; a second or so on a machine that is not busy.
pub(crate) const REPAIR: Duration = Duration::from_secs(20);

/// What docker makes of its bridge, which flannel knows nothing of.
pub(crate) const DOCKER: &str = "-s 172.17.0.0/16 ! -o docker0 -j MASQUERADE";

/// Who keeps the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    IptablesNft,
    IptablesLegacy,
    Nftables,
}

impl Mode {
    /// The iptables that the host's other programs use.
    pub(crate) fn iptables(self) -> &'static str {
        match self {
            Self::IptablesNft | Self::Nftables => "iptables-nft",
            Self::IptablesLegacy => "iptables-legacy",
        }
    }
}

/// Nodes whose host already has rules of docker's, so that the agent can see where they belong.
pub(crate) fn cluster(lab: &Lab, mode: Mode, nodes: usize, flags: &[&str]) -> Result<Cluster> {
    let etcd = lab.etcd()?;
    configure(&etcd, mode)?;
    let mut members = Vec::new();
    for _ in 0..nodes {
        let node = lab.node()?;
        iptables(&node, mode, &format!("-t nat -A POSTROUTING {DOCKER}"))?;
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let agent = node.agent(&etcd, AgentOptions { fast_path: FastPath::Flow, flags })?;
        let pods = vec![node.pod("pod1")?];
        members.push(Member { pods, agent, node });
    }
    let cluster = Cluster { members, etcd };
    cluster.await_reachable(&[])?;
    Ok(cluster)
}

pub(crate) fn configure(etcd: &Etcd, mode: Mode) -> Result<()> {
    let nftables = mode == Mode::Nftables;
    let config =
        format!(r#"{{"Network":"10.244.0.0/16","EnableNFTables":{nftables},"Backend":{{"Type":"vxlan"}}}}"#);
    etcd.put(&format!("{PREFIX}/config"), &config)
}

pub(crate) fn iptables(node: &Node, mode: Mode, words: &str) -> Result<String> {
    run(node, mode.iptables(), words)
}

pub(crate) fn run(node: &Node, program: &str, words: &str) -> Result<String> {
    node.netns().run(program, &words.split_whitespace().collect::<Vec<_>>())
}
