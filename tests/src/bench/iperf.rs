//! iperf3: the throughput and packet rate people compare with.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::surroundings::Cpus;
use crate::{
    command::{Daemon, run_with},
    traffic::Endpoint,
    wait::eventually,
};

/// Time beyond the measurement that a client may take to connect and to report.
const SLACK: Duration = Duration::from_secs(15);

/// Gbit/s of one TCP stream, as received.
pub(super) fn tcp(client: &Endpoint, server: &Endpoint, seconds: u32, cpus: Cpus) -> Result<f64> {
    let report = run(client, server, seconds, cpus, &[])?;
    let rate = &report["end"]["sum_received"]["bits_per_second"];
    Ok(rate.as_f64().with_context(|| format!("no rate in {report}"))? / 1e9)
}

/// Thousands of 64-byte datagrams per second, as received.
pub(super) fn udp(client: &Endpoint, server: &Endpoint, seconds: u32, cpus: Cpus) -> Result<f64> {
    let report = run(client, server, seconds, cpus, &["-u", "-l", "64", "-b", "0"])?;
    let sum = &report["end"]["sum"];
    let field = |name: &str| sum[name].as_f64().with_context(|| format!("no {name} in {sum}"));
    Ok((field("packets")? - field("lost_packets")?) / field("seconds")? / 1e3)
}

fn run(client: &Endpoint, server: &Endpoint, seconds: u32, cpus: Cpus, flags: &[&str]) -> Result<Value> {
    let address = server.address().to_string();
    let log = tempfile::NamedTempFile::new().context("log of iperf3")?;
    let mut listen = server.netns().command("taskset");
    listen.args(["-c", &cpus.second.to_string(), "iperf3", "-s", "-1", "-B", &address]);
    let mut listener = Daemon::spawn(&mut listen, log.path())?;
    eventually(Duration::from_secs(5), "iperf3 listens", || {
        listener.check_running()?;
        let sockets = server.netns().inside(|| Ok(std::fs::read_to_string("/proc/thread-self/net/tcp")?))?;
        // 5201, state LISTEN.
        ensure!(sockets.lines().any(|line| line.contains(":1451 00000000:0000 0A")), "sockets:\n{sockets}");
        Ok(())
    })?;
    let mut command = client.netns().command("taskset");
    command.args(["-c", &cpus.first.to_string(), "iperf3", "-J", "-c", &address, "-t", &seconds.to_string()]);
    command.args(flags);
    let limit = Duration::from_secs(seconds.into()) + SLACK;
    let report = run_with(&mut command, "", limit)?;
    let report: Value = serde_json::from_str(&report).context("report of iperf3")?;
    ensure!(report.get("error").is_none(), "iperf3: {}", report["error"]);
    Ok(report)
}
