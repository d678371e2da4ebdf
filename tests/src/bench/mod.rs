//! Pod to pod beside node to node: throughput, packet rate and latency of every dataplane, in one run.
//!
//! The modes take turns within each round, so that whatever else the machine does meets all of them;
//! medians and spread are reported, and ratios to the bare network and to the kernel's VXLAN with
//! flannel's rules, which is what a node of stock flannel is.

use anyhow::{Context as _, Result, ensure};

pub use measure::Measure;
pub use mode::{Mode, Subject};
pub use report::{Report, Row};

use crate::requirements;

mod iperf;
mod measure;
mod mode;
mod report;
mod sockperf;
mod surroundings;

pub use surroundings::Surroundings;

/// What to measure, how often and how long.
#[derive(Clone, Debug)]
pub struct Options {
    /// Dataplanes to compare.
    pub modes: Vec<Mode>,
    /// What to measure of each.
    pub measures: Vec<Measure>,
    /// How often each is measured.
    pub rounds: usize,
    /// Length of one measurement, seconds.
    pub seconds: u32,
}

impl Options {
    /// Programs needed beyond the lab's own, with their Debian packages.
    pub const PROGRAMS: [(&'static str, &'static str); 3] =
        [("iperf3", "iperf3"), ("sockperf", "sockperf"), ("taskset", "util-linux")];
}

/// Builds a pair of nodes for each mode, measures in turns, and reports. `progress` is told each step.
pub fn run(options: &Options, progress: impl Fn(&str)) -> Result<Report> {
    requirements::check(&Options::PROGRAMS)?;
    ensure!(options.rounds > 0 && options.seconds > 0, "at least one round of one second");
    ensure!(!options.modes.is_empty() && !options.measures.is_empty(), "nothing to measure");
    let mut subjects = Vec::new();
    for mode in &options.modes {
        progress(&format!("building {}", mode.name()));
        subjects.push(Subject::build(*mode).with_context(|| format!("build {}", mode.name()))?);
    }
    let mut report = Report::new(options)?;
    for round in 0..options.rounds {
        for measure in &options.measures {
            for turn in 0..subjects.len() {
                // Each round begins with another mode: no mode always comes after the same one.
                let subject = &subjects[(turn + round) % subjects.len()];
                let name = subject.mode().name();
                progress(&format!("round {}/{}: {} of {name}", round + 1, options.rounds, measure.title()));
                let value = measure
                    .take(subject, options.seconds)
                    .with_context(|| format!("{} of {name}", measure.title()))?;
                report.add(subject.mode(), *measure, value);
            }
        }
    }
    for subject in subjects {
        report.note_fast_share(subject.mode(), subject.fast_share()?);
        subject.close()?;
    }
    Ok(report)
}
