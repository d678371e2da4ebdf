//! Debian's packages, unpacked into the cache and not installed: fetched once each.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};

use crate::{
    failure::failure,
    host,
    setup::private_apt::{Kind, PrivateApt},
    ui::Step,
};

/// What is fetched.
pub(super) struct Wanted<'a> {
    /// In words.
    pub(super) what: &'a str,
    /// What somebody would unpack by hand instead.
    pub(super) package: &'a str,
    /// The name of Debian's release.
    pub(super) release: &'a str,
    /// Debian's name of it.
    pub(super) architecture: &'a str,
}

/// Unpacks what is `wanted` into `root`, unless it is there. `choose` names the packages, once their lists are here.
///
/// # Errors
/// When they cannot be fetched: the remedy is to unpack them there by hand.
pub(super) fn unpacked_at(
    root: &Path,
    wanted: &Wanted<'_>,
    choose: impl FnOnce(&PrivateApt) -> Result<Vec<String>>,
) -> Result<()> {
    if root.exists() {
        return Ok(());
    }
    fetch(root, wanted, choose).map_err(|error| {
        failure(
            format!(
                "cannot fetch {} of Debian {} for {}: {error:#}",
                wanted.what, wanted.release, wanted.architecture
            ),
            format!("unpack a package {} of it into {}", wanted.package, root.display()),
        )
    })
}

fn fetch(
    root: &Path,
    wanted: &Wanted<'_>,
    choose: impl FnOnce(&PrivateApt) -> Result<Vec<String>>,
) -> Result<()> {
    ensure!(host::has_apt(), "apt-get is not here");
    let tree = root.with_extension(std::process::id().to_string());
    let step = Step::start(format!("Fetching {} of Debian {}", wanted.what, wanted.release));
    let fetched = fetch_into(&step, &tree, root, wanted, choose);
    let _ = fs::remove_dir_all(&tree);
    fetched?;
    step.done(&root.display().to_string());
    Ok(())
}

fn fetch_into(
    step: &Step,
    tree: &Path,
    root: &Path,
    wanted: &Wanted<'_>,
    choose: impl FnOnce(&PrivateApt) -> Result<Vec<String>>,
) -> Result<()> {
    let apt = PrivateApt::of_architecture(tree, Kind::Binary, wanted.release, wanted.architecture)?;
    step.run_as("apt-get", &mut apt.get(&["update"]))?;
    let packages = choose(&apt)?;
    let download: Vec<&str> = ["download"].into_iter().chain(packages.iter().map(String::as_str)).collect();
    step.run_as("apt-get", &mut apt.get(&download))?;
    let unpacked = tree.join("unpacked");
    for archive in apt.downloaded()? {
        step.run(Command::new("dpkg-deb").arg("-x").arg(archive).arg(&unpacked))?;
    }
    // Whole or not at all. Another run may have been faster.
    fs::rename(&unpacked, root)
        .or_else(|error| if root.exists() { Ok(()) } else { Err(error) })
        .with_context(|| root.display().to_string())
}
