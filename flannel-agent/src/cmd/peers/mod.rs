//! `peers`: of each peer its lease, what is in place for it, and how it is reached.

use std::{net::IpAddr, time::Duration};

use clap::Args;
use comfy_table::Cell;
use ipnetwork::IpNetwork;
use serde::Serialize;

use super::{
    Defaults, Health, Place,
    look::Look,
    output::{Tone, Watch, lines, number, run as run_inquiry, show, table, toned, wrapped},
    value::whole,
};
use crate::{
    control::snapshot,
    inspect::peers::{Passed, PeerRow, State},
    telemetry::visible,
    values::rough_span,
};

mod traffic;

/// Options of `peers`.
#[derive(Debug, Args)]
pub struct PeersOptions {
    /// Only this peer: name of its node, its subnet, its address, or one of its pods' addresses.
    #[arg(value_name = "NAME|SUBNET|ADDRESS")]
    pub peer: Option<String>,
    /// Count packets and bytes each way for so many seconds, 1 to 60. Nothing is counted while nobody looks.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "2",
          value_parser = whole::<u64>("seconds", 1..=60))]
    pub traffic: Option<u64>,
    /// Which agent.
    #[command(flatten)]
    pub at: Place,
    /// Whether to go on.
    #[command(flatten)]
    pub watch: Watch,
}

/// What was found.
#[derive(Debug, Serialize)]
struct Report {
    /// Why the agent did not say what there should be, if it did not.
    without_agent: Option<String>,
    /// Why packets were not counted, if they were to be.
    without_traffic: Option<String>,
    /// By subnet.
    peers: Vec<PeerRow>,
}

/// Prints the peers.
///
/// # Errors
/// When it cannot be looked, or no peer is of that name.
pub fn run(options: &PeersOptions, defaults: &Defaults) -> anyhow::Result<Health> {
    run_inquiry(show(
        options.at.output,
        options.watch,
        async || look(options, defaults).await,
        |report| render(report, snapshot::now()),
    ))
}

async fn look(options: &PeersOptions, defaults: &Defaults) -> anyhow::Result<(Report, Health)> {
    let mut report = rows(&options.at, defaults).await?;
    if report.without_agent.is_none() && report.peers.iter().any(|row| row.state == State::Differs) {
        // A peer that comes or goes at this moment differs until the agent is done with it.
        tokio::time::sleep(Duration::from_millis(300)).await;
        report = rows(&options.at, defaults).await?;
    }
    if let Some(wanted) = &options.peer {
        report.peers.retain(|row| is_named(row, wanted));
        anyhow::ensure!(!report.peers.is_empty(), nobody_called(wanted));
    }
    if let Some(seconds) = options.traffic {
        match traffic::counted(options.at.client(defaults), seconds).await {
            Ok(counted) => counted.write_to(&mut report.peers),
            Err(why) => report.without_traffic = Some(visible(&why)),
        }
    }
    let wrong = report.peers.iter().any(|row| row.state != State::InPlace && row.state != State::Skipped)
        || report.peers.iter().any(is_hampered);
    let health = Health::of(report.without_agent.is_none(), wrong);
    Ok((report, health))
}

async fn rows(place: &Place, defaults: &Defaults) -> anyhow::Result<Report> {
    let found = Look::at(place, defaults, true).await?;
    let peers = found.rows();
    let without_agent = match found.without_agent() {
        None if found.peers.is_none() => Some("the agent does not say who its peers are".to_owned()),
        why => why,
    };
    Ok(Report { without_agent, without_traffic: None, peers })
}

/// The last probe got no answer through the overlay, or saw something wrong on the way.
fn is_hampered(row: &PeerRow) -> bool {
    row.probe.as_ref().is_some_and(|probe| probe.overlay_rtt_seconds.is_none() || !probe.found.is_empty())
}

/// Whether `wanted` is the name of the peer's node, its subnet, its address, or that of a pod of it.
pub(super) fn is_named(row: &PeerRow, wanted: &str) -> bool {
    if row.node.as_deref() == Some(wanted) {
        return true;
    }
    if let Ok(address) = wanted.parse::<IpAddr>() {
        return row.public_ip == Some(address) || row.subnet.contains(address);
    }
    wanted.parse::<IpNetwork>().is_ok_and(|subnet| subnet == row.subnet)
}

/// No peer [is so named](is_named).
pub(super) fn nobody_called(name: &str) -> String {
    format!(
        "no peer is called {name}: give the name of a node, a pod subnet, or the address of a node or pod, as \
         `flannel-agent peers` shows them"
    )
}

/// Packets and their bytes, or the bytes alone where only these are counted.
fn passed(passed: Passed) -> String {
    let bytes = format!("{}B", number(passed.bytes as f64));
    match passed.packets {
        Some(0) => "0".to_owned(),
        Some(packets) => format!("{} / {bytes}", number(packets as f64)),
        None => bytes,
    }
}

/// The table, at the time `now`.
fn render(report: &Report, now: u64) -> String {
    let mut text = String::new();
    if let Some(why) = &report.without_traffic {
        text.push_str(&wrapped(&format!("packets are not counted: {why}"), 0));
        text.push('\n');
    }
    if let Some(why) = &report.without_agent {
        text.push_str(&wrapped(&format!("{why}. What kernel and maps hold of peers:"), 0));
        text.push('\n');
    }
    let named = report.peers.iter().any(|row| row.node.is_some());
    let counts = |row: &PeerRow| row.traffic.is_some_and(|traffic| traffic.seconds.is_some());
    // What is counted takes the room of what is asked for without: nothing is wider than a terminal.
    let whole = !report.peers.iter().any(counts);
    let counted = report.peers.iter().any(|row| row.traffic.is_some());
    let mut header = match whole {
        true => vec!["subnet", "address", "way", "state", "heard", "rtt", "asked", "path mtu", "flows"],
        false => vec!["subnet", "address", "way", "state"],
    };
    if counted {
        header.extend(["sent", "received"]);
    }
    if named {
        header.insert(0, "node");
    }
    let mut rows = table(&header);
    for row in &report.peers {
        let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
        let way = if row.on_kernel.is_some() { format!("{}, kernel path", row.way) } else { row.way.clone() };
        let tone = match row.state {
            State::InPlace => Tone::Good,
            State::Skipped => Tone::Notable,
            State::Pending | State::Differs => Tone::Bad,
        };
        let rtt = match row.probe.as_ref().map(|probe| probe.overlay_rtt_seconds) {
            Some(Some(seconds)) => Cell::new(format!("{:.2} ms", seconds * 1e3)),
            Some(None) => toned("no answer", Tone::Bad),
            None => Cell::new("-"),
        };
        let mut cells = vec![
            Cell::new(row.subnet),
            Cell::new(or_dash(row.public_ip.map(|address| address.to_string()))),
            Cell::new(way),
            toned(row.state.label(), tone),
        ];
        if whole {
            let heard = row.heard_seconds_ago.map(|seconds| format!("{} ago", rough_span(seconds)));
            cells.push(Cell::new(or_dash(heard)));
            cells.push(rtt);
            let asked = row.probe.as_ref().map(|probe| now.saturating_sub(probe.at));
            cells.push(Cell::new(or_dash(asked.map(rough_span))));
            let mtu = row.probe.as_ref().and_then(|probe| probe.path_mtu);
            cells.push(Cell::new(or_dash(mtu.map(|mtu| mtu.to_string()))));
            cells.push(Cell::new(or_dash(row.flows.map(|flows| flows.to_string()))));
        }
        if counted {
            let cell = |way: Option<Passed>| Cell::new(or_dash(way.map(passed)));
            cells.push(cell(row.traffic.map(|traffic| traffic.sent)));
            cells.push(cell(row.traffic.map(|traffic| traffic.received)));
        }
        if named {
            cells.insert(0, Cell::new(or_dash(row.node.as_ref().map(visible))));
        }
        rows.add_row(cells);
    }
    text.push_str(&lines(&rows));
    for row in &report.peers {
        for difference in &row.differences {
            text.push_str(&wrapped(&format!("{}: {difference}", row.subnet), 4));
            text.push('\n');
        }
        if let Some(probe) = &row.probe {
            let ago = rough_span(now.saturating_sub(probe.at));
            for found in &probe.found {
                text.push_str(&wrapped(&format!("{}: {found} (asked {ago} ago)", row.subnet), 4));
                text.push('\n');
            }
        }
        for shared in &row.shared {
            text.push_str(&wrapped(&format!("{}: {shared}", row.subnet), 4));
            text.push('\n');
        }
        if let Some(why) = &row.on_kernel {
            text.push_str(&wrapped(&format!("{}: kernel path: {why}", row.subnet), 4));
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{control::snapshot::Probe, inspect::peers::PeerTraffic};

    fn row(traffic: Option<PeerTraffic>) -> PeerRow {
        PeerRow {
            subnet: "10.244.168.0/24".parse().unwrap(),
            node: None,
            public_ip: Some("192.168.177.213".parse().unwrap()),
            way: "vxlan".to_owned(),
            mac: None,
            on_kernel: None,
            state: State::InPlace,
            remedy: None,
            differences: Vec::new(),
            flows: Some(65_536),
            heard_seconds_ago: Some(3599),
            traffic,
            probe: Some(Probe {
                at: 1000,
                overlay_rtt_seconds: Some(0.01234),
                path_mtu: Some(1450),
                ..Probe::default()
            }),
            shared: Vec::new(),
        }
    }

    fn text(row: PeerRow) -> String {
        let report = Report { without_agent: None, without_traffic: None, peers: vec![row] };
        render(&report, 1000 + 59 * 60)
    }

    #[test]
    fn each_peer_has_one_line_however_much_it_sends() {
        let most = Passed { packets: Some(999_940), bytes: 999_900_000_000 };
        let traffic = PeerTraffic { seconds: Some(2.0), sent: most, received: most };
        for row in [row(None), row(Some(traffic))] {
            let text = text(row);
            assert!(text.lines().count() == 2 && text.lines().all(|line| line.len() <= 100), "{text}");
        }
    }

    #[test]
    fn what_a_probe_found_has_its_age() {
        let mut hampered = row(None);
        hampered.probe.as_mut().unwrap().found = vec!["path MTU: packets of 1398 bytes pass".to_owned()];
        assert!(is_hampered(&hampered) && !is_hampered(&row(None)));
        let text = text(hampered);
        assert!(text.contains("12.34 ms  59 min "), "{text}");
        assert!(
            text.ends_with("10.244.168.0/24: path MTU: packets of 1398 bytes pass (asked 59 min ago)\n"),
            "{text}"
        );
    }
}
