//! What the demo found, for people.

use std::{cmp::Reverse, collections::BTreeMap, fmt::Write as _};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets::UTF8_FULL_CONDENSED};
use flannel_bench::{Case, Figure, Mode, Report, Scenario};
use flannel_common::reason::{Class, Direction, Reason};
use flannel_lab::{counters::Counters, traffic::Matrix};

use crate::demo::Findings;

/// Columns of the terminal that everything fits.
pub(crate) const WIDTH: u16 = 120;

/// What is measured of each dataplane.
const FIGURES: [Figure; 3] = [Figure::Tcp, Figure::Udp64, Figure::TcpPingPong];

/// The dataplanes.
const MODES: [(Mode, &str); 3] = [
    (Mode::Bare, "node to node, bare network"),
    (Mode::KernelRules, "pod to pod, stock flannel"),
    (Mode::Flow, "pod to pod, flannel-ebpf"),
];

pub(crate) fn show(findings: &Findings) -> String {
    let mut text = String::new();
    let mut section = |title: &str, body: &dyn std::fmt::Display| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "\n{title}\n{body}");
    };
    section("Leases in etcd", &leases(findings));
    section("Round trip from pod (row) to pod (column), milliseconds", &matrix(&findings.matrix));
    section("Packets between nodes, as on the wire", &counters(&findings.counters));
    section(
        "Why they took this path, all nodes (`flannel-agent bpf counters` explains)",
        &reasons(&findings.counters),
    );
    section(
        "How fast (`cargo xtask bench --quick` measures this more exactly)",
        &comparison(&findings.comparison),
    );
    text
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(UTF8_FULL_CONDENSED)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(WIDTH)
        .set_header(header);
    table
}

fn leases(findings: &Findings) -> Table {
    let mut table = table(&["pod subnet", "node", "backend", "VNI", "VTEP MAC"]);
    for (subnet, lease) in &findings.leases {
        let text = |value: &serde_json::Value| value.as_str().unwrap_or("-").to_owned();
        table.add_row([
            subnet.to_string(),
            text(&lease["PublicIP"]),
            text(&lease["BackendType"]),
            lease["BackendData"]["VNI"].to_string(),
            text(&lease["BackendData"]["VtepMAC"]),
        ]);
    }
    table
}

fn matrix(matrix: &Matrix) -> Table {
    let names: Vec<&str> = std::iter::once("").chain(matrix.names.iter().map(String::as_str)).collect();
    let mut table = table(&names);
    for (name, row) in matrix.names.iter().zip(&matrix.cells) {
        let cells = row.iter().map(|cell| match cell {
            None => String::new(),
            Some(Ok(time)) => format!("{:.2}", time.as_secs_f64() * 1e3),
            Some(Err(_)) => "NO ANSWER".to_owned(),
        });
        table.add_row(std::iter::once(name.clone()).chain(cells));
    }
    right_align(&mut table);
    table
}

fn counters(nodes: &[(String, Counters)]) -> Table {
    let mut table = table(&[
        "node",
        "sent, fast path",
        "kernel path",
        "past the stack",
        "received, fast path",
        "kernel path",
        "past the stack",
    ]);
    for (node, counters) in nodes {
        let direction = |direction| {
            let packets = |class| counters.packets(direction, class).to_string();
            let share = counters.share_past_the_stack(direction);
            let share = share.map_or("-".to_owned(), |share| format!("{:.2} %", share * 100.0));
            [packets(Class::Fast), packets(Class::Kernel), share]
        };
        let cells = Direction::ALL.map(direction).concat();
        table.add_row(std::iter::once(node.clone()).chain(cells));
    }
    right_align(&mut table);
    table
}

/// Why packets took their path, over all nodes, the most frequent first.
fn reasons(nodes: &[(String, Counters)]) -> Table {
    let mut sums = BTreeMap::<(Direction, Reason), u64>::new();
    for (direction, reason, count) in nodes.iter().flat_map(|(_, counters)| counters.nonzero()) {
        *sums.entry((direction, reason)).or_default() += count.packets;
    }
    let mut rows: Vec<_> = sums.into_iter().collect();
    rows.sort_by_key(|((direction, reason), packets)| (*direction, reason.class(), Reverse(*packets)));
    let mut table = table(&["direction", "path", "reason", "packets"]);
    for ((direction, reason), packets) in rows {
        let words = [direction.label(), reason.class().label(), reason.label()];
        table.add_row(words.map(str::to_owned).into_iter().chain([packets.to_string()]));
    }
    if let Some(packets) = table.column_mut(3) {
        packets.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// A row for each dataplane: medians, and how many times stock flannel's figure each is.
fn comparison(report: &Report) -> Table {
    let header = FIGURES.map(|figure| format!("{}\n{}", figure.title(), figure.unit()));
    let mut table = table(&[]);
    table.set_header(std::iter::once("median (multiple of stock flannel)".to_owned()).chain(header));
    for (mode, name) in MODES {
        let case = Case::new(Scenario::Vxlan, mode);
        let cells = FIGURES.map(|figure| {
            let (median, ratio) =
                (report.median(case, figure), report.ratio(case, figure, Mode::KernelRules));
            median.zip(ratio).map_or("-".to_owned(), |(median, ratio)| {
                format!("{median:.*} ({ratio:.2} x)", figure.precision())
            })
        });
        table.add_row(std::iter::once(name.to_owned()).chain(cells));
    }
    right_align(&mut table);
    table
}

fn right_align(table: &mut Table) {
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}
