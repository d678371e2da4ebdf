//! `cargo xtask bench`: measures pod to pod beside node to node.

#![deny(clippy::print_stdout, clippy::print_stderr)]

use std::process::ExitCode;

use clap::Parser;
use flannel_bench::{Arguments, Progress};
use flannel_lab::signals;

/// Measure pod to pod beside node to node, each dataplane in network namespaces of its own. Needs root.
#[derive(Parser)]
#[command(name = "cargo xtask bench", bin_name = "cargo xtask bench", version)]
struct Cli {
    #[command(flatten)]
    arguments: Arguments,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    signals::run(|| cli.arguments.run(&Progress::new()))
}
