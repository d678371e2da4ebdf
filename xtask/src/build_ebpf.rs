//! `build-ebpf`: compile the programs and show what the object holds.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};
use clap::Args;
use flannel_ebpf_toolchain::{Object, Toolchain, build, build_with, lint, workspace_root};

use crate::setup;

/// Options of `build-ebpf`.
#[derive(Args)]
pub(crate) struct Options {
    /// Where to put the object and what is needed to build it
    #[arg(long, value_name = "DIR", default_value_os_t = workspace_root().join("target/ebpf"))]
    out_dir: PathBuf,
    /// Refuse warnings: clippy's where the toolchain has clippy, the compiler's in any case
    #[arg(long)]
    deny_warnings: bool,
}

/// Builds, then describes the object on standard output.
pub(crate) fn run(options: &Options) -> Result<()> {
    setup::ensure(setup::Scope::Build)?;
    let out_dir = &options.out_dir;
    fs::create_dir_all(out_dir).with_context(|| format!("cannot create {}", out_dir.display()))?;
    let object = if options.deny_warnings {
        let toolchain = Toolchain::find()?;
        if !lint(&toolchain, out_dir)? {
            crate::ui::note(&format!("no clippy for the programs: {toolchain} comes without it"));
        }
        build_with(&toolchain, out_dir, &["-Dwarnings"])?
    } else {
        build(out_dir)?
    };
    describe(&Object::read(&object)?);
    Ok(())
}

fn describe(object: &Object) {
    println!("{}  {} bytes\n", object.path.display(), object.size);
    println!("{:<24} {:<16} instructions", "program", "section");
    for program in &object.programs {
        println!("{:<24} {:<16} {:>12}", program.name, program.section, program.instructions);
    }
    println!("\n{:<24} bytes", "section");
    // Relocations and debug information belong to the others, and nobody loads them.
    let loaded = |name: &str| !name.is_empty() && !name.starts_with(".rel") && !name.starts_with(".debug");
    for section in object.sections.iter().filter(|section| loaded(&section.name)) {
        println!("{:<24} {:>5}", section.name, section.size);
    }
}
