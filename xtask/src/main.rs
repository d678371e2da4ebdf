//! flannel-ebpf's development tasks. Each is a module; this file only chooses one.

#![deny(clippy::print_stdout, clippy::print_stderr)]

mod build_and_load;
mod build_ebpf;
mod cargo;
mod dist;
mod failure;
mod fuzz;
mod host;
mod lab;
mod old_kernel;
mod setup;
mod test;
mod ui;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about, disable_version_flag = true)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Find or install all that building, the demo and the tests need
    Setup(setup::Options),
    /// Compile the programs and show what the object holds
    BuildEbpf(build_ebpf::Options),
    /// Build the agent, load the programs through the verifier and pin them
    BuildAndLoad(build_and_load::Options),
    /// Bring up a cluster of three nodes in namespaces and show it at work
    Demo(lab::Options),
    /// Measure bare network, kernel VXLAN and ours side by side
    Bench(lab::Options),
    /// Start agents without a kernel beside one etcd, and reckon what more nodes cost
    Scale(lab::Options),
    /// Break a cluster of three nodes under traffic every few seconds, and measure what each fault costs
    Soak(lab::Options),
    /// Boot another release's kernel in an emulator and see which way packets between two nodes take
    OldKernel(old_kernel::Options),
    /// Boot Debian's kernels in an emulator, and make a table of what works how on each
    Kernels(old_kernel::MatrixOptions),
    /// Build what users download: tarballs, Debian packages and images, for each architecture
    Dist(dist::Options),
    /// Feed what is read from outside with whatever reaches new code
    Fuzz(fuzz::Options),
    /// Run all tests, as root and without skipping any
    Test(test::Options),
}

fn main() -> ExitCode {
    let done = match Cli::parse().task {
        Task::Setup(options) => setup::show(&options),
        Task::BuildEbpf(options) => build_ebpf::run(&options),
        Task::BuildAndLoad(options) => build_and_load::run(&options),
        Task::Demo(options) => lab::run("demo", &options),
        Task::Bench(options) => lab::run("bench", &options),
        Task::Scale(options) => lab::run_part("bench", "scale", &options),
        Task::Soak(options) => lab::run("soak", &options),
        Task::OldKernel(options) => old_kernel::run(&options),
        Task::Kernels(options) => old_kernel::run_matrix(&options),
        Task::Dist(options) => dist::run(&options),
        Task::Fuzz(options) => fuzz::run(&options),
        Task::Test(options) => test::run(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure::report(&error),
    }
}
