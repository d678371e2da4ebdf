//! iperf3: the throughput and packet rate people compare with.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use flannel_lab::command::{Daemon, run_with};
use serde_json::Value;

use super::{
    Subject,
    surroundings::{Cpus, await_socket},
};

/// Port of the server, iperf3's own default.
pub(super) const PORT: u16 = 5201;

/// Time beyond the measurement that a client may take to connect and to report.
const SLACK: Duration = Duration::from_secs(15);

/// Gbit/s over TCP, as received.
pub(super) fn tcp(subject: &Subject, seconds: u32, cpus: Cpus, flags: &[&str]) -> Result<f64> {
    let report = run(subject, seconds, cpus, flags)?;
    let rate = &report["end"]["sum_received"]["bits_per_second"];
    Ok(rate.as_f64().with_context(|| format!("no rate in {report}"))? / 1e9)
}

/// Thousands of datagrams of `size` bytes per second, as received.
pub(super) fn udp(subject: &Subject, seconds: u32, cpus: Cpus, size: u32) -> Result<f64> {
    let report = run(subject, seconds, cpus, &["-u", "-l", &size.to_string(), "-b", "0"])?;
    let (packets, seconds) = received(&report)?;
    Ok(packets / seconds / 1e3)
}

/// Microseconds of softirq, over all CPUs, for each of `rate` datagrams a second that was received.
pub(super) fn softirq(subject: &Subject, seconds: u32, cpus: Cpus, size: u32, rate: u32) -> Result<f64> {
    let bits = u64::from(rate) * u64::from(size) * 8;
    let before = softirq_time()?;
    let report = run(subject, seconds, cpus, &["-u", "-l", &size.to_string(), "-b", &bits.to_string()])?;
    let spent = softirq_time()?.saturating_sub(before);
    let (packets, _) = received(&report)?;
    ensure!(packets > 0.0, "no packet arrived");
    Ok(spent.as_secs_f64() * 1e6 / packets)
}

/// Datagrams that arrived, and in how many seconds.
fn received(report: &Value) -> Result<(f64, f64)> {
    let sum = &report["end"]["sum"];
    let field = |name: &str| sum[name].as_f64().with_context(|| format!("no {name} in {sum}"));
    Ok((field("packets")? - field("lost_packets")?, field("seconds")?))
}

/// Time that all CPUs together have spent in softirq since the machine's start.
fn softirq_time() -> Result<Duration> {
    let text = fs::read_to_string("/proc/stat").context("/proc/stat")?;
    let ticks = softirq_ticks(&text).with_context(|| format!("no line of all CPUs in {text:?}"))?;
    // USER_HZ, which is 100 wherever Linux runs.
    Ok(Duration::from_millis(ticks * 10))
}

/// The seventh number of the line `cpu` (proc(5)).
fn softirq_ticks(stat: &str) -> Option<u64> {
    stat.lines().find_map(|line| line.strip_prefix("cpu "))?.split_whitespace().nth(6)?.parse().ok()
}

fn run(subject: &Subject, seconds: u32, cpus: Cpus, flags: &[&str]) -> Result<Value> {
    let (client, server) = (subject.client(), subject.server());
    let log = tempfile::NamedTempFile::new().context("log of iperf3")?;
    let mut listen = server.netns().command("taskset");
    let bind = subject.server_at(PORT).ip().to_string();
    listen.args(["-c", &cpus.second.to_string(), "iperf3", "-s", "-1", "-B", &bind]);
    let mut listener = Daemon::spawn(&mut listen, log.path())?;
    await_socket(server, "tcp", PORT, &mut listener)?;
    let mut command = client.netns().command("taskset");
    let target = subject.target().to_string();
    command.args(["-c", &cpus.first.to_string(), "iperf3", "-J", "-c", &target, "-t", &seconds.to_string()]);
    command.args(flags);
    let limit = Duration::from_secs(seconds.into()) + SLACK;
    let report = run_with(&mut command, "", limit)?;
    let report: Value = serde_json::from_str(&report).context("report of iperf3")?;
    ensure!(report.get("error").is_none(), "iperf3: {}", report["error"]);
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::softirq_ticks;

    #[test]
    fn reads_the_line_of_all_cpus() {
        let stat = "cpu  1 2 3 4 5 6 77 8 0 0\ncpu0 0 0 0 0 0 0 11 0 0 0\n";
        assert_eq!(softirq_ticks(stat), Some(77));
        assert_eq!(softirq_ticks("intr 1"), None);
    }
}
