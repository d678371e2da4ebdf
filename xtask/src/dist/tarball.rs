//! Tarballs by upstream's names, so that a script that fetches flannel finds in them what it looks for.

use std::path::Path;

use anyhow::Result;
use flannel_ebpf_toolchain::workspace_root;

use super::{
    Release, VERSION,
    archive::{place, tar_gz},
    compile::{AGENT, CNI_PLUGIN, INSTALL_CONF},
};

/// `flannel-vX-linux-ARCH.tar.gz`, as upstream's since v0.8.
pub(super) fn flanneld(release: &Release<'_>, work: &Path) -> Result<String> {
    let source = workspace_root().join("flannel-agent/packaging");
    place(&release.programs.stripped(AGENT), &work.join("flanneld"), 0o755)?;
    place(&source.join("mk-docker-opts.sh"), &work.join("mk-docker-opts.sh"), 0o755)?;
    place(&workspace_root().join("README.md"), &work.join("README.md"), 0o644)?;
    let name = format!("flannel-v{VERSION}-linux-{}.tar.gz", release.architecture.name());
    tar_gz(work, &release.out.join(&name), release.time)?;
    Ok(name)
}

/// `cni-plugin-flannel-linux-ARCH-vX.tgz`, as flannel-io/cni-plugin's.
pub(super) fn cni_plugin(release: &Release<'_>, work: &Path) -> Result<String> {
    let architecture = release.architecture.name();
    place(&release.programs.stripped(CNI_PLUGIN), &work.join(format!("flannel-{architecture}")), 0o755)?;
    let name = format!("cni-plugin-flannel-linux-{architecture}-v{VERSION}.tgz");
    tar_gz(work, &release.out.join(&name), release.time)?;
    Ok(name)
}

/// The debug information of all programs; debuggers find it by the link that each program holds.
pub(super) fn debug(release: &Release<'_>, work: &Path) -> Result<String> {
    for program in [AGENT, CNI_PLUGIN, INSTALL_CONF] {
        place(&release.programs.debug(program), &work.join(format!("{program}.debug")), 0o644)?;
    }
    let name = format!("flannel-v{VERSION}-linux-{}.debug.tar.gz", release.architecture.name());
    tar_gz(work, &release.out.join(&name), release.time)?;
    Ok(name)
}
