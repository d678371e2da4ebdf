//! `demo` and `bench`: the lab's own program shows and measures a cluster in namespaces.

use std::{ffi::OsString, os::unix::process::CommandExt as _, process::Command};

use anyhow::{Context as _, Result};
use clap::Args;
use flannel_ebpf_toolchain::workspace_root;

use crate::{
    cargo::{Profile, build},
    host, setup,
    ui::note,
};

/// How long the first build takes.
const FIRST_BUILD: &str = "about ten minutes on two CPUs";

/// What follows is the lab's to understand.
#[derive(Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Options {
    /// Options of the lab; `demo` knows `--keep`, `--down` and `--picture`, `--help` shows all
    #[arg(value_name = "OPTION", trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<OsString>,
}

/// Becomes the lab's program, so that its output and exit status are the task's.
pub(crate) fn run(task: &str, options: &Options) -> Result<()> {
    become_lab(task, None, options)
}

/// The same with a part of that program.
pub(crate) fn run_part(task: &str, part: &str, options: &Options) -> Result<()> {
    become_lab(task, Some(part), options)
}

fn become_lab(task: &str, part: Option<&str>, options: &Options) -> Result<()> {
    let asks_for_help = options.options.iter().any(|option| option == "--help" || option == "-h");
    if !asks_for_help {
        host::require_root(task, "its nodes and pods are network namespaces")?;
    }
    if !workspace_root().join("target/release").exists() {
        note(&format!("the first `cargo xtask {task}` downloads and compiles what it needs: {FIRST_BUILD}"));
    }
    setup::ensure(setup::Scope::Lab)?;
    let program = format!("flannel-{task}");
    // In one go with the agent, so that what both use is compiled once.
    let packages = ["--package", "flannel-agent", "--package", &program, "--bins"];
    let built = build(Profile::Release, &format!("the agent and the {task}"), &packages)?;
    let mut lab = Command::new(built.executable(&program)?);
    lab.args(part).args(&options.options);
    lab.env("FLANNEL_AGENT_BIN", built.executable("flannel-agent")?);
    Err(lab.exec()).with_context(|| format!("cannot run {program}"))
}
