//! How many nodes one etcd bears: agents without a kernel, all in this process, against a real etcd.
//!
//! ```text
//!  Agent (lease, view of all others, dataplane in memory) × nodes ◀──▶ etcd ◀── a client that writes leases
//! ```
//!
//! Costs are CPU and bytes, which a busy machine does not change much; a [`model`] makes of them what more nodes cost.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use etcd_client::Client;
use flannel_lab::{Memory, PREFIX, etcd::Etcd};
use tokio::{
    runtime,
    task::{LocalSet, spawn_blocking, spawn_local},
    time::sleep,
};

use self::{agent::Agent, server::Load};
use crate::{
    control_plane::{CONFIG, Change},
    samples::Samples,
    surroundings::cpu_of,
};

pub use report::Report;

mod agent;
mod model;
mod report;
mod server;

/// How long all agents may take for anything.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long etcd is away when it is restarted.
const AWAY: Duration = Duration::from_secs(3);
/// A node that is no agent's: its lease comes and goes.
const GUEST: u32 = 60_000;
/// As many agents as have addresses and subnets beside the guest's.
const MOST: u32 = 20_000;

/// What to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// Numbers of nodes, one cluster after the other.
    pub nodes: Vec<u32>,
    /// Changes, each after the last has reached all.
    pub changes: u32,
    /// Length of the measurement at rest, seconds.
    pub seconds: u32,
}

/// What was measured with one number of nodes.
#[derive(Clone, Debug)]
struct Figures {
    nodes: u32,
    start: Part,
    rest: Part,
    changes: Part,
    /// From the write to the last agent, ms.
    reach: Samples,
    restart: Part,
    /// What etcd takes of memory with all connected.
    memory: Memory,
}

/// What etcd and the agents took for something.
#[derive(Clone, Copy, Debug)]
struct Part {
    took: Duration,
    etcd: Load,
    /// CPU of all agents.
    agents: Duration,
}

/// Measures each number of nodes in turn; `progress` is told each step.
pub fn run(options: &Options, progress: impl Fn(&str)) -> Result<Report> {
    ensure!(!options.nodes.is_empty() && options.changes > 0 && options.seconds > 0, "nothing to measure");
    let mut figures = Vec::new();
    for &nodes in &options.nodes {
        ensure!((2..=MOST).contains(&nodes), "{nodes} nodes: 2 to {MOST} are possible");
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let measured = LocalSet::new().block_on(&runtime, measure(nodes, options, &progress));
        figures.push(measured.with_context(|| format!("{nodes} nodes"))?);
    }
    Report::new(options, figures)
}

/// From when something is measured.
struct Meter {
    began: Instant,
    etcd: Load,
    agents: Duration,
}

impl Meter {
    fn start(etcd: &Etcd) -> Result<Self> {
        Ok(Self { began: Instant::now(), etcd: Load::of(etcd)?, agents: cpu_of(std::process::id())? })
    }

    fn stop(self, etcd: &Etcd) -> Result<Part> {
        let took = self.began.elapsed();
        let agents = cpu_of(std::process::id())?.saturating_sub(self.agents);
        Ok(Part { took, etcd: Load::of(etcd)?.since(self.etcd), agents })
    }
}

async fn measure(nodes: u32, options: &Options, progress: &impl Fn(&str)) -> Result<Figures> {
    let step = |what: &str| progress(&format!("{nodes} nodes: {what}"));
    let peers = usize::try_from(nodes)? - 1;
    let mut etcd = spawn_blocking(Etcd::start).await??;
    etcd.ctl(&["put", &format!("{PREFIX}/config"), CONFIG])?;

    step("all start at once");
    let meter = Meter::start(&etcd)?;
    let starting: Vec<_> =
        (0..nodes).map(|number| spawn_local(Agent::start(number, etcd.endpoint()))).collect();
    let mut agents = Vec::new();
    for agent in starting {
        agents.push(agent.await??);
    }
    all_reach(&agents, peers).await?;
    let start = meter.stop(&etcd)?;

    step("at rest");
    let meter = Meter::start(&etcd)?;
    sleep(Duration::from_secs(options.seconds.into())).await;
    let rest = meter.stop(&etcd)?;
    let memory = server::memory(&etcd)?;

    step("change by change");
    let mut client = Client::connect([etcd.endpoint()], None).await.context("connect to etcd")?;
    let guest = Change { number: GUEST, mac: Some(flannel_agent::values::Mac::random()) };
    let mut reach = Samples::default();
    let meter = Meter::start(&etcd)?;
    for turn in 0..options.changes {
        let joins = turn % 2 == 0;
        let began = Instant::now();
        change(&mut client, guest, joins).await?;
        all_reach(&agents, peers + usize::from(joins)).await?;
        reach.push(began.elapsed().as_secs_f64() * 1e3);
    }
    let changes = meter.stop(&etcd)?;

    step("etcd is restarted");
    // As it was before the first.
    change(&mut client, guest, false).await?;
    all_reach(&agents, peers).await?;
    drop(client);
    etcd.stop();
    sleep(AWAY).await;
    let agents_before = cpu_of(std::process::id())?;
    etcd = spawn_blocking(move || etcd.start_again().map(|()| etcd)).await??;
    let began = Instant::now();
    let mut client = Client::connect([etcd.endpoint()], None).await.context("connect to etcd")?;
    change(&mut client, guest, true).await?;
    all_reach(&agents, peers + 1).await?;
    let restart = Part {
        took: began.elapsed(),
        etcd: Load::of(&etcd)?,
        agents: cpu_of(std::process::id())?.saturating_sub(agents_before),
    };
    Ok(Figures { nodes, start, rest, changes, reach, restart, memory })
}

/// Writes or deletes the lease of the guest.
async fn change(client: &mut Client, guest: Change, joins: bool) -> Result<()> {
    match guest.value().filter(|_| joins) {
        Some(value) => client.put(guest.key(), value, None).await.map(drop)?,
        None => client.delete(guest.key(), None).await.map(drop)?,
    }
    Ok(())
}

/// Waits until each agent reaches so many peers.
async fn all_reach(agents: &[Agent], peers: usize) -> Result<()> {
    for agent in agents {
        agent.reaches(peers, PATIENCE).await?;
    }
    Ok(())
}
