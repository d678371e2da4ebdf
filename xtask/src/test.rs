//! `test`: all tests, none skipped, by cargo-nextest; the slowest at the end.

use std::{ffi::OsString, fs, thread};

use anyhow::{Context as _, Result};
use clap::Args;
use flannel_ebpf_toolchain::workspace_root;

use crate::{
    cargo::{Profile, at_root, build},
    failure::said,
    host, setup,
    ui::say,
};

/// Where the tests are. As a host crate flannel-ebpf is empty.
const PACKAGES: [&str; 3] = ["--workspace", "--exclude", "flannel-ebpf"];

/// The programs of the agent's package, which tests run.
const AGENTS: [&str; 3] = ["flannel-agent", "flannel", "install-conf"];

/// How many of the slowest tests are shown.
const SLOWEST: usize = 15;

/// Tests at a time on one CPU, and on any machine: those of the lab mostly wait.
const AT_A_TIME: (usize, usize) = (2, 5);

/// Options of `test`.
#[derive(Args)]
pub(crate) struct Options {
    /// Only tests whose names contain one of these
    #[arg(value_name = "FILTER")]
    filters: Vec<OsString>,
    /// Options of `cargo nextest run`, such as `--no-capture` or `--test-threads=1`
    #[arg(last = true, value_name = "OPTION")]
    options: Vec<OsString>,
}

/// Builds the agent and the tests, and runs them.
pub(crate) fn run(options: &Options) -> Result<()> {
    host::require_root("test", "the tests load programs and make network namespaces")?;
    setup::ensure(setup::Scope::Kubernetes)?;
    let runner = setup::test_runner()?;
    // In one go, so that what both use is compiled once.
    let programs = AGENTS.map(|program| ["--bin", program]).concat();
    let built =
        build(Profile::Dev, "the agent and the tests", &[&PACKAGES[..], &["--tests"], &programs].concat())?;
    let report = workspace_root().join("target/nextest/default/junit.xml");
    // So that it is this run's that is read.
    let _ = fs::remove_file(&report);
    let mut nextest = at_root(&runner);
    nextest.args(["nextest", "run", "--no-tests=fail"]).args(PACKAGES);
    if !options.options.iter().any(|option| option.to_string_lossy().starts_with("--test-threads")) {
        let cpus = thread::available_parallelism().map_or(1, usize::from);
        nextest.arg(format!("--test-threads={}", (cpus * AT_A_TIME.0).max(AT_A_TIME.1)));
    }
    nextest.args(&options.options).args(&options.filters);
    nextest.env("FLANNEL_AGENT_BIN", built.executable("flannel-agent")?);
    // A test that cannot run here must fail: a skipped one looks like a passed one.
    nextest.env("FLANNEL_TEST_REQUIRE", "1");
    let status = nextest.status().with_context(|| format!("cannot run {}", runner.display()))?;
    if let Ok(report) = fs::read_to_string(&report) {
        say(slowest(&report).trim_end());
    }
    if status.success() { Ok(()) } else { Err(said(status)) }
}

/// The slowest tests of a report of JUnit's, for people.
fn slowest(report: &str) -> String {
    let mut tests: Vec<(f64, &str, &str)> = report.split("<testcase ").skip(1).filter_map(test).collect();
    tests.sort_by(|a, b| b.0.total_cmp(&a.0));
    let lines =
        tests.iter().take(SLOWEST).map(|(time, program, name)| format!("{time:>8.1} s  {program} {name}\n"));
    let lines: String = lines.collect();
    if lines.is_empty() { lines } else { format!("The slowest tests:\n{lines}") }
}

/// Seconds, program and name of one.
fn test(case: &str) -> Option<(f64, &str, &str)> {
    let attribute = |name: &str| -> Option<&str> {
        let (_, value) = case.split_once(&format!("{name}=\""))?;
        value.split_once('"').map(|(value, _)| value)
    };
    // `name` ends `classname`, which comes after it.
    Some((
        attribute(" time")?.parse().ok()?,
        attribute("classname")?,
        case.strip_prefix("name=\"")?.split_once('"')?.0,
    ))
}

#[cfg(test)]
mod tests {
    use super::slowest;

    #[test]
    fn the_slowest_come_first() {
        let case = |name: &str, time: &str| {
            format!(
                r#"<testcase name="{name}" classname="flannel-tests::flow" timestamp="2026-01-01T00:00:00" time="{time}"></testcase>"#
            )
        };
        let report =
            ["<testsuites time=\"9\">".to_owned(), case("a::b", "0.5"), case("c::d", "12.25")].concat();
        let shown = slowest(&report);
        let lines: Vec<&str> = shown.lines().skip(1).map(str::trim).collect();
        assert_eq!(lines, ["12.2 s  flannel-tests::flow c::d", "0.5 s  flannel-tests::flow a::b"]);
        assert_eq!(slowest("<testsuites/>"), "");
    }
}
