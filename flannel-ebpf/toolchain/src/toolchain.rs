//! A compiler and a linker that belong together.

use std::{
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    Compiler, Error, Linker, Origin, Result,
    cache::{self, Manifest},
    compilers, find_linker,
};

/// Everything that compiling for the kernel needs.
#[derive(Clone, Debug)]
pub struct Toolchain {
    /// rustc, cargo and the source of `core`.
    pub compiler: Compiler,
    /// bpf-linker of the same LLVM.
    pub linker: Linker,
}

impl Toolchain {
    /// The toolchain to build with: the one that setup linked, or else the first complete one. If there is
    /// none, the error is about the one that lacks least, and names what it lacks.
    pub fn find() -> Result<Self> {
        if let Some(linked) = Manifest::read()
            && let Ok(toolchain) = Self::from_manifest(linked)
        {
            return Ok(toolchain);
        }
        let mut nearest = Error::NoCompiler;
        for compiler in compilers() {
            match Self::complete(compiler) {
                Ok(toolchain) => return Ok(toolchain),
                Err(error) if rank(&error) > rank(&nearest) => nearest = error,
                Err(_) => {}
            }
        }
        Err(nearest)
    }

    /// A compiler, checked, with a linker that fits.
    pub fn complete(compiler: Compiler) -> Result<Self> {
        compiler.check()?;
        let linker = find_linker(&compiler)?;
        Ok(Self { compiler, linker })
    }

    fn from_manifest(manifest: Manifest) -> Result<Self> {
        let compiler = Compiler::probe(Origin::Linked, manifest.rustc, manifest.cargo)?;
        compiler.check()?;
        let linker = Linker::probe(manifest.linker)?.check(&compiler)?;
        Ok(Self { compiler, linker })
    }

    /// Whether this is what setup has written down.
    pub fn is_linked(&self) -> bool {
        Manifest::read().is_some_and(|linked| {
            (&linked.rustc, &linked.cargo, &linked.linker)
                == (&self.compiler.rustc, &self.compiler.cargo, &self.linker.path)
        })
    }

    /// Writes down that this is the toolchain to use, as a directory that rustup can link.
    pub fn link(&self) -> Result<PathBuf> {
        cache::write(self)
    }

    /// A program of this toolchain, ignoring whatever the calling cargo has set for itself.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        // A build script inherits its caller's compiler, clippy's wrapper and the host's flags.
        for name in [
            "RUSTC_WRAPPER",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTFLAGS",
            "RUSTUP_TOOLCHAIN",
            "CARGO",
            "CARGO_BUILD_TARGET",
            "CARGO_BUILD_RUSTC",
            "CARGO_BUILD_RUSTFLAGS",
            "CARGO_BUILD_RUSTC_WRAPPER",
            "CARGO_BUILD_RUSTC_WORKSPACE_WRAPPER",
            "CARGO_BUILD_BUILD_DIR",
            "CARGO_TARGET_DIR",
        ] {
            command.env_remove(name);
        }
        command
            .env("RUSTC", &self.compiler.rustc)
            // Debian's compiler is a release; the flag lets it build `core`. A nightly does not mind.
            .env("RUSTC_BOOTSTRAP", "1")
            .env("PATH", path_with(&self.linker.path));
        command
    }
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Compiler { rustc, release, llvm, .. } = &self.compiler;
        let Linker { path, llvm: linker_llvm } = &self.linker;
        write!(
            f,
            "rustc {release} (LLVM {llvm}, {}) with bpf-linker (LLVM {linker_llvm}, {})",
            rustc.display(),
            path.display()
        )
    }
}

/// PATH with the linker's directory first: rustc knows the linker by name only.
fn path_with(linker: &Path) -> OsString {
    let mut path = linker.parent().unwrap_or(Path::new("/")).as_os_str().to_owned();
    if let Some(rest) = std::env::var_os("PATH") {
        path.push(":");
        path.push(rest);
    }
    path
}

/// How far a compiler got before something was missing.
fn rank(error: &Error) -> u8 {
    match error {
        Error::LlvmMismatch { .. } => 6,
        Error::LinkerBroken { .. } => 5,
        Error::NoLinker { .. } => 4,
        Error::NoRustSrc { .. } => 3,
        Error::CompilerLlvmTooOld { .. } => 2,
        Error::CompilerTooOld { .. } => 1,
        _ => 0,
    }
}
