//! What the programs may cost: a file beside them, written by the benchmark and held by a test.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, Result};
use toml_edit::{DocumentMut, Item, Table, value};

use crate::programs::Cost;

/// The file, from the workspace's root.
pub const FILE: &str = "flannel-ebpf/budget.toml";

const HEAD: &str = "\
# What each program may cost. `verified_instructions` is held by a test: the verifier gives up at a million, and takes
# longer the more it walks through. `nanoseconds` of a packet are for people: they depend on the machine.
#
# After a change that is worth it: cargo xtask bench programs --write-budget flannel-ebpf/budget.toml
";

/// Room over what was measured for what another compiler or kernel makes of the same source: one part in so many.
const ROOM: u32 = 10;

/// What one program may cost.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Allowance {
    /// Instructions the verifier may walk through.
    pub verified_instructions: u32,
    /// Time of a run, by kind of packet.
    pub nanoseconds: BTreeMap<String, f64>,
}

/// What each program may cost.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Budget(pub BTreeMap<String, Allowance>);

impl Budget {
    /// What `costs` show, with some room for instructions.
    pub fn of(costs: &[Cost]) -> Self {
        let allowance = |cost: &Cost| {
            let count = cost.verified_instructions.unwrap_or_default();
            Allowance {
                verified_instructions: count + count / ROOM,
                nanoseconds: cost
                    .nanoseconds
                    .iter()
                    .map(|(packet, time)| (packet.clone(), time.round()))
                    .collect(),
            }
        };
        Self(costs.iter().map(|cost| (cost.program.clone(), allowance(cost))).collect())
    }

    /// Reads the file at `path`.
    ///
    /// # Errors
    /// When it cannot be read, or a program in it has no number of instructions.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        Self::parse(&text).with_context(|| path.display().to_string())
    }

    fn parse(text: &str) -> Result<Self> {
        let document: DocumentMut = text.parse()?;
        let mut budget = BTreeMap::new();
        for (program, item) in document.iter() {
            let count = item.get("verified_instructions").and_then(Item::as_integer);
            let count = count.and_then(|count| u32::try_from(count).ok());
            let times = item
                .get("nanoseconds")
                .and_then(Item::as_table_like)
                .into_iter()
                .flat_map(|times| times.iter());
            let number = |item: &Item| item.as_integer().map(|number| number as f64).or(item.as_float());
            let allowance = Allowance {
                verified_instructions: count.with_context(|| {
                    format!("{program}.verified_instructions: not a number: write the file anew by the command at its head")
                })?,
                nanoseconds: times.filter_map(|(packet, time)| Some((packet.to_owned(), number(time)?))).collect(),
            };
            budget.insert(program.to_owned(), allowance);
        }
        Ok(Self(budget))
    }

    /// Writes the file at `path`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        fs::write(path, self.to_string()).with_context(|| format!("write {}", path.display()))
    }
}

impl std::fmt::Display for Budget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut document = DocumentMut::new();
        for (program, allowance) in &self.0 {
            let mut table = Table::new();
            table["verified_instructions"] = value(i64::from(allowance.verified_instructions));
            let mut times = Table::new();
            for (packet, time) in &allowance.nanoseconds {
                times[packet.as_str()] = value(*time as i64);
            }
            table["nanoseconds"] = Item::Table(times);
            document[program.as_str()] = Item::Table(table);
        }
        write!(f, "{HEAD}\n{document}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let budget = Budget::of(&[Cost {
            program: "from_pod".to_owned(),
            verified_instructions: Some(1000),
            nanoseconds: [("UDP, 64 B".to_owned(), 100.4), ("another".to_owned(), 7.0)].into(),
        }]);
        assert_eq!(budget.0["from_pod"].verified_instructions, 1100);
        assert_eq!(Budget::parse(&budget.to_string()).unwrap(), budget);
    }

    #[test]
    fn a_program_without_a_number_is_named() {
        let error = Budget::parse("[from_pod]\nverified_instructions = \"many\"").unwrap_err();
        assert!(error.to_string().contains("from_pod.verified_instructions"), "{error}");
    }
}
