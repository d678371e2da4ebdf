//! A store that is of no use, and what is said of it.

use flannel_lab::{AgentOptions, Cluster, FastPath, in_lab, wait::eventually};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::*;

/// Longer than a request may take.
const SOON: Duration = Duration::from_secs(30);

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
        for words in ["user add root:root", "user grant-role root root", "auth enable"] {
            cluster.etcd.ctl(&words.split(' ').collect::<Vec<_>>())?;
        }
        // Its connection was there before.
        cluster.members[0].agent.terminate()?;
        cluster.members[0].agent.launch()?;
        says(&cluster, "password", 1)
    })
}
