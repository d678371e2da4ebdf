//! Archives whose bytes depend on nothing but what is in them.

use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::Command,
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

/// Packs all of `directory` into `file`: in order of names, root's, all of one time.
pub(super) fn tar(directory: &Path, file: &Path, time: u64) -> Result<()> {
    let names = names(directory)?;
    let output = File::create(file).with_context(|| format!("cannot create {}", file.display()))?;
    let mut tar = Command::new("tar");
    tar.args(["--create", "--sort=name", "--format=gnu", "--owner=0", "--group=0", "--numeric-owner"]);
    tar.arg(format!("--mtime=@{time}")).arg("--directory").arg(directory).arg("--").args(names);
    let status = tar.env("LC_ALL", "C").stdout(output).status().context("cannot run tar")?;
    ensure!(status.success(), "tar: {status}");
    Ok(())
}

/// Compresses `from` into `to`, without the time and the name of the file, which gzip else puts in. `from` goes.
pub(super) fn gzip(from: &Path, to: &Path) -> Result<()> {
    let output = File::create(to).with_context(|| format!("cannot create {}", to.display()))?;
    let status = Command::new("gzip").args(["-9", "--no-name", "--stdout"]).arg(from).stdout(output).status();
    let status = status.context("cannot run gzip")?;
    ensure!(status.success(), "gzip: {status}");
    fs::remove_file(from).with_context(|| format!("cannot remove {}", from.display()))
}

/// [`tar`], compressed.
pub(super) fn tar_gz(directory: &Path, file: &Path, time: u64) -> Result<()> {
    let plain = directory.with_extension("tar");
    tar(directory, &plain, time)?;
    gzip(&plain, file)
}

/// What is in `directory`, in order.
fn names(directory: &Path) -> Result<Vec<std::ffi::OsString>> {
    let entries = fs::read_dir(directory).with_context(|| directory.display().to_string())?;
    let mut names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
    names.sort();
    Ok(names)
}
