//! `dist`: what users download, for each architecture, the same bytes from the same commit.
//!
//! ```text
//! cargo (static, with musl) ─▶ stripped programs, debug information apart
//!    ├─▶ flannel-vX-linux-ARCH.tar.gz           flanneld, mk-docker-opts.sh, README.md: upstream's names
//!    ├─▶ cni-plugin-flannel-linux-ARCH-vX.tgz   flannel-ARCH: upstream's name
//!    ├─▶ flannel-ebpf_X_ARCH.deb                with the units
//!    ├─▶ flannel-ebpf-vX-linux-ARCH.oci.tar     an image, made without a daemon
//!    ├─▶ flannel-vX-linux-ARCH.debug.tar.gz
//!    └─▶ flannel-vX-linux-ARCH.cdx.json         what is in the programs (CycloneDX)
//! SHA256SUMS
//! ```

mod architecture;
mod archive;
mod compile;
mod debian;
mod image;
mod sbom;
mod tarball;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use clap::Args;
use flannel_ebpf_toolchain::workspace_root;

use crate::{
    cargo::{Profile, target_directory},
    failure::failure,
    setup::{self, sha256},
    ui::{Step, print},
};
use architecture::Architecture;

/// What is released.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Options of `dist`.
#[derive(Args)]
pub(crate) struct Options {
    /// Architecture to build for; repeatable; all unless given
    #[arg(long = "arch", value_name = "ARCH", value_enum)]
    architectures: Vec<Architecture>,
    /// Where the files are put [default: dist in cargo's target directory]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Leave the images out, which need Debian's packages
    #[arg(long)]
    no_image: bool,
}

/// Builds all files, and prints a table of them.
pub(crate) fn run(options: &Options) -> Result<()> {
    setup::ensure(setup::Scope::Build)?;
    let architectures = match options.architectures.as_slice() {
        [] => Architecture::ALL.as_slice(),
        some => some,
    };
    let time = source_time()?;
    let out = options.out.clone().unwrap_or_else(|| target_directory().join("dist"));
    fs::create_dir_all(&out).with_context(|| format!("cannot create {}", out.display()))?;
    let out = out.canonicalize().with_context(|| out.display().to_string())?;
    let mut files = Vec::new();
    for architecture in architectures {
        compile::prepare(*architecture)?;
        let programs = compile::compile(*architecture)?;
        let step = Step::start(format!("Packing for {}", architecture.name()));
        let release = Release { architecture: *architecture, programs: &programs, time, out: &out };
        let work = out.join(format!(".work-{}", architecture.name()));
        let packed = release.pack(&step, &work, options.no_image);
        let _ = fs::remove_dir_all(&work);
        files.extend(packed?);
        step.done(&out.display().to_string());
    }
    files.sort();
    let sums = files.iter().map(|file| Ok(format!("{}  {}\n", sha256(&out.join(file))?, file)));
    let sums = sums.collect::<Result<String>>()?;
    fs::write(out.join("SHA256SUMS"), &sums).context("cannot write SHA256SUMS")?;
    print(&table(&out, &files)?)
}

/// The agent for another machine's tests, static and with debug assertions. `architecture` is Debian's name.
pub(crate) fn agent_for_tests(architecture: &str) -> Result<PathBuf> {
    let found = Architecture::ALL.into_iter().find(|known| known.name() == architecture);
    let found = found.with_context(|| format!("nothing is built for {architecture}"))?;
    compile::prepare(found)?;
    compile::build(found, Profile::Dev)?.executable(compile::AGENT)
}

/// The release for one architecture.
struct Release<'a> {
    architecture: Architecture,
    programs: &'a compile::Programs,
    /// When the source was committed: the time of all files, seconds since 1970.
    time: u64,
    out: &'a Path,
}

impl Release<'_> {
    /// Makes all files in `out`, with `work` for what is between, and returns their names.
    fn pack(&self, step: &Step, work: &Path, no_image: bool) -> Result<Vec<String>> {
        let _ = fs::remove_dir_all(work);
        let mut files = vec![
            tarball::flanneld(self, &work.join("flanneld"))?,
            tarball::cni_plugin(self, &work.join("plugin"))?,
            tarball::debug(self, &work.join("debug"))?,
            debian::package(self, &work.join("deb"))?,
            sbom::write(self)?,
        ];
        if !no_image {
            step.show("the image");
            files.push(image::image(self, step, &work.join("image"))?);
        }
        Ok(files)
    }
}

/// When the source was made: `SOURCE_DATE_EPOCH`, else the time of the commit.
fn source_time() -> Result<u64> {
    if let Some(given) = env::var_os("SOURCE_DATE_EPOCH") {
        let parsed = given.to_str().and_then(|text| text.parse().ok());
        return parsed.ok_or_else(|| {
            let wrong = format!("SOURCE_DATE_EPOCH: {} is no time", given.to_string_lossy());
            failure(wrong, "set it to seconds since 1970, or unset it")
        });
    }
    let git = Command::new("git").args(["log", "-1", "--format=%ct"]).current_dir(workspace_root()).output();
    let said = git.ok().filter(|output| output.status.success());
    let time = said.and_then(|output| String::from_utf8_lossy(&output.stdout).trim().parse().ok());
    time.ok_or_else(|| {
        failure(
            "git does not say when the source was committed",
            "set SOURCE_DATE_EPOCH to the time of the release, in seconds since 1970",
        )
    })
}

fn table(out: &Path, files: &[String]) -> Result<String> {
    let mut text = String::new();
    for file in files {
        let size = fs::metadata(out.join(file)).with_context(|| file.clone())?.len();
        text.push_str(&format!("{:>9.1} KiB  {}\n", kib(size), out.join(file).display()));
    }
    Ok(text)
}

/// Bytes in KiB, for people.
#[expect(clippy::cast_precision_loss, reason = "a size for people")]
fn kib(bytes: u64) -> f64 {
    bytes as f64 / 1024.0
}

#[cfg(test)]
mod tests;
