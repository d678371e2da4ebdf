//! How to look around in a demo that stays up.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use flannel_common::map::{
    CONFIG_V4, COUNTERS, FROM_POD, LAYOUT_VERSION, PIN_DIRECTORY, PODS_V4, ROUTES_V4, VTEPS_V4,
};
use flannel_lab::{Cluster, PREFIX};

pub(crate) fn instructions(cluster: &Cluster) -> Result<String> {
    let (first, last) = cluster.members.first().zip(cluster.members.last()).context("no nodes")?;
    let pod = first.pods.first().context("no pods")?;
    let maps = first.agent.bpffs().join(PIN_DIRECTORY).join(LAYOUT_VERSION).join("maps");
    let target = last.pod()?.address();
    let mut lines = vec![
        "The cluster stays up. To look around:".to_owned(),
        format!(
            "  ip netns exec {} bash                  # {}",
            first.node.netns().name(),
            first.node.name()
        ),
        format!("  ip netns exec {} bash             # a pod on it", pod.netns().name()),
        format!("  ip netns exec {} ping -c3 {target}", pod.netns().name()),
        format!(
            "  ETCDCTL_API=3 ip netns exec {} etcdctl --endpoints {} get --prefix {PREFIX}",
            first.node.netns().name(),
            cluster.etcd.endpoint().trim_start_matches("http://")
        ),
        format!("  target/release/flannel-agent bpf counters --bpffs {}", first.agent.bpffs().display()),
        format!("  bpftool prog show name {FROM_POD}"),
    ];
    for map in [ROUTES_V4, VTEPS_V4, PODS_V4, CONFIG_V4, COUNTERS] {
        lines.push(format!("  bpftool map dump pinned {}", maps.join(map).display()));
    }
    for member in &cluster.members {
        lines.push(format!("  less {}", member.agent.log_path().display()));
    }
    lines.push("To remove every trace: cargo xtask demo --down".to_owned());
    let mut text = String::new();
    for line in lines {
        writeln!(text, "{line}")?;
    }
    Ok(text)
}
