//! `cargo xtask soak`: a cluster of three nodes under traffic, and faults drawn from a seed, one after the other.
//!
//! ```text
//! seed ─▶ schedule ─▶ each fault: traffic starts, fault, repair, traffic ends ─▶ round ─▶ table, or JSON
//! ```

#![deny(clippy::print_stdout, clippy::print_stderr)]

mod fault;
mod measure;
mod report;
mod schedule;
mod soak;
mod traffic;

use std::{process::ExitCode, time::Duration};

use anyhow::Result;
use clap::{Parser, ValueEnum};
use flannel_lab::{
    output::{print, say},
    signals,
};

/// Run three nodes under traffic, break something every few seconds, and measure what each fault costs. Needs root; touches
/// nothing outside network namespaces of its own.
#[derive(Parser)]
#[command(name = "cargo xtask soak", bin_name = "cargo xtask soak", version)]
struct Cli {
    /// How long faults go on, minutes
    #[arg(long, default_value_t = 5)]
    minutes: u64,
    /// Which faults in which order; any number unless given, which is printed
    #[arg(long)]
    seed: Option<u64>,
    /// Only faults of this kind; repeatable
    #[arg(long = "fault", value_name = "KIND", value_enum)]
    faults: Vec<fault::Kind>,
    /// How to print what was found
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    Table,
    /// For programs
    Json,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    signals::run(|| run(&cli))
}

fn run(cli: &Cli) -> Result<()> {
    let seed = cli.seed.unwrap_or_else(|| rand::random::<u32>().into());
    say(format_args!("seed {seed}"));
    let schedule = schedule::Schedule::new(seed, &cli.faults);
    let report = soak::run(schedule, Duration::from_secs(cli.minutes * 60))?;
    match cli.output {
        Output::Table => print(&report.table().to_string())?,
        Output::Json => print(&format!("{:#}\n", report.json()))?,
    };
    report.check()
}
