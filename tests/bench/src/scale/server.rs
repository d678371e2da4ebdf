//! The etcd that is measured.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use flannel_lab::{Memory, etcd::Etcd};

use crate::surroundings::cpu_of;

/// What etcd has done and taken up to a moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    /// CPU.
    pub(super) cpu: Duration,
    /// Bytes sent to clients.
    pub(super) sent: f64,
    /// Requests of clients, by their beginning.
    pub(super) requests: f64,
    /// Events that watchers were sent.
    pub(super) events: f64,
}

impl Load {
    /// That of `etcd` since its process started.
    pub(super) fn of(etcd: &Etcd) -> Result<Self> {
        let page = metrics(etcd)?;
        Ok(Self {
            cpu: cpu_of(etcd.pid()?)?,
            sent: sum(&page, "etcd_network_client_grpc_sent_bytes_total"),
            requests: sum(&page, "grpc_server_started_total"),
            events: sum(&page, "etcd_debugging_mvcc_events_total"),
        })
    }

    /// What came since `before`.
    pub(super) fn since(self, before: Self) -> Self {
        Self {
            cpu: self.cpu.saturating_sub(before.cpu),
            sent: self.sent - before.sent,
            requests: self.requests - before.requests,
            events: self.events - before.events,
        }
    }
}

/// Memory that `etcd` takes now.
pub(super) fn memory(etcd: &Etcd) -> Result<Memory> {
    Memory::of(etcd.pid()?)
}

/// etcd's page of metrics.
fn metrics(etcd: &Etcd) -> Result<String> {
    let mut stream = TcpStream::connect(etcd.address()).context("etcd")?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET /metrics HTTP/1.0\r\n\r\n")?;
    let mut page = String::new();
    stream.read_to_string(&mut page).context("etcd's metrics")?;
    ensure!(
        page.starts_with("HTTP/1.0 200") || page.starts_with("HTTP/1.1 200"),
        "etcd's metrics: {page:.60}"
    );
    Ok(page)
}

/// The sum of a metric over all its labels.
fn sum(page: &str, metric: &str) -> f64 {
    let values = page.lines().filter_map(|line| {
        let rest = line.strip_prefix(metric)?;
        if !rest.starts_with([' ', '{']) {
            return None;
        }
        rest.rsplit(' ').next()?.parse::<f64>().ok()
    });
    values.sum()
}

#[cfg(test)]
mod tests {
    use super::sum;

    #[test]
    fn a_metric_is_summed_over_its_labels() {
        let page = "# HELP a it\na{of=\"x\"} 2\na{of=\"y\"} 1e+01\na_total 7\nb 5\n";
        assert_eq!((sum(page, "a"), sum(page, "b"), sum(page, "c")), (12.0, 5.0, 0.0));
    }
}
