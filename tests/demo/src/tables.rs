//! What the demo found, for people.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets::UTF8_FULL_CONDENSED};
use flannel_common::reason::{Class, Direction};
use flannel_lab::{counters::Counters, traffic::Matrix};

use crate::demo::Findings;

pub(crate) fn show(findings: &Findings) -> String {
    let mut text = String::new();
    let mut section = |title: &str, body: &dyn std::fmt::Display| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "\n{title}\n{body}");
    };
    section("Leases in etcd", &leases(findings));
    section("Round trip from pod (row) to pod (column), milliseconds", &matrix(&findings.matrix));
    section("Packets by path, as on the wire", &counters(&findings.counters));
    section("Beside the bare network and the kernel", &findings.comparison);
    text
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(UTF8_FULL_CONDENSED)
        .set_content_arrangement(ContentArrangement::Disabled)
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
    let header = ["node", "sent, fast", "sent, kernel", "received, fast", "received, kernel"];
    let mut table =
        table(&[&header, ["sent past the stack", "received past it", "by reason"].as_slice()].concat());
    for (node, counters) in nodes {
        let packets = |direction, class| counters.packets(direction, class).to_string();
        let reasons: Vec<String> = counters
            .nonzero()
            .map(|(direction, reason, count)| {
                format!("{} {}: {}", direction.label(), reason.label(), count.packets)
            })
            .collect();
        let share = |direction| {
            counters
                .share_past_the_stack(direction)
                .map_or("-".to_owned(), |share| format!("{:.2} %", share * 100.0))
        };
        table.add_row([
            node.clone(),
            packets(Direction::Egress, Class::Fast),
            packets(Direction::Egress, Class::Kernel),
            packets(Direction::Ingress, Class::Fast),
            packets(Direction::Ingress, Class::Kernel),
            share(Direction::Egress),
            share(Direction::Ingress),
            reasons.join("\n"),
        ]);
    }
    right_align(&mut table);
    if let Some(reasons) = table.column_mut(7) {
        reasons.set_cell_alignment(CellAlignment::Left);
    }
    table
}

fn right_align(table: &mut Table) {
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}
