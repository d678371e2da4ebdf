//! The compiler and the linker for the kernel: what is there, and how to get what is not.

use std::process::Command;

use anyhow::Result;
use flannel_ebpf_toolchain::{
    Compiler, LLVM_MAJOR, OBJECT_VARIABLE, PINNED_NIGHTLY, Toolchain, compilers, find_linker, is_proven,
    linked_dir, prove, rustup_available, rustup_rustc,
};

use super::{apt, install_linker};
use crate::{
    failure::failure,
    host,
    ui::{Step, note},
};

/// Debian's compiler for browsers, newer than the release's own, with the source that `core` is built from.
const DEBIAN_COMPILER: &[&str] = &["rustc-web", "cargo-web", "rust-web-src"];

/// The name under which rustup knows our toolchain.
const RUSTUP_NAME: &str = "flannel-ebpf";

/// What is to be done for a complete toolchain.
pub(crate) enum Plan {
    /// Nothing.
    Complete(Box<Toolchain>),
    /// Packages first; then the linker may have to be built.
    Install {
        /// Whether the compiler comes from packages.
        compiler: bool,
        /// The LLVM whose development files must be installed before the linker is built.
        llvm: Option<u32>,
    },
}

impl Plan {
    /// The packages it needs.
    pub(crate) fn packages(&self) -> Vec<String> {
        let Self::Install { compiler, llvm } = self else {
            return Vec::new();
        };
        let compiler =
            compiler.then_some(DEBIAN_COMPILER).unwrap_or_default().iter().map(|&name| name.to_owned());
        compiler.chain(llvm.iter().flat_map(|&llvm| install_linker::packages(llvm))).collect()
    }
}

/// Decides what to install, installing only what rustup brings: whether it can decides about the rest.
pub(crate) fn plan() -> Result<Plan> {
    if let Ok(toolchain) = Toolchain::find() {
        return Ok(Plan::Complete(Box::new(toolchain)));
    }
    let compiler = match usable_compiler() {
        Some(compiler) => Some(compiler),
        None => install_with_rustup()?,
    };
    let llvm_major = compiler.as_ref().map_or(LLVM_MAJOR, Compiler::llvm_major);
    let has_linker = compiler.as_ref().is_some_and(|compiler| find_linker(compiler).is_ok());
    let llvm = (!has_linker && !install_linker::can_build(llvm_major) && may_install_llvm(llvm_major))
        .then_some(llvm_major);
    Ok(Plan::Install { compiler: compiler.is_none(), llvm })
}

/// Does the rest once the packages are there, and tests the result.
pub(crate) fn carry_out(plan: Plan) -> Result<Toolchain> {
    let toolchain = match plan {
        Plan::Complete(toolchain) => *toolchain,
        Plan::Install { .. } => {
            let compiler = usable_compiler().ok_or_else(|| {
                failure(
                    "the installed packages bring no compiler that will do",
                    format!(
                        "install rustup from https://rustup.rs and run `cargo xtask setup` again, or build \
                         elsewhere and set {OBJECT_VARIABLE} to the object"
                    ),
                )
            })?;
            if find_linker(&compiler).is_err() {
                install_linker::install(&compiler)?;
            }
            Toolchain::complete(compiler)?
        }
    };
    if !is_proven(&toolchain) {
        let step = Step::start("Compiling a small program for the kernel");
        prove(&toolchain)?;
        step.done(&toolchain.to_string());
    }
    link(&toolchain)?;
    Ok(toolchain)
}

fn usable_compiler() -> Option<Compiler> {
    let mut usable: Vec<_> = compilers().into_iter().filter(|compiler| compiler.check().is_ok()).collect();
    // One whose linker is there already is complete, and wins.
    let complete = usable.iter().position(|compiler| find_linker(compiler).is_ok()).unwrap_or(0);
    (!usable.is_empty()).then(|| usable.swap_remove(complete))
}

/// The pinned nightly, or nothing where Debian's packages can take its place.
fn install_with_rustup() -> Result<Option<Compiler>> {
    if !rustup_available() {
        if host::has_apt() {
            return Ok(None);
        }
        return Err(failure(
            "there is neither rustup nor apt-get to install a Rust toolchain with",
            "install rustup from https://rustup.rs and run `cargo xtask setup` again",
        ));
    }
    let step = Step::start(format!("Installing {PINNED_NIGHTLY} with rustup"));
    let mut rustup = Command::new("rustup");
    rustup.args(["toolchain", "install", PINNED_NIGHTLY, "--profile", "minimal", "--no-self-update"]);
    rustup.args(["--component", "rust-src", "--component", "clippy"]);
    // Its own stack says nothing about why a download failed.
    rustup.env("RUST_BACKTRACE", "0");
    match step.run(&mut rustup) {
        Ok(()) => {
            step.done("installed");
            Ok(usable_compiler())
        }
        Err(error) if host::has_apt() => {
            step.done("rustup cannot");
            note(&format!(
                "{error:#}\n      Debian's packages {} take its place.",
                DEBIAN_COMPILER.join(", ")
            ));
            Ok(None)
        }
        Err(error) => Err(failure(
            format!("cannot install {PINNED_NIGHTLY}: {error:#}"),
            format!(
                "see whether this machine reaches rustup's server, or add rust-src to a nightly of LLVM {LLVM_MAJOR}"
            ),
        )),
    }
}

/// Whether LLVM's development files can be had as packages; if not, the linker is downloaded.
fn may_install_llvm(llvm_major: u32) -> bool {
    let packages = install_linker::packages(llvm_major);
    let names: Vec<&str> = packages.iter().map(String::as_str).collect();
    // Who is not root is told to install them only if there is no other way.
    host::has_apt() && (host::is_root() || !install_linker::can_download(llvm_major)) && apt::offers(&names)
}

/// Writes down what was found, and gives it a name for use by hand.
fn link(toolchain: &Toolchain) -> Result<()> {
    if !toolchain.is_linked() {
        toolchain.link()?;
    }
    if !rustup_available() {
        return Ok(());
    }
    let dir = linked_dir();
    let rustc = dir.join("bin/rustc").canonicalize().ok();
    if rustc.is_some() && rustc == rustup_rustc(RUSTUP_NAME).and_then(|known| known.canonicalize().ok()) {
        return Ok(());
    }
    let step = Step::start(format!("Linking it as the rustup toolchain {RUSTUP_NAME}"));
    match step.run(Command::new("rustup").args(["toolchain", "link", RUSTUP_NAME]).arg(&dir)) {
        Ok(()) => step.done(&format!("{} for use by hand: cargo +{RUSTUP_NAME}", dir.display())),
        // The build does without the name.
        Err(error) => note(&format!("{error:#}")),
    }
    Ok(())
}
