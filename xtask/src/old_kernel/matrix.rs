//! `kernels`: one suite on Debian's kernels, and a table of what works how.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use flannel_ebpf_toolchain::{cache_dir, workspace_root};
use serde_json::json;

use super::{
    PROGRAMS, STRONGSWAN, boot,
    foreign::{self, Foreign},
    initramfs, kernel,
    table::{self, Column, Results},
};
use crate::{
    cargo::{Profile, build_agent, target_directory},
    failure::failure,
    setup,
    ui::{Step, note, print},
};

const SUITE: &str = concat!(include_str!("machine.sh"), include_str!("suite.sh"));
/// The page that shows the table.
const PAGE: &str = "flannel-agent/docs/xdp-and-kernels.md";

/// Options of `kernels`.
#[derive(Args)]
pub(crate) struct Options {
    /// Kernels to boot; all unless given
    #[arg(value_enum)]
    kernels: Vec<Kernel>,
    /// Write the table into the documentation, too; of kernels that are not booted what it has there stays
    #[arg(long)]
    write: bool,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// How results are printed.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// A table, as in the documentation
    Table,
    /// JSON: kernels with their results
    Json,
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

    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

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

/// Boots each kernel, and prints the table.
pub(crate) fn run(options: &Options) -> Result<()> {
    setup::ensure(setup::Scope::Lab)?;
    setup::ensure_programs(&PROGRAMS)?;
    setup::ensure_programs(&STRONGSWAN)?;
    let kernels = if options.kernels.is_empty() { Kernel::ALL.to_vec() } else { options.kernels.clone() };
    let mut columns = Vec::new();
    let mut failed = Vec::new();
    for kernel in kernels {
        let foreign = kernel.foreign();
        let found = kernel::of(kernel.release(), foreign.map_or("amd64", |foreign| foreign.architecture));
        let results = match found {
            Ok(found) => on(&found, foreign, &kernel.name()),
            Err(error) => {
                note(&format!("{}: {error:#}", kernel.name()));
                let why = format!("not to be had: no kernel of Debian {} at the mirror", kernel.release());
                Ok(vec![(table::KERNEL.to_owned(), why)])
            }
        };
        match results {
            Ok(results) => columns.push(Column { name: kernel.name(), results }),
            Err(error) => failed.push(format!("{}: {error:#}", kernel.name())),
        }
    }
    match options.output {
        Output::Table => print(&table::of(&columns))?,
        Output::Json => print(&format!("{:#}\n", as_json(&columns)))?,
    }
    if options.write {
        write(&workspace_root().join(PAGE), columns)?;
    }
    if failed.is_empty() {
        return Ok(());
    }
    Err(failure(
        format!("not on every kernel: {}", failed.join("; ")),
        "look at what its machine says; xtask/src/old_kernel/suite.sh is what it runs",
    ))
}

fn as_json(columns: &[Column]) -> serde_json::Value {
    let results = |results: &Results| -> Vec<_> {
        results.iter().map(|(what, how)| json!({ "what": what, "how": how })).collect()
    };
    columns.iter().map(|column| json!({ "name": column.name, "results": results(&column.results) })).collect()
}

/// What works on `kernel`. All that its machine says is kept below `target`, by this name.
fn on(kernel: &kernel::Kernel, foreign: Option<Foreign>, name: &str) -> Result<Results> {
    let work = cache_dir().join(format!("kernels.{}", std::process::id()));
    fs::create_dir_all(&work).with_context(|| format!("cannot create {}", work.display()))?;
    let made = match foreign {
        Some(foreign) => foreign.make(&work, kernel, SUITE),
        None => build_agent(Profile::Dev).and_then(|agent| {
            initramfs::copy_plugins(&work, &agent)?;
            initramfs::make(&work, kernel, &agent, SUITE, true)
        }),
    };
    let said = made.and_then(|initramfs| {
        let step = Step::start(format!("Two nodes on {}", kernel.version));
        let said = boot(kernel, &initramfs, "", foreign, |line| match table::result(line) {
            Some((what, how)) => step.print(&format!("  {what}: {how}")),
            None => step.show(line),
        });
        step.done("ended");
        said
    });
    let _ = fs::remove_dir_all(&work);
    let said = said?;
    let logs = target_directory().join("kernels");
    let log = logs.join(format!("{name}.log"));
    fs::create_dir_all(&logs)
        .and_then(|()| fs::write(&log, &said))
        .with_context(|| format!("cannot write {}", log.display()))?;
    if said.lines().any(|line| line == "PASSED") {
        return Ok(said.lines().filter_map(table::result).collect());
    }
    let why =
        said.lines().find(|line| line.starts_with("FAILED")).unwrap_or("the machine did not say PASSED");
    anyhow::bail!("{why} (all it says: {})", log.display())
}

/// Replaces what the page has of these kernels.
fn write(page: &Path, columns: Vec<Column>) -> Result<()> {
    let text = fs::read_to_string(page).with_context(|| page.display().to_string())?;
    let names = Kernel::ALL.map(Kernel::name);
    let new = table::replaced(&text, &names, columns)
        .with_context(|| format!("{} has no place for the table", page.display()))?;
    fs::write(page, new).with_context(|| page.display().to_string())
}
