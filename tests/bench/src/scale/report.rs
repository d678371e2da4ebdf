//! What was measured and reckoned, for people and for programs.

use std::{fmt, time::Duration};

use anyhow::{Context as _, Result};
use comfy_table::{CellAlignment, ContentArrangement, Table, presets::UTF8_FULL_CONDENSED};
use serde_json::{Value, json};

use super::{
    Figures, Options, Part,
    model::{Costs, NODES, Reckoned},
};
use crate::Surroundings;

/// The figures of a run.
#[derive(Clone, Debug)]
pub struct Report {
    surroundings: Surroundings,
    options: Options,
    figures: Vec<Figures>,
    reckoned: [Reckoned; NODES.len()],
}

impl Report {
    pub(super) fn new(options: &Options, figures: Vec<Figures>) -> Result<Self> {
        let costs = Costs::of(&figures, options.changes).context("nothing was measured")?;
        let reckoned = NODES.map(|nodes| costs.reckon(nodes));
        Ok(Self { surroundings: Surroundings::look()?, options: options.clone(), figures, reckoned })
    }

    /// All of it, for programs. Times in microseconds.
    pub fn to_json(&self) -> Value {
        let micros = |time: Duration| time.as_micros() as u64;
        let part = |part: &Part| {
            json!({
                "took_us": micros(part.took),
                "agents_cpu_us": micros(part.agents),
                "etcd_cpu_us": micros(part.etcd.cpu),
                "etcd_sent_bytes": part.etcd.sent,
                "etcd_requests": part.etcd.requests,
                "etcd_events": part.etcd.events,
            })
        };
        let of = |it: &Figures| {
            json!({
                "nodes": it.nodes,
                "start": part(&it.start),
                "rest": part(&it.rest),
                "changes": part(&it.changes),
                "change_to_all_ms": { "p50": it.reach.quantile(0.5), "max": it.reach.quantile(1.0) },
                "restart": part(&it.restart),
                "etcd_resident_kib": it.memory.resident,
            })
        };
        let model = |it: &Reckoned| {
            json!({
                "nodes": it.nodes,
                "start_etcd_cpu_s": it.start,
                "start_etcd_sent_bytes": it.start_bytes,
                "change_etcd_cpu_s": it.change,
                "renewals_etcd_cpu": it.renewals,
                "restart_etcd_cpu_s": it.restart,
                "etcd_resident_bytes": it.memory,
                "gives_out_first": it.first.advice(),
            })
        };
        json!({
            "surroundings": self.surroundings,
            "changes": self.options.changes,
            "seconds": self.options.seconds,
            "results": self.figures.iter().map(of).collect::<Vec<_>>(),
            "model": self.reckoned.iter().map(model).collect::<Vec<_>>(),
        })
    }

    fn measured(&self) -> Table {
        let mut table = columns(self.figures.iter().map(|it| it.nodes));
        let mut row = |name: &str, cell: &dyn Fn(&Figures) -> String| {
            table.add_row(std::iter::once(name.to_owned()).chain(self.figures.iter().map(cell)));
        };
        let changes = f64::from(self.options.changes);
        row("all start at once: until each reaches all, s", &|it| seconds(it.start.took.as_secs_f64()));
        row("  CPU of etcd, s", &|it| seconds(it.start.etcd.cpu.as_secs_f64()));
        row("  CPU of all agents, s", &|it| seconds(it.start.agents.as_secs_f64()));
        row("  sent by etcd, MB", &|it| mega(it.start.etcd.sent));
        row("  requests to etcd", &|it| format!("{:.0}", it.start.etcd.requests));
        row("at rest: CPU of etcd, %", &|it| share(it, |part| part.etcd.cpu));
        row("  CPU of all agents, %", &|it| share(it, |part| part.agents));
        row("  memory of etcd, MB", &|it| mega(it.memory.resident as f64 * 1024.0));
        row("a change: until it has reached all, ms: p50, most", &|it| {
            format!("{:.1}, {:.1}", it.reach.quantile(0.5), it.reach.quantile(1.0))
        });
        row("  CPU of etcd, ms", &|it| millis(it.changes.etcd.cpu.as_secs_f64() / changes));
        row("  CPU of each agent, ms", &|it| {
            millis(it.changes.agents.as_secs_f64() / changes / f64::from(it.nodes))
        });
        row("etcd restarted: until a change has reached all, s", &|it| {
            seconds(it.restart.took.as_secs_f64())
        });
        row("  CPU of etcd, s", &|it| seconds(it.restart.etcd.cpu.as_secs_f64()));
        right(table)
    }

    fn model(&self) -> Table {
        let mut table = columns(self.reckoned.iter().map(|it| it.nodes));
        let mut row = |name: &str, cell: &dyn Fn(&Reckoned) -> String| {
            table.add_row(std::iter::once(name.to_owned()).chain(self.reckoned.iter().map(cell)));
        };
        row("all start at once: CPU of etcd, s", &|it| seconds(it.start));
        row("  sent by etcd, MB", &|it| mega(it.start_bytes));
        row("a change: CPU of etcd, ms", &|it| millis(it.change));
        row("renewals: CPU of etcd, %", &|it| format!("{:.2}", it.renewals * 100.0));
        row("etcd restarted: its CPU, s", &|it| seconds(it.restart));
        row("memory of etcd, MB", &|it| mega(it.memory));
        right(table)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Measured:\n{}\n", self.measured())?;
        writeln!(f, "Reckoned from the two largest of these:\n{}\n", self.model())?;
        for it in &self.reckoned {
            writeln!(f, "{} nodes: what gives out first: {}.", it.nodes, it.first.advice())?;
        }
        writeln!(
            f,
            "\nAgents have the daemon's lease and reconciler, and a dataplane in memory; all are in one process, of one \
             thread. etcd is a single member on this machine. A start is reckoned as a part for each node and a part \
             for each pair of nodes, the rest as a fixed part and one for each node; a lease is renewed after 23 hours."
        )?;
        let Surroundings { kernel, cpus, cpu_model, load, .. } = &self.surroundings;
        writeln!(f, "Linux {kernel}, {cpus} CPUs ({cpu_model}), load {load}")
    }
}

fn columns(nodes: impl Iterator<Item = u32>) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(std::iter::once(String::new()).chain(nodes.map(|nodes| format!("{nodes} nodes"))));
    table
}

fn right(mut table: Table) -> Table {
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn share(figures: &Figures, cpu: impl Fn(&Part) -> Duration) -> String {
    format!("{:.1}", cpu(&figures.rest).as_secs_f64() / figures.rest.took.as_secs_f64() * 100.0)
}

fn seconds(value: f64) -> String {
    format!("{value:.2}")
}

fn millis(seconds: f64) -> String {
    format!("{:.2}", seconds * 1e3)
}

fn mega(bytes: f64) -> String {
    format!("{:.1}", bytes / 1e6)
}
