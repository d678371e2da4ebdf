//! The agent as a daemon: probes, service manager, lock, signals, names.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    os::unix::{fs::symlink, net::UnixDatagram, process::ExitStatusExt as _},
    path::PathBuf,
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use flannel_lab::{
    Etcd, Lab, Node, PREFIX, SubnetEnv, agent_binary,
    command::{Daemon, run},
    eventually, in_lab,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const SOON: Duration = Duration::from_secs(30);
/// How often a daemon looks at its rules in any case: the default of `--iptables-resync`.
const RULES_LOOK: Duration = Duration::from_secs(5);
const PORT: u16 = 8471;
const CONFIG: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#;

/// How the agent is started here: the lab's own way always waits until it is ready.
struct Start<'a> {
    node: &'a Node,
    binary: PathBuf,
    log: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(&'static str, String)>,
}

impl<'a> Start<'a> {
    fn new(node: &'a Node, etcd: &Etcd) -> Result<Self> {
        let arguments = vec![
            format!("-etcd-endpoints={}", etcd.endpoint()),
            "-iface=eth0".to_owned(),
            format!("-subnet-file={}", node.subnet_file().display()),
            format!("-bpffs={}", node.bpffs().display()),
        ];
        let log = node.log("agent");
        Ok(Self { node, binary: agent_binary()?, log, arguments, environment: Vec::new() })
    }

    fn flag(mut self, flag: impl Into<String>) -> Self {
        self.arguments.push(flag.into());
        self
    }

    fn set(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.environment.push((name, value.into()));
        self
    }

    fn with_health(self) -> Self {
        self.flag("-healthz-ip=127.0.0.1").flag(format!("-healthz-port={PORT}"))
    }

    fn daemon(&self) -> Result<Daemon> {
        let mut command = self.node.netns().command(&self.binary.to_string_lossy());
        command.args(&self.arguments).envs(self.environment.iter().map(|(name, value)| (name, value)));
        Daemon::spawn(&mut command, &self.log)
    }

    /// Starts it where it cannot run; its exit code, and its log.
    fn refused(&self) -> Result<(Option<i32>, String)> {
        let mut daemon = self.daemon()?;
        let status = daemon.wait(SOON)?.context("it runs on")?;
        Ok((status.code(), daemon.log()))
    }
}

fn await_ready(node: &Node, daemon: &mut Daemon) -> Result<SubnetEnv> {
    eventually(SOON, "the subnet file is written", || {
        daemon.check_running()?;
        node.subnet_env()
    })
}

fn await_log(daemon: &Daemon, words: &str) -> Result<()> {
    eventually(SOON, words, || {
        let log = daemon.log();
        ensure!(log.contains(words), "{log}");
        Ok(())
    })
}

fn connect(node: &Node) -> Result<TcpStream> {
    let stream = node.netns().inside(|| Ok(TcpStream::connect((Ipv4Addr::LOCALHOST, PORT))?))?;
    stream.set_read_timeout(Some(SOON))?;
    Ok(stream)
}

/// Waits until the daemon has taken the connection that `stream` is the other end of, and read what came by it.
fn await_read(node: &Node, stream: &TcpStream) -> Result<()> {
    let ports = (format!(":{PORT:04X}"), format!(":{:04X}", stream.local_addr()?.port()));
    eventually(SOON, "the daemon reads its request", || {
        let table = node.netns().inside(|| Ok(fs::read_to_string("/proc/thread-self/net/tcp")?))?;
        let mut sockets = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let own = sockets.find(|words| words[1].ends_with(&ports.0) && words[2].ends_with(&ports.1));
        let own = own.with_context(|| format!("no connection: {table}"))?;
        // A socket that nobody has taken has no inode yet.
        ensure!(own[4].ends_with(":00000000") && own[9] != "0", "{own:?}");
        Ok(())
    })
}

/// Status line and body of the answer to a request for `path`.
fn probe(node: &Node, path: &str) -> Result<String> {
    let mut stream = connect(node)?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: node\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").with_context(|| text.clone())?;
    Ok(format!("{} {body}", head.lines().next().unwrap_or_default()))
}

fn check_probe(node: &Node, path: &str, answer: &str) -> Result<()> {
    let found = probe(node, path)?;
    ensure!(found == answer, "{path}: {found}");
    Ok(())
}

const RUNNING: &str = "HTTP/1.1 200 OK flanneld is running";
const READY: &str = "HTTP/1.1 200 OK flanneld is ready";
const NOT_READY: &str = "HTTP/1.1 503 Service Unavailable flanneld is not ready yet";

#[test]
fn probes_are_answered_before_and_after_the_config_comes() -> Result<()> {
    in_lab(|lab| {
        let (etcd, node) = (lab.etcd()?, lab.node()?);
        etcd.delete(&format!("{PREFIX}/config"))?;
        let mut daemon = Start::new(&node, &etcd)?.with_health().daemon()?;
        eventually(SOON, "the server is up", || check_probe(&node, "/healthz", RUNNING))?;
        await_log(&daemon, "flannel config not found")?;
        check_probe(&node, "/readyz", NOT_READY)?;
        check_probe(&node, "/nothing", "HTTP/1.1 404 Not Found 404 page not found\n")?;
        ensure!(!node.subnet_file().exists());
        etcd.put(&format!("{PREFIX}/config"), CONFIG)?;
        eventually(SOON, "ready", || check_probe(&node, "/readyz", READY))?;
        node.subnet_env().context("ready, but no subnet file")?;
        check_probe(&node, "/healthz", RUNNING)?;
        let mut silent = Vec::new();
        for _ in 0..200 {
            silent.push(connect(&node)?);
        }
        check_probe(&node, "/healthz", RUNNING)?;
        drop(silent);
        let status = daemon.signal(Signal::SIGTERM, SOON)?;
        ensure!(status.success(), "{status}");
        ensure!(connect(&node).is_err(), "the port is still served");
        Ok(())
    })
}

#[test]
fn a_port_in_use_is_refused_before_anything_is_touched() -> Result<()> {
    in_lab(|lab| {
        let (etcd, node) = (lab.etcd()?, lab.node()?);
        let _taken = node.netns().inside(|| Ok(std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, PORT))?))?;
        let (code, log) = Start::new(&node, &etcd)?.with_health().refused()?;
        ensure!(code == Some(1), "{code:?}: {log}");
        ensure!(log.contains("--healthz-port") && log.contains(&format!("127.0.0.1:{PORT}")), "{log}");
        ensure!(log.contains(&format!(", by process {} (", std::process::id())), "{log}");
        ensure!(etcd.leases()?.is_empty() && !node.subnet_file().exists(), "{log}");
        ensure!(!node.netns().ip("link show")?.contains("flannel.1"));
        Ok(())
    })
}

/// A service manager's end of `NOTIFY_SOCKET`.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
    heard: Vec<String>,
}

impl Manager {
    fn new(lab: &Lab) -> Result<Self> {
        let path = lab.dir().join("notify");
        let socket = UnixDatagram::bind(&path)?;
        Ok(Self { socket, path, heard: Vec::new() })
    }

    /// Reads until `wanted` holds of a message.
    fn hear(&mut self, what: &str, wanted: impl Fn(&str) -> bool) -> Result<String> {
        let start = Instant::now();
        let mut bytes = [0; 4096];
        while start.elapsed() < SOON {
            self.socket.set_read_timeout(Some(Duration::from_millis(200)))?;
            let Ok(length) = self.socket.recv(&mut bytes) else { continue };
            let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
            self.heard.push(text.clone());
            if wanted(&text) {
                return Ok(text);
            }
        }
        bail!("never heard {what}, but {:?}", self.heard)
    }

    fn heard(&self, what: &str) -> usize {
        self.heard.iter().flat_map(|message| message.lines()).filter(|line| *line == what).count()
    }
}

#[test]
fn the_service_manager_hears_how_things_stand() -> Result<()> {
    in_lab(|lab| {
        let (mut etcd, node) = (lab.etcd()?, lab.node()?);
        etcd.delete(&format!("{PREFIX}/config"))?;
        let mut manager = Manager::new(lab)?;
        let mut daemon = Start::new(&node, &etcd)?
            .set("NOTIFY_SOCKET", manager.path.display().to_string())
            .set("WATCHDOG_USEC", "2000000")
            .daemon()?;
        manager.hear("what is waited for", |text| text == "STATUS=waiting for the network config\n")?;
        manager.hear("a sign of life", |text| text == "WATCHDOG=1\n")?;
        ensure!(manager.heard("READY=1") == 0, "{:?}", manager.heard);
        etcd.put(&format!("{PREFIX}/config"), CONFIG)?;
        manager.hear("ready", |text| text == "READY=1\n")?;
        node.subnet_env().context("ready, but no subnet file")?;
        manager.hear("the peers", |text| text.contains("peers reached: 0"))?;
        let stock = lab.node()?.stock()?;
        stock.publish(&etcd)?;
        manager.hear("the new peer", |text| text.contains("STATUS=peers reached: 1"))?;
        for _ in 0..3 {
            manager.hear("signs of life", |text| text == "WATCHDOG=1\n")?;
        }
        etcd.stop()?;
        manager.hear("that etcd is gone", |text| {
            text.starts_with("STATUS=peers reached: 1; forwarding goes on without etcd: ")
        })?;
        manager.hear("signs of life without etcd", |text| text == "WATCHDOG=1\n")?;
        etcd.start()?;
        manager.hear("that etcd is back", |text| text == "STATUS=peers reached: 1\n")?;
        let status = daemon.signal(Signal::SIGTERM, SOON)?;
        ensure!(status.success(), "{status}");
        manager.hear("the end", |text| text.starts_with("STOPPING=1\n"))?;
        ensure!((manager.heard("READY=1"), manager.heard("STOPPING=1")) == (1, 1), "{:?}", manager.heard);
        Ok(())
    })
}

/// A container runtime reads up to READY and no further.
#[test]
fn a_service_manager_that_does_not_read_holds_nothing_up() -> Result<()> {
    in_lab(|lab| {
        let (etcd, node) = (lab.etcd()?, lab.node()?);
        let manager = Manager::new(lab)?;
        let mut daemon = Start::new(&node, &etcd)?
            .with_health()
            .set("NOTIFY_SOCKET", manager.path.display().to_string())
            .set("WATCHDOG_USEC", "20000")
            .daemon()?;
        await_ready(&node, &mut daemon)?;
        // Some hundred messages, where a socket's queue takes a dozen.
        sleep(Duration::from_secs(2));
        check_probe(&node, "/readyz", READY)?;
        let status = daemon.signal(Signal::SIGTERM, Duration::from_secs(10))?;
        ensure!(status.success(), "{status}");
        Ok(())
    })
}

#[test]
fn a_second_daemon_on_the_same_subnet_file_is_refused() -> Result<()> {
    in_lab(|lab| {
        let (etcd, node) = (lab.etcd()?, lab.node()?);
        let start = Start::new(&node, &etcd)?;
        let mut first = start.daemon()?;
        await_ready(&node, &mut first)?;
        let leases = etcd.leases()?;
        let (code, log) = start.refused()?;
        ensure!(code == Some(1), "{code:?}: {log}");
        let lock = format!("{}.lock", node.subnet_file().display());
        let holder = format!("process {} ({} ", first.id(), start.binary.display());
        for part in [&*holder, &lock, "stop it", "exec", "--subnet-file", "--etcd-prefix"] {
            ensure!(log.contains(part), "{part:?} is not in {log}");
        }
        first.check_running()?;
        ensure!(etcd.leases()? == leases);
        Ok(())
    })
}

/// Upstream's way to several networks on one host. The programs serve the first; the second leaves them alone.
#[test]
fn daemons_with_subnet_files_of_their_own_run_side_by_side() -> Result<()> {
    in_lab(|lab| {
        let (etcd, node) = (lab.etcd()?, lab.node()?);
        etcd.put(
            "/other/config",
            r#"{"Network":"10.99.0.0/16","Backend":{"Type":"vxlan","VNI":2,"Port":8473}}"#,
        )?;
        let mut first = Start::new(&node, &etcd)?.flag("-fast-path=all").flag("-ip-masq").daemon()?;
        await_ready(&node, &mut first)?;
        // The directory is not there yet. The last of a flag given twice counts.
        let file = node.dir().join("run/other/subnet.env");
        let mut other = Start::new(&node, &etcd)?;
        other.log = node.log("other");
        let other = other.flag(format!("--subnet-file={}", file.display()));
        let other = other.flag("--etcd-prefix=/other").flag("--ip-masq");
        let mut second = other.daemon()?;
        let env = eventually(SOON, "the other subnet file is written", || {
            second.check_running()?;
            SubnetEnv::read(&file)
        })?;
        ensure!(env.network.to_string() == "10.99.0.0/16", "{env:?}");
        await_log(&second, "another daemon on this node has the programs")?;
        await_log(&second, &format!("process {} (", first.id()))?;
        await_log(&second, "ready")?;
        // A start replaces the chains of rules, which the first puts right when it looks next, maybe
        // while the second still writes: two that fight are never quiet for longer than a look takes.
        eventually(SOON, "the first puts its rules right", || {
            ensure!(first.log().contains("restored rules"), "{}", first.log());
            Ok(())
        })?;
        eventually(6 * RULES_LOOK, "the daemons leave each other's rules alone", || {
            let before = [first.log(), second.log()];
            sleep(RULES_LOOK + Duration::from_secs(1));
            ensure!([first.log(), second.log()] == before, "{}\n{}", first.log(), second.log());
            Ok(())
        })?;
        ensure!(!second.log().contains("restored"), "the first takes its rules:\n{}", second.log());
        second.signal(Signal::SIGTERM, SOON)?;
        first.check_running()?;
        // Also one that would remove programs.
        let mut third = other.flag("--fast-path=off").daemon()?;
        await_log(&third, "ready")?;
        third.check_running()?;
        ensure!(node.bpffs().join("flannel/v4/maps/routes_v4").exists(), "{}", third.log());
        first.signal(Signal::SIGTERM, SOON)?;
        Ok(())
    })
}

#[test]
fn a_successor_waits_for_a_daemon_that_is_about_to_end() -> Result<()> {
    in_lab(|lab| {
        let (etcd, node) = (lab.etcd()?, lab.node()?);
        let start = Start::new(&node, &etcd)?.with_health();
        let mut first = start.daemon()?;
        await_ready(&node, &mut first)?;
        let mut second = start.daemon()?;
        await_log(&second, "waiting for another daemon to end")?;
        let status = first.signal(Signal::SIGTERM, SOON)?;
        ensure!(status.success(), "{status}");
        eventually(SOON, "the successor is ready", || {
            second.check_running()?;
            check_probe(&node, "/readyz", READY)
        })
    })
}

#[test]
fn signals_end_it_with_success_whatever_it_does() -> Result<()> {
    in_lab(|lab| {
        let (etcd, node) = (lab.etcd()?, lab.node()?);
        let start = Start::new(&node, &etcd)?.with_health();
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT] {
            let mut daemon = start.daemon()?;
            eventually(SOON, "ready", || check_probe(&node, "/readyz", READY))?;
            let status = daemon.signal(signal, SOON)?;
            ensure!(status.code() == Some(0), "running, {signal}: {status}");
            ensure!(node.netns().ip("link show")?.contains("flannel.1"), "the dataplane is gone");
        }
        etcd.delete(&format!("{PREFIX}/config"))?;
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT] {
            let mut daemon = start.daemon()?;
            eventually(SOON, "the server is up", || check_probe(&node, "/healthz", RUNNING))?;
            let status = daemon.signal(signal, SOON)?;
            ensure!(status.code() == Some(0), "waiting for the config, {signal}: {status}");
        }
        // However it ends, the secrets in it are written nowhere, also where whoever starts it asks for that.
        let mut daemon = start.daemon()?;
        eventually(SOON, "the server is up", || check_probe(&node, "/healthz", RUNNING))?;
        let limits = fs::read_to_string(format!("/proc/{}/limits", daemon.id()))?;
        let cores =
            limits.lines().find(|line| line.starts_with("Max core file size")).context("no such limit")?;
        ensure!(cores.split_whitespace().skip(4).take(2).all(|limit| limit == "0"), "{cores}");
        let status = daemon.signal(Signal::SIGABRT, SOON)?;
        ensure!(!status.core_dumped(), "{status}");
        Ok(())
    })
}

#[test]
fn a_second_signal_ends_it_at_once() -> Result<()> {
    in_lab(|lab| {
        let (etcd, node) = (lab.etcd()?, lab.node()?);
        let mut daemon = Start::new(&node, &etcd)?.with_health().daemon()?;
        await_ready(&node, &mut daemon)?;
        // A request that is never finished is waited for; the second signal does not.
        let mut slow = connect(&node)?;
        slow.write_all(b"GET /healthz HTTP/1.1\r\n")?;
        await_read(&node, &slow)?;
        let pid = Pid::from_raw(i32::try_from(daemon.id())?);
        kill(pid, Signal::SIGTERM)?;
        await_log(&daemon, "the dataplane stays in place")?;
        daemon.check_running()?;
        let status = daemon.signal(Signal::SIGTERM, SOON)?;
        ensure!(status.code() == Some(143), "{status}");
        Ok(())
    })
}

#[test]
fn it_answers_to_the_name_it_is_linked_under() -> Result<()> {
    in_lab(|lab| {
        let (etcd, node) = (lab.etcd()?, lab.node()?);
        let link = lab.dir().join("flanneld");
        symlink(agent_binary()?, &link)?;
        let help = run(node.netns().command(&link.to_string_lossy()).arg("-help"))?;
        ensure!(help.contains("Usage: flanneld "), "{help}");
        let version = node.netns().command(&link.to_string_lossy()).arg("--version").output()?;
        ensure!(version.status.success() && version.stdout.is_empty() && !version.stderr.is_empty());
        let mut start = Start::new(&node, &etcd)?;
        start.binary = link;
        let (code, log) = start.flag("--kube-subnet-mgr").refused()?;
        ensure!(code == Some(1) && log.contains("flanneld: env variables POD_NAME"), "{code:?}: {log}");
        let mut start = Start::new(&node, &etcd)?;
        start.binary = lab.dir().join("flanneld");
        let (code, log) = start.flag("-ipmasq").refused()?;
        ensure!(code == Some(64) && log.contains("'--ip-masq'"), "{code:?}: {log}");
        let mut start = Start::new(&node, &etcd)?;
        start.binary = lab.dir().join("flanneld");
        await_ready(&node, &mut start.daemon()?)?;
        Ok(())
    })
}

/// Everything from the environment, as unit files of old have it: what is bad in it is told, and the start
/// goes on; and no password is in the log, however much is logged.
#[test]
fn it_starts_by_its_environment_and_keeps_its_secrets() -> Result<()> {
    in_lab(|lab| {
        let (etcd, node) = (lab.etcd()?, lab.node()?);
        let mut start = Start::new(&node, &etcd)?;
        start.arguments.clear();
        let mut daemon = start
            .set("FLANNELD_ETCD_ENDPOINTS", etcd.endpoint())
            .set("FLANNELD_IFACE", "eth0")
            .set("FLANNELD_SUBNET_FILE", node.subnet_file().display().to_string())
            .set("FLANNELD_BPFFS", node.bpffs().display().to_string())
            .set("FLANNELD_ETCD_USERNAME", "root")
            .set("FLANNELD_ETCD_PASSWORD", "hunter2")
            .set("FLANNELD_HEALTHZ_PORT", "http")
            .set("FLANNELD_IPTABLES_RESYNC", "")
            .set("FLANNELD_VMODULE", "main=3")
            .set("FLANNELD_VERSION", "true")
            .set("FLANNELD_LOG_FORMAT", "json")
            .set("FLANNELD_V", "10")
            .daemon()?;
        await_ready(&node, &mut daemon)?;
        await_log(&daemon, r#""message":"ready""#)?;
        let log = daemon.log();
        ensure!(!log.contains("hunter2"), "{log}");
        let mut lines = Vec::new();
        for line in log.lines().filter(|line| !line.starts_with('#')) {
            lines.push(serde_json::from_str::<serde_json::Value>(line).with_context(|| line.to_owned())?);
        }
        let said = |words: &str| lines.iter().find(|line| line["message"].to_string().contains(words));
        let flags = said("command line flags").context("no line about flags")?;
        let shown = flags["environment"].as_str().unwrap_or_default();
        for part in ["FLANNELD_IFACE=eth0", "FLANNELD_ETCD_PASSWORD=<hidden>", "FLANNELD_V=10"] {
            ensure!(shown.contains(part), "{shown}");
        }
        ensure!(flags["command_line"] == "nothing", "{flags}");
        let refused = said("the default is").context("nothing about the bad variable")?;
        ensure!(refused["variable"] == "FLANNELD_HEALTHZ_PORT", "{refused}");
        ensure!(said("have no effect").is_some_and(|line| line["flags"] == "--vmodule"));
        Ok(())
    })
}

/// Neither a reader who has seen enough nor a full disk ends it in a panic, which would be status 101.
#[test]
fn what_cannot_be_written_is_an_error_and_no_panic() -> Result<()> {
    let full = || fs::File::options().write(true).open("/dev/full");
    let features = || {
        let mut command = Command::new(agent_binary()?);
        command.args(["bpf", "features"]).stderr(Stdio::piped());
        Ok::<_, anyhow::Error>(command)
    };
    let output = features()?.stdout(full()?).output()?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(1) && text.contains("cannot write to standard output"), "{text}");
    let mut child = features()?.stdout(Stdio::piped()).spawn()?;
    // Nobody reads.
    drop(child.stdout.take());
    ensure!(child.wait()?.code() == Some(0), "it has nothing to complain of");
    in_lab(|lab| {
        let (etcd, node) = (lab.etcd()?, lab.node()?);
        let start = Start::new(&node, &etcd)?;
        let mut command = node.netns().command(start.binary.to_str().context("the path of the agent")?);
        let mut agent = command.args(&start.arguments).stdin(Stdio::null()).stderr(full()?).spawn()?;
        let ready = eventually(SOON, "ready, with a log that cannot be written", || {
            ensure!(agent.try_wait()?.is_none(), "it has ended");
            node.subnet_env().map(drop)
        });
        kill(Pid::from_raw(agent.id().try_into()?), Signal::SIGTERM)?;
        let status = agent.wait()?;
        ready?;
        ensure!(status.success(), "{status}");
        Ok(())
    })
}
