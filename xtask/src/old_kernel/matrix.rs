//! `kernels`: one suite on Debian's kernels, and a table of what works how.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use flannel_ebpf_toolchain::{cache_dir, workspace_root};

use super::{
    PROGRAMS, boot,
    foreign::{self, Foreign},
    initramfs, kernel,
};
use crate::{
    cargo::{Profile, build_agent},
    failure::failure,
    setup,
    ui::{Step, print, say},
};

const SUITE: &str = concat!(include_str!("machine.sh"), include_str!("suite.sh"));
/// The page that shows the table, and what it stands between.
const PAGE: &str = "flannel-agent/docs/xdp-and-kernels.md";
const BEGIN: &str = "<!-- begin generated: kernels -->\n";
const END: &str = "<!-- end generated: kernels -->";

/// Options of `kernels`.
#[derive(Args)]
pub(crate) struct Options {
    /// Kernels to boot; all unless given
    #[arg(value_enum)]
    kernels: Vec<Kernel>,
    /// Write the table into the documentation, too; of all kernels only
    #[arg(long, conflicts_with = "kernels")]
    write: bool,
}

/// A kernel of Debian's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kernel {
    /// Debian 11
    #[value(name = "5.10")]
    Bullseye,
    /// Debian 12
    #[value(name = "6.1")]
    Bookworm,
    /// Debian 13
    #[value(name = "6.12")]
    Trixie,
    /// The newest there is
    #[value(name = "newest")]
    Sid,
    /// Debian 12 on arm64
    #[value(name = "arm64")]
    Arm64,
}

impl Kernel {
    const ALL: [Self; 5] = [Self::Bullseye, Self::Bookworm, Self::Trixie, Self::Sid, Self::Arm64];

    const fn release(self) -> &'static str {
        match self {
            Self::Bullseye => "bullseye",
            Self::Bookworm | Self::Arm64 => "bookworm",
            Self::Trixie => "trixie",
            Self::Sid => "sid",
        }
    }

    /// What a machine of another architecture than this one takes.
    const fn foreign(self) -> Option<Foreign> {
        match self {
            Self::Arm64 => Some(foreign::ARM64),
            Self::Bullseye | Self::Bookworm | Self::Trixie | Self::Sid => None,
        }
    }
}

/// What a machine says: each thing that was tried, and how it works.
type Results = Vec<(String, String)>;

/// Boots each kernel, and prints the table.
pub(crate) fn run(options: &Options) -> Result<()> {
    setup::ensure(setup::Scope::Lab)?;
    setup::ensure_programs(&PROGRAMS)?;
    let kernels = if options.kernels.is_empty() { Kernel::ALL.to_vec() } else { options.kernels.clone() };
    let mut columns = Vec::new();
    let mut failed = Vec::new();
    for kernel in kernels {
        match on(kernel) {
            Ok(results) => columns.push(results),
            Err(error) => {
                let name = kernel.to_possible_value().map(|value| value.get_name().to_owned());
                failed.push(format!("{}: {error:#}", name.unwrap_or_default()));
            }
        }
    }
    let table = table(&columns);
    print(&table)?;
    if !failed.is_empty() {
        return Err(failure(
            format!("not on every kernel: {}", failed.join("; ")),
            "look at what its machine says above; xtask/src/old_kernel/suite.sh is what it runs",
        ));
    }
    if options.write { write(&workspace_root().join(PAGE), &table) } else { Ok(()) }
}

/// What works on `kernel`.
fn on(kernel: Kernel) -> Result<Results> {
    let foreign = kernel.foreign();
    let found = kernel::of(kernel.release(), foreign.map_or("amd64", |foreign| foreign.architecture))?;
    let work = cache_dir().join(format!("kernels.{}", std::process::id()));
    fs::create_dir_all(&work).with_context(|| format!("cannot create {}", work.display()))?;
    let made = match foreign {
        Some(foreign) => foreign.make(&work, &found, SUITE),
        None => {
            build_agent(Profile::Dev).and_then(|agent| initramfs::make(&work, &found, &agent, SUITE, false))
        }
    };
    let said = made.and_then(|initramfs| {
        let step = Step::start(format!("Two nodes on {}", found.version));
        let said = boot(&found, &initramfs, "", foreign);
        step.done("ended");
        said
    });
    let _ = fs::remove_dir_all(&work);
    let said = said?;
    if said.lines().any(|line| line == "PASSED") {
        return Ok(results(&said));
    }
    say(said.trim_end());
    anyhow::bail!("the machine did not say PASSED")
}

fn results(said: &str) -> Results {
    let lines = said.lines().filter_map(|line| line.strip_prefix("RESULT\t")?.split_once('\t'));
    lines.map(|(what, how)| (what.to_owned(), how.trim().to_owned())).collect()
}

/// A column for each machine, a row for each thing, in the order of the first.
fn table(columns: &[Results]) -> String {
    let Some(first) = columns.first() else { return String::new() };
    let mut text = String::new();
    for (number, (what, _)) in first.iter().enumerate() {
        let found = |results: &Results| {
            let how = results.iter().find(|(other, _)| other == what).map(|(_, how)| how.replace('|', "/"));
            how.unwrap_or_else(|| "not tried".to_owned())
        };
        let cells: Vec<String> = columns.iter().map(found).collect();
        text.push_str(&format!("| {what} | {} |\n", cells.join(" | ")));
        if number == 0 {
            text.push_str(&format!("|{}\n", "---|".repeat(columns.len() + 1)));
        }
    }
    text
}

fn write(page: &Path, table: &str) -> Result<()> {
    let text = fs::read_to_string(page).with_context(|| page.display().to_string())?;
    let parts = text.split_once(BEGIN).and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let (before, after) = parts.with_context(|| format!("{} has no place for the table", page.display()))?;
    fs::write(page, format!("{before}{BEGIN}\n{table}\n{END}{after}"))
        .with_context(|| page.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_machines_say_becomes_a_table() {
        let said = "Linux version 6.1\nRESULT\tkernel\t6.1.0\nnoise\nRESULT\tudp\tfast\nPASSED\n";
        let other = vec![("kernel".to_owned(), "5.10.0".to_owned())];
        assert_eq!(
            table(&[results(said), other]),
            "| kernel | 6.1.0 | 5.10.0 |\n|---|---|---|\n| udp | fast | not tried |\n"
        );
    }
}
