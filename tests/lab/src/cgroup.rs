//! Control groups of containers, and of agents as if in one: a tree per lab and hierarchy, named after the lab.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::Lab;
use crate::wait::eventually;

/// Where control groups are: all of them in version 2, a directory per controller in version 1.
const ROOT: &str = "/sys/fs/cgroup";

/// A control group that may use so much memory and no more, what the kernel keeps on its behalf included: as that of a
/// pod's container with `limits: memory`. It goes with the lab.
#[derive(Debug)]
pub struct MemoryGroup {
    path: PathBuf,
    /// The files' names differ.
    version: u8,
}

impl MemoryGroup {
    /// Makes one of `lab` for `bytes` of memory.
    pub fn new(lab: &Lab, bytes: u64) -> Result<Self> {
        let v1 = Path::new(ROOT).join("memory");
        let (root, version) = if v1.join("cgroup.procs").is_file() { (v1, 1) } else { (ROOT.into(), 2) };
        if version == 2 {
            let control = root.join("cgroup.subtree_control");
            fs::write(&control, "+memory").with_context(|| format!("write {}", control.display()))?;
        }
        let group = Self { path: root.join(lab.id()), version };
        fs::create_dir(&group.path).with_context(|| format!("make {}", group.path.display()))?;
        let limit = group.file("memory.limit_in_bytes", "memory.max");
        fs::write(&limit, bytes.to_string()).with_context(|| format!("write {}", limit.display()))?;
        Ok(group)
    }

    /// Words that start the program named by those after them in this group.
    pub(super) fn starter(&self) -> Vec<String> {
        let script = r#"echo $$ >"$0" && exec "$@""#;
        let processes = self.path.join("cgroup.procs").display().to_string();
        ["sh", "-c", script, &processes].map(str::to_owned).to_vec()
    }

    /// What its processes and the kernel use for it now, without files that can be read again, bytes.
    pub fn used(&self) -> Result<u64> {
        let number = |path: PathBuf| -> Result<u64> {
            let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            text.trim().parse().with_context(|| format!("{}: {text:?}", path.display()))
        };
        let total = number(self.file("memory.usage_in_bytes", "memory.current"))?;
        let stat = fs::read_to_string(self.path.join("memory.stat"))?;
        let field = |name: &str| {
            let line = stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.and_then(|value| value.parse::<u64>().ok()).unwrap_or_default()
        };
        let files = field("inactive_file") + field("active_file");
        ensure!(files <= total, "{files} bytes of files in {total}");
        Ok(total - files)
    }

    fn file(&self, v1: &str, v2: &str) -> PathBuf {
        self.path.join(if self.version == 1 { v1 } else { v2 })
    }
}

/// For a shell: runs its arguments in control groups of the lab that `$0` names, in each hierarchy by which systemd knows
/// its services, version 1 and 2. Two systemds in one group make and remove each other's groups of services.
pub(super) const APART: &str = r#"
for root in /sys/fs/cgroup /sys/fs/cgroup/systemd /sys/fs/cgroup/unified; do
    test -w $root/cgroup.procs || continue
    mkdir -p "$root/$0"
    echo $$ >"$root/$0/cgroup.procs"
done
exec "$@""#;

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
