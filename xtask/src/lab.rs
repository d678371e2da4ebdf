//! `demo` and `bench`: the lab's own program shows and measures a cluster in namespaces.

use std::{ffi::OsString, os::unix::process::CommandExt as _};

use anyhow::{Context as _, Result};
use clap::Args;

use crate::{
    cargo::{Profile, build_agent, cargo},
    host, setup,
};

/// What follows is the lab's to understand.
#[derive(Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Options {
    /// Options of the lab; `demo` knows `--keep` and `--down`, `--help` shows all
    #[arg(value_name = "OPTION", trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<OsString>,
}

/// Becomes the lab.
pub(crate) fn run(task: &str, options: &Options) -> Result<()> {
    let asks_for_help = options.options.iter().any(|option| option == "--help" || option == "-h");
    let mut lab = cargo();
    let package = format!("flannel-{task}");
    lab.args(["run", "--release", "--package", &package, "--"]);
    lab.args(&options.options);
    if !asks_for_help {
        host::require_root(task, "its nodes and pods are network namespaces")?;
    }
    setup::ensure(setup::Scope::Lab)?;
    lab.env("FLANNEL_AGENT_BIN", build_agent(Profile::Release)?);
    Err(lab.exec()).context("cannot run cargo")
}
