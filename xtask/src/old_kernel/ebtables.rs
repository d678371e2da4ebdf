//! The legacy ebtables, from Debian's package, which is not installed: there it would take the place of the machine's own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use flannel_ebpf_toolchain::cache_dir;

use crate::{
    failure::failure,
    host,
    setup::private_apt::{Kind, PrivateApt},
    ui::Step,
};

const PACKAGE: &str = "ebtables";
/// The program in the package, and the directory of its library, where it looks for it.
pub(super) const PROGRAM: &str = "usr/sbin/ebtables-legacy";
pub(super) const LIBRARIES: &str = "usr/lib/ebtables";

/// Where the package of `release` is unpacked: fetched once.
pub(super) fn unpacked(release: &str) -> Result<PathBuf> {
    let root = cache_dir().join(format!("{PACKAGE}-{release}"));
    if !root.exists() {
        fetch(release, &root).map_err(|error| {
            failure(
                format!("cannot fetch {PACKAGE} of Debian {release}: {error:#}"),
                format!("unpack a package {PACKAGE} of it into {}", root.display()),
            )
        })?;
    }
    Ok(root)
}

fn fetch(release: &str, root: &Path) -> Result<()> {
    ensure!(host::has_apt(), "apt-get is not here");
    let tree = root.with_extension(std::process::id().to_string());
    let step = Step::start(format!("Fetching {PACKAGE} of Debian {release}"));
    let fetched = fetch_into(&step, release, &tree, root);
    let _ = fs::remove_dir_all(&tree);
    fetched?;
    step.done(&root.display().to_string());
    Ok(())
}

fn fetch_into(step: &Step, release: &str, tree: &Path, root: &Path) -> Result<()> {
    let apt = PrivateApt::of_architecture(tree, Kind::Binary, release, "amd64")?;
    step.run_as("apt-get", &mut apt.get(&["update"]))?;
    step.run_as("apt-get", &mut apt.get(&["download", PACKAGE]))?;
    let unpacked = tree.join("unpacked");
    for archive in apt.downloaded()? {
        step.run(Command::new("dpkg-deb").arg("-x").arg(archive).arg(&unpacked))?;
    }
    // Whole or not at all. Another run may have been faster.
    fs::rename(&unpacked, root)
        .or_else(|error| if root.exists() { Ok(()) } else { Err(error) })
        .with_context(|| root.display().to_string())
}
