//! The table at the end of `setup`: what there is, which version, and where.

use std::path::Path;

use flannel_ebpf_toolchain::{OBJECT_VARIABLE, Toolchain, linked_dir};

use super::tools::Survey;

/// A version longer than this is cut: some programs list their libraries.
const VERSION: usize = 48;

/// Prints one line each on standard output.
pub(super) fn print(toolchain: Option<&Toolchain>, survey: &Survey) {
    println!("\n{:<12} {:<VERSION$} where", "tool", "version");
    if let Some(Toolchain { compiler, linker }) = toolchain {
        row("rustc", &format!("{} (LLVM {})", compiler.release, compiler.llvm), &compiler.rustc);
        row("bpf-linker", &format!("LLVM {}", linker.llvm), &linker.path);
    }
    for tool in &survey.found {
        row(tool.name, &tool.version, &tool.path);
    }
    match toolchain {
        Some(_) => println!("\nThe programs are built with the toolchain in {}.", linked_dir().display()),
        None => println!("\nThe programs are not built: {OBJECT_VARIABLE} names a ready-made object."),
    }
}

fn row(name: &str, version: &str, path: &Path) {
    let version: String = version.chars().take(VERSION).collect();
    println!("{name:<12} {version:<VERSION$} {}", path.display());
}
