//! Debian's kernels, fetched once each.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use flannel_ebpf_toolchain::cache_dir;

use super::packages::{Wanted, unpacked_at};
use crate::setup::private_apt::PrivateApt;

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
    let package = format!("{META_PACKAGE}{architecture}");
    let wanted = Wanted { what: "the kernel", package: &package, release, architecture };
    unpacked_at(&root, &wanted, |apt| image_and_modules(apt, &package))?;
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

/// The packages of the kernel that `meta` names.
fn image_and_modules(apt: &PrivateApt, meta: &str) -> Result<Vec<String>> {
    let depends_of = |package: &str| -> Result<String> {
        let output = apt.cache(&["depends", package]).output().context("cannot run apt-cache")?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let depends = depends_of(meta)?;
    let version = dependencies(&depends).find_map(|package| package.strip_prefix(IMAGE));
    let version = version.with_context(|| format!("apt-cache names no kernel: {depends}"))?;
    let image = format!("{IMAGE}{version}");
    let depends = depends_of(&image)?;
    // Later releases have the image, the modules and the lists of these in packages of their own.
    let parts = dependencies(&depends).filter(|package| package.ends_with(version)).map(str::to_owned);
    Ok([image].into_iter().chain(parts).collect())
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
