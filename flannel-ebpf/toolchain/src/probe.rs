//! The honest test of a toolchain: compiling a program of a few lines with it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::UNIX_EPOCH,
};

use crate::{Error, Object, Result, Toolchain, cache_dir, compile};

const MANIFEST: &str = r#"[package]
name = "probe"
edition = "2024"

[[bin]]
name = "probe"
path = "main.rs"

# Not a member of any workspace that the cache directory may lie in.
[workspace]
"#;

const PROGRAM: &str = r#"#![no_std]
#![no_main]

#[unsafe(no_mangle)]
#[unsafe(link_section = "classifier")]
pub extern "C" fn probe() -> i32 {
    0
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
"#;

/// The file that remembers which toolchain passed.
const PASSED: &str = "passed";

/// Whether this very toolchain has passed the test before.
pub fn is_proven(toolchain: &Toolchain) -> bool {
    fs::read_to_string(probe_dir().join(PASSED)).is_ok_and(|text| text == identity(toolchain))
}

/// Compiles and links a small program.
pub fn prove(toolchain: &Toolchain) -> Result<()> {
    let dir = probe_dir();
    write(&dir, "Cargo.toml", MANIFEST)?;
    write(&dir, "main.rs", PROGRAM)?;
    let target_dir = dir.join("target");
    let output = compile::command(toolchain, &target_dir, &[])
        .current_dir(&dir)
        .args(["--bin", "probe"])
        .stdin(Stdio::null())
        .output()
        .map_err(|source| Error::Spawn { program: toolchain.compiler.cargo.clone(), source })?;
    if !output.status.success() {
        return Err(Error::Probe {
            toolchain: toolchain.to_string(),
            output: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        });
    }
    Object::read(&target_dir.join(compile::target()).join("release/probe"))?.verify_types()?;
    write(&dir, PASSED, &identity(toolchain))
}

fn probe_dir() -> PathBuf {
    cache_dir().join("probe")
}

/// What must be unchanged for an earlier success to count: an upgrade keeps paths but not times.
fn identity(toolchain: &Toolchain) -> String {
    let modified = |path: &PathBuf| {
        let time = path.metadata().and_then(|meta| meta.modified()).ok();
        time.and_then(|time| time.duration_since(UNIX_EPOCH).ok()).map_or(0, |age| age.as_secs())
    };
    format!("{toolchain} {} {}\n", modified(&toolchain.compiler.rustc), modified(&toolchain.linker.path))
}

fn write(dir: &Path, name: &str, text: &str) -> Result<()> {
    let path = dir.join(name);
    fs::create_dir_all(dir)
        .and_then(|()| fs::write(&path, text))
        .map_err(|source| Error::File { path, source })
}
