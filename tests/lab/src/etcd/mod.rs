//! A real etcd: a child process on free ports, with its data in a directory of its own. It is killed, and
//! its data removed, when the handle is dropped.

use std::{
    fs::{self, File},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

pub use certificates::{Authority, KeyAndCertificate};

mod certificates;
mod members;

/// How long etcd may take to start on a busy machine.
const START: Duration = Duration::from_secs(30);

/// What an etcd is to be like.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where it listens; ports are chosen.
    pub address: IpAddr,
    /// Words before every command, as `ip netns exec n1`.
    pub within: Vec<String>,
    /// Serve https only, and to clients with a certificate of the authority only.
    pub tls: bool,
    /// Serve the v2 store, too.
    pub v2: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { address: Ipv4Addr::LOCALHOST.into(), within: Vec::new(), tls: false, v2: false }
    }
}

/// A running etcd.
#[derive(Debug)]
pub struct Etcd {
    options: Options,
    dir: TempDir,
    client: SocketAddr,
    peer: SocketAddr,
    child: Option<Child>,
    /// Given to etcdctl, once authentication is on.
    user: Option<String>,
    authority: Option<Authority>,
    /// `--initial-cluster`, when it has others beside it.
    cluster: Option<String>,
}

impl Etcd {
    /// Starts one on loopback, open to all.
    pub fn start() -> Result<Self> {
        Self::with(Options::default())
    }

    /// Starts one on loopback that speaks TLS, with client certificates of [`Etcd::authority`] only.
    pub fn start_with_tls() -> Result<Self> {
        Self::with(Options { tls: true, ..Options::default() })
    }

    /// Starts one.
    pub fn with(options: Options) -> Result<Self> {
        let mut last = None;
        // Somebody else may take a port between its choice and its use.
        for _ in 0..5 {
            let mut etcd = Self::prepare(&options)?;
            match etcd.start_again() {
                Ok(()) => return Ok(etcd),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| anyhow::anyhow!("etcd was never started")))
    }

    /// Everything but the process.
    fn prepare(options: &Options) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("flannel-etcd-").tempdir()?;
        let [client, peer] = free_ports(options.address)?;
        let authority = options.tls.then(|| Authority::new("etcd test CA")).transpose()?;
        let options = options.clone();
        let etcd = Self { options, dir, client, peer, child: None, user: None, authority, cluster: None };
        if let Some(authority) = &etcd.authority {
            authority.write_to(&etcd.path("ca.pem"))?;
            authority.server(etcd.options.address)?.write_to(&etcd.path("server"))?;
            authority.client()?.write_to(&etcd.path("client"))?;
        }
        Ok(etcd)
    }

    /// Where it serves clients.
    pub fn endpoint(&self) -> String {
        format!("{}://{}", if self.options.tls { "https" } else { "http" }, self.client)
    }

    /// The address of [`Etcd::endpoint`].
    pub fn address(&self) -> SocketAddr {
        self.client
    }

    /// Who signed its certificate, if it speaks TLS.
    pub fn authority(&self) -> Result<&Authority> {
        self.authority.as_ref().context("this etcd does not speak TLS")
    }

    /// A file in its directory: `ca.pem`, `server.pem`, `server.key`, `client.pem`, `client.key` with TLS, else
    /// whatever a test wants to put there.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts it again after [`Etcd::stop`], with the data and ports it had.
    pub fn start_again(&mut self) -> Result<()> {
        self.launch()?;
        self.await_ready()
    }

    /// Starts the process.
    fn launch(&mut self) -> Result<()> {
        self.stop();
        let log = self.path("log");
        let (client, peer) = (self.endpoint(), self.peer_url());
        let mut command = self.command("etcd");
        let name = self.name();
        command.args(["--name", &name, "--logger", "zap", "--log-outputs", "stderr"]);
        if self.cluster.is_none() {
            // Alone it need not wait long for others to object to its being the leader.
            command.args(["--heartbeat-interval", "20", "--election-timeout", "200"]);
        }
        command.arg("--data-dir").arg(self.path("data"));
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        let alone = format!("{name}={peer}");
        command.args(["--initial-cluster", self.cluster.as_ref().unwrap_or(&alone)]);
        if self.options.v2 {
            command.arg("--enable-v2=true");
        }
        if self.options.tls {
            command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(self.path("ca.pem"));
            command.arg("--cert-file").arg(self.path("server.pem"));
            command.arg("--key-file").arg(self.path("server.key"));
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log)?);
        self.child = Some(command.spawn().with_context(|| missing("etcd", &self.options))?);
        Ok(())
    }

    /// Waits until it serves clients.
    fn await_ready(&mut self) -> Result<()> {
        let (log, name) = (self.path("log"), self.name());
        let deadline = Instant::now() + START;
        loop {
            let said = fs::read_to_string(&log).unwrap_or_default();
            let problem = match said.contains("serving client traffic") {
                // etcdctl would wait long before it tries again.
                false => anyhow::anyhow!("it is not ready"),
                // By its name: the one who answers may be another, who was faster to take the port.
                true => match self.ctl(&["member", "list", "--command-timeout=1s"]) {
                    Ok(members) if members.contains(&name) => return Ok(()),
                    Ok(members) => anyhow::anyhow!("another one answers: {members}"),
                    Err(problem) => problem,
                },
            };
            let ended = self.child.as_mut().map(Child::try_wait).transpose()?.flatten();
            if ended.is_some() || Instant::now() > deadline {
                let last: Vec<&str> = said.lines().rev().take(5).collect();
                bail!("etcd did not start ({ended:?}): {problem:#}; its last words, last first: {last:#?}");
            }
            sleep(Duration::from_millis(10));
        }
    }

    /// Its process id.
    pub fn pid(&self) -> Result<u32> {
        Ok(self.child.as_ref().context("etcd is not running")?.id())
    }

    /// Kills it, as a crash would; its data stays.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Forgets all data: the next start is that of another cluster.
    pub fn wipe(&mut self) -> Result<()> {
        self.stop();
        fs::remove_dir_all(self.path("data")).context("cannot remove the data of etcd")
    }

    /// Writes what it holds now to a file in its directory, for [`Etcd::restore`].
    pub fn back_up(&self, name: &str) -> Result<()> {
        self.ctl(&["snapshot", "save", &self.path(name).display().to_string()]).map(drop)
    }

    /// Makes it hold what it held at the [`Etcd::back_up`] of that name, in the way its manual says. It is stopped then.
    pub fn restore(&mut self, name: &str) -> Result<()> {
        self.wipe()?;
        let (own, peer) = (self.name(), self.peer_url());
        let (file, data) = (self.path(name).display().to_string(), self.path("data").display().to_string());
        let cluster = format!("{own}={peer}");
        self.ctl(&[
            "snapshot",
            "restore",
            &file,
            "--data-dir",
            &data,
            "--name",
            &own,
            "--initial-cluster",
            &cluster,
            "--initial-advertise-peer-urls",
            &peer,
        ])
        .map(drop)
    }

    /// Writes to a key of nobody's until its revision is more than `revision`.
    pub fn pass(&self, revision: i64) -> Result<()> {
        while self.revision()? <= revision {
            self.put("/elsewhere", "x")?;
        }
        Ok(())
    }

    /// Stops it from answering while its connections stay up, until [`Etcd::thaw`].
    pub fn freeze(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Ends [`Etcd::freeze`].
    pub fn thaw(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    fn peer_url(&self) -> String {
        format!("http://{}", self.peer)
    }

    /// A name that no other has: that of its directory.
    fn name(&self) -> String {
        self.dir.path().file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let child = self.child.as_ref().context("etcd is not running")?;
        Ok(kill(Pid::from_raw(i32::try_from(child.id())?), signal)?)
    }

    /// What etcdctl answers, without the line end.
    pub fn ctl(&self, args: &[&str]) -> Result<String> {
        let mut command = self.command("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", &self.endpoint()]);
        if self.options.tls {
            // Also to one whose own certificate is no good, which is for others to notice.
            command.arg("--insecure-skip-tls-verify").arg("--cacert").arg(self.path("ca.pem"));
            command.arg("--cert").arg(self.path("client.pem")).arg("--key").arg(self.path("client.key"));
        }
        if let Some(user) = &self.user {
            command.args(["--user", user]);
        }
        let output = command.args(args).output().with_context(|| missing("etcdctl", &self.options))?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "etcdctl {}: {}", args.join(" "), error.trim());
        Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    }

    /// What etcdctl answers that is told to use the v2 store, without the line end.
    pub fn ctl_v2(&self, args: &[&str]) -> Result<String> {
        let mut command = self.command("etcdctl");
        command.env("ETCDCTL_API", "2").args(["--endpoints", &self.endpoint()]);
        if self.options.tls {
            command.arg("--ca-file").arg(self.path("ca.pem"));
            command
                .arg("--cert-file")
                .arg(self.path("client.pem"))
                .arg("--key-file")
                .arg(self.path("client.key"));
        }
        if let Some(user) = &self.user {
            command.args(["--username", user]);
        }
        let output = command.args(args).output().with_context(|| missing("etcdctl", &self.options))?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "etcdctl {}: {}", args.join(" "), error.trim());
        Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    }

    /// What remains of a key of the v2 store, in seconds; 0 for one that stays.
    pub fn ttl_v2(&self, key: &str) -> Result<u64> {
        let extended = self.ctl_v2(&["-o", "extended", "get", key])?;
        let ttl = extended.lines().find_map(|line| line.strip_prefix("TTL: "));
        Ok(ttl.with_context(|| format!("no TTL: {extended}"))?.parse()?)
    }

    /// Turns the v2 store's authentication on, with the user `root`, and one who may read and write below `prefix`.
    pub fn require_users_v2(&mut self, user: &str, password: &str, prefix: &str) -> Result<()> {
        self.ctl_v2(&["user", "add", "root:root"])?;
        self.ctl_v2(&["role", "add", "node"])?;
        self.ctl_v2(&["role", "grant", "--path", &format!("{prefix}/*"), "--readwrite", "node"])?;
        self.ctl_v2(&["user", "add", &format!("{user}:{password}")])?;
        self.ctl_v2(&["user", "grant", "--roles", "node", user])?;
        self.ctl_v2(&["auth", "enable"])?;
        self.ctl_v2(&["--username", "root:root", "role", "remove", "guest"])?;
        self.user = Some("root:root".to_owned());
        Ok(())
    }

    /// Writes a key that stays.
    pub fn put(&self, key: &str, value: &str) -> Result<()> {
        self.ctl(&["put", "--", key, value]).map(|_| ())
    }

    /// Writes a key that ends after some seconds; says the id of its lease, in hexadecimal.
    pub fn put_for(&self, seconds: u32, key: &str, value: &str) -> Result<String> {
        let granted = self.ctl(&["lease", "grant", &seconds.to_string()])?;
        let id = granted.split_whitespace().nth(1).context("etcdctl lease grant said no id")?;
        self.ctl(&["put", &format!("--lease={id}"), "--", key, value])?;
        Ok(id.to_owned())
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Result<Option<String>> {
        let value = self.ctl(&["get", "--print-value-only", "--", key])?;
        Ok((!value.is_empty()).then_some(value))
    }

    /// The keys that begin with `prefix`.
    pub fn keys(&self, prefix: &str) -> Result<Vec<String>> {
        let keys = self.ctl(&["get", "--prefix", "--keys-only", "--", prefix])?;
        Ok(keys.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect())
    }

    /// Deletes a key.
    pub fn delete(&self, key: &str) -> Result<()> {
        self.ctl(&["del", "--", key]).map(|_| ())
    }

    /// What remains of the lease of a key, in seconds; `None` for a key without one.
    pub fn ttl(&self, key: &str) -> Result<Option<u64>> {
        let json = self.ctl(&["get", "-w", "json", "--", key])?;
        let found: serde_json::Value = serde_json::from_str(&json)?;
        let Some(lease) = found.pointer("/kvs/0/lease").and_then(serde_json::Value::as_i64) else {
            return Ok(None);
        };
        let json = self.ctl(&["lease", "timetolive", "-w", "json", &format!("{lease:x}")])?;
        let found: serde_json::Value = serde_json::from_str(&json)?;
        Ok(found.get("ttl").and_then(serde_json::Value::as_u64))
    }

    /// The revision of the store.
    pub fn revision(&self) -> Result<i64> {
        let json = self.ctl(&["get", "-w", "json", "no such key"])?;
        let found: serde_json::Value = serde_json::from_str(&json)?;
        found.pointer("/header/revision").and_then(serde_json::Value::as_i64).context("no revision")
    }

    /// Forgets all history.
    pub fn compact(&self) -> Result<()> {
        self.ctl(&["compact", &self.revision()?.to_string()]).map(|_| ())
    }

    /// Turns authentication on, with the user `root`, who may do everything, and one who may only read and
    /// write below `prefix`.
    pub fn require_users(&mut self, user: &str, password: &str, prefix: &str) -> Result<()> {
        self.ctl(&["user", "add", "root:root"])?;
        self.ctl(&["user", "grant-role", "root", "root"])?;
        self.ctl(&["role", "add", "node"])?;
        self.ctl(&["role", "grant-permission", "node", "--prefix=true", "readwrite", prefix])?;
        self.ctl(&["user", "add", &format!("{user}:{password}")])?;
        self.ctl(&["user", "grant-role", user, "node"])?;
        self.ctl(&["auth", "enable"])?;
        self.user = Some("root:root".to_owned());
        Ok(())
    }

    fn command(&self, name: &str) -> Command {
        match self.options.within.split_first() {
            None => Command::new(name),
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(name);
                command
            }
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.stop();
    }
}

fn missing(name: &str, options: &Options) -> String {
    let words: Vec<&str> = options.within.iter().map(String::as_str).chain([name]).collect();
    format!("cannot run {}: install what the tests need with `cargo xtask setup`", words.join(" "))
}

/// Ports that nobody uses at this moment. They are below those that the kernel gives to connections, one of
/// which might else be in the way when etcd comes back to its port.
fn free_ports<const N: usize>(address: IpAddr) -> Result<[SocketAddr; N]> {
    // An address of another namespace cannot be bound here; its ports are free as far as anybody knows.
    let here = TcpListener::bind((address, 0)).map_or(Ipv4Addr::LOCALHOST.into(), |_| address);
    let mut held = Vec::new();
    for _ in 0..1000 {
        let port = rand::random_range(20_000..30_000);
        held.extend(TcpListener::bind((here, port)).map(|listener| (listener, port)));
        if held.len() == N {
            let mut ports = [SocketAddr::new(address, 0); N];
            for (free, (_, port)) in ports.iter_mut().zip(&held) {
                free.set_port(*port);
            }
            return Ok(ports);
        }
    }
    bail!("no free port from 20000 to 29999 on {here}")
}

/// Writes `text` to `path`, for its owner only.
pub(crate) fn write_private(path: &Path, text: &str) -> Result<()> {
    use std::{io::Write as _, os::unix::fs::OpenOptionsExt as _};
    let mut file = fs::OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
}
