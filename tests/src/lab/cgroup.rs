//! Control groups of containers: one tree per lab and hierarchy, named after the lab.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::wait::eventually;

/// Where control groups are: all of them in version 2, a directory per controller in version 1.
const ROOT: &str = "/sys/fs/cgroup";

/// What a runtime is told to put containers of the lab `id` below.
pub(super) fn parent(id: &str) -> String {
    format!("/{id}")
}

/// The trees of the lab `id`.
pub(super) fn of(id: &str) -> Vec<PathBuf> {
    let mut hierarchies = directories(Path::new(ROOT)).unwrap_or_default();
    hierarchies.push(PathBuf::from(ROOT));
    // Some controllers have a second name.
    hierarchies.retain(|path| !path.is_symlink());
    hierarchies.into_iter().map(|hierarchy| hierarchy.join(id)).filter(|path| path.is_dir()).collect()
}

/// Kills what is in the trees of the lab `id`, and removes them.
pub(super) fn remove(id: &str) -> Result<()> {
    of(id).iter().try_for_each(|tree| {
        eventually(Duration::from_secs(10), "the control group is empty and gone", || {
            empty(tree).with_context(|| tree.display().to_string())
        })
    })
}

fn empty(group: &Path) -> io::Result<()> {
    for below in directories(group)? {
        empty(&below)?;
    }
    let processes = fs::read_to_string(group.join("cgroup.procs"))?;
    for pid in processes.lines().filter_map(|line| line.parse().ok()) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    fs::remove_dir(group)
}

fn directories(path: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(path)?.flatten();
    Ok(entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|e| e.path()).collect())
}
