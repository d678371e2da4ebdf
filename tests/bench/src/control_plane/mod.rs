//! How fast leases become usable, and what that costs: a real etcd, a real agent, peers that are lease keys alone.
//!
//! ```text
//!  node1: etcd ◀── Store: writes leases, is told of each as the agent is
//!    │ veth
//!  node2: agent ──▶ routes, neighbours, forwarding entries, maps ◀── Probe: is it usable yet?
//! ```
//!
//! The agent writes maps after the kernel's objects, so that what a map holds is usable either way. A second agent runs
//! under `strace`, which slows it down, and is only counted.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use flannel_lab::{Etcd, Lab, Node, requirements};
use rand::{SeedableRng as _, rngs::StdRng};

use self::{
    events::Latencies,
    peers::Peers,
    probe::Probe,
    process::{Process, Scrape, Usage},
    requests::Requests,
    store::Store,
};

pub use report::Report;

pub(crate) use peers::Change;
pub(crate) use store::CONFIG;

mod events;
mod peers;
mod probe;
mod process;
mod report;
mod requests;
mod store;

/// Programs needed beyond the lab's own, with their Debian packages.
const PROGRAMS: [(&str, &str); 2] = [("strace", "strace"), ("curl", "curl")];
/// How long the agent may take to make all usable: where it takes minutes, there is nothing to measure.
const PATIENCE: Duration = Duration::from_secs(120);
/// After all is usable, until the agent's own echoes have died away.
const SETTLE: Duration = Duration::from_secs(3);

/// What to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// Numbers of leases, one cluster after the other.
    pub leases: Vec<u32>,
    /// Changes made one by one, each after the last has become usable.
    pub changes: u32,
    /// Changes a second, for `seconds`.
    pub rate: u32,
    /// Length of the measurements at rest and under changes, seconds.
    pub seconds: u32,
}

/// What was measured with one number of leases.
#[derive(Clone, Debug)]
struct Figures {
    leases: u32,
    /// From the agent's start to the last lease usable.
    start: Duration,
    /// From etcd's answer to the last lease usable.
    answer: Duration,
    /// CPU the agent took from its start until nothing was left to do.
    start_cpu: Duration,
    one_by_one: Latencies,
    churned: Latencies,
    rest: Usage,
    scrape: Scrape,
    churn: Usage,
    /// System calls: from a start until nothing was left to do, at rest, under changes.
    requests: [(&'static str, Requests); 3],
}

/// Measures each number of leases in turn; `progress` is told each step.
pub fn run(options: &Options, progress: impl Fn(&str)) -> Result<Report> {
    requirements::check(&PROGRAMS)?;
    ensure!(!options.leases.is_empty() && options.seconds > 0, "nothing to measure");
    let mut figures = Vec::new();
    for &leases in &options.leases {
        ensure!((1..=Peers::MOST).contains(&leases), "{leases} leases: 1 to {} are possible", Peers::MOST);
        figures.push(measure(leases, options, &progress).with_context(|| format!("{leases} leases"))?);
    }
    Report::new(options, figures)
}

/// Writes the configuration of a network for very many nodes into `etcd`, which runs on `server`, and the leases of so
/// many nodes that exist as leases only.
pub fn fill(server: &Node, etcd: &Etcd, leases: u32) -> Result<()> {
    let mut store = Store::connect(server.netns(), etcd.endpoint())?;
    store.configure()?;
    store.write(Peers::new(leases).all())
}

fn measure(leases: u32, options: &Options, progress: &impl Fn(&str)) -> Result<Figures> {
    let step = |what: &str| progress(&format!("{leases} leases: {what}"));
    let lab = Lab::new()?;
    let (server, node) = lab.pair()?;
    let etcd = lab.etcd_on(&server)?;
    step("writing them");
    let mut store = Store::connect(server.netns(), etcd.endpoint())?;
    let mut peers = Peers::new(leases);
    store.configure()?;
    store.write(peers.all())?;

    step("starting the agent");
    let began = Instant::now();
    let mut agent = Process::start(&node, etcd.endpoint())?;
    let probe = Probe::await_maps(&node, PATIENCE, || agent.check_running())?;
    let usable = probe.await_all(&peers, PATIENCE, || agent.check_running())?;
    let answer = agent.since_answer(usable)?;
    sleep(SETTLE);
    let start_cpu = agent.cpu()?;
    probe.check_all(&node, &peers)?;

    step("at rest");
    let rest = agent.usage_over(Duration::from_secs(options.seconds.into()))?;
    let scrape = agent.scrape(&node)?;
    step("change by change");
    let mut random = StdRng::seed_from_u64(leases.into());
    let one_by_one = events::one_by_one(&mut store, &probe, &mut peers, options.changes, &mut random)?;
    step(&format!("{} changes a second", options.rate));
    let before = agent.sample()?;
    let pace = (options.rate, options.seconds);
    let churned = events::churn(&mut store, &probe, &mut peers, pace, &mut random)?;
    let churn = agent.sample()?.since(&before)?;
    probe.check_all(&node, &peers)?;
    agent.stop()?;

    step("counting requests to the kernel");
    let requests = requests::count(&node, etcd.endpoint(), options, &mut store, &mut peers, &mut random)?;
    drop(store);
    drop(etcd);
    lab.close()?;
    let start = usable.duration_since(began);
    Ok(Figures { leases, start, answer, start_cpu, one_by_one, churned, rest, scrape, churn, requests })
}
