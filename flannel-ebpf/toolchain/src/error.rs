//! What can be wrong with the toolchain, each with what to do about it.

use std::path::PathBuf;

use crate::{LINKER_VERSION, LLVM_MAJOR, MINIMUM_RUSTC, OBJECT_VARIABLE, SETUP_COMMAND};

/// The result of a toolchain operation.
pub type Result<T> = std::result::Result<T, Error>;

/// A missing or wrong piece. Its text says what was found; [`Error::remedy`] what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither rustup's nor the system's compilers will do, and none comes close.
    #[error("found no Rust toolchain that can compile programs for the kernel")]
    NoCompiler,
    /// The compiler cannot build the workspace.
    #[error("{} is Rust {release}, but the programs need {MINIMUM_RUSTC} or later", rustc.display())]
    CompilerTooOld {
        /// The compiler.
        rustc: PathBuf,
        /// Its release.
        release: String,
    },
    /// The compiler's LLVM lacks what the programs are compiled with.
    #[error("{} is built on LLVM {llvm}, but the programs need LLVM {LLVM_MAJOR} or later", rustc.display())]
    CompilerLlvmTooOld {
        /// The compiler.
        rustc: PathBuf,
        /// Its LLVM.
        llvm: String,
    },
    /// There is no source to build `core` from.
    #[error("{} has no rust-src: {} does not exist", rustc.display(), expected.display())]
    NoRustSrc {
        /// The compiler.
        rustc: PathBuf,
        /// Its rustup toolchain, if it is one.
        rustup: Option<String>,
        /// Where the source would be.
        expected: PathBuf,
    },
    /// No linker at all.
    #[error("found no bpf-linker, neither in {}, nor on PATH", cache.display())]
    NoLinker {
        /// Our cache.
        cache: PathBuf,
        /// The compiler's LLVM.
        llvm: String,
    },
    /// The linker could not read, or would misread, what the compiler writes.
    #[error(
        "bpf-linker and rustc are built on different LLVM versions\n  \
         LLVM {rustc_llvm}  {}\n  LLVM {linker_llvm}  {}", rustc.display(), linker.display()
    )]
    LlvmMismatch {
        /// The compiler.
        rustc: PathBuf,
        /// Its LLVM.
        rustc_llvm: String,
        /// The linker that comes first.
        linker: PathBuf,
        /// Its LLVM.
        linker_llvm: String,
    },
    /// The linker does not run, or does not name its LLVM.
    #[error("{} does not work: {output}", linker.display())]
    LinkerBroken {
        /// The linker.
        linker: PathBuf,
        /// What it said.
        output: String,
    },
    /// `etcd-client` compiles etcd's interface with it.
    #[error("protoc is missing or does not work: {output}")]
    NoProtoc {
        /// What running it said.
        output: String,
    },
    /// Protobuf's own definitions, which etcd's interface includes, are not there.
    #[error("protoc does not find google/protobuf/descriptor.proto: {output}")]
    NoProtobufIncludes {
        /// What protoc said.
        output: String,
    },
    /// The compiler or the linker refused the programs; it has said why itself.
    #[error("compiling the programs failed ({status}); the compiler's own words are above")]
    Compile {
        /// How cargo ended.
        status: String,
        /// The toolchain in words.
        toolchain: String,
    },
    /// The toolchain is complete by all appearances, but does not work.
    #[error("{toolchain} cannot compile a program of a few lines:\n{output}")]
    Probe {
        /// The toolchain in words.
        toolchain: String,
        /// What cargo said.
        output: String,
    },
    /// The object is not one.
    #[error("{} is no BPF object: {reason}", object.display())]
    NotBpf {
        /// The file.
        object: PathBuf,
        /// Why it is none.
        reason: String,
    },
    /// The object would load badly or not at all.
    #[error("{} lacks the section {section} ({meaning})", object.display())]
    NoSection {
        /// The file.
        object: PathBuf,
        /// The section's name.
        section: &'static str,
        /// What it holds.
        meaning: &'static str,
    },
    /// [`OBJECT_VARIABLE`] names something unusable.
    #[error("{OBJECT_VARIABLE}={}: {source}", object.display())]
    ReadyMade {
        /// The file it names.
        object: PathBuf,
        /// What is wrong with it.
        source: Box<Error>,
    },
    /// A program that should be there cannot be run.
    #[error("cannot run {}: {source}", program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A program that should answer did not, or not as expected.
    #[error("`{command}` failed: {output}")]
    Command {
        /// The command line.
        command: String,
        /// What it said.
        output: String,
    },
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl Error {
    /// What to do about it, in one or two lines.
    pub fn remedy(&self) -> String {
        match self {
            Self::NoCompiler | Self::CompilerTooOld { .. } | Self::CompilerLlvmTooOld { .. } => {
                format!("run `{SETUP_COMMAND}`: it installs one")
            }
            Self::NoRustSrc { rustup: Some(name), .. } => {
                format!("run `{SETUP_COMMAND}`, or `rustup component add rust-src --toolchain {name}`")
            }
            Self::NoRustSrc { rustup: None, .. } => {
                format!("run `{SETUP_COMMAND}`, or install the package rust-web-src")
            }
            Self::NoLinker { .. } | Self::LinkerBroken { .. } => {
                format!(
                    "run `{SETUP_COMMAND}`: it installs one that fits the compiler, in a directory of its own"
                )
            }
            Self::LlvmMismatch { rustc_llvm, .. } => {
                let major = rustc_llvm.split('.').next().unwrap_or(rustc_llvm);
                format!(
                    "run `{SETUP_COMMAND}`: it installs a bpf-linker for LLVM {major} beside yours; or, with LLVM \
                     {major}'s development files:\n  LLVM_PREFIX=/usr/lib/llvm-{major} cargo install bpf-linker \
                     --version {LINKER_VERSION} --no-default-features --features llvm-{major}"
                )
            }
            Self::NoProtoc { .. } => {
                format!(
                    "run `{SETUP_COMMAND}`, or install the package protobuf-compiler, or set PROTOC to a protoc"
                )
            }
            Self::NoProtobufIncludes { .. } => format!(
                "run `{SETUP_COMMAND}`, or install the package libprotobuf-dev, or set PROTOC_INCLUDE to \
                 the directory that holds google/protobuf"
            ),
            Self::Compile { toolchain, .. } => {
                format!(
                    "if the source is unchanged, run `{SETUP_COMMAND}`, which tests the toolchain; it was {toolchain}"
                )
            }
            Self::Probe { .. } => format!(
                "remove or repair that toolchain and run `{SETUP_COMMAND}` again, or build elsewhere and set \
                 {OBJECT_VARIABLE} to the object"
            ),
            Self::NotBpf { .. } | Self::NoSection { .. } => format!(
                "build it anew with `cargo xtask build-ebpf`; if it stays so, `{SETUP_COMMAND}` tests the toolchain"
            ),
            Self::ReadyMade { .. } => {
                format!(
                    "point {OBJECT_VARIABLE} at an object of `cargo xtask build-ebpf`, or unset it to build one"
                )
            }
            Self::Spawn { .. } | Self::Command { .. } => {
                format!("run `{SETUP_COMMAND}`, which tests each part of the toolchain")
            }
            Self::File { .. } => "check that the file exists and may be accessed".to_owned(),
        }
    }
}
