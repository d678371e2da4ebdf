//! What each fault cost, and what it may cost.

use std::time::Duration;

use anyhow::{Result, ensure};
use comfy_table::{Table, presets::NOTHING};
use serde_json::{Value, json};

use crate::{fault::Fault, measure::Usage, traffic::Outcome};

/// A flow stands still no longer than the fault and this.
const STALL: Duration = Duration::from_secs(3);
/// Memory grows by no more than this in the last half, percent.
const GROWTH: u64 = 2;
/// So many rounds make a half worth comparing.
const ROUNDS: usize = 20;

/// One fault.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    fault: Fault,
    lasted: Duration,
    repaired: Duration,
    sent: u64,
    lost: u64,
    longest_gap: Duration,
    usage: Usage,
    /// Why it cost more than it may.
    pub(crate) failure: Option<String>,
}

impl Row {
    /// Judges what was measured. `lasted` is how long the fault was there, `repaired` how long after its end everybody
    /// reached everybody.
    pub(crate) fn new(
        fault: Fault,
        lasted: Duration,
        repaired: Duration,
        outcome: &Outcome,
        usage: Usage,
    ) -> Self {
        let mut wrong = Vec::new();
        if !fault.kind.may_lose() && outcome.lost > 0 {
            let flows = outcome.losses.join("; ");
            wrong.push(format!("{} packets lost, and none may be ({flows})", outcome.lost));
        }
        if outcome.longest_gap > lasted + STALL {
            wrong.push(format!("a flow stood still for {} ms", outcome.longest_gap.as_millis()));
        }
        if outcome.duplicated > 0 {
            wrong.push(format!("{} packets arrived twice", outcome.duplicated));
        }
        Self {
            fault,
            lasted,
            repaired,
            sent: outcome.sent,
            lost: outcome.lost,
            longest_gap: outcome.longest_gap,
            usage,
            failure: (!wrong.is_empty()).then(|| wrong.join("; ")),
        }
    }

    /// One that could not be measured to its end.
    pub(crate) fn broken(fault: Fault, failure: String) -> Self {
        let nothing = Outcome::default();
        let row = Self::new(fault, Duration::ZERO, Duration::ZERO, &nothing, Usage::default());
        Self { failure: Some(failure), ..row }
    }
}

/// All of a run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Report {
    pub(crate) seed: u64,
    pub(crate) rows: Vec<Row>,
    /// The fewest faults that failed again.
    pub(crate) shortest: Vec<Fault>,
}

impl Report {
    /// Whether a fault cost more than it may.
    pub(crate) fn failed(&self) -> bool {
        self.rows.iter().any(|row| row.failure.is_some())
    }

    /// By how much memory has grown in the last half, percent; `None` of too few rounds.
    fn growth(&self) -> Option<u64> {
        let last = &self.rows[self.rows.len() / 2..];
        let (first, last) = (last.first()?.usage.rss_kib, last.last()?.usage.rss_kib);
        (self.rows.len() >= 2 * ROUNDS).then(|| last.saturating_sub(first) * 100 / first.max(1))
    }

    /// For people.
    pub(crate) fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(NOTHING);
        table.set_header([
            "fault",
            "lasted ms",
            "repaired ms",
            "sent",
            "lost",
            "longest gap ms",
            "RSS KiB",
            "files",
            "map entries",
        ]);
        for row in &self.rows {
            table.add_row([
                row.fault.to_string(),
                row.lasted.as_millis().to_string(),
                row.repaired.as_millis().to_string(),
                row.sent.to_string(),
                row.lost.to_string(),
                row.longest_gap.as_millis().to_string(),
                row.usage.rss_kib.to_string(),
                row.usage.descriptors.to_string(),
                row.usage.map_entries.to_string(),
            ]);
        }
        let growth = self.growth().map_or("too few faults to say".to_owned(), |growth| format!("{growth} %"));
        format!(
            "{table}\n{} faults of seed {}; growth of memory in the last half: {growth}\n",
            self.rows.len(),
            self.seed
        )
    }

    /// For programs.
    pub(crate) fn json(&self) -> Value {
        let row = |row: &Row| {
            json!({
                "fault": row.fault.to_string(),
                "lasted_ms": row.lasted.as_millis() as u64,
                "repaired_ms": row.repaired.as_millis() as u64,
                "sent": row.sent,
                "lost": row.lost,
                "longest_gap_ms": row.longest_gap.as_millis() as u64,
                "rss_kib": row.usage.rss_kib,
                "descriptors": row.usage.descriptors,
                "map_entries": row.usage.map_entries,
                "failure": row.failure,
            })
        };
        json!({
            "seed": self.seed,
            "faults": self.rows.iter().map(row).collect::<Vec<_>>(),
            "rss_growth_percent": self.growth(),
            "shortest": self.shortest.iter().map(ToString::to_string).collect::<Vec<_>>(),
        })
    }

    /// Fails if a fault cost more than it may.
    pub(crate) fn check(&self) -> Result<()> {
        if let Some(row) = self.rows.iter().find(|row| row.failure.is_some()) {
            let shortest: Vec<String> = self.shortest.iter().map(ToString::to_string).collect();
            let shortest = match shortest.as_slice() {
                [] => "no shorter schedule failed again".to_owned(),
                some => format!("the shortest schedule that fails: {}", some.join(", ")),
            };
            let failure = row.failure.as_deref().unwrap_or_default();
            anyhow::bail!(
                "seed {}, fault {}, {}: {failure}; {shortest}; again: cargo xtask soak --seed {}",
                self.seed,
                self.rows.len(),
                row.fault,
                self.seed
            );
        }
        let growth = self.growth().unwrap_or_default();
        ensure!(growth <= GROWTH, "seed {}: memory has grown by {growth} % in the last half", self.seed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Kind;

    fn row(kind: Kind, lost: u64, gap: u64, rss_kib: u64) -> Row {
        let longest_gap = Duration::from_millis(gap);
        let outcome = Outcome { sent: 100, lost, longest_gap, ..Outcome::default() };
        let fault = Fault { kind, node: 0, seconds: 2 };
        let usage = Usage { rss_kib, ..Usage::default() };
        Row::new(fault, Duration::from_secs(2), Duration::ZERO, &outcome, usage)
    }

    #[test]
    fn a_fault_may_cost_what_it_takes_away() {
        assert!(row(Kind::AgentKilled, 0, 4_900, 1).failure.is_none());
        assert!(row(Kind::AgentKilled, 1, 100, 1).failure.is_some());
        assert!(row(Kind::InterfaceDown, 50, 4_900, 1).failure.is_none());
        assert!(row(Kind::InterfaceDown, 50, 5_100, 1).failure.is_some());
    }

    #[test]
    fn memory_that_grows_in_the_last_half_fails() {
        let report = |last| Report {
            rows: (0..40).map(|n| row(Kind::PodChurned, 0, 1, if n < 39 { 1000 } else { last })).collect(),
            ..Report::default()
        };
        assert!(report(1020).check().is_ok());
        assert!(report(1030).check().is_err());
    }
}
