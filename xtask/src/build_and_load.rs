//! `build-and-load`: build the agent and let it load the programs it carries.

use std::{
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};

use crate::{
    cargo::{Profile, build_agent},
    host, setup,
};

/// Options of `build-and-load`, handed on to the agent's `bpf load` and `bpf unload`.
#[derive(Args)]
pub(crate) struct Options {
    /// Where the BPF file system is mounted under which programs and maps are pinned
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf")]
    bpffs: PathBuf,
    /// Network namespace of the interface, or of those to detach from, by its name in /run/netns
    #[arg(long, value_name = "NAME")]
    netns: Option<String>,
    /// Interface to attach to; without one the programs are only loaded and pinned
    #[arg(long, value_name = "NAME", requires = "programs")]
    interface: Option<String>,
    /// Program to attach; repeatable
    #[arg(long = "program", value_name = "NAME", requires = "interface")]
    programs: Vec<String>,
    /// By what it is attached
    #[arg(long, value_name = "WAY", value_enum, default_value_t = TcAttach::Auto)]
    tc_attach: TcAttach,
    /// What the programs may log
    #[arg(long, value_name = "LEVEL", value_enum, default_value_t = BpfLog::Off)]
    bpf_log: BpfLog,
    /// How to print what was loaded
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Detach and unpin instead
    #[arg(long, conflicts_with_all = ["interface", "programs", "tc_attach", "bpf_log"])]
    unload: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum BpfLog {
    Off,
    Warn,
    Debug,
}

#[derive(Clone, Copy, ValueEnum)]
enum TcAttach {
    Auto,
    Tcx,
    Clsact,
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    Table,
    Json,
}

/// Becomes the agent, so that its output and exit status are the task's.
pub(crate) fn run(options: &Options) -> Result<()> {
    host::require_root("build-and-load", "loading programs into the kernel is root's")?;
    setup::ensure(setup::Scope::Build)?;
    let agent = build_agent(Profile::Release)?;
    let error = command(&agent, options).exec();
    Err(error).with_context(|| format!("cannot run {}", agent.display()))
}

fn command(agent: &Path, options: &Options) -> Command {
    let mut command = Command::new(agent);
    command.args(["bpf", if options.unload { "unload" } else { "load" }]);
    command.arg("--bpffs").arg(&options.bpffs).args(["--output", name(options.output).as_str()]);
    command.args(options.netns.iter().flat_map(|netns| ["--netns", netns]));
    if options.unload {
        return command;
    }
    command.args(["--bpf-log", name(options.bpf_log).as_str()]);
    command.args(["--tc-attach", name(options.tc_attach).as_str()]);
    command.args(options.interface.iter().flat_map(|interface| ["--interface", interface]));
    command.args(options.programs.iter().flat_map(|program| ["--program", program]));
    command
}

/// The value as it is typed.
fn name(value: impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}
