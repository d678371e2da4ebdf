//! `top`: what passes this node now, by peer, pod and reason, and what the programs cost.

mod live;
pub(super) mod rates;
mod screen;

use std::{
    io::{self, IsTerminal as _},
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Args;
use flannel_common::layout::trace::{TRACE_TOTALS, TraceFilter};
use tokio::runtime;

use super::{
    CannotLook, Defaults, Format,
    output::print,
    trace_session::{OfAgent, OfPackets, TraceSession, enter_node},
    value::{at_least_one, whole},
};
use crate::{
    bpf::{Pins, RunTimes},
    control::Client,
    telemetry::output::say,
};
use rates::{Names, Rates, Totals, rates};

/// Rows of each table, as text.
const ROWS: usize = 20;

/// `flannel-agent top ...`.
#[derive(Debug, Args)]
pub struct TopOptions {
    /// Of which packets.
    #[command(flatten)]
    pub packets: OfPackets,
    /// Seconds between two looks, 1 to 60.
    #[arg(long, visible_alias = "interval", value_name = "SECONDS", default_value = "2",
          value_parser = whole::<u64>("seconds", 1..=60))]
    pub every: u64,
    /// End after so many looks, 1 or more. Default: never on a terminal, else after one.
    #[arg(long, value_name = "N", value_parser = at_least_one("looks"))]
    pub count: Option<u64>,
    /// Which agent.
    #[command(flatten)]
    pub agent: OfAgent,
    /// How to print; on a terminal the table is live, and its last line names the keys.
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Format,
}

/// Runs `top`.
///
/// # Errors
/// [`CannotLook`], with what to do about it.
pub fn run(options: &TopOptions, defaults: &Defaults) -> anyhow::Result<ExitCode> {
    let watch = || -> anyhow::Result<()> {
        let filter = TraceFilter { mode: TRACE_TOTALS, ..options.packets.filter()? };
        enter_node(&options.agent)?;
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async { follow(options, options.agent.client(defaults).await?, filter).await })
    };
    watch().map_err(CannotLook)?;
    Ok(ExitCode::SUCCESS)
}

/// What is looked at.
struct Watched {
    session: TraceSession,
    client: Client,
    pins: Pins,
    times: Option<RunTimes>,
    names: Names,
    before: (Instant, Totals),
}

impl Watched {
    async fn begin(client: Client, filter: TraceFilter) -> anyhow::Result<Self> {
        let mut session = TraceSession::begin(client.clone()).await?;
        session.want(filter)?;
        let pins = Pins::under(&session.snapshot.agent.bpffs)?;
        let times = RunTimes::begin();
        if let Err(error) = &times {
            say(format_args!("without the programs' times: {error}"));
        }
        let before = (Instant::now(), Totals::default());
        let mut watched = Self { session, client, pins, times: times.ok(), names: Names::default(), before };
        watched.learn_names().await?;
        watched.before = (Instant::now(), watched.totals()?);
        Ok(watched)
    }

    async fn learn_names(&mut self) -> anyhow::Result<()> {
        let (snapshot, peers) = (self.client.snapshot().await?, self.client.peers().await?);
        let name = |peer: &crate::control::snapshot::Peer| {
            (peer.subnet, peer.node.clone().unwrap_or_else(|| peer.public_ip.to_string()))
        };
        self.names = Names {
            own: snapshot.lease.map(|lease| lease.subnets).unwrap_or_default(),
            peers: peers.peers.iter().map(name).collect(),
        };
        Ok(())
    }

    fn totals(&self) -> anyhow::Result<Totals> {
        let runs = match &self.times {
            Some(times) => times.read(&self.pins)?,
            None => Default::default(),
        };
        Ok(Totals { sums: self.session.maps.sums(), runs })
    }

    /// What has passed since this was last asked.
    async fn next(&mut self) -> anyhow::Result<Rates> {
        self.learn_names().await?;
        let now = (Instant::now(), self.totals()?);
        let seconds = (now.0 - self.before.0).as_secs_f64().max(0.001);
        let found = rates(&self.before.1, &now.1, seconds, &self.names);
        self.before = now;
        Ok(found)
    }

    /// Waits, and says meanwhile that we still look.
    async fn wait(&self, seconds: u64) -> anyhow::Result<()> {
        for _ in 0..seconds {
            tokio::time::sleep(Duration::from_secs(1)).await;
            self.session.go_on().await?;
        }
        Ok(())
    }
}

async fn follow(options: &TopOptions, client: Client, filter: TraceFilter) -> anyhow::Result<()> {
    let mut watched = Watched::begin(client, filter).await?;
    if options.output == Format::Table && io::stdout().is_terminal() && io::stdin().is_terminal() {
        return live::follow(options, &mut watched).await;
    }
    for _ in 0..options.count.unwrap_or(1) {
        watched.wait(options.every).await?;
        let found = watched.next().await?;
        if !print(&options.output.text(&found, |found| screen::text(found, ROWS))?)? {
            return Ok(());
        }
    }
    Ok(())
}
