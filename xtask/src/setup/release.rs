//! Released archives: fetched by HTTPS, and unpacked only if they are those that we know.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use flannel_ebpf_toolchain::find_in_path;

use crate::{failure::failure, ui::Step};

/// An archive, and the digest it has: it holds a program that we run.
pub(super) struct Release {
    pub(super) url: String,
    /// SHA-256, hexadecimal.
    pub(super) digest: &'static str,
    /// What unpacks it, and tar's flag for that.
    pub(super) packed_by: (&'static str, &'static str),
}

/// Whether the programs to fetch an archive, packed by the program `packer`, are here.
pub(super) fn can_fetch(packer: &str) -> bool {
    ["curl", "tar", packer, "sha256sum"].iter().all(|program| !find_in_path(program).is_empty())
}

impl Release {
    /// Fetches and unpacks it into `dir`. `remedy` is for those whom that does not help.
    pub(super) fn fetch(&self, step: &Step, dir: &Path, remedy: &str) -> Result<()> {
        let url = &self.url;
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let archive = dir.join("archive.tar");
        let mut curl = Command::new("curl");
        curl.args(["--proto", "=https", "--tlsv1.2", "--fail", "--silent", "--show-error", "--location"]);
        curl.args(["--retry", "2", "--connect-timeout", "20", "--output"]).arg(&archive).arg(url);
        step.run(&mut curl).map_err(|error| failure(format!("cannot download {url}: {error:#}"), remedy))?;
        let found = sha256(&archive)?;
        if found != self.digest {
            let _ = fs::remove_file(&archive);
            let expected = self.digest;
            return Err(failure(
                format!(
                    "{url} has the SHA-256 digest {found}, but {expected} was expected; it was not unpacked"
                ),
                remedy,
            ));
        }
        let mut tar = Command::new("tar");
        tar.args([self.packed_by.1, "--extract", "--no-same-owner", "--file"]);
        step.run(tar.arg(&archive).arg("--directory").arg(dir))?;
        let _ = fs::remove_file(&archive);
        Ok(())
    }
}

/// The SHA-256 digest of a file, hexadecimal.
pub(crate) fn sha256(file: &Path) -> Result<String> {
    let output =
        Command::new("sha256sum").arg("--binary").arg(file).output().context("cannot run sha256sum")?;
    ensure!(output.status.success(), "sha256sum: {}", String::from_utf8_lossy(&output.stderr).trim());
    let said = String::from_utf8_lossy(&output.stdout);
    let digest = said.split_whitespace().next().unwrap_or_default();
    // It stands in front where a name has unusual characters.
    Ok(digest.trim_start_matches('\\').to_owned())
}
