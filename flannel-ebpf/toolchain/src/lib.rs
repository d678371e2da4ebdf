//! Finds, checks and runs the toolchain that compiles flannel-ebpf's programs.
//!
//! Programs for the kernel need three things a stable Rust does not bring: permission to use
//! `-Z build-std` (there is no precompiled `core` for BPF), the source of `core`, and bpf-linker
//! built against the LLVM of that very rustc, because it reads rustc's bitcode. The agent's build
//! script and `cargo xtask setup` both come here for them, so what setup promises is what the build uses.
//!
//! ```text
//! Compiler (rustc, cargo, rust-src) + Linker (same LLVM) = Toolchain ─▶ build() ─▶ Object, verified
//! ```

#![deny(clippy::print_stdout, clippy::print_stderr)]

mod cache;
mod compile;
mod compiler;
mod error;
mod linker;
mod object;
mod probe;
mod protobuf;
mod run;
mod strip;
mod toolchain;

pub use cache::{cache_dir, kubernetes_dir, linked_dir, linker_root, moto_dir};
pub use compile::{
    OBJECT_NAME, OBJECT_VARIABLE, TRACE_OBJECT_NAME, build, build_with, lint, watched_paths, without_places,
    workspace_root,
};
pub use compiler::{Compiler, Origin, compilers, rustup_available, rustup_rustc};
pub use error::{Error, Result};
pub use linker::{Linker, find_linker};
pub use object::{Object, Program, Section};
pub use probe::{is_proven, prove};
pub use protobuf::{Protoc, check_protobuf};
pub use run::{find_in_path, first_line};
pub use toolchain::Toolchain;

/// The nightly that `cargo xtask setup` installs where rustup can fetch it. One that is pinned cannot
/// break the build overnight, as `nightly` does whenever it moves to another LLVM.
pub const PINNED_NIGHTLY: &str = "nightly-2026-05-20";

/// The LLVM of [`PINNED_NIGHTLY`] and of Debian's `rustc-web`. Also the oldest that will do: the
/// `allows-misaligned-mem-access` feature came with it.
pub const LLVM_MAJOR: u32 = 22;

/// The bpf-linker built from source, when LLVM's development files are there.
pub const LINKER_VERSION: &str = "0.13.0";

/// The last bpf-linker whose released, statically linked binary holds [`LLVM_MAJOR`]; later ones hold 23.
pub const LINKER_RELEASE: &str = "0.10.4";

/// The Kubernetes whose API server and kube-proxy the tests run: the last that Debian packages with all of its source.
pub const KUBERNETES_VERSION: &str = "v1.20.2";
/// The release of moto (PyPI), whose server is an EC2 for tests.
pub const MOTO_VERSION: &str = "5.2.1";

/// The oldest rustc that the workspace's packages accept.
pub const MINIMUM_RUSTC: &str = env!("CARGO_PKG_RUST_VERSION");

/// What repairs most of what can be wrong.
pub const SETUP_COMMAND: &str = "cargo xtask setup";
