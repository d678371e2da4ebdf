//! bpf-linker and the LLVM inside it.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    Compiler, Error, LINKER_RELEASE, LINKER_VERSION, Result, cache_dir, linker_root,
    run::{find_in_path, is_executable, output},
};

/// A bpf-linker that runs.
#[derive(Clone, Debug)]
pub struct Linker {
    /// The executable.
    pub path: PathBuf,
    /// The version of its LLVM, such as `22.1.8`.
    pub llvm: String,
}

impl Linker {
    /// Asks a linker which LLVM it holds. Its own `--version` does not say, but the LLVM inside obeys
    /// its own arguments before anything is linked.
    pub fn probe(path: PathBuf) -> Result<Self> {
        let broken = |output: String| Error::LinkerBroken { linker: path.clone(), output };
        let mut command = Command::new(&path);
        command.args(["--llvm-args=--version", "-o", "/dev/null", "/dev/null"]);
        let said = output(&mut command).map_err(|error| match error {
            Error::Command { output, .. } => broken(output),
            Error::Spawn { source, .. } => broken(source.to_string()),
            other => broken(other.to_string()),
        })?;
        let llvm = said
            .split_once("LLVM version ")
            .and_then(|(_, rest)| rest.split_whitespace().next())
            .map(str::to_owned)
            .ok_or_else(|| broken("it does not tell its LLVM version".to_owned()))?;
        Ok(Self { path, llvm })
    }

    fn fits(&self, compiler: &Compiler) -> bool {
        major(&self.llvm) == major(&compiler.llvm)
    }

    /// Refuses a linker of another LLVM: an older one cannot read the compiler's bitcode, and a newer
    /// one has been seen to read it and link it wrongly.
    pub(crate) fn check(self, compiler: &Compiler) -> Result<Self> {
        if self.fits(compiler) {
            return Ok(self);
        }
        Err(Error::LlvmMismatch {
            rustc: compiler.rustc.clone(),
            rustc_llvm: compiler.llvm.clone(),
            linker: self.path,
            linker_llvm: self.llvm,
        })
    }
}

/// The first linker that shares the compiler's LLVM: ours, one on PATH, or one that cargo installed. If
/// none does, the error is about the one that came closest.
pub fn find_linker(compiler: &Compiler) -> Result<Linker> {
    let mut nearest = Error::NoLinker { cache: cache_dir(), llvm: compiler.llvm.clone() };
    for path in candidates(compiler.llvm_major()) {
        match Linker::probe(path).and_then(|linker| linker.check(compiler)) {
            Ok(linker) => return Ok(linker),
            Err(error) if rank(&error) > rank(&nearest) => nearest = error,
            Err(_) => {}
        }
    }
    Err(nearest)
}

fn candidates(llvm_major: u32) -> Vec<PathBuf> {
    let cached = [LINKER_VERSION, LINKER_RELEASE]
        .map(|version| linker_root(version, llvm_major).join("bin/bpf-linker"));
    let cargo_home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    let installed = cargo_home.map(|home| home.join("bin/bpf-linker"));
    let all = cached.into_iter().chain(find_in_path("bpf-linker")).chain(installed);
    all.filter(|path| is_executable(path)).collect()
}

fn major(llvm: &str) -> &str {
    llvm.split('.').next().unwrap_or(llvm)
}

fn rank(error: &Error) -> u8 {
    match error {
        Error::LlvmMismatch { .. } => 2,
        Error::LinkerBroken { .. } => 1,
        _ => 0,
    }
}
