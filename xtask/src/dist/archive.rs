//! Archives whose bytes depend on nothing but what is in them.

use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

/// Copies `from` to `to` with `mode`, and makes the directories on the way.
pub(super) fn place(from: &Path, to: &Path, mode: u32) -> Result<()> {
    if let Some(directory) = to.parent() {
        fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    }
    fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(mode)).with_context(|| to.display().to_string())
}

/// The same for a text.
pub(super) fn write(to: &Path, text: impl AsRef<[u8]>, mode: u32) -> Result<()> {
    if let Some(directory) = to.parent() {
        fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    }
    fs::write(to, text).with_context(|| format!("cannot write {}", to.display()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(mode)).with_context(|| to.display().to_string())
}

/// Whether an archive is compressed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    Plain,
    Gzip,
}

/// Packs all of `directory` into `file`: in order of names, root's, all of one time.
pub(super) fn tar(directory: &Path, file: &Path, time: u64, packing: Packing) -> Result<()> {
    let names = names(directory)?;
    let output = File::create(file).with_context(|| format!("cannot create {}", file.display()))?;
    let mut tar = Command::new("tar");
    tar.args(["--create", "--sort=name", "--format=gnu", "--owner=0", "--group=0", "--numeric-owner"]);
    tar.arg(format!("--mtime=@{time}")).arg("--directory").arg(directory).arg("--").args(names);
    tar.env("LC_ALL", "C");
    if packing == Packing::Plain {
        let status = tar.stdout(output).status().context("cannot run tar")?;
        ensure!(status.success(), "tar: {status}");
        return Ok(());
    }
    let mut tar = tar.stdout(Stdio::piped()).spawn().context("cannot run tar")?;
    let packed = tar.stdout.take().context("tar has no output")?;
    // Without the time and the name of the file, which gzip else puts in.
    let gzip = Command::new("gzip").args(["-9", "--no-name"]).stdin(packed).stdout(output).status();
    let gzip = gzip.context("cannot run gzip")?;
    let tar = tar.wait().context("tar")?;
    ensure!(gzip.success() && tar.success(), "tar: {tar}; gzip: {gzip}");
    Ok(())
}

/// What is in `directory`, in order.
fn names(directory: &Path) -> Result<Vec<std::ffi::OsString>> {
    let entries = fs::read_dir(directory).with_context(|| directory.display().to_string())?;
    let mut names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
    names.sort();
    Ok(names)
}

/// The SHA-256 digest of a file, hexadecimal.
pub(super) fn sha256(file: &Path) -> Result<String> {
    let output =
        Command::new("sha256sum").arg("--binary").arg(file).output().context("cannot run sha256sum")?;
    ensure!(output.status.success(), "sha256sum: {}", String::from_utf8_lossy(&output.stderr).trim());
    let said = String::from_utf8_lossy(&output.stdout);
    let digest = said.split_whitespace().next().unwrap_or_default();
    Ok(digest.trim_start_matches('\\').to_owned())
}
