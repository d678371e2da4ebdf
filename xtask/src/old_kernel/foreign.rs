//! A machine of another architecture: what it runs comes from Debian's packages, and the agent is cross-built.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use flannel_ebpf_toolchain::cache_dir;

use super::{initramfs, kernel::Kernel};
use crate::{
    dist,
    failure::failure,
    setup::{
        self,
        private_apt::{Kind, PrivateApt},
    },
    ui::Step,
};

/// What emulates it, and how.
#[derive(Clone, Copy)]
pub(super) struct Foreign {
    /// Debian's name.
    pub(super) architecture: &'static str,
    /// The emulator, with the package that brings it.
    pub(super) emulator: (&'static str, &'static str),
    /// Its machine.
    pub(super) machine: [&'static str; 4],
    /// Where the kernel writes.
    pub(super) console: &'static str,
}

/// A machine of arm64.
pub(super) const ARM64: Foreign = Foreign {
    architecture: "arm64",
    emulator: ("qemu-system-aarch64", "qemu-system-arm"),
    machine: ["-machine", "virt", "-cpu", "cortex-a72"],
    console: "ttyAMA0",
};

/// Where packages of it are from.
const RELEASE: &str = "bookworm";

/// What a node runs.
const PACKAGES: [&str; 13] = [
    "dash",
    "iproute2",
    "iputils-ping",
    "iperf3",
    "nftables",
    "iptables",
    "wireguard-tools",
    "busybox-static",
    "mount",
    "util-linux",
    "strongswan-charon",
    "strongswan-swanctl",
    "libstrongswan-standard-plugins",
];

/// What none of it needs while it runs.
const UNUSED: [&str; 5] = ["debconf", "perl-base", "dpkg", "tar", "systemd"];

impl Foreign {
    /// Makes its initramfs in `work`, with `script` as the first process, and returns where it is.
    pub(super) fn make(self, work: &Path, kernel: &Kernel, script: &str) -> Result<PathBuf> {
        setup::ensure_programs(&[self.emulator])?;
        let agent = dist::agent_for_tests(self.architecture)?;
        let root = work.join("root");
        fs::create_dir_all(&root).with_context(|| root.display().to_string())?;
        for package in fs::read_dir(self.packages()?)?.flatten() {
            let mut unpack = Command::new("dpkg-deb");
            let output =
                unpack.arg("-x").arg(package.path()).arg(&root).output().context("cannot run dpkg-deb")?;
            anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        for directory in ["doc", "man", "locale", "info"] {
            let _ = fs::remove_dir_all(root.join("usr/share").join(directory));
        }
        initramfs::finish(&root, work, kernel, &agent, script)
    }

    /// A directory of the packages, fetched once.
    fn packages(self) -> Result<PathBuf> {
        let kept = cache_dir().join(format!("machine-{RELEASE}-{}", self.architecture));
        if kept.is_dir() {
            return Ok(kept);
        }
        let tree = kept.with_extension(std::process::id().to_string());
        let step = Step::start(format!("Fetching the packages of a node of {}", self.architecture));
        let fetched = fetch(&step, &tree, self.architecture, &kept);
        let _ = fs::remove_dir_all(&tree);
        fetched.map_err(|error| {
            failure(
                format!("cannot fetch packages of {}: {error:#}", self.architecture),
                format!("put {} and what they need into {}", PACKAGES.join(", "), kept.display()),
            )
        })?;
        step.done(&kept.display().to_string());
        Ok(kept)
    }
}

fn fetch(step: &Step, tree: &Path, architecture: &str, kept: &Path) -> Result<()> {
    let apt = PrivateApt::of_architecture(tree, Kind::Binary, RELEASE, architecture)?;
    step.run_as("apt-get", &mut apt.get(&["update"]))?;
    let install = ["install", "--download-only", "--no-install-recommends", "--yes"];
    step.run_as("apt-get", &mut apt.get(&[&install[..], &PACKAGES].concat()))?;
    let packages = tree.join("packages");
    fs::create_dir_all(&packages)?;
    for package in apt.fetched()? {
        let name = package.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if UNUSED.iter().all(|unused| !name.starts_with(&format!("{unused}_"))) {
            fs::rename(&package, packages.join(name))?;
        }
    }
    fs::rename(&packages, kept).or_else(|error| if kept.exists() { Ok(()) } else { Err(error) })?;
    Ok(())
}
