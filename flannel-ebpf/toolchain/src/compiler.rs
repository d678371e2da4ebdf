//! The compilers on this machine and whether they can compile for the kernel.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    Error, LLVM_MAJOR, MINIMUM_RUSTC, PINNED_NIGHTLY, Result,
    run::{find_in_path, is_executable, output},
};

/// Where a compiler comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The toolchain that setup linked.
    Linked,
    /// A toolchain of rustup's.
    Rustup(String),
    /// The system's packages.
    System,
}

/// A rustc with its cargo. Complete only if [`Compiler::check`] says so.
#[derive(Clone, Debug)]
pub struct Compiler {
    /// Where it comes from.
    pub origin: Origin,
    /// The compiler itself, no proxy.
    pub rustc: PathBuf,
    /// The cargo beside it.
    pub cargo: PathBuf,
    /// Where its libraries and source are.
    pub sysroot: PathBuf,
    /// Its release, such as `1.96.0`.
    pub release: String,
    /// The version of its LLVM, such as `22.1.8`.
    pub llvm: String,
}

impl Compiler {
    /// Asks a rustc what it is.
    pub(crate) fn probe(origin: Origin, rustc: PathBuf, cargo: PathBuf) -> Result<Self> {
        let about = output(Command::new(&rustc).arg("-vV"))?;
        let value = |key: &str| {
            about
                .lines()
                .find_map(|line| line.strip_prefix(key))
                .map(|value| value.trim().to_owned())
                .ok_or_else(|| Error::Command {
                    command: format!("{} -vV", rustc.display()),
                    output: format!("it does not print `{key}`"),
                })
        };
        let (release, llvm) = (value("release:")?, value("LLVM version:")?);
        let sysroot = PathBuf::from(output(Command::new(&rustc).args(["--print", "sysroot"]))?.trim());
        Ok(Self { origin, rustc, cargo, sysroot, release, llvm })
    }

    /// Whether it is new enough and has the source of `core`.
    pub fn check(&self) -> Result<()> {
        if version(&self.release) < version(MINIMUM_RUSTC) {
            return Err(Error::CompilerTooOld { rustc: self.rustc.clone(), release: self.release.clone() });
        }
        if self.llvm_major() < LLVM_MAJOR {
            return Err(Error::CompilerLlvmTooOld { rustc: self.rustc.clone(), llvm: self.llvm.clone() });
        }
        let expected = self.sysroot.join("lib/rustlib/src/rust/library/core");
        if !expected.join("Cargo.toml").is_file() {
            let rustup = match &self.origin {
                Origin::Rustup(name) => Some(name.clone()),
                Origin::Linked | Origin::System => None,
            };
            return Err(Error::NoRustSrc { rustc: self.rustc.clone(), rustup, expected });
        }
        Ok(())
    }

    /// The major version of its LLVM, which the linker must share.
    pub fn llvm_major(&self) -> u32 {
        version(&self.llvm)[0]
    }
}

/// The compilers worth considering, best first: the pinned nightly, then what else rustup has, then the
/// system's. Those that do not even run are left out.
pub fn compilers() -> Vec<Compiler> {
    let rustup = [PINNED_NIGHTLY, "nightly", "stable"].into_iter().filter_map(|name| {
        let rustc = rustup_rustc(name)?;
        let cargo = rustc.with_file_name("cargo");
        Compiler::probe(Origin::Rustup(name.to_owned()), rustc, cargo).ok()
    });
    rustup.chain(system_compiler()).collect()
}

/// Whether there is a rustup to install toolchains with.
pub fn rustup_available() -> bool {
    output(Command::new("rustup").arg("--version")).is_ok()
}

/// The rustc of a toolchain of rustup's, if it is installed.
pub fn rustup_rustc(toolchain: &str) -> Option<PathBuf> {
    let mut command = Command::new("rustup");
    // Asking must not install anything.
    command.args(["which", "--toolchain", toolchain, "rustc"]).env("RUSTUP_AUTO_INSTALL", "0");
    let rustc = PathBuf::from(output(&mut command).ok()?.trim());
    is_executable(&rustc).then_some(rustc)
}

/// The first rustc on PATH that is not rustup's in disguise.
fn system_compiler() -> Option<Compiler> {
    find_in_path("rustc").into_iter().filter(|rustc| !is_rustup_proxy(rustc)).find_map(|rustc| {
        let cargo = rustc.with_file_name("cargo");
        is_executable(&cargo).then(|| Compiler::probe(Origin::System, rustc, cargo).ok()).flatten()
    })
}

/// Proxies lie next to rustup itself; a build started by rustup may also have a toolchain's own directory on PATH.
fn is_rustup_proxy(rustc: &Path) -> bool {
    let home = env::var_os("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".rustup")));
    is_executable(&rustc.with_file_name("rustup"))
        || rustc.canonicalize().is_ok_and(|real| {
            real.file_name().is_some_and(|name| name == "rustup")
                || home.is_some_and(|home| real.starts_with(home))
        })
}

/// `1.97.0-nightly` as `[1, 97, 0]`; what is missing or no number counts as zero.
fn version(text: &str) -> [u32; 3] {
    let mut parts = text.split(['.', '-']).map(|part| part.parse().unwrap_or(0));
    std::array::from_fn(|_| parts.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::version;

    #[test]
    fn versions_compare_by_number() {
        assert_eq!(version("1.97.0-nightly"), [1, 97, 0]);
        assert_eq!(version("1.95"), [1, 95, 0]);
        assert!(version("1.100.0") > version("1.95"));
        assert_eq!(version("unknown"), [0, 0, 0]);
    }
}
