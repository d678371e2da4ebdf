//! The files around the daemon say what the daemon needs, and no more.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use flannel_common::reason::{Direction, Reason};
use flannel_ebpf_toolchain::workspace_root;
use flannel_lab::{
    FastPath, Member, agent_binary,
    command::{Daemon, run, tool},
    counters::Counters,
    eventually, in_lab,
    traffic::{Paced, every_kind_both_ways, ping::ping},
};

/// How long the agent may take to start, and to find a pod.
const PATIENCE: Duration = Duration::from_secs(30);

fn packaging() -> PathBuf {
    workspace_root().join("flannel-agent/packaging")
}

/// All values of `key` in flanneld.service.
fn unit(key: &str) -> Result<Vec<String>> {
    let path = packaging().join("systemd/flanneld.service");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let values = text.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let values: Vec<String> = values.map(str::to_owned).collect();
    ensure!(!values.is_empty(), "{}: no {key}=", path.display());
    Ok(values)
}

/// systemd's own judgement of flanneld.service, of which 10 is the worst.
#[test]
fn the_unit_exposes_little() -> Result<()> {
    let path = packaging().join("systemd/flanneld.service");
    let mut judge = tool("systemd-analyze");
    judge.args(["security", "--offline=yes", "--no-pager", "--threshold=30"]).arg(path);
    run(&mut judge).map(drop)
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

/// The commands of one chapter of `packaging/README.md`, in blocks, without their comments.
fn documented(chapter: &str) -> Result<Vec<Vec<String>>> {
    commands(&packaging().join("README.md"), chapter)
}

/// The commands of one chapter of a page, in blocks, without their comments.
fn commands(page: &Path, chapter: &str) -> Result<Vec<Vec<String>>> {
    let text = fs::read_to_string(page)?;
    let (_, text) = text.split_once(&format!("\n## {chapter}\n")).context("the chapter")?;
    let text = text.split("\n## ").next().unwrap_or_default();
    let block = |block: &str| {
        let lines = block.split("```").next().unwrap_or_default().lines();
        lines.map(|line| line.split("  #").next().unwrap_or_default().trim().to_owned()).collect()
    };
    let blocks = text.split("```sh\n").skip(1).map(block);
    Ok(blocks.collect())
}

/// A unit as flannel's documents give it: docker, and its containers, go down with it.
const UNIT: &str = "[Unit]\nBefore=docker.service\n[Service]\nType=notify\nEnvironmentFile=/etc/default/flanneld\n\
                    ExecStart=/usr/bin/flanneld $FLANNEL_OPTIONS\nRestart=on-failure\n[Install]\nRequiredBy=docker.service\n";

const DOCKER: &str = "[Service]\nType=notify\nExecStart=/usr/sbin/dockerd -H fd://\n";

/// Each command of the documents does what they say, under a real systemd: the daemon is another, docker is the process
/// it was, and no packet of a pod is lost.
#[test]
fn a_node_goes_to_ours_and_back_under_systemd_by_the_documented_commands() -> Result<()> {
    let to_this = documented("From stock flannel to this one")?;
    let back = documented("And back")?;
    ensure!(to_this.len() == 2 && back.len() == 2, "{to_this:?} {back:?}");
    in_lab(|lab| {
        let etcd = lab.etcd()?;
        etcd.configure_all_subnets()?;
        let peer = Member::start(lab.node()?, &etcd, FastPath::Flow, 1)?;
        let node = lab.node()?;
        let mut stock = node.stock()?;
        stock.publish(&etcd)?;
        stock.sync(&etcd)?;
        let pod = node.pod("pod")?;
        let [here, there] = [pod.endpoint(), peer.pod()?];
        eventually(PATIENCE, "the pods reach each other", || ping(&here, &there, 56))?;

        let endpoint = etcd.endpoint();
        let options = format!("FLANNELD_ETCD_ENDPOINTS={endpoint}\nFLANNEL_OPTIONS=--iface=eth0\n");
        let editor = format!("#!/bin/sh\nprintf '{}' >\"$1\"\n", options.replace('\n', "\\n"));
        let files = [
            ("/etc/systemd/system/flanneld.service", UNIT),
            ("/etc/systemd/system/docker.service", DOCKER),
            ("/etc/default/flanneld", &options),
            ("/root/editor", &editor),
            ("/root/target/release/flannel-agent", ""),
        ];
        let (binary, packaging) = (agent_binary()?, packaging());
        let mut binds = vec![(binary.as_path(), "/root/target/release/flannel-agent")];
        let sources =
            ["mk-docker-opts.sh", "systemd"].map(|name| (packaging.join(name), format!("/root/{name}")));
        binds.extend(sources.iter().map(|(source, at)| (source.as_path(), at.as_str())));
        let systemd = node.systemd(&files, &binds)?;
        systemd.run("systemctl enable flanneld; systemctl start docker")?;
        let docker = systemd.main_process("docker")?;
        let mut flanneld = systemd.main_process("flanneld")?;
        let identity = || -> Result<String> {
            let link = node.netns().ip("-o link show dev flannel.1")?;
            let mac =
                link.split("link/ether ").nth(1).unwrap_or_default().split(' ').next().unwrap_or_default();
            Ok(format!("{mac} {:?}", node.subnet_env()?.subnet))
        };
        let before = identity()?;
        let traffic = Paced::usual(&here, &there)?;
        let type_in = |line: &String| systemd.run(line).with_context(|| line.clone());

        let [own_unit, this_unit] = &to_this[..] else { bail!("two ways") };
        for block in [own_unit, this_unit] {
            block.iter().try_for_each(|line| type_in(line).map(drop))?;
            let now = systemd.main_process("flanneld")?;
            ensure!(now != flanneld, "flanneld was not started");
            flanneld = now;
            ensure!(
                systemd.run(&format!("/proc/{now}/exe --version 2>&1"))?.starts_with(char::is_numeric),
                "not ours"
            );
            ensure!(systemd.main_process("docker")? == docker, "docker was restarted");
            ensure!(identity()? == before, "before {before}, after {}", identity()?);
        }
        // As the page says of this unit.
        systemd.run("systemctl restart flanneld")?;
        ensure!(systemd.main_process("docker")? == docker, "docker was restarted");
        let restarts = systemd.property("flanneld", "NRestarts")?;
        ensure!(
            restarts == "0",
            "flanneld ended {restarts} times:\n{}",
            systemd.run("journalctl -u flanneld")?
        );

        let [restart, unwatched] = &back[..] else { bail!("two blocks") };
        let (moves, rest) = restart.split_at(2);
        for line in moves.iter().chain(unwatched).chain(rest) {
            type_in(line)?;
        }
        ensure!(systemd.main_process("docker")? == docker, "docker was restarted");
        ensure!(systemd.property("flanneld", "WatchdogUSec")? == "0");
        ensure!(
            systemd.run("readlink /proc/$(systemctl show -P MainPID flanneld)/exe")?.contains("perl"),
            "not stock's"
        );
        ensure!(!node.bpffs().join("flannel").exists(), "programs are left");
        traffic.stop()?.check_lossless()?;
        ensure!(identity()? == before, "before {before}, after {}", identity()?);

        // What needs docker to be restarted, says the page, and what the drop-in gives it then.
        systemd.run("systemctl restart docker")?;
        let gateway = node.subnet_env()?.subnet.nth(1).context("a subnet has a first host")?;
        let arguments = systemd.run("cat /run/dockerd.arguments")?;
        ensure!(arguments.contains(&format!("--bip={gateway}/24")), "{arguments}");
        systemd.stop()
    })
}

/// A host of docker that has never had flannel gets it by the README's lines, under a real systemd: docker starts with the
/// subnet's options, and pods of this host and of another reach each other.
#[test]
fn a_docker_host_is_set_up_by_the_readmes_commands() -> Result<()> {
    let readme = workspace_root().join("README.md");
    let blocks = commands(&readme, "Install it")?;
    let [_kubernetes, once, each_host] = &blocks[..] else { bail!("three blocks: {blocks:?}") };
    ensure!(each_host.len() == 5, "five lines were promised: {each_host:?}");
    in_lab(|lab| {
        let etcd = lab.etcd()?;
        let node = lab.node()?;
        let files = [("/etc/systemd/system/docker.service", DOCKER), ("/etc/default/docker", "")];
        let (binary, packaging) = (agent_binary()?, packaging());
        let binds = [
            (binary.as_path(), "/root/target/release/flannel-agent"),
            (packaging.as_path(), "/root/flannel-agent/packaging"),
        ];
        let systemd = node.systemd(&files, &binds)?;
        let type_in = |line: &String| {
            let line = line.replace("http://10.0.0.1:2379", etcd.endpoint());
            systemd.run(&line).with_context(|| line.clone()).map(drop)
        };
        // What is built was built by whoever runs this test.
        once.iter().filter(|line| !line.starts_with("cargo ")).try_for_each(type_in)?;
        each_host.iter().try_for_each(type_in)?;

        let peer = Member::start(lab.node()?, &etcd, FastPath::Flow, 1)?;
        systemd.main_process("flanneld")?;
        systemd.main_process("docker")?;
        ensure!(systemd.run("systemctl is-enabled flanneld")?.trim() == "enabled");
        let gateway = node.subnet_env()?.subnet.nth(1).context("a subnet has a first host")?;
        let arguments = systemd.run("cat /run/dockerd.arguments")?;
        ensure!(arguments.contains(&format!("--bip={gateway}/24")), "{arguments}");
        let pod = node.pod("pod")?.endpoint();
        eventually(PATIENCE, "the pods reach each other", || ping(&pod, &peer.pod()?, 56))?;
        systemd.stop()
    })
}
