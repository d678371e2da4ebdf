//! A store that is of no use, and what is said of it.

use flannel_lab::{AgentOptions, Cluster, FastPath, in_lab, wait::eventually};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::*;

/// Longer than a request may take.
const SOON: Duration = Duration::from_secs(30);

/// What somebody makes of this node's lease is put right, and whoever keeps at it is named.
fn let_others_write_the_lease(cluster: &Cluster) -> Result<()> {
    let node = &cluster.members[0].node;
    let subnet = node.subnet_env()?.subnet;
    let right = cluster.etcd.leases()?[&subnet].clone();
    let mac = right["BackendData"]["VtepMAC"].as_str().context("a MAC")?;
    let moved = right.to_string().replace(&node.address().to_string(), "192.168.77.90");
    let cloned = right.to_string().replace(mac, "0e:00:00:00:00:09");
    for wrong in [&moved, &cloned, &moved] {
        ensure!(serde_json::from_str::<Value>(wrong)? != right, "{wrong}");
        cluster.etcd.put_lease(subnet, wrong)?;
        eventually(SOON, "it is put right", || {
            let lease = cluster.etcd.leases()?[&subnet].clone();
            ensure!(lease == right, "{lease}");
            Ok(())
        })?;
    }
    for words in [["status"], ["check"], ["drift"]] {
        eventually(SOON, "it is named", || {
            let seen = look(&cluster.members[0], &words)?;
            let (found, should) = (r#"it says {"PublicIP":"192.168.77.90""#, "and should say {");
            ensure!(seen.status == 1 && seen.says(found) && seen.says(should), "{}", seen.text);
            ensure!(
                words == ["drift"]
                    || seen.says("written again 3 times")
                    || seen.says("were put back 3 times"),
                "{}",
                seen.text
            );
            Ok(())
        })?;
    }
    Ok(())
}

/// A store that answers too late, and one that wants a password: `status` tells one from the other.
#[test]
fn a_slow_store_and_one_that_refuses_are_named() -> Result<()> {
    in_lab(|lab| {
        let mut cluster = Cluster::start(lab, 1, 1, AgentOptions::from(FastPath::Flow))?;
        let says = |cluster: &Cluster, line: &str, status: i32| {
            eventually(SOON, line, || {
                let seen = look(&cluster.members[0], &["status"])?;
                ensure!(seen.status == status && seen.says(line), "{}", seen.text);
                Ok(())
            })
        };
        // All that is below it, as of a store that was emptied.
        let config = "/coreos.com/network/config";
        let before = cluster.etcd.ctl(&["get", "--print-value-only", config])?.trim().to_owned();
        cluster.etcd.ctl(&["del", "--prefix", "/coreos.com/network"])?;
        says(&cluster, "the network config is gone", 1)?;
        let seen = look(&cluster.members[0], &["status"])?;
        ensure!(seen.says(&format!("put {config} '{before}'")), "{}", seen.text);
        cluster.etcd.ctl(&["put", config, &before])?;
        says(&cluster, "healthy", 0)?;
        let etcd = Pid::from_raw(i32::try_from(cluster.etcd.pid()?)?);
        kill(etcd, Signal::SIGSTOP)?;
        // Whoever asks does not wait until the agent notices by itself.
        let seen = look(&cluster.members[0], &["check"])?;
        ensure!(seen.status == 1 && seen.says("etcd has not answered for 3 s"), "{}", seen.text);
        let seen = look(&cluster.members[0], &["drift"])?;
        ensure!(seen.says("Compared with the leases as etcd told them last, revision "), "{}", seen.text);
        says(&cluster, "etcd does not answer", 1)?;
        kill(etcd, Signal::SIGCONT)?;
        says(&cluster, "healthy", 0)?;
        let_others_write_the_lease(&cluster)?;
        for words in ["user add root:root", "user grant-role root root", "auth enable"] {
            cluster.etcd.ctl(&words.split(' ').collect::<Vec<_>>())?;
        }
        // Its connection was there before.
        cluster.members[0].agent.terminate()?;
        cluster.members[0].agent.launch()?;
        says(&cluster, "password", 1)
    })
}
