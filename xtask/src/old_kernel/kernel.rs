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
    let boot = root.join("boot");
    let image = only(&boot, "vmlinuz-")?;
    let version = image.file_name().unwrap_or_default().to_string_lossy().replace("vmlinuz-", "");
    // Later releases have no other place for it.
    let libraries = ["usr/lib/modules", "lib/modules"].map(|name| root.join(name));
    let modules = libraries.iter().find(|path| path.is_dir()).context("a kernel without modules")?;
    Ok(Kernel { modules: only(modules, "")?, version, image })
}

/// The first in `directory` whose name begins with `prefix`.
fn only(directory: &Path, prefix: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(directory).with_context(|| directory.display().to_string())?;
    let is_it = |path: &PathBuf| path.file_name().unwrap_or_default().to_string_lossy().starts_with(prefix);
    let found = entries.flatten().map(|entry| entry.path()).find(is_it);
    found.with_context(|| format!("no {prefix}* in {}: remove what is there", directory.display()))
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
    let output = apt
        .cache(&["depends", &format!("{META_PACKAGE}{architecture}")])
        .output()
        .context("cannot run apt-cache")?;
    let depends = String::from_utf8_lossy(&output.stdout);
    let package = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: linux-image-"));
    let package = package.with_context(|| format!("apt-cache names no kernel: {depends}"))?;
    step.run_as("apt-get", &mut apt.get(&["download", &format!("linux-image-{package}")]))?;
    let archive = apt.downloaded()?.into_iter().next().context("apt-get downloaded nothing")?;
    let unpacked = tree.join("unpacked");
    step.run(Command::new("dpkg-deb").arg("-x").arg(archive).arg(&unpacked))?;
    // Whole or not at all. Another run may have been faster.
    fs::rename(&unpacked, root).or_else(|error| if root.exists() { Ok(()) } else { Err(error) })?;
    Ok(())
}
