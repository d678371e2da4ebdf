//! Pod to pod beside node to node: throughput, packet rate, CPU and latency of every dataplane, in one run.
//!
//! ```text
//! Scenario x Mode ─▶ Case ─▶ Subject ─ Workload ─▶ Figure, round after round ─▶ Report ─▶ table, JSON, chart, comparison
//! ```
//!
//! The cases take turns within each round, so that whatever else the machine does meets all of them; medians and spread
//! are reported, and ratios to the bare network and to the kernel's path with flannel's rules, which is what a node of
//! stock flannel is.

#![deny(clippy::print_stdout, clippy::print_stderr)]

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

pub use arguments::Arguments;
pub use compare::Comparison;
pub use mode::{Case, Mode};
pub use progress::Progress;
pub use report::{Report, Row};
pub use samples::Samples;
pub use scenario::Scenario;
pub use subject::Subject;
pub use surroundings::Surroundings;
pub use workload::{Figure, Workload};

use flannel_lab::requirements;

mod arguments;
pub mod budget;
mod chart;
mod compare;
mod connect;
pub mod control_plane;
mod flowtable;
mod iperf;
mod kubernetes;
mod mode;
mod ping_pong;
pub mod programs;
pub mod progress;
mod report;
mod samples;
pub mod scale;
mod scenario;
mod service;
pub mod services;
mod subject;
mod surroundings;
mod workload;

/// What a workload takes beyond its length: processes start and report.
const OVERHEAD: Duration = Duration::from_millis(400);
/// What building a subject takes.
const BUILD: Duration = Duration::from_secs(5);
/// What it takes with an API server.
const BUILD_KUBERNETES: Duration = Duration::from_secs(25);

/// What to measure, how often and how long.
#[derive(Clone, Debug)]
pub struct Options {
    /// Dataplanes to compare, each once.
    pub cases: Vec<Case>,
    /// What to measure of each.
    pub workloads: Vec<Workload>,
    /// How often each is measured.
    pub rounds: usize,
    /// Length of one measurement, seconds.
    pub seconds: u32,
    /// Whether a case that cannot be built ends the run; else the report names it.
    pub all_or_nothing: bool,
}

impl Options {
    /// Programs needed beyond the lab's own, with their Debian packages.
    pub const PROGRAMS: [(&'static str, &'static str); 2] = [("iperf3", "iperf3"), ("taskset", "util-linux")];

    /// How long it will take, roughly.
    pub fn estimate(&self) -> Duration {
        let one = Duration::from_secs(self.seconds.into()) + OVERHEAD;
        let all = self.rounds * self.workloads.len() * self.cases.len();
        let build = |case: &Case| if case.scenario.is_of_kubernetes() { BUILD_KUBERNETES } else { BUILD };
        one * u32::try_from(all).unwrap_or(u32::MAX) + self.cases.iter().map(build).sum::<Duration>()
    }
}

/// Builds a pair of nodes for each case, measures in turns, and reports. `progress` is told each step.
pub fn run(options: &Options, progress: impl Fn(&str)) -> Result<Report> {
    requirements::check(&Options::PROGRAMS)?;
    if options.cases.iter().any(|case| case.scenario.is_of_kubernetes()) {
        requirements::check_kubernetes()?;
    }
    ensure!(options.rounds > 0 && options.seconds > 0, "at least one round of one second");
    ensure!(!options.cases.is_empty() && !options.workloads.is_empty(), "nothing to measure");
    let mut report = Report::new(options)?;
    let mut subjects = Vec::new();
    for case in &options.cases {
        progress(&format!("building {case}"));
        match Subject::build(*case) {
            Ok(subject) => subjects.push(subject),
            Err(error) if options.all_or_nothing => return Err(error.context(format!("build {case}"))),
            Err(error) => report.leave_out(*case, &format!("{error:#}")),
        }
    }
    if subjects.is_empty() {
        bail!("no case could be built; the first: {}", report.first_left_out().unwrap_or_default());
    }
    let steps = options.rounds * options.workloads.len() * subjects.len();
    let begin = Instant::now();
    let mut done = 0u32;
    for round in 0..options.rounds {
        for workload in &options.workloads {
            for turn in 0..subjects.len() {
                // Each round begins with another case: no case always comes after the same one.
                let subject = &subjects[(turn + round) % subjects.len()];
                let left = match done {
                    0 => options.estimate(),
                    _ => begin.elapsed() / done * (u32::try_from(steps)? - done),
                };
                let (what, case) = (workload.figures()[0].title(), subject.case());
                progress(&format!(
                    "round {}/{}, {} left: {what} of {case}",
                    round + 1,
                    options.rounds,
                    minutes(left)
                ));
                let values =
                    workload.take(subject, options.seconds).with_context(|| format!("{what} of {case}"))?;
                for (figure, value) in workload.figures().iter().zip(values) {
                    report.add(case, *figure, value);
                }
                done += 1;
            }
        }
    }
    for subject in subjects {
        report.note_fast_share(subject.case(), subject.fast_share()?);
        if report.wants_programs(&subject) {
            progress("running the programs on packets of their own");
            report.note_programs(programs::cost(&subject).context("cost of the programs")?);
        }
        subject.close()?;
    }
    Ok(report)
}

/// A time for people.
pub fn minutes(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..100 => format!("{seconds} s"),
        seconds => format!("{} min", seconds.div_ceil(60)),
    }
}
