//! The rates as text.

use super::{
    super::output::{lines, number, table},
    rates::{Rate, Rates, Row},
};
use comfy_table::Table;

/// A table of the view: its title, its columns, and its rows.
pub(super) struct View {
    pub(super) title: &'static str,
    pub(super) columns: &'static [&'static str],
    pub(super) rows: Vec<Vec<String>>,
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

fn of_ends(title: &'static str, columns: &'static [&'static str], rows: &[Row]) -> View {
    let cells = |Rate { packets, bits }: Rate| [number(packets), number(bits)];
    let row = |row: &Row| {
        let [out, bits_out] = cells(row.out);
        let [into, bits_into] = cells(row.into);
        vec![row.name.clone(), out, bits_out, into, bits_into, percent(row.fast_share)]
    };
    View { title, columns, rows: rows.iter().map(row).collect() }
}

/// All tables, also those without rows.
pub(super) fn views(rates: &Rates) -> [View; 4] {
    let reason = |row: &super::rates::ReasonRow| {
        let (packets, bits) = (number(row.rate.packets), number(row.rate.bits));
        vec![row.direction.to_owned(), row.path.to_owned(), row.reason.to_owned(), packets, bits]
    };
    let program = |row: &super::rates::ProgramRow| {
        vec![row.program.to_owned(), number(row.runs), format!("{:.0}", row.nanoseconds), percent(row.cpu)]
    };
    [
        of_ends("by peer", &["peer", "out p/s", "out bit/s", "in p/s", "in bit/s", "fast"], &rates.peers),
        of_ends("by pod", &["pod", "out p/s", "out bit/s", "in p/s", "in bit/s", "fast"], &rates.pods),
        View {
            title: "by reason",
            columns: &["way", "path", "reason", "p/s", "bit/s"],
            rows: rates.reasons.iter().map(reason).collect(),
        },
        View {
            title: "programs, with what it costs to look",
            columns: &["program", "runs/s", "ns", "CPU"],
            rows: rates.programs.iter().map(program).collect(),
        },
    ]
}

/// The share of packets past the host's stack, in words.
pub(super) fn headline(rates: &Rates) -> String {
    match rates.fast_share {
        Some(share) => {
            format!("{} of the packets between pods of two nodes are moved by our programs", percent(share))
        }
        None => "no packets between pods of two nodes".to_owned(),
    }
}

/// As text; at most `most` rows of each table.
pub(super) fn text(rates: &Rates, most: usize) -> String {
    let mut text = format!("{}\n", headline(rates));
    for view in views(rates).into_iter().filter(|view| !view.rows.is_empty()) {
        let mut grid: Table = table(view.columns);
        for row in view.rows.into_iter().take(most) {
            grid.add_row(row);
        }
        text.push_str(&format!("\n{}\n{}", view.title, lines(&grid)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> Rates {
        let rate = Rate { packets: 165_000.0, bits: 1.54e10 };
        let row =
            |name: &str| Row { name: name.to_owned(), out: rate, into: Rate::default(), fast_share: 0.999 };
        let reason =
            super::super::rates::ReasonRow { direction: "egress", path: "fast", reason: "encap_pod", rate };
        let program = super::super::rates::ProgramRow {
            program: "from_pod",
            runs: 165_000.0,
            nanoseconds: 340.4,
            cpu: 0.0561,
        };
        Rates {
            peers: vec![row("node2")],
            pods: vec![row("10.244.1.2")],
            reasons: vec![reason],
            programs: vec![program],
            fast_share: Some(0.999),
        }
    }

    #[test]
    fn text_has_what_there_is() {
        let text = text(&some(), 10);
        for part in
            ["node2", "10.244.1.2", "165.0 k", "15.40 G", "encap_pod", "from_pod", "340", "5.6 %", "99.9 %"]
        {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    }
}
