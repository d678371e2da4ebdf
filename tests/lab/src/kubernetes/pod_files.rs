//! Directories that kubelet fills and mounts into pods.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::symlink,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};

use crate::{etcd::write_private, make_dir};

/// Makes `volume` hold exactly `files` of text, by name, as kubelet does: all change at one moment, when the link
/// `..data` is replaced, through which each is seen.
pub(super) fn write(volume: &Path, files: &BTreeMap<String, String>) -> Result<()> {
    let stamp = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
    let generation = format!("..{stamp}");
    make_dir(&volume.join(&generation))?;
    for (name, text) in files {
        write_private(&volume.join(&generation).join(name), text)?;
        let seen = volume.join(name);
        if fs::symlink_metadata(&seen).is_err() {
            symlink(format!("..data/{name}"), &seen).with_context(|| seen.display().to_string())?;
        }
    }
    let (new, data) = (volume.join("..data_tmp"), volume.join("..data"));
    let before = fs::read_link(&data).ok();
    symlink(&generation, &new).with_context(|| new.display().to_string())?;
    fs::rename(&new, &data).with_context(|| data.display().to_string())?;
    if let Some(before) = before {
        fs::remove_dir_all(volume.join(before)).context("remove the files that were there before")?;
    }
    Ok(())
}
