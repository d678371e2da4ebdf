//! `bench` on the command line.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand, ValueEnum};
use flannel_lab::output::{print, say};

use super::{
    Case, Comparison, Mode, Options, Report, Scenario, Workload, control_plane, minutes, programs, report,
    scale, services,
};
use crate::Progress;

/// What to measure, and where the figures go.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Arguments {
    #[command(subcommand)]
    part: Option<Part>,
    /// Ways packets travel [default: all but those of Kubernetes, whose API servers take CPU beside what is measured;
    /// quick: vxlan]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "SCENARIO")]
    scenarios: Vec<Scenario>,
    /// Dataplanes to compare [default: by scenario, bare, bare-rules, kernel-rules, flow, with kubernetes all, with
    /// vxlan overlay and all]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "MODE")]
    modes: Vec<Mode>,
    /// What to send [default: everything; quick: tcp, udp64 and the ping-pongs on one CPU]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "WORKLOAD")]
    workloads: Vec<Workload>,
    /// How often everything is measured [default: 5; quick: 3]
    #[arg(long)]
    rounds: Option<usize>,
    /// Length of one measurement, seconds
    #[arg(long, default_value_t = 1)]
    seconds: u32,
    /// A first impression in two minutes
    #[arg(long)]
    quick: bool,
    /// Also write the figures as a picture to this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Also show what has changed since the run that wrote this file
    #[arg(long, value_name = "OLD.JSON")]
    compare: Option<PathBuf>,
    #[command(flatten)]
    to: To,
}

/// Where figures go.
#[derive(Args, Debug)]
struct To {
    /// Also write the figures, with every sample, to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How to print the figures
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Subcommand, Debug)]
enum Part {
    /// How fast leases become usable, and what the agent takes for it
    ControlPlane {
        /// Numbers of leases
        #[arg(long, value_delimiter = ',', default_values_t = [1_000, 5_000, 10_000])]
        leases: Vec<u32>,
        /// Changes made one by one
        #[arg(long, default_value_t = 150)]
        changes: u32,
        /// Changes a second, for the measurement under changes
        #[arg(long, default_value_t = 100)]
        rate: u32,
        /// Length of the measurements at rest and under changes, seconds
        #[arg(long, default_value_t = 10)]
        seconds: u32,
        #[command(flatten)]
        to: To,
    },
    /// Services, pods of one node, pods to the outside and short connections, each beside what else there is and its goal
    Services {
        /// How often everything is measured
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        /// Length of one measurement, seconds
        #[arg(long, default_value_t = 1)]
        seconds: u32,
        #[command(flatten)]
        to: To,
    },
    /// How many nodes one etcd bears: agents without a kernel, and a model of more
    Scale {
        /// Numbers of nodes
        #[arg(long, value_delimiter = ',', default_values_t = [125, 250, 500])]
        nodes: Vec<u32>,
        /// Changes made one by one
        #[arg(long, default_value_t = 50)]
        changes: u32,
        /// Length of the measurement at rest, seconds
        #[arg(long, default_value_t = 10)]
        seconds: u32,
        #[command(flatten)]
        to: To,
    },
    /// What each program costs a packet
    Programs {
        /// Also write it to the budget file that a test holds the programs to
        #[arg(long, value_name = "FILE")]
        write_budget: Option<PathBuf>,
        #[command(flatten)]
        to: To,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    Table,
    /// For programs
    Json,
}

impl Arguments {
    /// Measures, and shows what was found.
    pub fn run(self, progress: &Progress) -> Result<()> {
        match self.part {
            None => self.dataplane(progress),
            Some(Part::ControlPlane { leases, changes, rate, seconds, to }) => {
                let options = control_plane::Options { leases, changes, rate, seconds };
                let report = progress.follow("measuring", |now| control_plane::run(&options, now))?;
                to.put(&report, &report.to_json())
            }
            Some(Part::Services { rounds, seconds, to }) => {
                let report = measure(&services::options(rounds, seconds), progress)?;
                let goals = services::Goals::of(&report);
                let mut json = report.to_json();
                json["goals"] = serde_json::to_value(goals.all())?;
                to.put(&format!("{report}\n{goals}"), &json)
            }
            Some(Part::Scale { nodes, changes, seconds, to }) => {
                let options = scale::Options { nodes, changes, seconds };
                let report = progress.follow("measuring", |now| scale::run(&options, now))?;
                to.put(&report, &report.to_json())
            }
            Some(Part::Programs { write_budget, to }) => {
                let costs = progress.step("running the programs", programs::run)?;
                if let Some(path) = write_budget {
                    crate::budget::Budget::of(&costs).write(&path)?;
                }
                to.put(&report::programs_table(&costs), &serde_json::to_value(&costs)?)
            }
        }
    }

    fn dataplane(self, progress: &Progress) -> Result<()> {
        let report = measure(&self.options(), progress)?;
        // Before anything can fail that is not the measurement.
        self.to.put(&report, &report.to_json())?;
        if let Some(path) = &self.svg {
            fs::write(path, report.to_svg()).with_context(|| format!("write {}", path.display()))?;
        }
        if let Some(path) = &self.compare {
            print(&format!("{}\n", Comparison::with(&report, path)?))?;
        }
        Ok(())
    }

    fn options(&self) -> Options {
        let or = |given: &[Workload], usual: &[Workload]| {
            if given.is_empty() { usual.to_vec() } else { given.to_vec() }
        };
        let scenarios = match (&*self.scenarios, self.quick) {
            ([], true) => vec![Scenario::Vxlan],
            ([], false) => Scenario::USUAL.to_vec(),
            (given, _) => given.to_vec(),
        };
        let quick = [Mode::Bare, Mode::BareRules, Mode::KernelRules, Mode::Flow];
        let mut cases = Vec::new();
        for scenario in scenarios {
            let modes = match (&*self.modes, self.quick) {
                ([], true) => &quick[..],
                ([], false) => scenario.usual_modes(),
                (given, _) => given,
            };
            cases.extend(modes.iter().map(|mode| Case::new(scenario, *mode)));
        }
        cases.sort();
        cases.dedup();
        let all: &[Workload] = if self.quick { &Workload::QUICK } else { &Workload::EACH };
        Options {
            cases,
            workloads: or(&self.workloads, all),
            rounds: self.rounds.unwrap_or(if self.quick { 3 } else { 5 }),
            seconds: self.seconds,
            all_or_nothing: !self.scenarios.is_empty(),
        }
    }
}

fn measure(options: &Options, progress: &Progress) -> Result<Report> {
    let (cases, workloads) = (options.cases.len(), options.workloads.len());
    say(format_args!(
        "{cases} dataplanes, {workloads} workloads, {} rounds: about {}",
        options.rounds,
        minutes(options.estimate())
    ));
    progress.follow("measuring", |now| super::run(options, now))
}

impl To {
    fn put(&self, text: &dyn std::fmt::Display, json: &serde_json::Value) -> Result<()> {
        match self.output {
            Output::Table => print(&format!("{text}\n"))?,
            Output::Json => print(&format!("{json:#}\n"))?,
        };
        if let Some(path) = &self.json {
            fs::write(path, format!("{json:#}\n")).with_context(|| format!("write {}", path.display()))?;
        }
        Ok(())
    }
}
