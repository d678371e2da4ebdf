//! What the lab needs of the machine.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use flannel_ebpf_toolchain::kubernetes_dir;

use crate::command::SYSTEM_DIRECTORIES;

/// Programs the lab runs, each with the Debian package that brings it.
const PROGRAMS: [(&str, &str); 6] = [
    ("ip", "iproute2"),
    ("bridge", "iproute2"),
    ("etcd", "etcd-server"),
    ("etcdctl", "etcd-client"),
    ("iptables", "iptables"),
    ("nft", "nftables"),
];

/// Directories CNI plugins are installed in, by Debian and by everyone else.
const CNI_DIRECTORIES: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];

/// Environment variable that turns a skipped test into a failed one.
pub const REQUIRE: &str = "FLANNEL_TEST_REQUIRE";

/// The plugins that are used.
pub(crate) const CNI_PLUGINS: [&str; 3] = ["bridge", "host-local", "portmap"];

/// Where the CNI plugins `bridge`, `host-local` and `portmap` are.
pub fn cni_directory() -> Result<PathBuf> {
    for directory in CNI_DIRECTORIES.map(PathBuf::from) {
        if CNI_PLUGINS.iter().all(|plugin| directory.join(plugin).exists()) {
            return Ok(directory);
        }
    }
    bail!("the CNI plugins {} are in none of {}", CNI_PLUGINS.join(", "), CNI_DIRECTORIES.join(", "))
}

/// Fails with everything that is missing, and the remedy.
pub fn check(further: &[(&str, &str)]) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the lab needs root, to make network namespaces: run it with sudo");
    }
    let mut missing: Vec<String> = PROGRAMS
        .iter()
        .chain(further)
        .filter(|(program, _)| find(program).is_none())
        .map(|(program, package)| format!("{program} (Debian: {package})"))
        .collect();
    if let Err(reason) = cni_directory() {
        missing.push(format!("{reason} (Debian: containernetworking-plugins)"));
    }
    if missing.is_empty() {
        return Ok(());
    }
    bail!("missing: {}; `cargo xtask setup` installs them", missing.join("; "))
}

/// Whether a test can use the lab. If not, says so on stderr past the test harness's capture, so that
/// a skipped test is seen; with `FLANNEL_TEST_REQUIRE` set it is an error instead.
pub fn lab_available() -> Result<bool> {
    available(check(&[]))
}

/// The same for a test that runs Kubernetes in the lab.
pub fn kubernetes_available() -> Result<bool> {
    available(check(&[]).and_then(|()| check_kubernetes()))
}

/// Fails with what running Kubernetes in the lab lacks, and the remedy.
pub fn check_kubernetes() -> Result<()> {
    check(&[("curl", "curl"), ("conntrack", "conntrack"), ("dnsmasq", "dnsmasq-base")])?;
    ["kube-apiserver", "kube-proxy"].into_iter().try_for_each(|name| kubernetes_program(name).map(drop))
}

/// Where `cargo xtask setup --kubernetes` put a program of Kubernetes.
pub fn kubernetes_program(name: &str) -> Result<PathBuf> {
    let path = kubernetes_dir().join(name);
    let found = Some(path.clone()).filter(|path| path.is_file());
    found.with_context(|| format!("no {}; `cargo xtask setup --kubernetes` builds it", path.display()))
}

fn available(found: Result<()>) -> Result<bool> {
    let Err(reason) = found else { return Ok(true) };
    if std::env::var_os(REQUIRE).is_some_and(|value| value != "0" && !value.is_empty()) {
        return Err(reason.context(format!("{REQUIRE} is set and the lab cannot run")));
    }
    let _ = writeln!(std::io::stderr(), "SKIPPED: {reason:#}");
    Ok(false)
}

/// Finds `program` on `PATH`, or where Debian keeps what only root needs.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(SYSTEM_DIRECTORIES.map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|candidate| Path::is_file(candidate))
}
