//! The table at the end of `setup`: what there is, which version, and where.

use std::path::Path;

use flannel_ebpf_toolchain::{OBJECT_VARIABLE, Toolchain, linked_dir};

use super::tools::Survey;

/// A version longer than this is cut: some programs list their libraries.
const VERSION: usize = 48;

/// One line each.
pub(super) fn table(toolchain: Option<&Toolchain>, survey: &Survey) -> String {
    let mut table = format!("\n{:<16} {:<VERSION$} where\n", "tool", "version");
    if let Some(Toolchain { compiler, linker }) = toolchain {
        let version = format!("{} (LLVM {})", compiler.release, compiler.llvm);
        table.push_str(&row("rustc", &version, &compiler.rustc));
        table.push_str(&row("bpf-linker", &format!("LLVM {}", linker.llvm), &linker.path));
    }
    table.extend(survey.found.iter().map(|tool| row(tool.name, &tool.version, &tool.path)));
    table.push_str(&match toolchain {
        Some(_) => format!("\nThe programs are built with the toolchain in {}.\n", linked_dir().display()),
        None => format!("\nThe programs are not built: {OBJECT_VARIABLE} names a ready-made object.\n"),
    });
    table
}

fn row(name: &str, version: &str, path: &Path) -> String {
    let version: String = version.chars().take(VERSION).collect();
    format!("{name:<16} {version:<VERSION$} {}\n", path.display())
}
