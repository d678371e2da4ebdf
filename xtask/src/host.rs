//! What this machine is and may do.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::Result;
use flannel_ebpf_toolchain::find_in_path;

use crate::failure::failure;

/// Whether we run as root; the kernel gives our own directory in `/proc` our effective user.
pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

/// Refuses to go on without root.
pub(crate) fn require_root(task: &str, why: &str) -> Result<()> {
    if is_root() {
        return Ok(());
    }
    Err(failure(
        format!("`cargo xtask {task}` needs root: {why}"),
        format!("sudo --preserve-env=HOME env \"PATH=$PATH\" cargo xtask {task}"),
    ))
}

/// Whether packages are installed with apt here.
pub(crate) fn has_apt() -> bool {
    Path::new("/usr/bin/apt-get").exists() && Path::new("/usr/bin/dpkg").exists()
}

/// The program on PATH, or in the directories of system programs, which users often lack there.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(|dir| Path::new(dir).join(name));
    find_in_path(name).into_iter().chain(system.into_iter().filter(|path| path.is_file())).next()
}
