//! The directory of our own: linkers by version and LLVM, the toolchain that setup linked, and the programs of
//! Kubernetes that the tests run.
//!
//! ```text
//! ~/.cache/flannel-ebpf/bpf-linker-0.13.0-llvm-22/bin/bpf-linker
//! ~/.cache/flannel-ebpf/kubernetes-v1.20.2/{kube-apiserver,kube-proxy}
//! ~/.cache/flannel-ebpf/toolchain/{manifest, bin/{rustc,cargo}, lib/rustlib}
//! ```

use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use crate::{Error, Result, Toolchain};

/// `$XDG_CACHE_HOME/flannel-ebpf`, by default `~/.cache/flannel-ebpf`.
pub fn cache_dir() -> PathBuf {
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .unwrap_or_else(env::temp_dir)
        .join("flannel-ebpf")
}

/// Where a linker of this version and LLVM is installed: the name keeps a wrong one from being picked.
pub fn linker_root(version: &str, llvm_major: u32) -> PathBuf {
    cache_dir().join(format!("bpf-linker-{version}-llvm-{llvm_major}"))
}

/// The directory that setup links as the rustup toolchain `flannel-ebpf`.
pub fn linked_dir() -> PathBuf {
    cache_dir().join("toolchain")
}

/// Where `cargo xtask setup --kubernetes` puts the API server and kube-proxy of [`crate::KUBERNETES_VERSION`].
pub fn kubernetes_dir() -> PathBuf {
    cache_dir().join(format!("kubernetes-{}", crate::KUBERNETES_VERSION))
}

/// Where an environment with moto of PyPI is installed, an EC2 for tests.
pub fn moto_dir() -> PathBuf {
    cache_dir().join(format!("moto-{}", crate::MOTO_VERSION))
}

/// What the linked toolchain stands for: rustc, cargo and bpf-linker.
pub(crate) struct Manifest {
    pub(crate) rustc: PathBuf,
    pub(crate) cargo: PathBuf,
    pub(crate) linker: PathBuf,
}

pub(crate) fn manifest_path() -> PathBuf {
    linked_dir().join("manifest")
}

impl Manifest {
    /// What setup wrote, if it has run.
    pub(crate) fn read() -> Option<Self> {
        let text = fs::read_to_string(manifest_path()).ok()?;
        let value = |key: &str| {
            text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).map(PathBuf::from)
        };
        Some(Self { rustc: value("rustc")?, cargo: value("cargo")?, linker: value("linker")? })
    }
}

/// Writes the directory that stands for `toolchain`, complete or not at all, and returns it.
///
/// A build reads its manifest only. The wrappers are for people: linked by rustup they make
/// `cargo +flannel-ebpf build` work by hand, with unstable features allowed and the right linker first.
pub(crate) fn write(toolchain: &Toolchain) -> Result<PathBuf> {
    let target = linked_dir();
    let new = cache_dir().join(format!("toolchain.{}", std::process::id()));
    let compiler = &toolchain.compiler;
    let linker_dir = toolchain.linker.path.parent().unwrap_or(Path::new("/"));

    create_dir(&new.join("bin"))?;
    create_dir(&new.join("lib"))?;
    let head = format!(
        "#!/bin/sh\n# Written by `{}`.\nexport RUSTC_BOOTSTRAP=1\nexport PATH={}:\"$PATH\"\n",
        crate::SETUP_COMMAND,
        quoted(linker_dir)
    );
    write_script(&new.join("bin/rustc"), &format!("{head}exec {} \"$@\"\n", quoted(&compiler.rustc)))?;
    write_script(
        &new.join("bin/cargo"),
        // Cargo would otherwise ask PATH for rustc, and get rustup's default one.
        &format!(
            "{head}export RUSTC={}\nexec {} \"$@\"\n",
            quoted(&target.join("bin/rustc")),
            quoted(&compiler.cargo)
        ),
    )?;
    // Only rustlib: rustup puts a toolchain's lib first in the library path, and /usr/lib does not belong there.
    let rustlib = new.join("lib/rustlib");
    std::os::unix::fs::symlink(compiler.sysroot.join("lib/rustlib"), &rustlib)
        .map_err(|source| Error::File { path: rustlib, source })?;
    write_file(
        &new.join("manifest"),
        &format!(
            "rustc={}\ncargo={}\nlinker={}\n",
            compiler.rustc.display(),
            compiler.cargo.display(),
            toolchain.linker.path.display()
        ),
    )?;

    match fs::remove_dir_all(&target) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::File { path: target, source });
        }
        _ => {}
    }
    fs::rename(&new, &target).map_err(|source| Error::File { path: target.clone(), source })?;
    Ok(target)
}

fn create_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|source| Error::File { path: path.to_owned(), source })
}

fn write_file(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(|source| Error::File { path: path.to_owned(), source })
}

fn write_script(path: &Path, text: &str) -> Result<()> {
    write_file(path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
        .map_err(|source| Error::File { path: path.to_owned(), source })
}

/// The path as one word of a shell script.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.to_string_lossy().replace('\'', r"'\''"))
}
