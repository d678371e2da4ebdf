//! Keeps `tests/COVERAGE.md` and the page about security true: every test that they name is there.

use std::{collections::BTreeSet, fs};

use anyhow::{Result, ensure};
use flannel_ebpf_toolchain::workspace_root;
use regex::Regex;

/// Cases that are to have a row, by what stands first in it.
const SOME_CASES: [&str; 8] = [
    "TestConfigDefaults",
    "TestSubnetNodeInvalid",
    "TestAcquireLease",
    "TestWatchSubnetReportsRemovalAfterCompaction",
    "TestEnsureV4AddressOnLink",
    "ByIfCanReach",
    "TestBootstrapRules",
    "-k CUSTOM_KEY",
];

#[test]
fn every_test_of_the_table_exists() -> Result<()> {
    let root = workspace_root();
    let table = fs::read_to_string(root.join("tests/COVERAGE.md"))?;
    let rows: Vec<(&str, &str)> = table
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |")?.split_once(" | "))
        .filter(|(case, _)| !["upstream", "case"].contains(case))
        .collect();
    for case in SOME_CASES {
        ensure!(rows.iter().any(|(name, _)| *name == case), "no row for {case}");
    }
    let named = Regex::new(r"`([\w/.-]+\.rs)::(\w+)`")?;
    let marks = ["waits for", "`cargo xtask bench`", "`cargo xtask old-kernel --tunnels`"];
    let mut missing = BTreeSet::new();
    let mut found = 0;
    for (case, here) in rows {
        let mut says_something = marks.iter().any(|mark| here.contains(mark));
        for name in named.captures_iter(here) {
            let (file, function) = (&name[1], &name[2]);
            let text = fs::read_to_string(root.join(file)).unwrap_or_default();
            // A test's function, or one of proptest's, stands at the start of a line.
            let definition = Regex::new(&format!(r"(?m)^\s*(async )?fn {function}\("))?;
            match definition.is_match(&text) {
                true => found += 1,
                false => {
                    missing.insert(format!("{file}::{function}, for {case}"));
                }
            }
            says_something = true;
        }
        ensure!(says_something, "the row of {case} names no test and does not say what it waits for");
        ensure!(here.matches("::").count() == named.find_iter(here).count(), "a name that is none: {here}");
    }
    ensure!(missing.is_empty(), "COVERAGE.md names tests that are gone: {missing:#?}");
    ensure!(found > 80, "only {found} names were found in COVERAGE.md");
    Ok(())
}

/// Each attack of the table has tests, and they exist.
#[test]
fn every_attack_has_a_test() -> Result<()> {
    let root = workspace_root();
    let page = fs::read_to_string(root.join("flannel-agent/docs/security.md"))?;
    let named = Regex::new(r"`([\w/.-]+\.rs)::(\w+)`")?;
    let rows = page.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| who |"));
    let mut found = 0;
    for row in rows {
        ensure!(named.is_match(row), "no test for {row}");
        for name in named.captures_iter(row) {
            let (file, function) = (&name[1], &name[2]);
            let text = fs::read_to_string(root.join(file)).unwrap_or_default();
            ensure!(text.contains(&format!("fn {function}(")), "{file}::{function} is gone");
            found += 1;
        }
    }
    ensure!(found > 12, "only {found} tests were found on the page");
    Ok(())
}
