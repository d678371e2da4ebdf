//! The demo and the benchmark, as `cargo xtask demo` and `cargo xtask bench` run them.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand, ValueEnum};
use flannel_tests::{
    bench::{self, Measure, Mode},
    demo::{self, Progress},
    lab,
};

/// Clusters in network namespaces: look at one, or measure it. Needs root; touches nothing outside
/// namespaces of its own.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Bring up etcd and three nodes with an agent and two pods each; show what they do
    Demo {
        /// Leave it up, and say how to enter it
        #[arg(long, conflicts_with = "down")]
        keep: bool,
        /// Remove every trace of it, also of one that was killed
        #[arg(long)]
        down: bool,
        /// How to print what was found
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Measure pod to pod beside node to node
    Bench {
        /// How often everything is measured
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        /// Length of one measurement, seconds
        #[arg(long, default_value_t = 3)]
        seconds: u32,
        /// Dataplanes to compare
        #[arg(long, value_enum, value_delimiter = ',', default_values_t = Mode::EACH)]
        modes: Vec<Mode>,
        /// What to measure
        #[arg(long, value_enum, value_delimiter = ',', default_values_t = Measure::EACH)]
        measures: Vec<Measure>,
        /// Also write the figures, with every sample, to this file
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        /// How to print the figures
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
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
    if let Err(error) = clean_up_on_signals().and_then(|()| run(cli.command)) {
        eprintln!("error: {error:#}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn run(command: Command) -> Result<()> {
    let progress = Progress::new();
    match command {
        Command::Demo { down: true, .. } => demo::down(&progress),
        Command::Demo { keep, output, .. } => demo::run(keep, output == Output::Json, &progress),
        Command::Bench { rounds, seconds, modes, measures, json, output } => {
            let options = bench::Options { modes, measures, rounds, seconds };
            let report = progress.follow("measuring", |now| bench::run(&options, now))?;
            match output {
                Output::Table => print!("{report}"),
                Output::Json => println!("{:#}", report.to_json()),
            }
            if let Some(path) = json {
                std::fs::write(&path, format!("{:#}\n", report.to_json()))
                    .with_context(|| format!("write {}", path.display()))?;
            }
            Ok(())
        }
    }
}

/// On SIGINT, SIGTERM and SIGHUP removes what this process has made, then ends it.
fn clean_up_on_signals() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};

    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("signal runtime")?;
    let (mut interrupt, mut terminate, mut hang_up) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?)
    };
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                    _ = hang_up.recv() => {}
                }
            });
            eprintln!("interrupted: removing what was built");
            lab::abandon();
            std::process::exit(130);
        })
        .context("signal thread")?;
    Ok(())
}
