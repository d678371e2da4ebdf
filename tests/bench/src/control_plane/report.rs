//! What was measured, for people and for programs.

use std::{collections::BTreeMap, fmt};

use anyhow::Result;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets::UTF8_FULL_CONDENSED};
use serde_json::{Value, json};

use super::{Figures, Options, process::Usage, requests::Requests};
use crate::{Surroundings, samples::Samples};

/// The figures of a run.
#[derive(Clone, Debug)]
pub struct Report {
    surroundings: Surroundings,
    options: Options,
    figures: Vec<Figures>,
}

/// Calls that ask the kernel for something, of all that a process makes; reading, writing and waiting are most others.
const ASKING: [&str; 6] = ["bpf", "sendto", "sendmsg", "recvfrom", "recvmsg", "socket"];

impl Report {
    pub(super) fn new(options: &Options, figures: Vec<Figures>) -> Result<Self> {
        Ok(Self { surroundings: Surroundings::look()?, options: options.clone(), figures })
    }

    /// All of it, for programs. Times in microseconds, memory in KiB.
    pub fn to_json(&self) -> Value {
        let latencies = |samples: &Samples| {
            json!({
                "p50": samples.quantile(0.5), "p99": samples.quantile(0.99), "max": samples.quantile(1.0),
                "changes": samples.len(),
            })
        };
        let usage = |usage: &Usage| {
            json!({
                "cpu": usage.cpu,
                "resident": usage.memory.resident,
                "anonymous": usage.memory.anonymous,
                "peak": usage.memory.peak,
            })
        };
        let of = |figures: &Figures| {
            let requests: BTreeMap<&str, &Requests> =
                figures.requests.iter().map(|(when, requests)| (*when, requests)).collect();
            json!({
                "leases": figures.leases,
                "start_to_usable_us": figures.start.as_micros() as u64,
                "answer_to_usable_us": figures.answer.as_micros() as u64,
                "start_cpu_us": figures.start_cpu.as_micros() as u64,
                "change_to_usable_us": latencies(&figures.one_by_one),
                "change_to_usable_under_changes_us": latencies(&figures.churned),
                "at_rest": usage(&figures.rest),
                "scrape": { "cpu_us": figures.scrape.cpu.as_micros() as u64, "bytes": figures.scrape.bytes },
                "under_changes": usage(&figures.churn),
                "requests": requests,
            })
        };
        json!({
            "surroundings": self.surroundings,
            "changes": self.options.changes,
            "rate": self.options.rate,
            "seconds": self.options.seconds,
            "results": self.figures.iter().map(of).collect::<Vec<_>>(),
        })
    }

    /// One column for each number of leases.
    fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Disabled);
        let heads = self.figures.iter().map(|figures| format!("{} leases", figures.leases));
        table.set_header(std::iter::once(String::new()).chain(heads));
        let mut row = |name: String, cell: &dyn Fn(&Figures) -> String| {
            table.add_row(std::iter::once(name).chain(self.figures.iter().map(cell)));
        };
        let Options { rate, seconds, .. } = self.options;
        row("start to last usable, ms".into(), &|it| milliseconds(it.start.as_secs_f64()));
        row("etcd's answer to last usable, ms".into(), &|it| milliseconds(it.answer.as_secs_f64()));
        row("CPU of the start, ms".into(), &|it| milliseconds(it.start_cpu.as_secs_f64()));
        row("one change to usable, ms: p50, p99".into(), &|it| both(&it.one_by_one));
        row(format!("the same under {rate} changes/s"), &|it| both(&it.churned));
        row("CPU at rest, %".into(), &|it| format!("{:.1}", it.rest.cpu * 100.0));
        row("CPU of a scrape of /metrics, ms".into(), &|it| {
            format!("{:.2}", it.scrape.cpu.as_secs_f64() * 1e3)
        });
        row("  its page, kB".into(), &|it| format!("{:.1}", it.scrape.bytes as f64 / 1e3));
        row(format!("CPU under {rate} changes/s, %"), &|it| format!("{:.1}", it.churn.cpu * 100.0));
        row("resident at rest, MB".into(), &|it| megabytes(it.rest.memory.resident));
        row("  of it allocated, MB".into(), &|it| megabytes(it.rest.memory.anonymous));
        row("resident at most, MB".into(), &|it| megabytes(it.churn.memory.peak));
        for (at, title) in ["start", "rest", "churn"].iter().enumerate() {
            let per = if at == 0 { String::new() } else { format!(", in {seconds} s") };
            row(format!("system calls, {title}{per}"), &|it| {
                it.requests[at].1.values().sum::<u64>().to_string()
            });
            for name in ASKING {
                let count = |it: &Figures| it.requests[at].1.get(name).copied().unwrap_or(0);
                if self.figures.iter().any(|it| count(it) > 0) {
                    row(format!("  {name}"), &|it| count(it).to_string());
                }
            }
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.table())?;
        writeln!(
            f,
            "Peers are lease keys in a real etcd; the agent runs with --fast-path=flow --ip-masq. A lease is usable when \
             the last map names it, which is written after route, neighbour and forwarding entry. One change: from the \
             moment etcd tells a watcher, {} changes by turns of a new lease, another MAC, a lease deleted. System calls \
             are counted by strace in a run of its own; sendto is netlink and etcd.",
            self.options.changes
        )?;
        writeln!(f, "{}", self.surroundings)
    }
}

fn milliseconds(seconds: f64) -> String {
    format!("{:.0}", seconds * 1e3)
}

fn megabytes(kib: u64) -> String {
    format!("{:.1}", kib as f64 * 1024.0 / 1e6)
}

fn both(samples: &Samples) -> String {
    format!("{:.2}, {:.2}", samples.quantile(0.5) / 1e3, samples.quantile(0.99) / 1e3)
}
