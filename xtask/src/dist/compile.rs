//! The programs of a release: static, stripped, the same bytes wherever they are built.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use flannel_ebpf_toolchain::{without_places, workspace_root};

use super::architecture::Architecture;
use crate::{
    cargo::{Built, Profile, build_with, target_directory},
    failure::failure,
    setup,
    ui::Step,
};

/// What is compiled: cargo's names, all of the package `flannel-agent`.
pub(super) const AGENT: &str = "flannel-agent";
pub(super) const CNI_PLUGIN: &str = "flannel";
pub(super) const INSTALL_CONF: &str = "install-conf";

/// The programs of one architecture.
pub(super) struct Programs {
    directory: PathBuf,
}

impl Programs {
    /// Programs that lie in `directory` by cargo's names, each with its debug information beside it.
    pub(super) fn in_directory(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// A stripped program.
    pub(super) fn stripped(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Its debug information.
    pub(super) fn debug(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.debug"))
    }
}

/// Installs what compiling for `architecture` takes.
pub(super) fn prepare(architecture: Architecture) -> Result<()> {
    setup::ensure_programs(&[architecture.compiler(), ("objcopy", "binutils"), ("dpkg-deb", "dpkg")])?;
    if let Some((file, package)) = architecture.headers()
        && !Path::new(file).exists()
    {
        setup::ensure_package(package)?;
    }
    let target = architecture.target();
    if library(target).is_some_and(|directory| directory.is_dir()) {
        return Ok(());
    }
    let step = Step::start(format!("Installing the compiler's library for {target}"));
    step.run(Command::new("rustup").args(["target", "add", target]).current_dir(workspace_root())).map_err(
        |error| {
            let wrong = format!("the compiler has no library for {target}: {error:#}");
            failure(wrong, format!("install rustup from https://rustup.rs, then: rustup target add {target}"))
        },
    )?;
    step.done("installed");
    Ok(())
}

/// Where the compiler keeps the library for `target`.
fn library(target: &str) -> Option<PathBuf> {
    Some(sysroot()?.join("lib/rustlib").join(target).join("lib"))
}

fn sysroot() -> Option<PathBuf> {
    let output =
        Command::new("rustc").args(["--print", "sysroot"]).current_dir(workspace_root()).output().ok()?;
    Some(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

/// Compiles the agent, the CNI plugin and what its init container runs.
pub(super) fn compile(architecture: Architecture) -> Result<Programs> {
    let built = build(architecture, Profile::Dist)?;
    let directory = target_directory().join(architecture.target()).join("dist");
    fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let programs = Programs::in_directory(directory);
    for name in [AGENT, CNI_PLUGIN, INSTALL_CONF] {
        split(&built.executable(name)?, &programs.stripped(name), &programs.debug(name))?;
    }
    Ok(programs)
}

/// The same programs in another profile, as they are.
pub(super) fn build(architecture: Architecture, profile: Profile) -> Result<Built> {
    let target = architecture.target();
    let upper = target.to_uppercase().replace('-', "_");
    let (compiler, _) = architecture.compiler();
    let mut variables = vec![
        (format!("CC_{}", target.replace('-', "_")), OsString::from(compiler)),
        // Paths of this machine stand in messages of panics, and would differ elsewhere.
        (format!("CARGO_TARGET_{upper}_RUSTFLAGS"), flags(architecture).into()),
    ];
    if architecture == Architecture::Arm64 {
        variables.push((format!("CARGO_TARGET_{upper}_LINKER"), compiler.into()));
    }
    let arguments = ["--locked", "--package", "flannel-agent", "--bins", "--target", target];
    let what = format!("the programs for {}", architecture.name());
    build_with(profile, &what, &arguments, &variables)
}

/// The compiler's flags: they take this machine's paths out of the programs.
fn flags(architecture: Architecture) -> String {
    let mut flags = without_places(sysroot());
    // A panic ends the program without going back through its callers; debuggers find them in the debug information. The
    // path is one from where cargo links, for the same name in every directory.
    flags.extend(
        [
            "-Cforce-unwind-tables=no",
            "-Clink-arg=-Wl,-T,xtask/src/dist/program.ld",
            "-Clink-arg=-Wl,--no-eh-frame-hdr",
        ]
        .map(str::to_owned),
    );
    if architecture == Architecture::Amd64 {
        // Half a megabyte of relocations, all of one kind, in some kilobytes. Linkers for arm64 learned it later.
        flags.push("-Clink-arg=-Wl,-z,pack-relative-relocs".to_owned());
    }
    flags.join(" ")
}

/// Puts the program without debug information at `stripped`, and that at `debug`; debuggers find it by the link.
fn split(program: &Path, stripped: &Path, debug: &Path) -> Result<()> {
    let objcopy = objcopy();
    let run = |arguments: &[&str], files: &[&Path]| -> Result<()> {
        let mut command = Command::new(&objcopy);
        // The compiler's own needs the compiler's libraries.
        if let Some(root) = sysroot() {
            command.env("LD_LIBRARY_PATH", root.join("lib"));
        }
        let output = command.args(arguments).args(files).output();
        let output = output.with_context(|| format!("cannot run {}", objcopy.display()))?;
        if output.status.success() {
            return Ok(());
        }
        Err(failure(
            format!(
                "{} {}: {}",
                objcopy.display(),
                arguments.join(" "),
                String::from_utf8_lossy(&output.stderr).trim()
            ),
            "build with a toolchain of rustup's, which brings one that knows all architectures",
        ))
    };
    run(&["--only-keep-debug"], &[program, debug])?;
    run(&["--strip-all", "--remove-section=.eh_frame"], &[program, stripped])?;
    run(&[&format!("--add-gnu-debuglink={}", debug.display())], &[stripped])
}

/// The compiler's own, which knows every architecture; else the machine's.
fn objcopy() -> PathBuf {
    let own = sysroot().and_then(|root| {
        let hosts = fs::read_dir(root.join("lib/rustlib")).ok()?.flatten();
        hosts.map(|host| host.path().join("bin/rust-objcopy")).find(|path| path.is_file())
    });
    own.unwrap_or_else(|| "objcopy".into())
}
