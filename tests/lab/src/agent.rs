//! The agent under test, on one node.

use std::{
    fmt, fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use flannel_agent::bpf::TcAttach;
use nix::sys::signal::Signal;

use super::{MemoryGroup, Netns, Node};
use crate::{
    command::{Daemon, last_lines},
    wait::eventually,
};

/// Environment variable that names the agent's binary.
pub const AGENT_BIN: &str = "FLANNEL_AGENT_BIN";

/// How long a start may take until subnet.env is written; loading the programs is most of it.
const START: Duration = Duration::from_secs(30);

/// How long the agent may take to end when asked to.
const STOP: Duration = Duration::from_secs(10);

/// How far packets skip the host's stack: the agent's `--fast-path`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FastPath {
    /// Stock flannel's dataplane.
    Off,
    /// The tunnel device only.
    Overlay,
    /// Flows that netfilter has accepted skip the stack.
    Flow,
    /// Every pod-to-pod packet skips the stack.
    All,
}

impl FastPath {
    /// All of them.
    pub const EACH: [Self; 4] = [Self::Off, Self::Overlay, Self::Flow, Self::All];

    /// As the flag spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Overlay => "overlay",
            Self::Flow => "flow",
            Self::All => "all",
        }
    }

    /// With programs attached as `attach` says.
    pub fn attached_by(self, attach: TcAttach) -> AgentOptions {
        AgentOptions { fast_path: self, flags: vec![format!("--tc-attach={}", attach.label())] }
    }

    /// Together with `xdp`.
    pub const fn with(self, xdp: Xdp) -> Dataplane {
        Dataplane { fast_path: self, xdp }
    }
}

/// Where XDP programs run on the external interface: the agent's `--xdp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Xdp {
    /// Nowhere.
    Off,
    /// In the driver.
    Native,
    /// In the kernel, whatever the driver.
    Generic,
}

impl Xdp {
    /// All of them.
    pub const EACH: [Self; 3] = [Self::Off, Self::Native, Self::Generic];

    /// As the flag spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

/// How nodes carry what pods send and get.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Dataplane {
    /// `--fast-path`.
    pub fast_path: FastPath,
    /// `--xdp`.
    pub xdp: Xdp,
}

impl From<FastPath> for Dataplane {
    fn from(fast_path: FastPath) -> Self {
        fast_path.with(Xdp::Off)
    }
}

impl fmt::Display for Dataplane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--fast-path={} --xdp={}", self.fast_path.name(), self.xdp.name())
    }
}

/// How the agent is started.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    /// `--fast-path`.
    pub fast_path: FastPath,
    /// Further flags.
    pub flags: Vec<String>,
}

impl AgentOptions {
    /// With `dataplane` and `flags`.
    pub fn new(dataplane: impl Into<Dataplane>, flags: &[&str]) -> Self {
        let Dataplane { fast_path, xdp } = dataplane.into();
        let flags = flags.iter().map(|&flag| flag.to_owned()).chain([format!("--xdp={}", xdp.name())]);
        Self { fast_path, flags: flags.collect() }
    }
}

impl From<FastPath> for AgentOptions {
    fn from(fast_path: FastPath) -> Self {
        Self { fast_path, flags: Vec::new() }
    }
}

/// Where an agent's leases are.
#[derive(Clone, Copy, Debug)]
pub enum LeasesIn<'a> {
    /// In etcd, at this endpoint.
    Etcd(&'a str),
    /// On the nodes of Kubernetes.
    Kubernetes(&'a KubernetesAccess),
    /// In this file.
    File(&'a Path),
}

/// How an agent reaches the Kubernetes API.
#[derive(Clone, Debug)]
pub struct KubernetesAccess {
    /// kubeconfig file of its account.
    pub kubeconfig: PathBuf,
    /// The network configuration: net-conf.json.
    pub net_config: PathBuf,
}

/// An agent's process, and how to start it again.
#[derive(Debug)]
pub struct Agent {
    netns: Netns,
    /// A program and its first arguments that end in starting an agent; `None` to start the one that was built.
    starter: Option<Vec<String>>,
    arguments: Vec<String>,
    /// Words that start what follows them in a control group; none for our own.
    group: Vec<String>,
    environment: Vec<(&'static str, String)>,
    subnet_file: PathBuf,
    log: PathBuf,
    bpffs: PathBuf,
    daemon: Option<Daemon>,
}

impl Agent {
    pub(super) fn start(node: &Node, leases: LeasesIn<'_>, options: AgentOptions) -> Result<Self> {
        let mut agent = Self::prepare(node, leases, options);
        agent.start_again()?;
        Ok(agent)
    }

    pub(super) fn prepare(node: &Node, leases: LeasesIn<'_>, options: AgentOptions) -> Self {
        let (mut arguments, environment) = match leases {
            LeasesIn::Etcd(endpoint) => (vec![format!("--etcd-endpoints={endpoint}")], Vec::new()),
            LeasesIn::File(path) => (vec![format!("--lease-file={}", path.display())], Vec::new()),
            LeasesIn::Kubernetes(access) => (
                vec![
                    "--kube-subnet-mgr".to_owned(),
                    format!("--kubeconfig-file={}", access.kubeconfig.display()),
                    format!("--net-config-path={}", access.net_config.display()),
                ],
                vec![("NODE_NAME", node.name())],
            ),
        };
        arguments.extend([
            "--iface=eth0".to_owned(),
            format!("--subnet-file={}", node.subnet_file().display()),
            format!("--fast-path={}", options.fast_path.name()),
            format!("--bpffs={}", node.bpffs().display()),
            "-v=1".to_owned(),
            // What tests count is what they send.
            "--peer-probes=0".to_owned(),
        ]);
        arguments.extend(options.flags);
        Self::started_by(None, node, arguments, environment)
    }

    /// One in a container: `words` start it.
    pub(super) fn contained(node: &Node, words: Vec<String>) -> Self {
        Self::started_by(Some(words), node, Vec::new(), Vec::new())
    }

    fn started_by(
        starter: Option<Vec<String>>,
        node: &Node,
        arguments: Vec<String>,
        environment: Vec<(&'static str, String)>,
    ) -> Self {
        Self {
            netns: node.netns().clone(),
            starter,
            arguments,
            group: Vec::new(),
            environment,
            subnet_file: node.subnet_file(),
            log: node.log("agent"),
            bpffs: node.bpffs(),
            daemon: None,
        }
    }

    /// Starts it, after [`Agent::kill`] or [`Agent::terminate`], and waits until it has written subnet.env.
    pub fn start_again(&mut self) -> Result<()> {
        let before = self.subnet_file_now();
        self.launch()?;
        self.await_subnet_file(before)
    }

    /// Which subnet file there is: another one after each time it is written.
    pub fn subnet_file_now(&self) -> SubnetFileState {
        SubnetFileState(stamp(&self.subnet_file))
    }

    /// Waits until it has written a subnet file other than `before`.
    pub fn await_subnet_file(&mut self, before: SubnetFileState) -> Result<()> {
        let Some(daemon) = &mut self.daemon else { bail!("no agent was started") };
        eventually(START, "the agent writes its subnet file", || {
            daemon.check_running()?;
            let written = SubnetFileState(stamp(&self.subnet_file));
            ensure!(
                written.0.is_some() && written != before,
                "log so far:\n{}",
                last_lines(&daemon.log(), 15)
            );
            Ok(())
        })
    }

    /// Starts it and returns at once, for starts that are to fail or to wait.
    pub fn launch(&mut self) -> Result<()> {
        ensure!(self.daemon.is_none(), "the agent is already running");
        let starter = match &self.starter {
            Some(words) => words.clone(),
            None => vec![agent_binary()?.to_string_lossy().into_owned()],
        };
        let (program, words) = starter.split_first().context("nothing to start")?;
        let mut command = self.netns.command(program);
        command.args(words).args(&self.arguments);
        // Before it enters the namespace, where `ip` hides the control groups.
        if let Some((first, words)) = self.group.split_first() {
            let mut grouped = Command::new(first);
            grouped.args(words).arg(command.get_program()).args(command.get_args());
            command = grouped;
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        self.daemon = Some(Daemon::spawn(&mut command, &self.log)?);
        Ok(())
    }

    /// Replaces the flag `name` (without dashes) or adds it, for the next start.
    pub fn set_flag(&mut self, name: &str, value: &str) {
        let prefix = format!("--{name}=");
        self.arguments.retain(|argument| !argument.starts_with(&prefix));
        self.arguments.push(format!("{prefix}{value}"));
    }

    /// Leaves the flag `name` out, for the next start.
    pub fn drop_flag(&mut self, name: &str) {
        let prefix = format!("--{name}=");
        self.arguments.retain(|argument| !argument.starts_with(&prefix));
    }

    /// Sets a variable of its environment, for the next start.
    pub fn set_variable(&mut self, name: &'static str, value: &str) {
        self.environment.retain(|(other, _)| *other != name);
        self.environment.push((name, value.to_owned()));
    }

    /// Has it run in `group` from the next start on.
    pub fn join(&mut self, group: &MemoryGroup) {
        self.group = group.starter();
    }

    /// Kills it with SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        self.daemon.take().context("no agent is running")?.kill()
    }

    /// Ends it with SIGTERM; how it ended.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.daemon.take().context("no agent is running")?.signal(Signal::SIGTERM, STOP)
    }

    /// Waits for it to end by itself.
    pub fn wait_for_end(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let mut daemon = self.daemon.take().context("no agent is running")?;
        daemon.wait(timeout)?.with_context(|| format!("still running after {timeout:?}"))
    }

    /// Fails if it has ended.
    pub fn check_running(&mut self) -> Result<()> {
        self.daemon.as_mut().context("no agent is running")?.check_running()
    }

    /// Its process.
    pub fn pid(&self) -> Result<u32> {
        Ok(self.daemon.as_ref().context("no agent is running")?.id())
    }

    /// Everything it has written to stderr, over all its starts.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// File that [`Agent::log`] reads.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// Where it pins its maps and links.
    pub fn bpffs(&self) -> &Path {
        &self.bpffs
    }

    /// Leaves it running when this process ends.
    pub(crate) fn release(mut self) {
        if let Some(daemon) = self.daemon.take() {
            daemon.release();
        }
    }
}

/// Where the agent's binary is: [`AGENT_BIN`], or beside the program that runs, or for a test one above.
pub fn agent_binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(AGENT_BIN) {
        return Ok(path.into());
    }
    let own = std::env::current_exe().context("find own executable")?;
    let candidates = own.ancestors().skip(1).take(2).map(|directory| directory.join("flannel-agent"));
    let found = candidates.into_iter().find(|path| path.is_file());
    found.with_context(|| {
        format!("no flannel-agent near {}: build it (cargo build), or name it in {AGENT_BIN}", own.display())
    })
}

/// One writing of a subnet file, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubnetFileState(Option<(u64, i64, i64)>);

/// Changes whenever the file is written anew.
fn stamp(path: &Path) -> Option<(u64, i64, i64)> {
    let file = fs::metadata(path).ok()?;
    Some((file.ino(), file.mtime(), file.mtime_nsec()))
}
