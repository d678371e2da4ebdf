//! The legacy ebtables, from Debian's package, which is not installed: there it would take the place of the machine's own.

use std::path::PathBuf;

use anyhow::Result;
use flannel_ebpf_toolchain::cache_dir;

use super::packages::{Wanted, unpacked_at};

const PACKAGE: &str = "ebtables";
/// The program in the package, and the directory of its library, where it looks for it.
pub(super) const PROGRAM: &str = "usr/sbin/ebtables-legacy";
pub(super) const LIBRARIES: &str = "usr/lib/ebtables";

/// Where the package of `release` is unpacked: fetched once.
pub(super) fn unpacked(release: &str) -> Result<PathBuf> {
    let root = cache_dir().join(format!("{PACKAGE}-{release}"));
    let wanted = Wanted { what: PACKAGE, package: PACKAGE, release, architecture: "amd64" };
    unpacked_at(&root, &wanted, |_| Ok(vec![PACKAGE.to_owned()]))?;
    Ok(root)
}
