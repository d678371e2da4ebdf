//! The demo and the benchmark, as `cargo xtask demo` and `cargo xtask bench` run them.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand, ValueEnum};
use flannel_tests::{
    bench,
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
    Bench(Box<bench::Arguments>),
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
        Command::Bench(arguments) => arguments.run(&progress),
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
