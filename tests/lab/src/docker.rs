//! docker on a node, on the subnet that flannel has leased.

use std::{
    fs,
    net::Ipv4Addr,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{ExitStatus, Output},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use flannel_ebpf_toolchain::workspace_root;
use nix::sys::signal::Signal;

use super::{Netns, Node, cgroup, make_dir, names::Names};
use crate::{
    command::{Daemon, run, run_with, tool},
    requirements::{check, find},
    traffic::Endpoint,
    wait::eventually,
};

/// What docker needs beyond what every lab needs.
const PROGRAMS: [(&str, &str); 4] = [
    ("dockerd", "docker.io"),
    ("docker", "docker.io"),
    ("busybox", "busybox-static"),
    ("nsenter", "util-linux"),
];

/// Programs of the image, all of them busybox.
const APPLETS: [&str; 3] = ["sh", "sleep", "ping"];

const IMAGE: &str = "lab/busybox";

const START: Duration = Duration::from_secs(30);
const STOP: Duration = Duration::from_secs(30);

/// Starts dockerd with what belongs to the machine out of sight: its `/run`, where containerd leaves sockets,
/// and its `/etc/docker`. Arguments: the lab's directory, the file of options, the variable in it, dockerd's
/// own options.
const SCRIPT: &str = r#"
set -e
lab=$1 options=$2 variable=$3
shift 3
own=$(mktemp -d "$lab/run.XXXXXX")
mount -t tmpfs tmpfs "$own"
mkdir -p "$own$lab_below_run" "$own/lock"
mount --bind "$lab" "$own$lab_below_run"
# iptables of all programs of the machine take turns.
: >>/run/xtables.lock
: >"$own/xtables.lock"
mount --bind /run/xtables.lock "$own/xtables.lock"
mount --rbind "$own" /run
[ ! -d /etc/docker ] || mount -t tmpfs tmpfs /etc/docker
. "$options"
eval "flannel=\$$variable"
exec dockerd "$@" $flannel
"#;

/// A docker daemon, with containers on the node's `docker0`.
#[derive(Debug)]
pub struct Docker {
    node: String,
    names: Arc<Names>,
    socket: PathBuf,
    daemon: Daemon,
}

impl Docker {
    pub(super) fn start(node: &Node, options: &Path, variable: &str) -> Result<Self> {
        check(&PROGRAMS)?;
        let dir = node.dir().join("docker");
        make_dir(&dir)?;
        let config = dir.join("daemon.json");
        fs::write(&config, "{}").with_context(|| config.display().to_string())?;
        let socket = dir.join("socket");
        let lab = node.lab_dir();
        let below_run = lab.strip_prefix("/run").context("labs are below /run")?;

        // `ip netns exec` would hide the control groups.
        let mut command = tool("nsenter");
        command.arg(format!("--net={}", node.netns().path().display()));
        command.args(["unshare", "--mount", "--propagation", "slave", "sh", "-c", SCRIPT, "sh"]);
        command.env("lab_below_run", Path::new("/").join(below_run));
        command.arg(lab).arg(options).arg(variable);
        command.arg("--config-file").arg(&config);
        command.args(["--data-root", "/run/docker-data", "--log-level", "warn"]);
        command.arg("--host").arg(format!("unix://{}", socket.display()));
        command.args(["--exec-opt", "native.cgroupdriver=cgroupfs"]);
        command.args(["--cgroup-parent", &cgroup::parent(node.names().id())]);
        let daemon = Daemon::spawn(&mut command, &node.log("docker"))?;
        let mut docker = Self { node: node.name(), names: Arc::clone(node.names()), socket, daemon };
        eventually(START, "docker answers", || {
            docker.daemon.check_running()?;
            docker.cli(&["version"])
        })?;
        docker.import(&dir)?;
        Ok(docker)
    }

    /// Makes the image of all containers: busybox, and the libraries it is linked to.
    fn import(&self, dir: &Path) -> Result<()> {
        let root = dir.join("image");
        let busybox = find("busybox").context("busybox was found before")?;
        make_dir(&root.join("bin"))?;
        fs::copy(&busybox, root.join("bin/busybox")).context("copy busybox")?;
        for applet in APPLETS {
            symlink("busybox", root.join("bin").join(applet))?;
        }
        // Fails on a static one, which needs none.
        let linked = tool("ldd").arg(&busybox).output().context("ldd")?;
        for library in String::from_utf8_lossy(&linked.stdout).split_whitespace() {
            if let Some(below) = library.strip_prefix('/') {
                let copy = root.join(below);
                make_dir(copy.parent().context("a file is in a directory")?)?;
                fs::copy(library, &copy).with_context(|| library.to_owned())?;
            }
        }
        let archive = dir.join("image.tar");
        run(tool("tar").arg("-C").arg(&root).arg("-cf").arg(&archive).arg("."))?;
        self.cli(&["import", &archive.to_string_lossy(), IMAGE]).map(drop)
    }

    /// Runs `docker` against it; its standard output.
    pub fn cli(&self, args: &[&str]) -> Result<String> {
        let mut command = tool("docker");
        command.env("DOCKER_HOST", format!("unix://{}", self.socket.display()));
        // Not what the user who runs the tests has configured.
        command.env_remove("DOCKER_CONTEXT").env("DOCKER_CONFIG", self.socket.with_file_name("client"));
        run_with(command.args(args), "", START)
    }

    /// Starts a container that does nothing; `options` are those of `docker run`.
    pub fn container(&self, name: &str, options: &[&str]) -> Result<Container> {
        // What runs in it does not listen to SIGTERM.
        let start = ["run", "--detach", "--name", name, "--stop-signal", "KILL"];
        self.cli(&[&start, options, &[IMAGE, "sleep", "86400"]].concat())?;
        let told = |what: &str| -> Result<String> {
            Ok(self.cli(&["inspect", "--format", what, name])?.trim().to_owned())
        };
        let address = told("{{.NetworkSettings.IPAddress}}")?;
        let pid = told("{{.State.Pid}}")?.parse().context("process id")?;
        Ok(Container {
            name: name.to_owned(),
            shown: format!("{}/{name}", self.node),
            address: address.parse().with_context(|| format!("address {address:?}"))?,
            netns: self.names.name_netns_of(pid, &format!("{}-{name}", self.node))?,
        })
    }

    /// Runs a program in `container`; its standard output.
    pub fn exec(&self, container: &Container, args: &[&str]) -> Result<String> {
        self.cli(&[&["exec", &container.name], args].concat())
    }

    /// Ends it, and with it its containers.
    pub fn stop(mut self) -> Result<ExitStatus> {
        self.daemon.signal(Signal::SIGTERM, STOP)
    }
}

/// A container with one interface on `docker0`.
#[derive(Debug)]
pub struct Container {
    name: String,
    shown: String,
    address: Ipv4Addr,
    netns: Netns,
}

impl Container {
    /// Its address, as docker gave it.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Where its traffic starts and ends.
    pub fn endpoint(&self) -> Endpoint {
        Endpoint::new(self.shown.clone(), self.netns.clone(), self.address)
    }
}

impl Node {
    /// Runs `mk-docker-opts.sh` here, as flanneld.service does; how it ended. It writes
    /// [`Node::docker_options`].
    pub fn mk_docker_opts(&self, args: &[&str]) -> Result<Output> {
        let script = workspace_root().join("flannel-agent/packaging/mk-docker-opts.sh");
        let mut command = self.netns().command(&script.to_string_lossy());
        command.arg("-f").arg(self.subnet_file()).arg("-d").arg(self.docker_options()).args(args);
        command.env_remove("DOCKER_OPTS").output().context("mk-docker-opts.sh")
    }

    /// Its `/run/docker_opts.env`.
    pub fn docker_options(&self) -> PathBuf {
        self.dir().join("docker_opts.env")
    }

    /// Starts docker here, with the options that `mk-docker-opts.sh`, called with `args`, writes as
    /// `variable`.
    pub fn docker(&self, args: &[&str], variable: &str) -> Result<Docker> {
        let made = self.mk_docker_opts(args)?;
        ensure!(made.status.success(), "mk-docker-opts.sh: {made:?}");
        Docker::start(self, &self.docker_options(), variable)
    }
}
