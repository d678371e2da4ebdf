//! What the verifier walks through, held to the budget file.

use anyhow::{Context as _, Result, ensure};
use flannel_agent::bpf::{LogLevel, Programs};
use flannel_bench::budget::{Budget, FILE};
use flannel_ebpf_toolchain::workspace_root;

use crate::sandbox::in_sandbox;

fn budget() -> Result<Budget> {
    let root = workspace_root();
    Budget::read(&root.join(FILE))
}

#[test]
fn programs_stay_within_their_budget() {
    in_sandbox(|sandbox| {
        let budget = budget()?;
        for program in Programs::load(sandbox.pins()?, LogLevel::Off)?.summaries()? {
            let name = program.name;
            let allowed = budget.0.get(name).with_context(|| format!("{FILE} says nothing of {name}"))?;
            // Told since Linux 5.16.
            let found = program.verified_instructions.context("the kernel does not tell")?;
            ensure!(
                found <= allowed.verified_instructions,
                "{name}: the verifier walks through {found} instructions, {FILE} allows {}: make it smaller, or write \
                 the file anew by the command at its head",
                allowed.verified_instructions
            );
        }
        Ok(())
    });
}

#[test]
fn the_budget_is_of_programs_there_are() {
    in_sandbox(|sandbox| {
        let summaries = Programs::load(sandbox.pins()?, LogLevel::Off)?.summaries()?;
        for name in budget()?.0.keys() {
            ensure!(
                summaries.iter().any(|program| program.name == name),
                "{FILE}: there is no program {name}"
            );
        }
        Ok(())
    });
}
