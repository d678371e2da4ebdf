//! Debian's kernels, fetched once each.

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

/// Names the newest kernel of a release, without drivers for hardware; behind it comes the architecture.
const META_PACKAGE: &str = "linux-image-cloud-";

/// Behind it comes a kernel's version.
const IMAGE: &str = "linux-image-";

/// A kernel with its modules.
pub(super) struct Kernel {
    /// As in `uname -r`.
    pub(super) version: String,
    /// What is booted.
    pub(super) image: PathBuf,
    /// `/lib/modules/<version>`.
    pub(super) modules: PathBuf,
}

/// The kernel of `release` for `architecture`.
pub(super) fn of(release: &str, architecture: &str) -> Result<Kernel> {
    let name = if architecture == "amd64" { release.to_owned() } else { format!("{release}-{architecture}") };
    let root = cache_dir().join(format!("kernel-{name}"));
    if !root.exists() {
        fetch(release, architecture, &root).map_err(|error| {
            failure(
                format!("cannot fetch the kernel of Debian {name}: {error:#}"),
                format!("unpack a package {META_PACKAGE}{architecture} of it into {}", root.display()),
            )
        })?;
    }
    // Later releases have the one in the other's place, and the image among the modules.
    let libraries = ["usr/lib/modules", "lib/modules"].map(|name| root.join(name));
    let modules = libraries.iter().find(|path| path.is_dir()).context("a kernel without modules")?;
    let modules = only(modules)?;
    let version = modules.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let images = [root.join("boot").join(format!("vmlinuz-{version}")), modules.join("vmlinuz")];
    let image = images.into_iter().find(|path| path.is_file());
    let image = image.with_context(|| format!("no vmlinuz in {}: remove what is there", root.display()))?;
    Ok(Kernel { version, image, modules })
}

/// The one thing in `directory`.
fn only(directory: &Path) -> Result<PathBuf> {
    let mut entries = fs::read_dir(directory).with_context(|| directory.display().to_string())?.flatten();
    let found = entries.next().map(|entry| entry.path());
    found.with_context(|| format!("nothing in {}: remove it", directory.display()))
}

fn fetch(release: &str, architecture: &str, root: &Path) -> Result<()> {
    ensure!(host::has_apt(), "apt-get is not here");
    let tree = root.with_extension(std::process::id().to_string());
    let step = Step::start(format!("Fetching the kernel of Debian {release}"));
    let fetched = fetch_into(&step, release, architecture, &tree, root);
    let _ = fs::remove_dir_all(&tree);
    fetched?;
    step.done(&root.display().to_string());
    Ok(())
}

fn fetch_into(step: &Step, release: &str, architecture: &str, tree: &Path, root: &Path) -> Result<()> {
    let apt = PrivateApt::of_architecture(tree, Kind::Binary, release, architecture)?;
    step.run_as("apt-get", &mut apt.get(&["update"]))?;
    let depends_of = |package: &str| -> Result<String> {
        let output = apt.cache(&["depends", package]).output().context("cannot run apt-cache")?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let depends = depends_of(&format!("{META_PACKAGE}{architecture}"))?;
    let version = dependencies(&depends).find_map(|package| package.strip_prefix(IMAGE));
    let version = version.with_context(|| format!("apt-cache names no kernel: {depends}"))?;
    let image = format!("{IMAGE}{version}");
    let depends = depends_of(&image)?;
    // Later releases have the image, the modules and the lists of these in packages of their own.
    let parts = dependencies(&depends).filter(|package| package.ends_with(version));
    let packages: Vec<&str> = ["download", &image].into_iter().chain(parts).collect();
    step.run_as("apt-get", &mut apt.get(&packages))?;
    let unpacked = tree.join("unpacked");
    for archive in apt.downloaded()? {
        step.run(Command::new("dpkg-deb").arg("-x").arg(archive).arg(&unpacked))?;
    }
    // Whole or not at all. Another run may have been faster.
    fs::rename(&unpacked, root).or_else(|error| if root.exists() { Ok(()) } else { Err(error) })?;
    Ok(())
}

/// What `apt-cache depends` names as needed.
fn dependencies(listing: &str) -> impl Iterator<Item = &str> {
    listing.lines().filter_map(|line| line.trim().strip_prefix("Depends: "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_that_is_needed_is_told_from_a_choice() {
        let listing = "linux-image-7.2\n  PreDepends: linux-base\n |Depends: dracut\n  Depends: linux-modules-7.2\n    dracut\n";
        assert_eq!(dependencies(listing).collect::<Vec<_>>(), ["linux-modules-7.2"]);
    }
}
