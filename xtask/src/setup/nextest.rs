//! cargo-nextest, which runs the tests: one that is here, the released one, or built from crates.io.

use std::{
    env::{self, consts::ARCH},
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;
use flannel_ebpf_toolchain::{cache_dir, find_in_path};

use super::{
    release::{Release, can_fetch},
    tools::{Found, run},
};
use crate::{
    cargo::cargo,
    failure::failure,
    ui::{Step, note},
};

/// What is installed where there is none.
const VERSION: &str = "0.9.120";

/// The oldest that knows all of `.config/nextest.toml`.
const OLDEST: [u32; 3] = [0, 9, 100];

/// The released archives: machine, target, digest.
const RELEASES: &[(&str, &str, &str)] = &[
    (
        "x86_64",
        "x86_64-unknown-linux-musl",
        "e00511fc23241ffd3ca1d95b23bde8a9cd0fb96bb691a9957a909ba74e7a5238",
    ),
    (
        "aarch64",
        "aarch64-unknown-linux-gnu",
        "5e13751733a1fc4d26984ad5e1bce10d057d95299b02ed3ac96877b7288c8feb",
    ),
];

/// One that will do: on PATH, where cargo installs programs, or in our cache.
pub(super) fn find() -> Option<Found> {
    let cargo_home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    let installed = cargo_home.map(|home| home.join("bin/cargo-nextest")).into_iter();
    let mut all = find_in_path("cargo-nextest").into_iter().chain(installed).chain([cached()]);
    all.find_map(|path| {
        let found = run("cargo-nextest", path, &["nextest", "--version"]).ok()?;
        (version(&found.version)? >= OLDEST).then_some(found)
    })
}

/// Installs one into our cache.
pub(super) fn install() -> Result<()> {
    let release = RELEASES.iter().find(|(arch, ..)| *arch == ARCH).filter(|_| can_fetch("gzip"));
    if let Some((_, target, digest)) = release {
        let step = Step::start(format!("Downloading cargo-nextest {VERSION}"));
        let url = format!(
            "https://github.com/nextest-rs/nextest/releases/download/cargo-nextest-{VERSION}/cargo-nextest-{VERSION}-{target}.tar.gz"
        );
        let release = Release { url, digest, packed_by: ("gzip", "--gzip") };
        match release.fetch(&step, &root().join("bin"), BY_HAND) {
            Ok(()) => {
                step.done(&cached().display().to_string());
                return works();
            }
            Err(error) => {
                step.done("cannot");
                note(&format!("{error:#}"));
            }
        }
    }
    build()?;
    works()
}

const BY_HAND: &str = "put a cargo-nextest on PATH: https://nexte.st/docs/installation/pre-built-binaries/";

fn works() -> Result<()> {
    let missing = || failure(format!("{} does not work", cached().display()), BY_HAND);
    find().map(drop).ok_or_else(missing)
}

fn build() -> Result<()> {
    let step = Step::start(format!("Building cargo-nextest {VERSION} (about two minutes)"));
    let target_dir = cache_dir().join(format!("build.{}", std::process::id()));
    let mut install = cargo();
    install.args(["install", "cargo-nextest", "--version", VERSION, "--locked", "--force"]);
    // It need not be fast, only be there soon, and never replaces itself.
    install.args(["--debug", "--no-default-features", "--features", "default-no-update", "--root"]);
    install.arg(root()).env("CARGO_TARGET_DIR", &target_dir).env("CARGO_PROFILE_DEV_DEBUG", "0");
    let built = step.run(&mut install);
    // A gigabyte that nobody needs again; what cannot be removed does no harm.
    let _ = fs::remove_dir_all(&target_dir);
    built.map_err(|error| failure(format!("cannot build cargo-nextest: {error:#}"), BY_HAND))?;
    step.done(&cached().display().to_string());
    Ok(())
}

fn root() -> PathBuf {
    cache_dir().join(format!("nextest-{VERSION}"))
}

fn cached() -> PathBuf {
    Path::new(&root()).join("bin/cargo-nextest")
}

/// The numbers of `cargo-nextest 0.9.120 (…)`.
fn version(said: &str) -> Option<[u32; 3]> {
    let number = said.split(' ').nth(1)?.split('-').next()?;
    let parts: Vec<u32> = number.split('.').map(|part| part.parse().ok()).collect::<Option<_>>()?;
    parts.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::{OLDEST, version};

    #[test]
    fn versions_are_compared_by_their_numbers() {
        assert_eq!(version("cargo-nextest 0.9.143 (60fa45f63 2026-08-04)"), Some([0, 9, 143]));
        assert!(version("cargo-nextest 0.9.99").is_some_and(|version| version < OLDEST));
        assert_eq!(version("cargo-nextest"), None);
    }
}
