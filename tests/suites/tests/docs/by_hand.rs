//! The commands that start an agent by hand, and those that look inside.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use flannel_lab::{
    agent_binary,
    command::{Daemon, run, tool},
    eventually, in_lab, make_dir,
};
use nix::sys::signal::Signal;

use super::commands::chapter;

const PATIENCE: Duration = Duration::from_secs(30);

/// Makes a machine of a node: with a `/run` of its own, and without a BPF file system.
const MACHINE: &str = "mount -t tmpfs tmpfs /run; mkdir -p /run/lock; exec sleep infinity";

/// Typed in one after the other on a node, the commands do what the pages say.
#[test]
fn the_commands_to_start_and_to_look_inside() -> Result<()> {
    in_lab(|lab| {
        let (etcd, node) = (lab.etcd()?, lab.node()?);
        let directory = tempfile::tempdir()?;
        let home = directory.path();
        make_dir(&home.join("target/release"))?;
        std::os::unix::fs::symlink(agent_binary()?, home.join("target/release/flannel-agent"))?;
        let mut command = node.netns().command("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-ec", MACHINE]);
        let mut machine = Daemon::spawn(&mut command, &node.log("machine"))?;
        let shell = |line: &str| {
            // etcd is on another machine of the lab.
            let line = line.replace("http://127.0.0.1:2379", etcd.endpoint());
            let mut shell = tool("nsenter");
            shell.args([format!("--target={}", machine.id()), "--mount".to_owned(), "--net".to_owned()]);
            shell.env("ETCDCTL_API", "3").env("ETCDCTL_ENDPOINTS", etcd.endpoint());
            shell
                .args(["sh", "-ec"])
                .arg(format!("export PATH={0}/target/release:$PATH; cd {0}; {line}", home.display()));
            shell
        };
        eventually(PATIENCE, "the machine has its own /run", || {
            ensure!(run(&mut shell("ls /run"))?.trim() == "lock", "not yet");
            Ok(())
        })?;

        let mut agent = None;
        for line in chapter("flannel-agent/docs/running.md", "Start it by hand")? {
            // What builds it was done by whoever runs this test.
            if line.starts_with("cargo ") {
                continue;
            }
            if line.starts_with("target/release/flannel-agent ") {
                agent = Some(Daemon::spawn(&mut shell(&format!("exec {line}")), &node.log("agent"))?);
            } else {
                run(&mut shell(&line)).with_context(|| line.clone())?;
            }
        }
        let mut agent = agent.context("the chapter starts no agent")?;
        eventually(PATIENCE, "the agent writes its subnet file", || {
            agent.check_running()?;
            let file = run(&mut shell("cat /run/flannel/subnet.env"))?;
            ensure!(file.contains("FLANNEL_NETWORK=10.244.0.0/16"), "{file}");
            Ok(())
        })?;

        const PAGE: &str = "flannel-agent/docs/troubleshooting.md";
        let look = |heading: &str, shows: &str| -> Result<()> {
            for line in chapter(PAGE, heading)? {
                let shown = run(&mut shell(&line)).with_context(|| line.clone())?;
                ensure!(shown.contains(shows), "{line} shows no {shows}: {shown}");
            }
            Ok(())
        };
        // A peer, so that there is a route to look at; of a subnet that the agent has not drawn.
        let file = run(&mut shell("cat /run/flannel/subnet.env"))?;
        let free = ["10.244.75.", "10.244.76."].into_iter().find(|prefix| !file.contains(prefix));
        etcd.put_lease(
            format!("{}0/24", free.context("two subnets in one file")?).parse()?,
            r#"{"PublicIP":"192.168.77.2","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"52:91:f4:cd:56:04"}}"#,
        )?;
        look("Which path packets take", "DIRECTION")?;
        look("What this kernel supports", "WITHOUT IT")?;
        eventually(PATIENCE, "the route is in the map", || look("The maps", "Vxlan"))?;

        let ended = agent.signal(Signal::SIGTERM, PATIENCE)?;
        ensure!(ended.success(), "the agent ended with {ended}");
        ensure!(run(&mut shell("ls /sys/fs/bpf"))?.contains("flannel"), "nothing was pinned");
        look("Turn the fast path off", "removed every program")?;
        let left = run(&mut shell("ls /sys/fs/bpf"))?;
        if left.contains("flannel") {
            bail!("something is left: {left}");
        }
        machine.kill()?;
        Ok(())
    })
}
