//! Removing a lab by its name alone, so that one whose owner was killed goes as cleanly as any other.
//!
//! A lab is a directory [`ROOT`]`/<id>` and namespaces `<id>-*`. The directory is made first and
//! removed last, so whatever exists of a lab is found by it.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{cgroup, netns};
use crate::{
    command::{run, tool},
    wait::eventually,
};

/// Where labs keep what is theirs.
pub const ROOT: &str = "/run/flannel-ebpf-lab";

/// Directory of the lab `id`.
pub(crate) fn directory(id: &str) -> PathBuf {
    Path::new(ROOT).join(id)
}

/// Where etcd of the lab `id` keeps its log: tens of MiB, too much for a `/run` in memory.
pub(crate) fn etcd_directory(id: &str) -> PathBuf {
    std::env::temp_dir().join(format!("{id}.etcd"))
}

/// Kills every process in the namespaces and control groups of the lab `id`, then removes its namespaces,
/// control groups, mounts, pins and files. Does what it can: an error lists what it could not.
pub fn remove(id: &str) -> Result<()> {
    let names = namespaces(id)?;
    // Held open to the end, so that no new namespace gets the number of one of these.
    let held: Vec<File> =
        names.iter().filter_map(|name| File::open(Path::new(netns::DIRECTORY).join(name)).ok()).collect();
    let inodes = inodes(&held);
    let mut failures: Vec<String> = Vec::new();
    if let Err(error) = kill_all(&inodes) {
        failures.push(format!("{error:#}"));
    }
    // Containers are in namespaces of their own; what could start more of them is dead now.
    if let Err(error) = cgroup::remove(id) {
        failures.push(format!("{error:#}"));
    }
    for mount in mounts(&directory(id))? {
        // Pins first: a mount namespace elsewhere may hold a copy of the mount for a while.
        let emptied = empty(&mount);
        let unmounted = umount2(&mount, MntFlags::MNT_DETACH);
        if let Err(error) = emptied.and(unmounted.map_err(io::Error::from)) {
            failures.push(format!("unmount {}: {error}", mount.display()));
        }
    }
    for name in &names {
        if let Err(error) = run(tool("ip").args(["netns", "del", name])) {
            failures.push(format!("{error:#}"));
        }
    }
    // Again, now that nothing can enter any more: one may have been on its way in.
    if let Err(error) = kill_all(&inodes) {
        failures.push(format!("{error:#}"));
    }
    for path in [etcd_directory(id), directory(id)] {
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                failures.push(format!("remove {}: {error}", path.display()));
            }
            _ => {}
        }
    }
    // Goes with the last lab; others keep it.
    let _ = fs::remove_dir(ROOT);
    if failures.is_empty() { Ok(()) } else { bail!("lab {id}: {}", failures.join("; ")) }
}

/// What is left of the lab `id`, whose namespaces these files keep: nothing, if all went well.
pub(crate) fn residue<'a>(id: &str, made: impl IntoIterator<Item = &'a File>) -> Result<Vec<String>> {
    let mut left: Vec<String> = namespaces(id)?.into_iter().map(|name| format!("namespace {name}")).collect();
    let processes = processes(&inodes(made))?;
    left.extend(processes.into_iter().map(|pid| format!("process {pid} ({})", program(pid))));
    left.extend(mounts(&directory(id))?.into_iter().map(|path| format!("mount {}", path.display())));
    left.extend(cgroup::of(id).into_iter().map(|path| format!("control group {}", path.display())));
    for path in [directory(id), etcd_directory(id)] {
        if path.exists() {
            left.push(format!("directory {}", path.display()));
        }
    }
    Ok(left)
}

/// Ids of all labs there are.
pub(crate) fn labs() -> Result<Vec<String>> {
    names_in(Path::new(ROOT))
}

/// Names of the namespaces of the lab `id`.
pub(crate) fn namespaces(id: &str) -> Result<Vec<String>> {
    let prefix = format!("{id}-");
    Ok(names_in(Path::new(netns::DIRECTORY))?.into_iter().filter(|name| name.starts_with(&prefix)).collect())
}

/// Names in `directory`, sorted; none if it does not exist.
fn names_in(directory: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| directory.display().to_string())?,
    };
    let mut names: Vec<String> =
        entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names)
}

fn inodes<'a>(files: impl IntoIterator<Item = &'a File>) -> BTreeSet<u64> {
    files.into_iter().filter_map(|file| Some(file.metadata().ok()?.ino())).collect()
}

/// Processes whose main thread is in one of these namespaces, except this one.
fn processes(inodes: &BTreeSet<u64>) -> Result<Vec<i32>> {
    let own = std::process::id();
    let pids = names_in(Path::new("/proc"))?.into_iter().filter_map(|name| name.parse::<i32>().ok());
    let of_others = pids.filter(|pid| u32::try_from(*pid) != Ok(own));
    // One that is gone by now, or a zombie, shows no namespace.
    let inode = |pid: &i32| Some(fs::metadata(format!("/proc/{pid}/ns/net")).ok()?.ino());
    Ok(of_others.filter(|pid| inode(pid).is_some_and(|inode| inodes.contains(&inode))).collect())
}

fn program(pid: i32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    name.trim().to_owned()
}

fn kill_all(inodes: &BTreeSet<u64>) -> Result<()> {
    eventually(Duration::from_secs(10), "every process of the lab has ended", || {
        let alive = processes(inodes)?;
        for pid in &alive {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        if alive.is_empty() { Ok(()) } else { bail!("still running: {alive:?}") }
    })
}

/// Mount points at or below `directory`, innermost first.
fn mounts(directory: &Path) -> Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mounts").context("read /proc/self/mounts")?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from);
    let mut points: Vec<PathBuf> = points.filter(|point| point.starts_with(directory)).collect();
    points.reverse();
    Ok(points)
}

/// Removes the directories in a bpffs. Files beside them are the kernel's own, and cannot be removed.
fn empty(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)?.flatten() {
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}
