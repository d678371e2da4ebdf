//! One run beside an earlier one.

use std::{fmt, fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use super::{
    Figure, Report, Row, Workload,
    report::{align_right, new_table},
};

/// The figures that two runs share.
#[derive(Clone, Debug)]
pub struct Comparison {
    lines: Vec<Line>,
}

#[derive(Clone, Debug)]
struct Line {
    old: Row,
    new: Row,
}

/// Whether a figure has moved by more than either run's own spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moved {
    No,
    Better,
    Worse,
}

#[derive(Deserialize)]
struct File {
    results: Vec<Row>,
}

impl Comparison {
    /// `report` beside what the file at `path` holds, which `--json` wrote.
    ///
    /// # Errors
    /// When the file cannot be read, or shares no figure with the report.
    pub fn with(report: &Report, path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let file: File = serde_json::from_str(&text)
            .with_context(|| format!("{} is not what --json of this version writes", path.display()))?;
        let comparison = Self::of(file.results, report.rows());
        ensure!(!comparison.lines.is_empty(), "{} has no figure that this run has", path.display());
        Ok(comparison)
    }

    fn of(old: Vec<Row>, new: Vec<Row>) -> Self {
        let key = |row: &Row| (row.scenario.clone(), row.mode.clone(), row.figure.clone());
        let before = |new: &Row| old.iter().find(|old| key(old) == key(new)).cloned();
        Self { lines: new.into_iter().filter_map(|new| Some(Line { old: before(&new)?, new })).collect() }
    }

    /// How many figures have become worse by more than their spread.
    pub fn worse(&self) -> usize {
        self.lines.iter().filter(|line| line.moved() == Moved::Worse).count()
    }
}

impl Line {
    fn ratio(&self) -> f64 {
        self.new.median / self.old.median
    }

    /// The ratio if each run's middle half had gone to the other's disadvantage, and to its advantage.
    fn spread(&self) -> (f64, f64) {
        (self.new.low / self.old.high, self.new.high / self.old.low)
    }

    fn moved(&self) -> Moved {
        let (low, high) = self.spread();
        match (low > 1.0, high < 1.0) {
            (false, false) => Moved::No,
            (more, _) if more == more_is_better(&self.new.figure) => Moved::Better,
            _ => Moved::Worse,
        }
    }
}

fn more_is_better(label: &str) -> bool {
    let mut figures = Workload::EACH.iter().flat_map(|workload| workload.figures());
    figures.find(|figure| figure.label() == label).is_none_or(|figure| Figure::more_is_better(*figure))
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = new_table();
        table.set_header(["scenario", "mode", "figure", "before", "now", "now / before", ""]);
        for line in &self.lines {
            let (low, high) = line.spread();
            let mark = match line.moved() {
                Moved::No => "",
                Moved::Better => "better",
                Moved::Worse => "WORSE",
            };
            table.add_row([
                line.new.scenario.clone(),
                line.new.mode.clone(),
                format!("{}, {}", line.new.figure, line.new.unit),
                format!("{:.2}", line.old.median),
                format!("{:.2}", line.new.median),
                format!("{:.2} ({low:.2} - {high:.2})", line.ratio()),
                mark.to_owned(),
            ]);
        }
        align_right(&mut table);
        writeln!(f, "{table}")?;
        writeln!(
            f,
            "in brackets the least and greatest ratio of the middle halves of both runs; marked is what moved beyond that"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Samples;

    fn row(figure: Figure, values: &[f64]) -> Row {
        let mut samples = Samples::default();
        values.iter().for_each(|value| samples.push(*value));
        let (low, high) = samples.spread();
        Row {
            scenario: "vxlan".to_owned(),
            mode: "flow".to_owned(),
            figure: figure.label().to_owned(),
            unit: figure.unit().to_owned(),
            median: samples.median(),
            low,
            high,
            samples,
            to_bare: None,
            to_bare_rules: None,
            to_kernel_rules: None,
        }
    }

    fn moved(figure: Figure, old: &[f64], new: &[f64]) -> Moved {
        let comparison = Comparison::of(vec![row(figure, old)], vec![row(figure, new)]);
        comparison.lines[0].moved()
    }

    #[test]
    fn only_what_moves_beyond_the_spread_has_moved() {
        let old = [10.0, 11.0, 12.0];
        assert_eq!(moved(Figure::Tcp, &old, &[10.5, 11.5, 12.5]), Moved::No);
        assert_eq!(moved(Figure::Tcp, &old, &[20.0, 21.0, 22.0]), Moved::Better);
        assert_eq!(moved(Figure::Tcp, &old, &[5.0, 5.5, 6.0]), Moved::Worse);
        assert_eq!(moved(Figure::UdpPingPong, &old, &[20.0, 21.0, 22.0]), Moved::Worse);
        assert_eq!(moved(Figure::UdpPingPong, &old, &[5.0, 5.5, 6.0]), Moved::Better);
    }

    #[test]
    fn what_only_one_run_has_is_left_out() {
        let comparison = Comparison::of(
            vec![row(Figure::Tcp, &[1.0])],
            vec![row(Figure::Tcp, &[1.0]), row(Figure::Udp64, &[1.0])],
        );
        assert_eq!(comparison.lines.len(), 1);
        assert_eq!(comparison.worse(), 0);
    }
}
