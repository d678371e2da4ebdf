//! `status`: how this node stands, on one screen.

use clap::Args;
use serde::Serialize;

use super::{
    Defaults, Health, Place,
    look::Look,
    output::{Watch, run as run_inquiry, show},
};
use crate::{
    bpf::MapFill,
    control::snapshot::{self, Snapshot},
    inspect::{
        peers::{State, join, nodes},
        standing::{Problem, problems},
    },
};

mod screen;

/// Options of `status`.
#[derive(Debug, Args)]
pub struct StatusOptions {
    /// Which agent.
    #[command(flatten)]
    pub at: Place,
    /// Whether to go on.
    #[command(flatten)]
    pub watch: Watch,
}

/// What was found.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// `healthy`, `something is wrong`, or `no agent`.
    verdict: &'static str,
    /// What is wrong.
    problems: Vec<Problem>,
    /// Why the agent says nothing.
    without_agent: Option<String>,
    /// What it says.
    agent: Option<Snapshot>,
    /// The programs that are attached; by name and interface.
    programs: Vec<Attached>,
    /// How full the maps are.
    maps: Vec<MapFill>,
    /// Why the maps cannot be read.
    without_maps: Option<String>,
    /// Seconds for which the programs go on without an agent; absent for ever, or without programs.
    hold_seconds: Option<u64>,
    /// Without an agent: peers that the kernel and the maps know, and how many of them differ.
    known_peers: Option<[usize; 2]>,
}

/// A program and where it is.
#[derive(Debug, Serialize)]
struct Attached {
    /// Its name.
    program: String,
    /// The interface.
    interface: String,
}

/// Prints it.
///
/// # Errors
/// When it cannot be looked.
pub fn run(options: &StatusOptions, defaults: &Defaults) -> anyhow::Result<Health> {
    run_inquiry(show(
        options.at.output,
        options.watch,
        async || look(options, defaults).await,
        |report| screen::render(report, snapshot::now()),
    ))
}

async fn look(options: &StatusOptions, defaults: &Defaults) -> anyhow::Result<(Report, Health)> {
    let found = Look::at(&options.at, defaults, false).await?;
    let of_node = found.of_node(&found.surroundings().await?);
    let without_agent = found.without_agent();
    let Look { agent, kernel, maps, without_maps, .. } = found;
    let agent = agent.ok();
    let programs = match agent.as_ref().and_then(|agent| agent.dataplane.as_ref()) {
        Some(dataplane) => dataplane
            .programs
            .iter()
            .map(|program| Attached {
                program: program.name.clone(),
                interface: kernel.name(program.ifindex),
            })
            .collect(),
        None => maps
            .iter()
            .flat_map(|maps| &maps.pinned)
            .map(|(interface, hook)| Attached {
                program: hook.program().to_owned(),
                interface: interface.clone(),
            })
            .collect(),
    };
    let mut problems =
        agent.as_ref().map(|agent| problems(agent, maps.as_ref(), snapshot::now())).unwrap_or_default();
    problems.extend(of_node.into_iter().filter_map(Problem::of_finding));
    let known_peers = agent.is_none().then(|| {
        let rows = join(None, None, &kernel, maps.as_ref());
        [nodes(&rows), nodes(rows.iter().filter(|row| row.state != State::InPlace))]
    });
    let (verdict, health) = match (&agent, problems.is_empty()) {
        (None, _) => ("no agent", Health::Unseen),
        (Some(_), true) => ("healthy", Health::Good),
        (Some(_), false) => ("something is wrong", Health::Wrong),
    };
    let hold_seconds = maps.as_ref().and_then(|maps| maps.hold).map(|hold| hold.as_secs());
    let report = Report {
        verdict,
        problems,
        without_agent,
        agent,
        programs,
        maps: maps.map(|maps| maps.fill).unwrap_or_default(),
        without_maps,
        hold_seconds,
        known_peers,
    };
    Ok((report, health))
}
