//! iptables without a kernel.

use std::collections::{BTreeMap, BTreeSet};

use crate::masq::exec::{Exec, ExecError};

/// Chains by name, each with its rules, in order.
type Chains = Vec<(String, Vec<String>)>;

/// The tables of a machine in memory, and just enough of iptables-save and iptables-restore.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory {
    /// By program, without its ending (`iptables-nft`), and name.
    tables: BTreeMap<(String, String), Chains>,
    programs: BTreeSet<String>,
    /// What was restored, in order.
    pub(super) restores: Vec<String>,
    /// What `--version` writes.
    version: String,
    /// What this kernel has no module for.
    pub(super) lacks: Option<&'static str>,
}

impl Memory {
    pub(super) fn with(back_ends: &[&str]) -> Self {
        let mut memory = Self { version: "iptables v1.8.9 (nf_tables)".into(), ..Self::default() };
        for back_end in back_ends {
            for suffix in ["", "-save", "-restore"] {
                memory.programs.insert(format!("{back_end}{suffix}"));
            }
        }
        memory
    }

    /// One iptables, of another version.
    pub(super) fn of_version(version: &str) -> Self {
        Self { version: version.to_owned(), ..Self::with(&["iptables"]) }
    }

    pub(super) fn chains(&mut self, back_end: &str, table: &str) -> &mut Chains {
        let built_in: &[&str] = match table {
            "nat" => &["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"],
            "mangle" => &["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"],
            _ => &["INPUT", "FORWARD", "OUTPUT"],
        };
        self.tables
            .entry((back_end.to_owned(), table.to_owned()))
            .or_insert_with(|| built_in.iter().map(|name| ((*name).to_owned(), Vec::new())).collect())
    }

    pub(super) fn has_table(&self, back_end: &str, table: &str) -> bool {
        self.tables.contains_key(&(back_end.to_owned(), table.to_owned()))
    }

    pub(super) fn chain(&mut self, back_end: &str, table: &str, name: &str) -> Option<&mut Vec<String>> {
        let chains = self.chains(back_end, table);
        chains.iter_mut().find(|(chain, _)| chain == name).map(|(_, rules)| rules)
    }

    /// What `iptables-save` writes, without counters and comments.
    pub(super) fn save(&mut self, back_end: &str, table: &str) -> String {
        let chains = self.chains(back_end, table);
        let mut lines = vec![format!("*{table}")];
        lines.extend(chains.iter().map(|(name, _)| format!(":{name} - [0:0]")));
        for (name, rules) in chains.iter() {
            lines.extend(rules.iter().map(|rule| format!("-A {name} {rule}")));
        }
        lines.join("\n") + "\nCOMMIT\n"
    }

    /// All of a table or, as the kernel does, nothing of it.
    pub(super) fn restore(&mut self, back_end: &str, input: &str) -> Result<(), String> {
        if self.lacks.is_some_and(|lacks| input.contains(lacks)) {
            return Err("RULE_INSERT failed (No such file or directory)".to_owned());
        }
        let mut next = self.clone();
        let mut table = String::new();
        for line in input.lines() {
            let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
            if let Some(name) = line.strip_prefix('*') {
                table = name.to_owned();
            } else if let Some(name) = verb.strip_prefix(':') {
                match next.chain(back_end, &table, name) {
                    Some(rules) => rules.clear(),
                    None => next.chains(back_end, &table).push((name.to_owned(), Vec::new())),
                }
            } else if verb == "-X" {
                next.chains(back_end, &table).retain(|(name, _)| name != rest);
            } else if line != "COMMIT" {
                let (name, rule) = rest.split_once(' ').ok_or(line)?;
                let rules = next.chain(back_end, &table, name).ok_or(line)?;
                match verb {
                    "-A" => rules.push(rule.to_owned()),
                    "-I" => {
                        let (number, rule) = rule.split_once(' ').ok_or(line)?;
                        rules.insert(number.parse::<usize>().map_err(|_| line)? - 1, rule.to_owned());
                    }
                    "-D" => {
                        let at = rules.iter().position(|other| other == rule).ok_or(line)?;
                        rules.remove(at);
                    }
                    _ => return Err(line.to_owned()),
                }
            }
        }
        *self = Self { restores: std::mem::take(&mut self.restores), ..next };
        self.restores.push(input.to_owned());
        Ok(())
    }
}

impl Exec for Memory {
    async fn run(&mut self, program: &str, arguments: &[&str], input: &str) -> Result<String, ExecError> {
        let failed = |stderr| ExecError::Failed { program: program.to_owned(), stderr };
        if !self.has(program) {
            return Err(ExecError::Missing { program: program.to_owned(), package: "iptables" });
        }
        if let Some(back_end) = program.strip_suffix("-save") {
            let tables = match arguments {
                ["-t", table] => vec![(*table).to_owned()],
                _ => {
                    let there = self.tables.keys().filter(|(name, _)| name == back_end);
                    there.map(|(_, table)| table.clone()).collect()
                }
            };
            Ok(tables.iter().map(|table| self.save(back_end, table)).collect())
        } else if let Some(back_end) = program.strip_suffix("-restore") {
            self.restore(back_end, input).map(|()| String::new()).map_err(failed)
        } else {
            Ok(self.version.clone())
        }
    }

    fn has(&self, program: &str) -> bool {
        self.programs.contains(program)
    }
}
