//! What the agents take of their nodes.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use flannel_agent::bpf::{Pins, Tables};
use flannel_lab::{Cluster, Member, Memory};

/// Of all agents, the most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Memory of the agent whose process has lived from the start on, KiB.
    pub(crate) rss_kib: u64,
    /// Open files of an agent.
    pub(crate) descriptors: u64,
    /// Entries of an agent's maps.
    pub(crate) map_entries: u64,
}

impl Usage {
    /// What they take now.
    pub(crate) fn read(cluster: &Cluster) -> Result<Self> {
        let mut usage = Self::default();
        for member in &cluster.members {
            let proc = format!("/proc/{}", member.agent.pid()?);
            let files = fs::read_dir(Path::new(&proc).join("fd")).with_context(|| proc.clone())?.count();
            usage.descriptors = usage.descriptors.max(files as u64);
            usage.map_entries = usage.map_entries.max(entries(member)?);
        }
        let witness = cluster.members.last().context("a node")?;
        usage.rss_kib = Memory::of(witness.agent.pid()?)?.resident;
        Ok(usage)
    }
}

fn entries(member: &Member) -> Result<u64> {
    let tables = Tables::open(&Pins::under(member.agent.bpffs())?)?;
    let (v4, v6) = (&tables.v4, &tables.v6);
    let sum = v4.routes.entries()?.len()
        + v4.pods.entries()?.len()
        + v4.flows.entries()?.len()
        + v6.routes.entries()?.len()
        + v6.pods.entries()?.len()
        + v6.flows.entries()?.len();
    Ok(sum as u64)
}
