//! `cargo xtask demo`: a cluster of three nodes on one machine, and what it does.

#![deny(clippy::print_stdout, clippy::print_stderr)]

mod demo;
mod enter;
mod picture;
mod tables;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Parser, ValueEnum};
use flannel_bench::Progress;
use flannel_lab::signals;

/// Bring up etcd and three nodes with an agent and two pods each; show what they do. Needs root; touches nothing
/// outside network namespaces of its own.
#[derive(Parser)]
#[command(name = "cargo xtask demo", bin_name = "cargo xtask demo", version)]
struct Cli {
    /// Leave it up, and say how to enter it
    #[arg(long, conflicts_with = "down")]
    keep: bool,
    /// Remove every trace of it, also of one that was killed
    #[arg(long)]
    down: bool,
    /// Instead, draw what `status`, `peers` and `top` show of a node into this file, as SVG
    #[arg(long, value_name = "FILE", conflicts_with_all = ["keep", "down"])]
    picture: Option<PathBuf>,
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
    let progress = Progress::new();
    if let Some(file) = &cli.picture {
        return picture::draw(file, &progress);
    }
    if cli.down { demo::down(&progress) } else { demo::run(cli.keep, cli.output == Output::Json, &progress) }
}
