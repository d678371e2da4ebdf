//! The tools that are needed beside the toolchain: each is run to see that it works.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::Result;
use flannel_ebpf_toolchain::check_protobuf;

use super::{Packages, Scope, apt};
use crate::{failure::failure, host::find_program};

/// Where the lab looks for CNI plugins; on PATH, `bridge` is another program.
const CNI: &[&str] = &["/usr/lib/cni", "/opt/cni/bin"];

/// A tool, how to make it tell its version, and what brings it.
struct Tool {
    name: &'static str,
    arguments: &'static [&'static str],
    /// Where it is if not on PATH.
    directories: &'static [&'static str],
    packages: &'static [&'static str],
    scope: Scope,
}

const fn tool(
    name: &'static str,
    argument: &'static [&'static str],
    package: &'static [&'static str],
) -> Tool {
    Tool { name, arguments: argument, directories: &[], packages: package, scope: Scope::Lab }
}

const fn cni(name: &'static str) -> Tool {
    Tool { directories: CNI, ..tool(name, &[], &["containernetworking-plugins"]) }
}

const TOOLS: &[Tool] = &[
    Tool { scope: Scope::Build, ..tool("cc", &["--version"], &["gcc", "libc6-dev"]) },
    tool("etcd", &["--version"], &["etcd-server"]),
    tool("etcdctl", &["version"], &["etcd-client"]),
    cni("cni/bridge"),
    cni("cni/host-local"),
    tool("ip", &["-V"], &["iproute2"]),
    tool("tc", &["-V"], &["iproute2"]),
    tool("bpftool", &["version"], &["bpftool"]),
    tool("iptables", &["--version"], &["iptables"]),
    tool("nft", &["--version"], &["nftables"]),
    tool("ethtool", &["--version"], &["ethtool"]),
    tool("conntrack", &["--version"], &["conntrack"]),
    tool("tcpdump", &["--version"], &["tcpdump"]),
    tool("ping", &["-V"], &["iputils-ping"]),
    tool("iperf3", &["--version"], &["iperf3"]),
    tool("strace", &["-V"], &["strace"]),
    tool("openssl", &["version"], &["openssl"]),
    tool("curl", &["--version"], &["curl"]),
    tool("jq", &["--version"], &["jq"]),
    tool("sysctl", &["--version"], &["procps"]),
    tool("dockerd", &["--version"], &["docker.io"]),
    tool("docker", &["--version"], &["docker-cli | docker.io"]),
    tool("busybox", &["--help"], &["busybox-static"]),
    tool("systemd-nspawn", &["--version"], &["systemd-container"]),
    tool("dnsmasq", &["--version"], &["dnsmasq-base"]),
    tool("prometheus", &["--version"], &["prometheus"]),
    tool("promtool", &["--version"], &["prometheus"]),
];

/// A tool that works.
pub(crate) struct Found {
    pub(crate) name: &'static str,
    pub(crate) version: String,
    pub(crate) path: PathBuf,
}

struct Missing {
    name: &'static str,
    reason: String,
    packages: &'static [&'static str],
}

/// What is there and what is not.
pub(crate) struct Survey {
    pub(crate) found: Vec<Found>,
    missing: Vec<Missing>,
}

/// Looks for every tool that `scope` needs.
pub(crate) fn survey(scope: Scope) -> Survey {
    let mut survey = Survey { found: Vec::new(), missing: Vec::new() };
    match check_protobuf() {
        Ok(protoc) => {
            survey.found.push(Found { name: "protoc", version: protoc.version, path: protoc.path });
        }
        Err(error) => survey.missing.push(Missing {
            name: "protoc",
            reason: error.to_string(),
            packages: &["protobuf-compiler", "libprotobuf-dev"],
        }),
    }
    for tool in TOOLS.iter().filter(|tool| tool.scope <= scope) {
        match probe(tool) {
            Ok(found) => survey.found.push(found),
            Err(reason) => {
                survey.missing.push(Missing { name: tool.name, reason, packages: tool.packages });
            }
        }
    }
    survey
}

fn probe(tool: &Tool) -> Result<Found, String> {
    let file = tool.name.rsplit('/').next().unwrap_or(tool.name);
    let path = match tool.directories {
        [] => find_program(file),
        directories => directories.iter().map(|dir| Path::new(dir).join(file)).find(|path| path.is_file()),
    };
    let path = path.ok_or("it is not there")?;
    run(tool.name, path, tool.arguments)
}

/// Runs the program at `path` with `arguments`, which make it tell its version.
pub(super) fn run(name: &'static str, path: PathBuf, arguments: &[&str]) -> Result<Found, String> {
    let output = Command::new(&path)
        .args(arguments)
        // Without a command a CNI plugin tells what it is.
        .env_remove("CNI_COMMAND")
        .env("ETCDCTL_API", "3")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{}: {error}", path.display()))?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    if !output.status.success() {
        return Err(format!("{} does not work ({}): {}", path.display(), output.status, said.trim()));
    }
    Ok(Found { name, version: version(&said), path })
}

/// The first line with a number in it; some programs begin with their name alone.
fn version(said: &str) -> String {
    let line = said.lines().find(|line| line.contains(|c: char| c.is_ascii_digit()));
    let line = line.unwrap_or_default().trim();
    line.strip_prefix("CNI protocol versions supported: ").unwrap_or(line).to_owned()
}

impl Survey {
    /// What brings the missing tools.
    pub(crate) fn packages(&self) -> Packages {
        let mut packages = Packages::default();
        let names = self.missing.iter().flat_map(|missing| missing.packages);
        packages.extend(names.map(|name| apt::choose(name)));
        packages
    }

    /// Fails if something is still missing after its package was installed.
    pub(crate) fn complete(&self) -> Result<()> {
        if self.missing.is_empty() {
            return Ok(());
        }
        let wrong: Vec<_> =
            self.missing.iter().map(|missing| format!("{}: {}", missing.name, missing.reason)).collect();
        Err(failure(
            format!("missing although the packages are installed:\n  {}", wrong.join("\n  ")),
            "see what shadows or breaks them: `type -a NAME`",
        ))
    }
}
