//! The machine that measures.

use std::{fmt, fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use flannel_lab::{command::Daemon, traffic::Endpoint, wait::eventually};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use serde::Serialize;

/// Two CPUs to pin to; the same one twice where there is only one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cpus {
    pub(super) first: usize,
    pub(super) second: usize,
}

impl Cpus {
    /// The first two this process may run on.
    pub(super) fn of_this_process() -> Result<Self> {
        let allowed = sched_getaffinity(Pid::from_raw(0)).context("sched_getaffinity")?;
        let mut cpus = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false));
        let first = cpus.next().context("no CPU to run on")?;
        Ok(Self { first, second: cpus.next().unwrap_or(first) })
    }

    /// Keeps this thread on `cpu`.
    pub(super) fn pin(cpu: usize) -> Result<()> {
        let mut set = CpuSet::new();
        set.set(cpu).with_context(|| format!("CPU {cpu}"))?;
        sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("pin to CPU {cpu}"))
    }
}

/// CPU that the threads there are of the process `pid` have used so far.
pub(super) fn cpu_of(pid: u32) -> Result<Duration> {
    let mut total = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).context("threads of the agent")? {
        // A thread may end between its listing and this.
        let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
        total += text.split(' ').next().unwrap_or_default().parse::<u64>().with_context(|| text.clone())?;
    }
    Ok(Duration::from_nanos(total))
}

/// Waits until `daemon` listens on `port` at `server`: `table` is `tcp` or `udp`.
pub(super) fn await_socket(server: &Endpoint, table: &str, port: u16, daemon: &mut Daemon) -> Result<()> {
    // Addresses are in hexadecimal digits.
    let (family, digits) = if server.address().is_ipv4() { ("", 8) } else { ("6", 32) };
    let path = format!("/proc/thread-self/net/{table}{family}");
    let local = format!(":{port:04X} {:0digits$}:0000 ", 0);
    eventually(Duration::from_secs(5), &format!("a {table} socket on port {port}"), || {
        daemon.check_running()?;
        let sockets = server.netns().inside(|| fs::read_to_string(&path).with_context(|| path.clone()))?;
        ensure!(sockets.contains(&local), "sockets:\n{sockets}");
        Ok(())
    })
}

/// What the figures depend on beside the code.
#[derive(Clone, Debug, Serialize)]
pub struct Surroundings {
    /// Kernel release.
    pub kernel: String,
    /// CPUs this process may use.
    pub cpus: usize,
    /// Model of the CPU.
    pub cpu_model: String,
    /// MTU of the underlay, bytes.
    pub underlay_mtu: u32,
    /// MTU of pods, bytes.
    pub pod_mtu: u32,
    /// Load of the last minute before the run: what else the machine was doing.
    pub load: String,
    /// Whether the kernel was timing BPF programs, which costs each of them.
    pub bpf_stats: bool,
}

impl Surroundings {
    pub(super) fn look() -> Result<Self> {
        let read =
            |path: &str| fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default();
        let cpu_model = read("/proc/cpuinfo")
            .lines()
            .find_map(|line| {
                line.strip_prefix("model name")?.split_once(": ").map(|(_, model)| model.to_owned())
            })
            .unwrap_or_else(|| "unknown".to_owned());
        Ok(Self {
            kernel: read("/proc/sys/kernel/osrelease"),
            cpus: std::thread::available_parallelism().context("CPUs")?.get(),
            cpu_model,
            underlay_mtu: 1500,
            pod_mtu: 1450,
            load: read("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned(),
            bpf_stats: read("/proc/sys/kernel/bpf_stats_enabled") == "1",
        })
    }
}

impl fmt::Display for Surroundings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Linux {}, {} CPUs ({}), load {}, two nodes joined by one veth, MTU {} and {} in pods{}",
            self.kernel,
            self.cpus,
            self.cpu_model,
            self.load,
            self.underlay_mtu,
            self.pod_mtu,
            if self.bpf_stats { ", kernel.bpf_stats_enabled=1" } else { "" }
        )
    }
}
