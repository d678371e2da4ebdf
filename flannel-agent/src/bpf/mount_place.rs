//! Where a BPF file system can be mounted that is not there: over nothing of others.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

/// Where systems mount it, which is also the default of `--bpffs`.
const USUAL: &str = "/sys/fs/bpf";
/// Somebody's who has a need of it: where the usual place is not to be had.
const SPARE: &str = "/run/flannel/bpf";

/// What is at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// A BPF file system.
    Bpffs,
    /// An empty directory, which is no mount point.
    Free,
    /// Nothing.
    Absent,
    /// A file, a directory with files, or a mount point of something else: what is mounted there hides it.
    Taken(&'static str),
}

/// What to do for want of a BPF file system at `wanted`.
pub(super) fn mount_advice(wanted: &Path) -> String {
    advice(wanted, find(wanted), find(Path::new(USUAL)))
}

fn advice(wanted: &Path, found: Found, usual: Found) -> String {
    let shown = wanted.display();
    match found {
        Found::Bpffs => format!("one was mounted at {shown} just now: start again"),
        Found::Free => format!("run `mount -t bpf bpf {shown}`, or name a mounted one with --bpffs"),
        Found::Absent => {
            format!("run `mkdir -p {shown} && mount -t bpf bpf {shown}`, or name a mounted one with --bpffs")
        }
        Found::Taken(why) => {
            let instead = match usual {
                Found::Bpffs => format!("name the mounted one: --bpffs={USUAL}"),
                Found::Free => format!("run `mount -t bpf bpf {USUAL}`, and give --bpffs={USUAL}"),
                Found::Absent | Found::Taken(_) => {
                    format!("run `mkdir -p {SPARE} && mount -t bpf bpf {SPARE}`, and give --bpffs={SPARE}")
                }
            };
            format!("{shown} is {why}, so leave it as it is and {instead}")
        }
    }
}

fn find(place: &Path) -> Found {
    match look(place) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Found::Absent,
        Err(_) => Found::Taken("no directory that can be read"),
    }
}

fn look(place: &Path) -> io::Result<Found> {
    if statfs(place)?.filesystem_type() == BPF_FS_MAGIC {
        return Ok(Found::Bpffs);
    }
    let place: PathBuf = fs::canonicalize(place)?;
    let here = fs::metadata(&place)?;
    if !here.is_dir() {
        return Ok(Found::Taken("no directory"));
    }
    let is_mount_point = match place.parent() {
        None => true,
        Some(parent) => fs::metadata(parent)?.dev() != here.dev() || is_mounted(&place)?,
    };
    Ok(match fs::read_dir(&place)?.next() {
        _ if is_mount_point => Found::Taken("a mount point of something else"),
        Some(_) => Found::Taken("a directory that is not empty"),
        None => Found::Free,
    })
}

/// Whether something of the same device is mounted there, as by `mount --bind`.
fn is_mounted(place: &Path) -> io::Result<bool> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    // Spaces and the like are octal there (proc_pid_mountinfo(5)); of a place with such the device has to do.
    Ok(mounts.lines().any(|line| line.split(' ').nth(4).is_some_and(|mounted| Path::new(mounted) == place)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_mounted_over_what_somebody_has() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::create_dir(at("empty")).unwrap();
        fs::create_dir_all(at("full/of")).unwrap();
        fs::write(at("file"), "").unwrap();
        for (place, found) in [
            (at("empty"), Found::Free),
            (at("none"), Found::Absent),
            (at("full"), Found::Taken("a directory that is not empty")),
            (at("file"), Found::Taken("no directory")),
            ("/".into(), Found::Taken("a mount point of something else")),
            ("/proc".into(), Found::Taken("a mount point of something else")),
        ] {
            assert_eq!(find(&place), found, "{}", place.display());
        }
    }

    #[test]
    fn another_place_is_named_where_this_one_is_taken() {
        let wanted = Path::new("/data");
        let taken = Found::Taken("a directory that is not empty");
        for (found, usual, says) in [
            (Found::Free, taken, "`mount -t bpf bpf /data`"),
            (Found::Absent, taken, "`mkdir -p /data && mount -t bpf bpf /data`"),
            (taken, Found::Bpffs, "name the mounted one: --bpffs=/sys/fs/bpf"),
            (taken, Found::Free, "`mount -t bpf bpf /sys/fs/bpf`"),
            (taken, taken, "mount -t bpf bpf /run/flannel/bpf`"),
        ] {
            let text = advice(wanted, found, usual);
            assert!(text.contains(says), "{text} instead of {says}");
            let over = text.contains("mount -t bpf bpf /data");
            assert_eq!(over, found != taken, "{text}");
        }
    }
}
