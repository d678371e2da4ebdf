//! Medians, their spread, and how they compare.

use std::{collections::BTreeMap, fmt};

use anyhow::Result;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets::UTF8_FULL_CONDENSED};
use serde::{Deserialize, Serialize};

use super::{
    Case, Figure, Mode, Options, Samples, Scenario, Subject, chart, programs::Cost,
    surroundings::Surroundings,
};

/// Columns of one table.
const COLUMNS: usize = 4;

/// Everything a run measured.
#[derive(Clone, Debug)]
pub struct Report {
    surroundings: Surroundings,
    options: Options,
    samples: BTreeMap<(Case, Figure), Samples>,
    fast_share: BTreeMap<Case, f64>,
    left_out: Vec<(Case, String)>,
    programs: Vec<Cost>,
}

/// One figure of one dataplane, as in the file that `--json` writes and `--compare` reads.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// How packets travel.
    pub scenario: String,
    /// Dataplane.
    pub mode: String,
    /// What was measured.
    pub figure: String,
    /// Unit of the figures.
    pub unit: String,
    /// Middle one of the samples.
    pub median: f64,
    /// Where the middle half of the samples begins.
    pub low: f64,
    /// Where it ends.
    pub high: f64,
    /// All, in the order they were taken.
    pub samples: Samples,
    /// Median as a multiple of the bare network's.
    pub to_bare: Option<f64>,
    /// Median as a multiple of the nodes' with flannel's rules.
    pub to_bare_rules: Option<f64>,
    /// Median as a multiple of that of the kernel's path with flannel's rules.
    pub to_kernel_rules: Option<f64>,
}

impl Report {
    pub(super) fn new(options: &Options) -> Result<Self> {
        Ok(Self {
            surroundings: Surroundings::look()?,
            options: options.clone(),
            samples: BTreeMap::new(),
            fast_share: BTreeMap::new(),
            left_out: Vec::new(),
            programs: Vec::new(),
        })
    }

    pub(super) fn add(&mut self, case: Case, figure: Figure, value: f64) {
        self.samples.entry((case, figure)).or_default().push(value);
    }

    pub(super) fn note_fast_share(&mut self, case: Case, share: Option<f64>) {
        self.fast_share.extend(share.map(|share| (case, share)));
    }

    pub(super) fn leave_out(&mut self, case: Case, why: &str) {
        self.left_out.push((case, why.to_owned()));
    }

    pub(super) fn first_left_out(&self) -> Option<String> {
        self.left_out.first().map(|(case, why)| format!("{case}: {why}"))
    }

    /// Whether `subject` is the one whose programs' cost is still to be taken.
    pub(super) fn wants_programs(&self, subject: &Subject) -> bool {
        self.programs.is_empty() && subject.case() == Case::new(Scenario::Vxlan, Mode::Flow)
    }

    pub(super) fn note_programs(&mut self, costs: Vec<Cost>) {
        self.programs = costs;
    }

    /// Median of what was measured; `None` if it was not.
    pub fn median(&self, case: Case, figure: Figure) -> Option<f64> {
        self.samples.get(&(case, figure)).map(Samples::median)
    }

    /// The median of `case` as a multiple of that of `mode` in the same scenario.
    pub fn ratio(&self, case: Case, figure: Figure, mode: Mode) -> Option<f64> {
        Some(self.median(case, figure)? / self.median(Case::new(case.scenario, mode), figure)?)
    }

    /// Every figure.
    pub fn rows(&self) -> Vec<Row> {
        let row = |(&(case, figure), samples): (&(Case, Figure), &Samples)| {
            let (low, high) = samples.spread();
            Row {
                scenario: case.scenario.label().to_owned(),
                mode: case.mode.label().to_owned(),
                figure: figure.label().to_owned(),
                unit: figure.unit().to_owned(),
                median: samples.median(),
                low,
                high,
                samples: samples.clone(),
                to_bare: self.ratio(case, figure, Mode::Bare),
                to_bare_rules: self.ratio(case, figure, Mode::BareRules),
                to_kernel_rules: self.ratio(case, figure, Mode::KernelRules),
            }
        };
        self.samples.iter().map(row).collect()
    }

    /// All of it, for programs.
    pub fn to_json(&self) -> serde_json::Value {
        let workloads = self.options.workloads.iter();
        let methods: BTreeMap<_, _> = workloads
            .flat_map(|workload| workload.figures().iter().map(|figure| (figure.label(), workload.method())))
            .collect();
        let shares: BTreeMap<_, _> =
            self.fast_share.iter().map(|(case, share)| (case.to_string(), share)).collect();
        let left_out: BTreeMap<_, _> =
            self.left_out.iter().map(|(case, why)| (case.to_string(), why)).collect();
        serde_json::json!({
            "surroundings": self.surroundings,
            "rounds": self.options.rounds,
            "seconds": self.options.seconds,
            "methods": methods,
            "fast_path_share_of_packets": shares,
            "left_out": left_out,
            "programs": self.programs,
            "results": self.rows(),
        })
    }

    /// The figures as a picture.
    pub fn to_svg(&self) -> String {
        chart::draw(self)
    }

    /// Scenarios that were measured, in order.
    pub(super) fn scenarios(&self) -> Vec<Scenario> {
        Scenario::EACH.into_iter().filter(|scenario| !self.cases(*scenario).is_empty()).collect()
    }

    /// What was measured of `scenario`: nothing, if only nodes were that others are compared with.
    pub(super) fn cases(&self, scenario: Scenario) -> Vec<Case> {
        let found = |mode| {
            let case = Case::new(scenario, mode);
            self.samples.keys().any(|(measured, _)| *measured == case).then_some(case)
        };
        let cases: Vec<Case> = Mode::EACH.into_iter().filter_map(found).collect();
        if cases.iter().any(|case| case.scenario == scenario) { cases } else { Vec::new() }
    }

    /// Figures that were measured, in order.
    pub(super) fn figures(&self) -> Vec<Figure> {
        let mut figures: Vec<Figure> = self.samples.keys().map(|(_, figure)| *figure).collect();
        figures.sort();
        figures.dedup();
        figures
    }

    pub(super) fn surroundings(&self) -> &Surroundings {
        &self.surroundings
    }

    pub(super) fn rounds(&self) -> usize {
        self.options.rounds
    }

    /// One row a dataplane: median, spread, and the two ratios.
    fn table(&self, scenario: Scenario, figures: &[Figure]) -> Table {
        let mut table = new_table();
        let titles = figures.iter().map(|figure| format!("{}\n{}", figure.title(), figure.unit()));
        table.set_header(std::iter::once(scenario.name().to_owned()).chain(titles));
        for case in self.cases(scenario) {
            let cells = figures.iter().map(|figure| self.cell(case, *figure));
            table.add_row(std::iter::once(case.mode.name().to_owned()).chain(cells));
        }
        align_right(&mut table);
        table
    }

    fn cell(&self, case: Case, figure: Figure) -> String {
        let Some(samples) = self.samples.get(&(case, figure)) else { return String::new() };
        let digits = figure.precision();
        let (low, high) = samples.spread();
        let ratio = |other| match self.ratio(case, figure, other) {
            Some(ratio) => format!("{ratio:.2}"),
            None => "-".to_owned(),
        };
        format!(
            "{:.digits$} ({low:.digits$} - {high:.digits$})\n{} of bare, {} of stock",
            samples.median(),
            ratio(Mode::Bare),
            ratio(Mode::KernelRules)
        )
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { surroundings, options, .. } = self;
        let figures = self.figures();
        for scenario in self.scenarios() {
            for some in figures.chunks(COLUMNS) {
                writeln!(f, "{}", self.table(scenario, some))?;
            }
        }
        if !self.programs.is_empty() {
            writeln!(f, "{}", programs_table(&self.programs))?;
        }
        writeln!(
            f,
            "median (middle half) of {} interleaved rounds of {} s; \"stock\" is the kernel's path with flannel's rules, \
             which the agent's modes keep too (--ip-masq); of times less is better",
            options.rounds, options.seconds
        )?;
        writeln!(f, "{surroundings}")?;
        for workload in &options.workloads {
            writeln!(f, "{}: {}", workload.figures()[0].title(), workload.method())?;
        }
        for (case, share) in &self.fast_share {
            writeln!(f, "{case}: {:.2} % of the packets sent took the fast path", share * 100.0)?;
        }
        for (case, why) in &self.left_out {
            writeln!(f, "NOT MEASURED: {case}: {why}")?;
        }
        Ok(())
    }
}

/// What each program costs.
pub(super) fn programs_table(costs: &[Cost]) -> Table {
    let mut table = new_table();
    table.set_header(["program", "instructions verified", "packet", "ns"]);
    for cost in costs {
        let count = cost.verified_instructions.map_or("-".to_owned(), |count| count.to_string());
        let (packets, times): (Vec<_>, Vec<_>) =
            cost.nanoseconds.iter().map(|(packet, time)| (packet.clone(), format!("{time:.0}"))).unzip();
        table.add_row([cost.program.clone(), count, packets.join("\n"), times.join("\n")]);
    }
    align_right(&mut table);
    table
}

pub(super) fn new_table() -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Disabled);
    table
}

pub(super) fn align_right(table: &mut Table) {
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}
