//! The documentation says what is true: its links lead somewhere, its generated parts are those that the code gives, and
//! each of its commands is run by a test.

mod by_hand;
mod chart;
mod commands;
mod coverage;
mod generated;
mod links;
mod rooms;

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use flannel_ebpf_toolchain::workspace_root;
use flannel_lab::command::run_with;

/// A page of the documentation.
struct Page {
    /// Below the repository's root.
    name: String,
    text: String,
}

/// Each page of the repository.
fn pages() -> Result<Vec<Page>> {
    let mut names = Vec::new();
    find(&workspace_root(), Path::new(""), &mut names)?;
    names.sort();
    ensure!(names.iter().any(|name| name == "README.md") && names.len() > 10, "pages are missing: {names:?}");
    names.into_iter().map(|name| Ok(Page { text: read(&name)?, name })).collect()
}

fn find(root: &Path, directory: &Path, names: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(root.join(directory)).context("read a directory")? {
        let entry = entry?;
        let name = directory.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            let file_name = entry.file_name();
            let hidden = file_name.to_string_lossy().starts_with('.');
            if !hidden && file_name != "target" {
                find(root, &name, names)?;
            }
        } else if name.extension().is_some_and(|extension| extension == "md") {
            names.push(name.to_string_lossy().into_owned());
        }
    }
    Ok(())
}

fn read(name: &str) -> Result<String> {
    fs::read_to_string(workspace_root().join(name)).with_context(|| name.to_owned())
}

/// Set to write generated parts anew instead of comparing them.
const WRITE: &str = "FLANNEL_WRITE_DOCS";

/// Holds the file `name` to `expected`, or writes it where [`WRITE`] is set.
fn hold(name: &str, expected: &str) -> Result<()> {
    let path = workspace_root().join(name);
    if std::env::var_os(WRITE).is_some() {
        return fs::write(&path, expected).with_context(|| path.display().to_string());
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    let differs = found.lines().zip(expected.lines()).find(|(found, expected)| found != expected);
    ensure!(
        found == expected,
        "{name} is out of date: write it by `{WRITE}=1 cargo test -p flannel-tests --test docs`\n{differs:#?}"
    );
    Ok(())
}

/// Runs cargo in the repository; an error says what it said.
fn cargo(words: &[&str]) -> Result<String> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace_root()).args(words);
    // Build scripts that watch these would run again, and most of the workspace be compiled anew.
    let ours = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(ours)) {
        cargo.env_remove(name);
    }
    // It may have to compile.
    run_with(&mut cargo, "", Duration::from_secs(600))
}

/// A newcomer reads it to its end.
#[test]
fn the_readme_is_short() -> Result<()> {
    let length = read("README.md")?.len();
    ensure!(
        length <= 8 << 10,
        "README.md has {length} bytes, and at most 8192 are wanted: move text to a page"
    );
    Ok(())
}

/// Whoever upgrades finds what is new, and whether the maps are laid out anew.
#[test]
fn the_changelog_has_this_version_and_its_layout() -> Result<()> {
    let text = read("CHANGELOG.md")?;
    let mut releases = text.split("\n## [").skip(1).filter(|release| !release.starts_with("Unreleased]"));
    let latest = releases.next().context("CHANGELOG.md names no release")?;
    let version = env!("CARGO_PKG_VERSION");
    ensure!(latest.starts_with(&format!("{version}] - 20")), "CHANGELOG.md does not begin with {version}");
    let layout = format!("Layout of the maps: {}.", flannel_common::map::LAYOUT_VERSION);
    ensure!(latest.contains(&layout), "CHANGELOG.md does not say for {version}: {layout}");
    Ok(())
}
