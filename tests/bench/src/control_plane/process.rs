//! The agent's process, and what it takes.

use std::{
    fs,
    path::PathBuf,
    thread::sleep,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use flannel_lab::{Memory, Node, agent_binary, command::Daemon};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::surroundings::cpu_of;

/// How long it may take to end.
const STOP: Duration = Duration::from_secs(20);
/// So the agent tells when etcd has answered, and nothing else that it would not tell anyway.
const LOG: (&str, &str) = ("RUST_LOG", "info,flannel_agent::lease::etcd::key_watch=debug");
const ANSWERED: &str = "read everything what=\"the leases of all nodes\"";

/// Where it serves metrics.
const METRICS: (&str, u16) = ("127.0.0.1", 8081);
/// Scrapes of which one is reckoned.
const SCRAPES: u32 = 20;

/// A running agent.
pub(super) struct Process {
    daemon: Daemon,
    /// Same moment on both clocks.
    clocks: (Instant, SystemTime),
}

/// What a process has taken up to a moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    at: Instant,
    cpu: Duration,
    memory: Memory,
}

/// What a scrape of its metrics takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scrape {
    /// CPU of the agent.
    pub(super) cpu: Duration,
    /// Length of the page.
    pub(super) bytes: usize,
}

/// What a process took over some time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Usage {
    /// Share of one CPU, 0 to 1 and above.
    pub(super) cpu: f64,
    /// At the end.
    pub(super) memory: Memory,
}

impl Process {
    /// Starts an agent on `node`.
    pub(super) fn start(node: &Node, etcd: &str) -> Result<Self> {
        Self::start_under(node, etcd, &[])
    }

    /// As [`Process::start`], by another program: `words` come before the agent's.
    pub(super) fn start_under(node: &Node, etcd: &str, words: &[&str]) -> Result<Self> {
        let agent = agent_binary()?.to_string_lossy().into_owned();
        let flags = [
            format!("--etcd-endpoints={etcd}"),
            "--iface=eth0".to_owned(),
            format!("--subnet-file={}", node.subnet_file().display()),
            format!("--bpffs={}", node.bpffs().display()),
            "--fast-path=flow".to_owned(),
            "--ip-masq".to_owned(),
            format!("--healthz-ip={}", METRICS.0),
            format!("--healthz-port={}", METRICS.1),
        ];
        let mut line: Vec<&str> = words.to_vec();
        line.push(&agent);
        let mut command = node.netns().command(line[0]);
        command.args(&line[1..]).args(flags).env(LOG.0, LOG.1);
        let clocks = (Instant::now(), SystemTime::now());
        // A log of its own for each start: what one says of its start must not be taken for another's.
        let log = node.log(&format!("agent-{}", clocks.1.duration_since(UNIX_EPOCH)?.as_millis()));
        Ok(Self { daemon: Daemon::spawn(&mut command, &log)?, clocks })
    }

    /// Its process id.
    pub(super) fn id(&self) -> u32 {
        self.daemon.id()
    }

    /// Fails if it has ended.
    pub(super) fn check_running(&mut self) -> Result<()> {
        self.daemon.check_running()
    }

    /// Waits until its log holds `text`.
    pub(super) fn await_log(&mut self, text: &str, patience: Duration) -> Result<()> {
        let start = Instant::now();
        while !self.daemon.log().contains(text) {
            self.daemon.check_running()?;
            ensure!(start.elapsed() < patience, "the agent has not said {text:?} after {patience:?}");
            sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// How long before `moment` etcd has answered with all leases.
    pub(super) fn since_answer(&self, moment: Instant) -> Result<Duration> {
        let log = self.daemon.log();
        let line = log
            .lines()
            .find(|line| line.contains(ANSWERED))
            .context("the agent's log has no answer of etcd")?;
        let stamp = line.split_whitespace().next().and_then(of_day).with_context(|| line.to_owned())?;
        let then = self.clocks.1 + moment.duration_since(self.clocks.0);
        let then = then.duration_since(UNIX_EPOCH)?.as_micros() % DAY;
        Ok(Duration::from_micros(u64::try_from((then + DAY - stamp) % DAY)?))
    }

    /// CPU it has used so far.
    pub(super) fn cpu(&self) -> Result<Duration> {
        cpu_of(self.id())
    }

    pub(super) fn sample(&self) -> Result<Sample> {
        Ok(Sample { at: Instant::now(), cpu: self.cpu()?, memory: Memory::of(self.id())? })
    }

    /// What it takes over `time`.
    pub(super) fn usage_over(&self, time: Duration) -> Result<Usage> {
        let before = self.sample()?;
        sleep(time);
        self.sample()?.since(&before)
    }

    /// What a scrape of it takes, on average. What else it does meanwhile counts, too.
    pub(super) fn scrape(&self, node: &Node) -> Result<Scrape> {
        let url = format!("http://{}:{}/metrics", METRICS.0, METRICS.1);
        let page = || node.netns().run("curl", &["-sS", "--fail", &url]);
        let bytes = page()?.len();
        let before = self.cpu()?;
        for _ in 0..SCRAPES {
            page()?;
        }
        Ok(Scrape { cpu: self.cpu()?.saturating_sub(before) / SCRAPES, bytes })
    }

    /// Ends it.
    pub(super) fn stop(mut self) -> Result<()> {
        self.daemon.signal(Signal::SIGTERM, STOP).map(drop)
    }

    /// Ends an agent that runs under `strace`, which keeps signals from itself while it traces: it ends with the agent.
    pub(super) fn stop_traced(mut self) -> Result<()> {
        let children = fs::read_to_string(self.proc(&format!("task/{}/children", self.id())))?;
        let agent = children.split_whitespace().next().context("strace has started nothing")?.parse()?;
        kill(Pid::from_raw(agent), Signal::SIGTERM).context("SIGTERM to the agent")?;
        self.daemon
            .wait(STOP)?
            .with_context(|| format!("the agent under strace did not end within {STOP:?}"))?;
        Ok(())
    }

    fn proc(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.id()))
    }
}

impl Sample {
    pub(super) fn since(&self, before: &Self) -> Result<Usage> {
        let time = self.at.duration_since(before.at);
        ensure!(!time.is_zero(), "no time has passed");
        let cpu = self.cpu.saturating_sub(before.cpu).as_secs_f64() / time.as_secs_f64();
        Ok(Usage { cpu, memory: self.memory })
    }
}

/// Microseconds of a day.
const DAY: u128 = 86_400_000_000;

/// Microseconds since midnight of a stamp such as `2026-01-31T10:20:30.123456Z`.
fn of_day(stamp: &str) -> Option<u128> {
    let time = stamp.split_once('T')?.1.strip_suffix('Z')?;
    let (whole, fraction) = time.split_once('.')?;
    let mut parts = whole.split(':').map(|part| part.parse::<u128>().ok());
    let seconds = parts.next()?? * 3600 + parts.next()?? * 60 + parts.next()??;
    Some(seconds * 1_000_000 + format!("{fraction:0<6}").get(..6)?.parse::<u128>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::of_day;

    #[test]
    fn stamps_of_the_log() {
        assert_eq!(of_day("2026-01-31T00:00:01.000002Z"), Some(1_000_002));
        assert_eq!(of_day("2026-01-31T23:59:59.5Z"), Some(86_399_500_000));
        assert_eq!(of_day("INFO"), None);
    }
}
