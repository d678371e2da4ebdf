//! The Debian package: the daemon, its unit, and what docker needs of it.

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use flannel_ebpf_toolchain::workspace_root;

use super::{
    Release, VERSION,
    archive::{place, write},
    compile::{AGENT, CNI_PLUGIN},
};

/// Options of the daemon, which an upgrade leaves as they are.
const DEFAULTS: &str = "\
# Flags of flanneld, and its variables FLANNELD_*: see /usr/share/doc/flannel-ebpf/flags.md.
#FLANNELD_ETCD_ENDPOINTS=http://127.0.0.1:2379
#FLANNELD_IP_MASQ=true
#FLANNEL_OPTIONS=--iface=eth1
";

/// After unpacking. A new installation is not started: it needs an etcd first. One that runs goes on with the new
/// program; docker, which may require it, is not restarted.
const POSTINST: &str = "\
#!/bin/sh
set -e
if [ \"$1\" = configure ] && [ -d /run/systemd/system ]; then
    systemctl daemon-reload || true
    if [ -n \"$2\" ]; then
        systemctl --job-mode=ignore-dependencies try-restart flanneld.service || true
    else
        echo 'flanneld is not started yet: set its options in /etc/default/flanneld, then: systemctl enable --now flanneld'
    fi
fi
";

/// Before removal, not before an upgrade. Devices and routes stay for the pods that use them.
const PRERM: &str = "\
#!/bin/sh
set -e
if [ \"$1\" = remove ] && [ -d /run/systemd/system ]; then
    systemctl --job-mode=ignore-dependencies stop flanneld.service || true
    systemctl disable flanneld.service || true
fi
";

/// After removal.
const POSTRM: &str = "\
#!/bin/sh
set -e
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || true
fi
";

/// `flannel-ebpf_X_ARCH.deb`.
pub(super) fn package(release: &Release<'_>, work: &Path) -> Result<String> {
    let packaging = workspace_root().join("flannel-agent/packaging");
    let root = work.join("root");
    place(&release.programs.stripped(AGENT), &root.join("usr/bin/flanneld"), 0o755)?;
    place(&release.programs.stripped(CNI_PLUGIN), &root.join("usr/libexec/flannel/cni/flannel"), 0o755)?;
    let options = "usr/libexec/flannel/mk-docker-opts.sh";
    place(&packaging.join("mk-docker-opts.sh"), &root.join(options), 0o755)?;
    let unit = "usr/lib/systemd/system/flanneld.service";
    place(&packaging.join("systemd/flanneld.service"), &root.join(unit), 0o644)?;
    let documents = root.join("usr/share/doc/flannel-ebpf");
    let drop_in = documents.join("examples/docker.service.d/flannel.conf");
    place(&packaging.join("systemd/docker.service.d/flannel.conf"), &drop_in, 0o644)?;
    place(&packaging.join("README.md"), &documents.join("docker-hosts.md"), 0o644)?;
    for page in ["flags.md", "running.md", "troubleshooting.md"] {
        place(&workspace_root().join("flannel-agent/docs").join(page), &documents.join(page), 0o644)?;
    }
    for license in ["LICENSE-APACHE", "LICENSE-MIT"] {
        place(&workspace_root().join(license), &documents.join(license), 0o644)?;
    }
    write(&root.join("etc/default/flanneld"), DEFAULTS, 0o644)?;

    let control = root.join("DEBIAN");
    write(&control.join("control"), fields(release.architecture.name(), kib(&root)?), 0o644)?;
    write(&control.join("conffiles"), "/etc/default/flanneld\n", 0o644)?;
    write(&control.join("postinst"), POSTINST, 0o755)?;
    write(&control.join("prerm"), PRERM, 0o755)?;
    write(&control.join("postrm"), POSTRM, 0o755)?;

    let name = format!("flannel-ebpf_{VERSION}_{}.deb", release.architecture.name());
    let mut build = Command::new("dpkg-deb");
    build.args(["--root-owner-group", "-Zgzip", "-z9", "--build"]).arg(&root).arg(release.out.join(&name));
    // The time of all files in it.
    build.env("SOURCE_DATE_EPOCH", release.time.to_string());
    let output = build.output().context("cannot run dpkg-deb")?;
    ensure!(output.status.success(), "dpkg-deb: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(name)
}

/// The control file. `size` is what is installed, KiB.
fn fields(architecture: &str, size: u64) -> String {
    format!(
        "Package: flannel-ebpf\n\
         Version: {VERSION}\n\
         Architecture: {architecture}\n\
         Maintainer: The flannel-ebpf authors <flannel-ebpf@localhost.invalid>\n\
         Installed-Size: {size}\n\
         Depends: iptables | nftables\n\
         Recommends: iproute2\n\
         Conflicts: flannel\n\
         Replaces: flannel\n\
         Provides: flannel\n\
         Section: net\n\
         Priority: optional\n\
         Description: network of containers across hosts, with a dataplane of eBPF\n \
         A drop-in flanneld: the same flags, environment, keys in etcd, files and\n \
         wire format, in one cluster beside stock flanneld. Programs in the kernel\n \
         encapsulate, decapsulate and route the packets of pods.\n"
    )
}

/// What lies under `directory`, KiB, each file rounded up, as dpkg-gencontrol counts.
fn kib(directory: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in std::fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        let entry = entry.with_context(|| directory.display().to_string())?;
        let metadata = entry.metadata().with_context(|| entry.path().display().to_string())?;
        sum += if metadata.is_dir() { 1 + kib(&entry.path())? } else { metadata.len().div_ceil(1024) };
    }
    Ok(sum)
}
