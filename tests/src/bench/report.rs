//! Medians, their spread, and how they compare.

use std::{collections::BTreeMap, fmt};

use anyhow::Result;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets::UTF8_FULL_CONDENSED};
use serde::Serialize;

use super::{Measure, Mode, Options, surroundings::Surroundings};

/// Everything a run measured.
#[derive(Clone, Debug)]
pub struct Report {
    surroundings: Surroundings,
    options: Options,
    samples: BTreeMap<(Mode, Measure), Vec<f64>>,
    fast_share: BTreeMap<Mode, f64>,
}

/// One figure of one dataplane.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Dataplane.
    pub mode: String,
    /// What was measured.
    pub measure: String,
    /// Unit of the figures.
    pub unit: String,
    /// Middle one of the samples.
    pub median: f64,
    /// Least.
    pub min: f64,
    /// Greatest.
    pub max: f64,
    /// All, in the order they were taken.
    pub samples: Vec<f64>,
    /// Median as a multiple of the bare network's.
    pub to_bare: Option<f64>,
    /// Median as a multiple of that of the kernel's VXLAN with flannel's rules.
    pub to_kernel_rules: Option<f64>,
}

impl Report {
    pub(super) fn new(options: &Options) -> Result<Self> {
        Ok(Self {
            surroundings: Surroundings::look()?,
            options: options.clone(),
            samples: BTreeMap::new(),
            fast_share: BTreeMap::new(),
        })
    }

    pub(super) fn add(&mut self, mode: Mode, measure: Measure, value: f64) {
        self.samples.entry((mode, measure)).or_default().push(value);
    }

    pub(super) fn note_fast_share(&mut self, mode: Mode, share: Option<f64>) {
        self.fast_share.extend(share.map(|share| (mode, share)));
    }

    /// Median of what was measured; `None` if it was not.
    pub fn median(&self, mode: Mode, measure: Measure) -> Option<f64> {
        self.samples.get(&(mode, measure)).map(|samples| median(samples))
    }

    /// The median of `mode` as a multiple of that of `other`.
    pub fn ratio(&self, mode: Mode, measure: Measure, other: Mode) -> Option<f64> {
        Some(self.median(mode, measure)? / self.median(other, measure)?)
    }

    /// Every figure.
    pub fn rows(&self) -> Vec<Row> {
        let row = |(&(mode, measure), samples): (&(Mode, Measure), &Vec<f64>)| Row {
            mode: mode.name().to_owned(),
            measure: measure.title().to_owned(),
            unit: measure.unit().to_owned(),
            median: median(samples),
            min: samples.iter().copied().fold(f64::INFINITY, f64::min),
            max: samples.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            samples: samples.clone(),
            to_bare: self.ratio(mode, measure, Mode::Bare),
            to_kernel_rules: self.ratio(mode, measure, Mode::KernelRules),
        };
        self.samples.iter().map(row).collect()
    }

    /// All of it, for programs.
    pub fn to_json(&self) -> serde_json::Value {
        let methods: BTreeMap<_, _> =
            self.options.measures.iter().map(|measure| (measure.title(), measure.method())).collect();
        let shares: BTreeMap<_, _> =
            self.fast_share.iter().map(|(mode, share)| (mode.name(), share)).collect();
        serde_json::json!({
            "surroundings": self.surroundings,
            "rounds": self.options.rounds,
            "seconds": self.options.seconds,
            "methods": methods,
            "fast_path_share_of_packets": shares,
            "results": self.rows(),
        })
    }

    /// One row a dataplane: median, spread, and the two ratios.
    pub fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Disabled);
        let titles =
            self.options.measures.iter().map(|measure| format!("{}\n{}", measure.title(), measure.unit()));
        table.set_header(std::iter::once("pod to pod".to_owned()).chain(titles));
        for mode in &self.options.modes {
            let cells = self.options.measures.iter().map(|measure| self.cell(*mode, *measure));
            table.add_row(std::iter::once(mode.name().to_owned()).chain(cells));
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }

    fn cell(&self, mode: Mode, measure: Measure) -> String {
        let Some(samples) = self.samples.get(&(mode, measure)) else { return String::new() };
        let digits = measure.precision();
        let low = samples.iter().copied().fold(f64::INFINITY, f64::min);
        let high = samples.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let ratio = |other| match self.ratio(mode, measure, other) {
            Some(ratio) => format!("{ratio:.2}"),
            None => "-".to_owned(),
        };
        format!(
            "{:.digits$} ({low:.digits$} - {high:.digits$})\n{} of bare, {} of kernel",
            median(samples),
            ratio(Mode::Bare),
            ratio(Mode::KernelRules)
        )
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { surroundings, options, .. } = self;
        writeln!(f, "{}", self.table())?;
        writeln!(
            f,
            "median (least - greatest) of {} interleaved rounds of {} s; \"kernel\" is kernel VXLAN with flannel's \
             rules, which the agent's modes keep too (--ip-masq)",
            options.rounds, options.seconds
        )?;
        writeln!(
            f,
            "Linux {}, {} CPUs ({}), load {}, two nodes joined by one veth, MTU {} and {} in pods{}",
            surroundings.kernel,
            surroundings.cpus,
            surroundings.cpu_model,
            surroundings.load,
            surroundings.underlay_mtu,
            surroundings.pod_mtu,
            if surroundings.bpf_stats { ", kernel.bpf_stats_enabled=1" } else { "" }
        )?;
        for measure in &options.measures {
            writeln!(f, "{}: {}", measure.title(), measure.method())?;
        }
        for (mode, share) in &self.fast_share {
            writeln!(f, "{mode}: {:.2} % of the packets sent took the fast path", share * 100.0)?;
        }
        Ok(())
    }
}

fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => sorted[middle],
        _ => (sorted[middle - 1] + sorted[middle]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_is_the_middle() {
        assert!((median(&[9.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < f64::EPSILON);
    }
}
