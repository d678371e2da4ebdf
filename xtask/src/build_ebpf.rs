//! `build-ebpf`: compile the programs and show what the object holds.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};
use clap::Args;
use flannel_ebpf_toolchain::{Object, Toolchain, build, build_with, lint, workspace_root};

use crate::{
    setup,
    ui::{note, print},
};

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
            note(&format!("no clippy for the programs: {toolchain} comes without it"));
        }
        build_with(&toolchain, out_dir, &["-Dwarnings"])?
    } else {
        build(out_dir)?
    };
    print(&describe(&Object::read(&object)?))
}

fn describe(object: &Object) -> String {
    let mut text = format!("{}  {} bytes\n", object.path.display(), object.size);
    text += &format!("\n{:<24} {:<16} instructions\n", "program", "section");
    for program in &object.programs {
        text += &format!("{:<24} {:<16} {:>12}\n", program.name, program.section, program.instructions);
    }
    text += &format!("\n{:<24} bytes\n", "section");
    // Relocations and debug information belong to the others, and nobody loads them.
    let loaded = |name: &str| !name.is_empty() && !name.starts_with(".rel") && !name.starts_with(".debug");
    for section in object.sections.iter().filter(|section| loaded(&section.name)) {
        text += &format!("{:<24} {:>5}\n", section.name, section.size);
    }
    text
}
