//! iperf3: the throughput and packet rate people compare with.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::surroundings::{Cpus, await_socket};
use crate::{
    command::{Daemon, run_with},
    traffic::Endpoint,
};

/// Port of the server, iperf3's own default.
const PORT: u16 = 5201;

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
    await_socket(server, "tcp", PORT, &mut listener)?;
    let mut command = client.netns().command("taskset");
    command.args(["-c", &cpus.first.to_string(), "iperf3", "-J", "-c", &address, "-t", &seconds.to_string()]);
    command.args(flags);
    let limit = Duration::from_secs(seconds.into()) + SLACK;
    let report = run_with(&mut command, "", limit)?;
    let report: Value = serde_json::from_str(&report).context("report of iperf3")?;
    ensure!(report.get("error").is_none(), "iperf3: {}", report["error"]);
    Ok(report)
}
