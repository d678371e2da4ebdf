//! The image, as an OCI archive: what `docker load`, `podman load` and `ctr images import` take. No daemon makes it.
//!
//! The first layer is what the agent runs, from Debian's packages; the second is ours, where flannel's images have it.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use flannel_ebpf_toolchain::workspace_root;
use serde_json::{Value, json};

use super::{
    Release, VERSION,
    architecture::Architecture,
    archive::{gzip, place, tar, write},
    compile::{AGENT, CNI_PLUGIN, INSTALL_CONF},
    sbom::timestamp,
};
use crate::{
    failure::failure,
    setup::{
        private_apt::{Kind, PrivateApt},
        sha256,
    },
    ui::Step,
};

/// The release whose packages are taken, as in the Containerfile.
const RELEASE: &str = "bookworm";

/// What the agent, `mk-docker-opts.sh` and init containers run. Busybox has the shell and its words.
const PACKAGES: [&str; 4] = ["iptables", "nftables", "iproute2", "busybox-static"];

/// What only scripts of packages need, which are not run.
const UNUSED: [&str; 4] = ["debconf", "perl-base", "dpkg", "tar"];

/// The words of busybox that there are: those of upstream's manifests and of our scripts, and what a person types in a
/// container.
const APPLETS: [&str; 34] = [
    "awk", "basename", "cat", "chmod", "chown", "cp", "cut", "date", "dirname", "echo", "env", "false",
    "find", "grep", "head", "hostname", "id", "kill", "ln", "ls", "mkdir", "mv", "ping", "printf", "ps",
    "rm", "sed", "sh", "sleep", "sort", "tail", "test", "true", "wget",
];

/// Names of iptables. The agent finds out which of both kinds the host's rules are in.
const IPTABLES: [&str; 6] =
    ["iptables", "iptables-restore", "iptables-save", "ip6tables", "ip6tables-restore", "ip6tables-save"];

/// `flannel-ebpf-vX-linux-ARCH.oci.tar`.
pub(super) fn image(release: &Release<'_>, step: &Step, work: &Path) -> Result<String> {
    let base = work.join("base");
    debian(step, release.architecture, &work.join("apt"), &base)?;
    pack(release, &base, work)
}

/// The image with `base` as its first layer.
pub(super) fn pack(release: &Release<'_>, base: &Path, work: &Path) -> Result<String> {
    let ours = work.join("ours");
    place(&release.programs.stripped(AGENT), &ours.join("opt/bin/flanneld"), 0o755)?;
    place(&release.programs.stripped(INSTALL_CONF), &ours.join("opt/bin/install-conf"), 0o755)?;
    place(&release.programs.stripped(CNI_PLUGIN), &ours.join("flannel"), 0o755)?;
    let options = workspace_root().join("flannel-agent/packaging/mk-docker-opts.sh");
    place(&options, &ours.join("opt/bin/mk-docker-opts.sh"), 0o755)?;

    let layout = work.join("layout");
    let mut blobs = Blobs { directory: layout.join("blobs/sha256") };
    fs::create_dir_all(&blobs.directory).with_context(|| blobs.directory.display().to_string())?;
    let (base, base_id) = blobs.layer(base, release.time)?;
    let (ours, ours_id) = blobs.layer(&ours, release.time)?;
    let created = timestamp(release.time)?;
    let architecture = release.architecture.name();
    let config = blobs.json(
        "application/vnd.oci.image.config.v1+json",
        &json!({
            "architecture": architecture,
            "os": "linux",
            "created": created,
            "config": {
                "Entrypoint": ["/opt/bin/flanneld"],
                "Env": ["PATH=/opt/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                "Labels": { "org.opencontainers.image.title": "flannel-ebpf", "org.opencontainers.image.version": VERSION },
            },
            "rootfs": { "type": "layers", "diff_ids": [base_id, ours_id] },
            "history": [
                { "created": created, "created_by": "packages of Debian" },
                { "created": created, "created_by": "flannel-ebpf" },
            ],
        }),
    )?;
    let mut manifest = blobs.json(
        "application/vnd.oci.image.manifest.v1+json",
        &json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config,
            "layers": [base, ours],
        }),
    )?;
    manifest["platform"] = json!({ "architecture": architecture, "os": "linux" });
    // The name that docker and containerd give it: the first is containerd's, the second the specification's.
    manifest["annotations"] = json!({
        "io.containerd.image.name": format!("docker.io/library/flannel-ebpf:v{VERSION}"),
        "org.opencontainers.image.ref.name": format!("v{VERSION}"),
    });
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [manifest],
    });
    write(&layout.join("index.json"), index.to_string(), 0o644)?;
    write(&layout.join("oci-layout"), json!({ "imageLayoutVersion": "1.0.0" }).to_string(), 0o644)?;
    let name = format!("flannel-ebpf-v{VERSION}-linux-{architecture}.oci.tar");
    tar(&layout, &release.out.join(&name), release.time)?;
    Ok(name)
}

/// Contents by their digest.
struct Blobs {
    directory: PathBuf,
}

impl Blobs {
    /// Adds the layer of all in `root`, and returns its descriptor, and the digest of what it is before it is packed.
    fn layer(&mut self, root: &Path, time: u64) -> Result<(Value, String)> {
        let [plain, packed] = ["layer.tar", "layer.tar.gz"].map(|name| self.directory.join(name));
        tar(root, &plain, time)?;
        let id = format!("sha256:{}", sha256(&plain)?);
        gzip(&plain, &packed)?;
        Ok((self.keep("application/vnd.oci.image.layer.v1.tar+gzip", &packed)?, id))
    }

    /// Adds a document.
    fn json(&mut self, kind: &str, document: &Value) -> Result<Value> {
        let file = self.directory.join("document.json");
        write(&file, document.to_string(), 0o644)?;
        self.keep(kind, &file)
    }

    /// Names `file` by its digest, and describes it.
    fn keep(&mut self, kind: &str, file: &Path) -> Result<Value> {
        let digest = sha256(file)?;
        let size = fs::metadata(file).with_context(|| file.display().to_string())?.len();
        fs::rename(file, self.directory.join(&digest)).with_context(|| file.display().to_string())?;
        Ok(json!({ "mediaType": kind, "digest": format!("sha256:{digest}"), "size": size }))
    }
}

/// Unpacks what the agent runs into `root`.
fn debian(step: &Step, architecture: Architecture, tree: &Path, root: &Path) -> Result<()> {
    let apt =
        PrivateApt::of_architecture(tree, Kind::Binary, RELEASE, architecture.name()).map_err(no_packages)?;
    step.run_as("apt-get", &mut apt.get(&["update"])).map_err(no_packages)?;
    let mut install = vec!["install", "--download-only", "--yes", "--no-install-recommends"];
    install.extend(PACKAGES);
    step.run_as("apt-get", &mut apt.get(&install)).map_err(no_packages)?;
    step.run_as("apt-get", &mut apt.get(&["download", "ca-certificates"])).map_err(no_packages)?;

    // One directory of programs and one of libraries, as Debian installs them: packages still name both.
    fs::create_dir_all(root.join("usr")).with_context(|| root.display().to_string())?;
    for directory in ["bin", "sbin", "lib"] {
        fs::create_dir_all(root.join("usr").join(directory)).with_context(|| root.display().to_string())?;
        link(&format!("usr/{directory}"), &root.join(directory))?;
    }
    for directory in ["run", "tmp", "proc", "sys", "dev"] {
        fs::create_dir_all(root.join(directory)).with_context(|| root.display().to_string())?;
    }
    let mut packages = apt.fetched()?;
    packages.sort();
    ensure!(packages.len() > PACKAGES.len(), "apt-get fetched only {packages:?}");
    for package in packages {
        let file = package.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !UNUSED.iter().any(|name| file.starts_with(&format!("{name}_"))) {
            step.run(Command::new("dpkg-deb").arg("--extract").arg(&package).arg(root))?;
        }
    }
    for directory in
        ["usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "usr/share/lintian"]
    {
        let _ = fs::remove_dir_all(root.join(directory));
    }
    certificates(root)?;
    for applet in APPLETS {
        let at = root.join("usr/bin").join(applet);
        if !at.exists() {
            link("busybox", &at)?;
        }
    }
    for name in IPTABLES {
        let at = root.join("usr/sbin").join(name);
        if !at.exists() {
            link("xtables-nft-multi", &at)?;
        }
    }
    write(&root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n", 0o644)?;
    write(&root.join("etc/group"), "root:x:0:\n", 0o644)
}

/// Writes all certificates into the one file that programs read, as update-ca-certificates does.
fn certificates(root: &Path) -> Result<()> {
    let directory = root.join("usr/share/ca-certificates/mozilla");
    let entries = fs::read_dir(&directory).with_context(|| directory.display().to_string())?;
    let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    let mut bundle = String::new();
    for file in files {
        bundle.push_str(fs::read_to_string(&file).with_context(|| file.display().to_string())?.trim_end());
        bundle.push('\n');
    }
    write(&root.join("etc/ssl/certs/ca-certificates.crt"), bundle, 0o644)
}

fn link(target: &str, at: &Path) -> Result<()> {
    symlink(target, at).with_context(|| format!("cannot create {}", at.display()))
}

fn no_packages(error: anyhow::Error) -> anyhow::Error {
    failure(
        format!("cannot fetch Debian's packages for the image: {error:#}"),
        "pass --no-image, or build the image by flannel-agent/packaging/kubernetes/Containerfile",
    )
}
