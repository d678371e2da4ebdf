//! The image's runtime stage, as a root directory: what the container file copies, on this machine's Debian, with the
//! mounts and capabilities of the manifest and nothing else.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use flannel_tests::{
    command::{Daemon, run, tool},
    eventually,
    lab::{Chain, FastPath, Member, Node, PodOptions, agent_binary, in_lab},
    manifest::{self, directory},
    traffic::every_kind_both_ways,
};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(30);

/// Makes `root` of the last stage of the container file. Its packages are those of this machine, which has the same
/// ones for the lab; `install` fails the test where one is missing.
fn build(root: &Path) -> Result<()> {
    let text = fs::read_to_string(directory().join("Containerfile"))?;
    let (_, stage) = text.rsplit_once("\nFROM ").context("a last stage")?;
    ensure!(stage.starts_with("docker.io/library/debian:"), "{stage}");
    let packages =
        stage.lines().find_map(|line| line.split_once("--no-install-recommends ")).context("packages")?;
    for package in packages.1.split_whitespace().filter(|word| *word != "\\") {
        let known = run(tool("dpkg-query").args(["--show", "--showformat=${Status}", package]))?;
        ensure!(known.ends_with("ok installed"), "{package} is not installed: {known}");
    }
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let built = agent_binary()?;
    for line in stage.lines().filter_map(|line| line.strip_prefix("COPY --from=build ")) {
        let (source, destination) = line.split_once(' ').context("a source and a destination")?;
        let source = match source.strip_prefix("/build/target/release/") {
            Some(binary) => built.with_file_name(binary),
            None => repository.join(source.trim_start_matches("/build/")),
        };
        let destination = root.join(destination.trim_start_matches('/'));
        fs::create_dir_all(destination.parent().context("a directory")?)?;
        fs::copy(&source, &destination).with_context(|| source.display().to_string())?;
    }
    for made in ["usr", "etc/alternatives", "dev", "proc", "sys"] {
        fs::create_dir_all(root.join(made))?;
    }
    for link in ["bin", "sbin", "lib", "lib64"] {
        std::os::unix::fs::symlink(format!("usr/{link}"), root.join(link))?;
    }
    Ok(())
}

/// A command in `root` on `node`, in a mount namespace of its own, where `mounts` (what, where) are bound.
fn inside(node: &Node, root: &Path, mounts: &[(&Path, &str)], capabilities: &str, words: &[&str]) -> Command {
    let root = root.display();
    let mut script = format!(
        "set -e\nmount --bind /usr {root}/usr\nmount --bind /etc/alternatives {root}/etc/alternatives\n\
         mount --rbind /dev {root}/dev\nmount -t proc proc {root}/proc\n\
         mount --bind {root}/proc/sys {root}/proc/sys\nmount -o remount,bind,ro {root}/proc/sys\n\
         mount -t sysfs -o ro sysfs {root}/sys\n"
    );
    for (what, at) in mounts {
        let kind = if what.is_dir() { "mkdir -p" } else { "touch" };
        script += &format!("{kind} {root}{at}\nmount --bind {} {root}{at}\n", what.display());
    }
    script += &format!("exec chroot {root} /usr/bin/setpriv {capabilities} \"$@\"\n");
    let mut command = node.netns().command("unshare");
    command.args(["--mount", "--propagation=private", "sh", "-c", &script, "sh"]).args(words);
    command
}

#[test]
fn the_images_root_runs_the_manifest() -> Result<()> {
    in_lab(|lab| {
        let etcd = lab.etcd()?;
        let other = Member::start(lab.node()?, &etcd, FastPath::Flow, 1)?;
        let node = lab.node()?;
        let root = node.dir().join("root");
        build(&root)?;

        let [host_bin, host_conf, config, host_run] =
            ["opt-cni-bin", "etc-cni-net.d", "kube-flannel", "run"].map(|name| node.dir().join(name));
        for directory in [&host_bin, &host_conf, &config, &host_run] {
            fs::create_dir_all(directory)?;
        }
        for name in ["cni-conf.json", "net-conf.json"] {
            fs::write(config.join(name), manifest::config_file(name)?)?;
        }
        let lock = node.dir().join("xtables.lock");
        fs::write(&lock, "")?;
        let bpffs = node.bpffs();
        let on_host = |path: &str| match path {
            "/opt/cni/bin" => Some(host_bin.as_path()),
            "/etc/cni/net.d" => Some(host_conf.as_path()),
            "/etc/kube-flannel/" => Some(config.as_path()),
            "/run/flannel" => Some(host_run.as_path()),
            "/run/xtables.lock" => Some(lock.as_path()),
            "/sys/fs/bpf" => Some(bpffs.as_path()),
            "/host/proc/sys/net" => Some(Path::new("/proc/sys/net")),
            _ => None,
        };

        // The init containers of the manifest, then those of flannel's.
        let pod = manifest::object("DaemonSet")?["spec"]["template"]["spec"].take();
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let words = |container: &Value| -> Vec<String> {
            let all = [list(&container["command"]), list(&container["args"])].concat();
            all.iter().filter_map(|word| word.as_str().map(str::to_owned)).collect()
        };
        let mounts = |container: &Value| -> Result<Vec<(&Path, String)>> {
            let one = |mount: &Value| {
                let at = mount["mountPath"].as_str().context("a mountPath")?;
                Ok((
                    on_host(at).with_context(|| format!("{at} is not expected"))?,
                    at.trim_end_matches('/').to_owned(),
                ))
            };
            list(&container["volumeMounts"]).iter().map(one).collect()
        };
        let containers = list(&pod["initContainers"]);
        let upstreams = [
            vec!["cp", "-f", "/flannel", "/opt/cni/bin/flannel"],
            vec!["cp", "-f", "/etc/kube-flannel/cni-conf.json", "/etc/cni/net.d/10-flannel.conflist"],
        ];
        let installed = [host_bin.join("flannel"), host_conf.join("10-flannel.conflist")];
        for theirs in [false, true] {
            for (container, upstream) in containers.iter().zip(&upstreams) {
                let ours = words(container);
                let words: Vec<&str> =
                    if theirs { upstream.clone() } else { ours.iter().map(String::as_str).collect() };
                let mounts = mounts(container)?;
                let mounts: Vec<(&Path, &str)> =
                    mounts.iter().map(|(what, at)| (*what, at.as_str())).collect();
                run(&mut inside(
                    &node,
                    &root,
                    &mounts,
                    "--no-new-privs",
                    &[&["/usr/bin/env"], words.as_slice()].concat(),
                ))?;
            }
            for file in &installed {
                ensure!(file.is_file(), "{} is not installed", file.display());
                fs::remove_file(file)?;
            }
        }

        // The container, with leases in etcd instead of Kubernetes.
        let container = list(&pod["containers"]).pop().context("a container")?;
        let capabilities = list(&container["securityContext"]["capabilities"]["add"]);
        let capabilities: Vec<String> = capabilities
            .iter()
            .filter_map(|name| Some(format!("+{}", name.as_str()?.to_lowercase())))
            .collect();
        let capabilities =
            format!("--bounding-set=-all,{} --inh-caps=-all --no-new-privs", capabilities.join(","));
        let mut started = words(&container);
        started.retain(|word| word != "--kube-subnet-mgr");
        started.extend([format!("--etcd-endpoints={}", etcd.endpoint()), "--iface=eth0".to_owned()]);
        let started: Vec<&str> = started.iter().map(String::as_str).collect();
        let mounts = mounts(&container)?;
        let mounts: Vec<(&Path, &str)> = mounts.iter().map(|(what, at)| (*what, at.as_str())).collect();
        let start = |mounts: &[(&Path, &str)], log: &str| {
            Daemon::spawn(&mut inside(&node, &root, mounts, &capabilities, &started), &node.log(log))
        };
        // As in a DaemonSet of flannel's, without the host's settings: what depends on them is left out.
        let (lacking, _): (Vec<_>, Vec<_>) = mounts.iter().partition(|(_, at)| !at.starts_with("/host/"));
        let mut agent = start(&lacking, "without")?;
        eventually(PATIENCE, "the agent says what it lacks", || {
            agent.check_running()?;
            let log = agent.log();
            let said =
                log.lines().filter(|line| line.contains("WARN") && line.contains("fast_path=\"overlay\""));
            ensure!(said.count() == 1, "{log}");
            ensure!(host_run.join("subnet.env").exists(), "{log}");
            Ok(())
        })?;
        agent.kill()?;
        fs::remove_file(host_run.join("subnet.env"))?;

        let mut agent = start(&mounts, "agent")?;
        eventually(PATIENCE, "the agent writes its subnet file", || {
            agent.check_running()?;
            fs::copy(host_run.join("subnet.env"), node.subnet_file()).map(drop).context("subnet.env")
        })?;
        ensure!(!agent.log().contains("WARN"), "it lacks something:\n{}", agent.log());
        ensure!(agent.log().contains("programs loaded"), "{}", agent.log());
        ensure!(Chain::kube_flannel(&node).is_ok());
        let pod =
            node.pod_with("pod", &PodOptions { kube_flannel: true, ..PodOptions::default() })?.endpoint();
        eventually(PATIENCE, "its pods reach others", || every_kind_both_ways(&pod, &other.pod()?))
    })
}
