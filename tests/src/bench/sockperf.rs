//! sockperf: one small message to and fro between two processes. With both on one CPU no wake-up crosses
//! CPUs, and what is left beside the processes' own work is the cost of the path.

use std::time::Duration;

use anyhow::{Context as _, Result};

use super::surroundings::{Cpus, await_socket};
use crate::{
    command::{Daemon, run_with},
    traffic::Endpoint,
};

/// Port of the server, sockperf's own default.
const PORT: u16 = 11_111;

/// Time beyond the measurement that a client may take: it warms up, and reports.
const SLACK: Duration = Duration::from_secs(15);

/// Microseconds one way over TCP.
pub(super) fn tcp(client: &Endpoint, server: &Endpoint, seconds: u32, cpus: Cpus) -> Result<f64> {
    run(client, server, seconds, cpus, &["--tcp"])
}

/// Microseconds one way over UDP.
pub(super) fn udp(client: &Endpoint, server: &Endpoint, seconds: u32, cpus: Cpus) -> Result<f64> {
    run(client, server, seconds, cpus, &[])
}

fn run(client: &Endpoint, server: &Endpoint, seconds: u32, cpus: Cpus, flags: &[&str]) -> Result<f64> {
    let cpu = cpus.first.to_string();
    let (address, port) = (server.address().to_string(), PORT.to_string());
    let log = tempfile::NamedTempFile::new().context("log of sockperf")?;
    let mut serve = server.netns().command("taskset");
    serve.args(["-c", &cpu, "sockperf", "server", "-i", &address, "-p", &port]).args(flags);
    let mut listener = Daemon::spawn(&mut serve, log.path())?;
    let table = if flags.is_empty() { "udp" } else { "tcp" };
    await_socket(server, table, PORT, &mut listener)?;
    let mut command = client.netns().command("taskset");
    command.args(["-c", &cpu, "sockperf", "ping-pong", "-i", &address, "-p", &port]).args(flags);
    command.args(["-m", "64", "-t", &seconds.to_string()]);
    let report = run_with(&mut command, "", Duration::from_secs(seconds.into()) + SLACK)?;
    latency(&report).with_context(|| format!("no latency in {report:?}"))
}

/// The figure of the line `Summary: Latency is 4.306 usec`.
fn latency(report: &str) -> Option<f64> {
    let (_, rest) = report.split_once("Latency is ")?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_summary() {
        let report =
            "sockperf: ====> avg-latency=4.306 (std-dev=5.072)\nsockperf: Summary: Latency is 4.306 usec\n";
        assert_eq!(latency(report), Some(4.306));
        assert_eq!(latency("sockperf: No messages were received"), None);
    }
}
