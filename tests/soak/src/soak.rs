//! Faults, one after the other, until the time is over or one costs more than it may.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use flannel_lab::{
    AgentOptions, Cluster, FastPath, Lab, command::last_lines, eventually, output::say, requirements,
};

use crate::{
    fault::Fault,
    measure::Usage,
    report::{Report, Row},
    schedule::Schedule,
    traffic::{Lasting, Round, short},
};

/// How long traffic runs before and after a fault.
const AROUND: Duration = Duration::from_secs(1);
/// How long everything may take to be as before.
const REPAIR: Duration = Duration::from_secs(60);

/// Draws faults from `schedule` for as long as `time`, and then, where one failed, looks for the shortest that fails.
pub(crate) fn run(schedule: Schedule, time: Duration) -> Result<Report> {
    requirements::check(&[])?;
    let seed = schedule.seed;
    let (mut report, done) = attempt(schedule, Some(time))?;
    report.seed = seed;
    if report.failed() {
        report.shortest = shortest(&done)?;
    }
    Ok(report)
}

/// A cluster of its own, and each fault of `schedule` in it.
fn attempt(schedule: impl Iterator<Item = Fault>, time: Option<Duration>) -> Result<(Report, Vec<Fault>)> {
    let lab = Lab::new()?;
    let options = AgentOptions::new(FastPath::Flow, &["--ip-masq", "--flow-refresh=3"]);
    let mut cluster = Cluster::start_v6(&lab, 3, options, |etcd| etcd.configure_dual("vxlan"))?;
    let mut lasting = Lasting::open(&cluster)?;
    let (start, mut report, mut done) = (Instant::now(), Report::default(), Vec::new());
    for (round, fault) in schedule.enumerate() {
        if time.is_some_and(|time| start.elapsed() >= time) {
            break;
        }
        say(format_args!("{:>5} s  {fault}", start.elapsed().as_secs()));
        done.push(fault);
        let row = one(&lab, &mut cluster, &mut lasting, fault, round)
            .with_context(|| format!("round {round}, {fault}"));
        let row = row.unwrap_or_else(|error| Row::broken(fault, format!("{error:#}")));
        let failure = row.failure.clone();
        report.rows.push(row);
        if let Some(failure) = failure {
            say(format_args!("--- {fault}: {failure}"));
            for member in &cluster.members {
                say(format_args!(
                    "--- log of {}\n{}",
                    member.node.name(),
                    last_lines(&member.agent.log(), 15)
                ));
            }
            return Ok((report, done));
        }
    }
    lasting.close().context("closing the connections that lasted")?;
    drop(cluster);
    lab.close()?;
    Ok((report, done))
}

/// Traffic, `fault` in the middle of it, and what it cost.
fn one(lab: &Lab, cluster: &mut Cluster, lasting: &mut Lasting, fault: Fault, round: usize) -> Result<Row> {
    let traffic = Round::start(cluster)?;
    sleep(AROUND);
    let lasted = fault.befall(lab, cluster, round)?;
    let since = Instant::now();
    eventually(REPAIR, "all pods reach each other", || {
        cluster.await_reachable(&[])?;
        cluster.await_reachable_v6(&[])
    })?;
    let repaired = since.elapsed();
    sleep(AROUND);
    let outcome = traffic.stop()?;
    lasting.go_on()?;
    let ends = (cluster.members[round % 3].pod()?, cluster.members[(round + 1) % 3].pod()?);
    short(&ends.0, &ends.1).context("short flows afterwards")?;
    for member in &mut cluster.members {
        member.agent.check_running()?;
    }
    Ok(Row::new(fault, lasted, repaired, &outcome, Usage::read(cluster)?))
}

/// The shortest end of `done` that fails in a cluster of its own; none where only all of it does, or nothing again.
fn shortest(done: &[Fault]) -> Result<Vec<Fault>> {
    let mut length = 1;
    while length < done.len() {
        let end = &done[done.len() - length..];
        say(format_args!("again, with the last {length} only"));
        if attempt(end.iter().copied(), None)?.0.failed() {
            return Ok(end.to_vec());
        }
        length *= 2;
    }
    Ok(Vec::new())
}
