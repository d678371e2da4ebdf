//! bpf-linker for a compiler's LLVM: built against LLVM's development files, or as released.

use std::{
    env::consts::ARCH,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use flannel_ebpf_toolchain::{
    Compiler, LINKER_RELEASE, LINKER_VERSION, LLVM_MAJOR, cache_dir, find_linker, linker_root,
};

use super::release::{Release, can_fetch};
use crate::{cargo::cargo, failure::failure, ui::Step};

/// Digests of the released archives: they hold a program that we run.
const RELEASES: &[(&str, &str)] = &[
    ("x86_64", "4dda77daab6c5f120a468e6d3ede2498f5bd47ece712172cfb7290176d93d015"),
    ("aarch64", "c3638cd3cb735ff85705905a07e0df61c0f9426480334c8e2efe5cb92fd9d3de"),
];

/// The packages that building it takes.
pub(super) fn packages(llvm_major: u32) -> Vec<String> {
    let llvm = ["llvm", "libpolly"].map(|name| format!("{name}-{llvm_major}-dev"));
    llvm.into_iter().chain(["libzstd-dev", "zlib1g-dev"].map(str::to_owned)).collect()
}

/// Whether everything is there to build it.
pub(super) fn can_build(llvm_major: u32) -> bool {
    let llvm = llvm_prefix(llvm_major);
    let files = ["bin/llvm-config", "include/llvm-c/Core.h", "lib/libPolly.a"].map(|file| llvm.join(file));
    let headers = ["zstd.h", "zlib.h"].map(|header| Path::new("/usr/include").join(header));
    files.iter().chain(&headers).all(|file| file.exists())
}

/// Whether a release holds this LLVM, and the programs to fetch it are there.
pub(super) fn can_download(llvm_major: u32) -> bool {
    llvm_major == LLVM_MAJOR && RELEASES.iter().any(|(arch, _)| *arch == ARCH) && can_fetch("zstd")
}

fn llvm_prefix(llvm_major: u32) -> PathBuf {
    PathBuf::from(format!("/usr/lib/llvm-{llvm_major}"))
}

/// Installs one that fits the compiler into our cache.
pub(super) fn install(compiler: &Compiler) -> Result<()> {
    let llvm_major = compiler.llvm_major();
    if can_build(llvm_major) {
        build(llvm_major)?;
    } else if can_download(llvm_major) {
        download(llvm_major)?;
    } else {
        return Err(failure(
            format!("there is no way here to get a bpf-linker for LLVM {llvm_major}"),
            format!(
                "{}, or install curl, tar and zstd to fetch the released one (LLVM {LLVM_MAJOR}, x86_64 and aarch64)",
                by_hand(llvm_major)
            ),
        ));
    }
    find_linker(compiler)?;
    Ok(())
}

/// What anybody can do whom neither way helps.
fn by_hand(llvm_major: u32) -> String {
    format!(
        "install LLVM {llvm_major}'s development files (Debian: {}), or put a bpf-linker of that LLVM on PATH, and \
         run `cargo xtask setup` again",
        packages(llvm_major).join(" ")
    )
}

fn build(llvm_major: u32) -> Result<()> {
    let step = Step::start(format!("Building bpf-linker {LINKER_VERSION} for LLVM {llvm_major}"));
    let root = linker_root(LINKER_VERSION, llvm_major);
    let target_dir = cache_dir().join(format!("build.{}", std::process::id()));
    let mut install = cargo();
    install
        .args(["install", "bpf-linker", "--version", LINKER_VERSION, "--locked", "--force"])
        .args(["--no-default-features", "--features", &format!("llvm-{llvm_major}"), "--root"])
        .arg(&root)
        .env("LLVM_PREFIX", llvm_prefix(llvm_major))
        .env("CARGO_TARGET_DIR", &target_dir);
    let built = step.run(&mut install);
    // Half a gigabyte that nobody needs again; what cannot be removed does no harm.
    let _ = fs::remove_dir_all(&target_dir);
    built?;
    step.done(&root.display().to_string());
    Ok(())
}

fn download(llvm_major: u32) -> Result<()> {
    let (arch, digest) =
        RELEASES.iter().find(|(arch, _)| *arch == ARCH).context("no release for this machine")?;
    let step = Step::start(format!("Downloading bpf-linker {LINKER_RELEASE}"));
    let dir = linker_root(LINKER_RELEASE, llvm_major).join("bin");
    let url = format!(
        "https://github.com/aya-rs/bpf-linker/releases/download/v{LINKER_RELEASE}/bpf-linker-{arch}-unknown-linux-musl.tar.zst"
    );
    let release = Release { url, digest, packed_by: ("zstd", "--zstd") };
    release.fetch(&step, &dir, &by_hand(llvm_major))?;
    step.done(&dir.display().to_string());
    Ok(())
}
