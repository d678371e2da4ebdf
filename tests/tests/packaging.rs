//! The files around the daemon say what the daemon needs, and no more.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use flannel_common::reason::{Direction, Reason};
use flannel_tests::{
    command::Daemon,
    counters::Counters,
    eventually,
    lab::{FastPath, Member, agent_binary, in_lab},
    traffic::{every_kind_both_ways, ping::ping},
};

/// How long the agent may take to start, and to find a pod.
const PATIENCE: Duration = Duration::from_secs(30);

/// All values of `key` in flanneld.service.
fn unit(key: &str) -> Result<Vec<String>> {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../flannel-agent/packaging/systemd/flanneld.service");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let values = text.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let values: Vec<String> = values.map(str::to_owned).collect();
    ensure!(!values.is_empty(), "{}: no {key}=", path.display());
    Ok(values)
}

/// With the capabilities that flanneld.service leaves it, and no others, the agent builds all of its
/// dataplane: device, routes, programs.
#[test]
fn the_units_capabilities_are_enough_for_the_fast_path() -> Result<()> {
    let kept = unit("CapabilityBoundingSet")?.join(" ");
    let kept: Vec<String> = kept
        .split_whitespace()
        .map(|name| Ok(format!("+{}", name.strip_prefix("CAP_").context("not CAP_")?.to_lowercase())))
        .collect::<Result<_>>()?;
    in_lab(|lab| {
        let etcd = lab.etcd()?;
        let full = Member::start(lab.node()?, &etcd, FastPath::All, 1)?;

        let node = lab.node()?;
        let mut command = node.netns().command("setpriv");
        command.arg(format!("--bounding-set=-all,{}", kept.join(",")));
        command.args(["--inh-caps=-all", "--no-new-privs"]).arg(agent_binary()?);
        command.args([format!("--etcd-endpoints={}", etcd.endpoint()), "--iface=eth0".to_owned()]);
        command.arg(format!("--subnet-file={}", node.subnet_file().display()));
        command.arg(format!("--bpffs={}", node.bpffs().display()));
        command.arg("--fast-path=all");
        let mut agent = Daemon::spawn(&mut command, &node.log("agent"))?;
        eventually(PATIENCE, "the agent writes its subnet file", || {
            agent.check_running()?;
            node.subnet_env().map(drop)
        })?;
        let status = fs::read_to_string(format!("/proc/{}/status", agent.id()))?;
        let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap_or_default();
        let effective = u64::from_str_radix(effective.trim(), 16).context("CapEff")?;
        ensure!(effective.count_ones() as usize == kept.len(), "capabilities {effective:x} are not {kept:?}");

        let pod = node.pod("pod")?.endpoint();
        eventually(PATIENCE, "a pod's packets take the fast path", || {
            let before = Counters::read(&node.bpffs())?;
            ping(&pod, &full.pod()?, 56)?;
            let counted = Counters::read(&node.bpffs())?.since(&before);
            ensure!(counted.get(Direction::Egress, Reason::EncapPod).packets > 0, "{counted}");
            ensure!(counted.get(Direction::Ingress, Reason::DeliverPod).packets > 0, "{counted}");
            Ok(())
        })?;
        every_kind_both_ways(&pod, &full.pod()?)?;
        ensure!(!agent.log().contains("WARN"), "it lacks something:\n{}", agent.log());
        Ok(())
    })
}
