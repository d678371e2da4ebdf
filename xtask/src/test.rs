//! `test`: all tests, none skipped.

use std::{ffi::OsString, os::unix::process::CommandExt as _};

use anyhow::{Context as _, Result};
use clap::Args;

use crate::{
    cargo::{Profile, build_agent, cargo},
    host, setup,
};

/// Options of `test`.
#[derive(Args)]
pub(crate) struct Options {
    /// Only tests whose names contain one of these
    #[arg(value_name = "FILTER")]
    filters: Vec<OsString>,
    /// Options of the test programs, such as `--nocapture`
    #[arg(last = true, value_name = "OPTION")]
    options: Vec<OsString>,
}

/// Becomes `cargo test`, so that its closing lines are the last.
pub(crate) fn run(options: &Options) -> Result<()> {
    host::require_root("test", "the tests load programs and make network namespaces")?;
    setup::ensure(setup::Scope::Kubernetes)?;
    let agent = build_agent(Profile::Dev)?;
    let mut cargo = cargo();
    // As a host crate flannel-ebpf is empty.
    cargo.args(["test", "--workspace", "--exclude", "flannel-ebpf", "--no-fail-fast", "--"]);
    cargo.args(&options.filters).args(&options.options);
    cargo.env("FLANNEL_AGENT_BIN", agent);
    // A test that cannot run here must fail: a skipped one looks like a passed one.
    cargo.env("FLANNEL_TEST_REQUIRE", "1");
    Err(cargo.exec()).context("cannot run cargo")
}
