//! Who a lab belongs to, so that one whose owner was killed can be told from one in use.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

const FILE: &str = "owner";
const NOBODY: &str = "kept";

/// Makes the directory of the lab `id`, owned by this process. It appears with its owner in it, so
/// that no one takes it for abandoned in between.
pub(super) fn claim(id: &str, dir: &Path) -> Result<()> {
    let root = dir.parent().context("a lab has a directory above it")?;
    let draft = root.join(format!(".{id}.new"));
    let _ = fs::remove_dir_all(&draft);
    // The last lab of another process takes the directory above with it, maybe while this one is made in it.
    while let Err(error) = fs::create_dir_all(&draft) {
        if error.kind() != io::ErrorKind::NotFound {
            return Err(error).with_context(|| format!("create {}", draft.display()));
        }
    }
    let own = identity(std::process::id()).context("read own start time")?;
    write(&draft, &own)?;
    if let Err(error) = fs::rename(&draft, dir) {
        let _ = fs::remove_dir_all(&draft);
        if matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists) {
            bail!("the lab {id} is already up ({})", dir.display());
        }
        return Err(error).with_context(|| format!("create {}", dir.display()));
    }
    Ok(())
}

/// Gives the lab up without removing it: it is nobody's, and stays.
pub(super) fn disown(dir: &Path) -> Result<()> {
    write(dir, NOBODY)
}

/// Whether the lab's owner was killed before it could remove it.
pub(super) fn is_dead(dir: &Path) -> bool {
    let Ok(owner) = fs::read_to_string(file(dir)) else { return false };
    // One that is being written is empty for a moment.
    if owner == NOBODY || owner.is_empty() {
        return false;
    }
    let pid = owner.split(' ').next().and_then(|pid| pid.parse().ok());
    pid.and_then(identity).is_none_or(|running| running != owner)
}

/// Whether the lab belongs to this process.
pub(super) fn is_own(dir: &Path) -> bool {
    let own = identity(std::process::id());
    own.is_some() && fs::read_to_string(file(dir)).ok() == own
}

fn file(dir: &Path) -> PathBuf {
    dir.join(FILE)
}

fn write(dir: &Path, owner: &str) -> Result<()> {
    fs::write(file(dir), owner).with_context(|| format!("write {}", file(dir).display()))
}

/// A process that has this id now: the id and its start time, since ids come back.
fn identity(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field may contain blanks; the last parenthesis ends it.
    let start_time = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?;
    Some(format!("{pid} {start_time}"))
}
