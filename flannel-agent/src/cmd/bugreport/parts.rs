//! What is gathered.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Serialize;
use serde_json::json;
use tokio::{process::Command, time::timeout};

use crate::{
    bpf::{Features, Pins, attached, map_sizes, read_counters},
    control::{
        Client, Snapshot,
        snapshot::{Drift, Peers},
    },
};

/// For one program to speak.
const PATIENCE: Duration = Duration::from_secs(20);
/// Of one part, bytes: the end of a longer one is kept.
const MOST: usize = 16 << 20;

/// A file of the archive.
pub(super) struct Part {
    pub(super) name: String,
    pub(super) outcome: Outcome,
}

/// What became of it.
pub(super) enum Outcome {
    Text(String),
    Absent(String),
}

/// What programs say, whatever the mode: file, program, words.
const PROGRAMS: &[(&str, &str, &[&str])] = &[
    ("kernel/uname.txt", "uname", &["-a"]),
    ("net/links.json", "ip", &["-j", "-d", "-s", "link"]),
    ("net/addresses.json", "ip", &["-j", "address"]),
    ("net/routes.json", "ip", &["-j", "-4", "route", "show", "table", "all"]),
    ("net/routes-v6.json", "ip", &["-j", "-6", "route", "show", "table", "all"]),
    ("net/rules.json", "ip", &["-j", "-4", "rule"]),
    ("net/rules-v6.json", "ip", &["-j", "-6", "rule"]),
    ("net/neighbours.json", "ip", &["-j", "-s", "neighbour"]),
    ("net/fdb.json", "bridge", &["-j", "-s", "fdb"]),
    ("net/bridge-links.json", "bridge", &["-j", "-d", "link"]),
    ("net/qdiscs.txt", "tc", &["-s", "qdisc"]),
    ("net/sockets.txt", "ss", &["-lunpt"]),
    ("bpf/programs.json", "bpftool", &["-j", "prog", "show"]),
    ("bpf/maps.json", "bpftool", &["-j", "map", "show"]),
    ("bpf/links.json", "bpftool", &["-j", "link", "show"]),
    ("bpf/hooks.txt", "bpftool", &["net"]),
];

/// The same of those that take long or much room.
const MORE_PROGRAMS: &[(&str, &str, &[&str])] = &[
    ("rules/iptables.txt", "iptables-save", &["-c"]),
    ("rules/ip6tables.txt", "ip6tables-save", &["-c"]),
    ("rules/iptables-legacy.txt", "iptables-legacy-save", &["-c"]),
    ("rules/nftables.txt", "nft", &["-a", "list", "ruleset"]),
    ("rules/ipsec-policies.txt", "ip", &["xfrm", "policy"]),
    ("net/statistics.txt", "nstat", &["-az"]),
    ("net/conntrack.txt", "conntrack", &["-S"]),
    ("log/journal.txt", "journalctl", &["-u", "flanneld", "-u", "kubelet", "-n", "20000", "--no-pager"]),
    ("log/kernel.txt", "dmesg", &["-T"]),
];

/// Directories of settings, below /proc/sys, and files.
const SETTINGS: &[&str] = &[
    "net/ipv4/ip_forward",
    "net/ipv4/conf",
    "net/ipv6/conf",
    "net/ipv4/ip_local_port_range",
    "net/ipv4/neigh/default",
    "net/bridge",
    "net/netfilter",
    "net/core/bpf_jit_enable",
    "net/core/netdev_max_backlog",
    "net/core/rmem_max",
    "kernel/bpf_stats_enabled",
    "kernel/unprivileged_bpf_disabled",
];

/// Where things are.
pub(super) struct Sources<'a> {
    pub(super) subnet_file: &'a Path,
    pub(super) bpffs: &'a Path,
    /// Files with the log.
    pub(super) logs: &'a [PathBuf],
    /// Without what takes long or much room.
    pub(super) quick: bool,
}

pub(super) async fn gather(from: &Sources<'_>, client: &Client, snapshot: Option<Snapshot>) -> Vec<Part> {
    let mut parts = Vec::new();
    of_agent(&mut parts, client, snapshot.as_ref()).await;
    let configuration = ["/etc/kube-flannel/net-conf.json", "/etc/default/flanneld"].map(Path::new);
    for path in configuration.into_iter().chain([from.subnet_file]).chain(from.logs.iter().map(AsRef::as_ref))
    {
        let directory = if from.logs.iter().any(|log| log == path) { "log" } else { "configuration" };
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        add(&mut parts, format!("{directory}/{name}"), read(path));
    }
    of_maps(&mut parts, from);
    add(&mut parts, "kernel/sysctls.txt".to_owned(), Ok(settings()));
    for name in ["version", "meminfo", "loadavg", "net/softnet_stat", "net/dev", "modules"] {
        let file = name.replace('/', "-");
        add(&mut parts, format!("kernel/{file}.txt"), read(&Path::new("/proc").join(name)));
    }
    let more = if from.quick { &[][..] } else { MORE_PROGRAMS };
    for (name, program, words) in PROGRAMS.iter().chain(more) {
        add(&mut parts, (*name).to_owned(), spoken(program, words).await);
    }
    parts
}

fn add(parts: &mut Vec<Part>, name: String, text: Result<String, String>) {
    let outcome = match text {
        Ok(mut text) => {
            if text.len() > MOST {
                let at = (text.len() - MOST..text.len()).find(|at| text.is_char_boundary(*at));
                text = format!("(the beginning is left out)\n{}", at.map_or("", |at| &text[at..]));
            }
            Outcome::Text(text)
        }
        Err(why) => Outcome::Absent(why),
    };
    parts.push(Part { name, outcome });
}

fn text(value: &impl Serialize) -> Result<String, String> {
    serde_json::to_string_pretty(value).map_err(|error| error.to_string())
}

async fn of_agent(parts: &mut Vec<Part>, client: &Client, snapshot: Option<&Snapshot>) {
    let Some(snapshot) = snapshot else {
        let why = client.snapshot().await.err().map_or_else(String::new, |error| error.to_string());
        add(parts, "agent/snapshot.json".to_owned(), Err(why));
        return;
    };
    add(parts, "agent/snapshot.json".to_owned(), text(snapshot));
    let peers: Result<Peers, _> = client.peers().await;
    add(
        parts,
        "agent/peers.json".to_owned(),
        peers.map_err(|error| error.to_string()).and_then(|peers| text(&peers)),
    );
    let drift: Result<Drift, _> = client.drift().await;
    add(
        parts,
        "agent/drift.json".to_owned(),
        drift.map_err(|error| error.to_string()).and_then(|drift| text(&drift)),
    );
    let of_process = |name: &str| Path::new("/proc").join(snapshot.agent.pid.to_string()).join(name);
    let command = read(&of_process("cmdline")).map(|words| words.replace('\0', " "));
    add(parts, "agent/command-line.txt".to_owned(), command);
    add(parts, "agent/process.txt".to_owned(), read(&of_process("status")));
    add(parts, "agent/limits.txt".to_owned(), read(&of_process("limits")));
}

fn of_maps(parts: &mut Vec<Part>, from: &Sources<'_>) {
    let features = Features::find().map_err(|error| error.to_string()).and_then(|features| {
        let rows: Vec<_> = features
            .rows()
            .map(|(feature, why)| json!({ "feature": feature.label(), "error": why }))
            .collect();
        text(&rows)
    });
    add(parts, "bpf/features.json".to_owned(), features);
    let pins = match Pins::under(from.bpffs) {
        Ok(pins) => pins,
        Err(error) => return add(parts, "bpf/counters.json".to_owned(), Err(error.to_string())),
    };
    let counters = read_counters(&pins).map_err(|error| error.to_string()).and_then(|rows| {
        let rows: Vec<_> = rows
            .iter()
            .filter(|row| row.packets > 0)
            .map(|row| {
                let (direction, reason) = (row.direction.label(), row.reason.label());
                json!({ "direction": direction, "reason": reason, "packets": row.packets, "bytes": row.bytes })
            })
            .collect();
        text(&rows)
    });
    add(parts, "bpf/counters.json".to_owned(), counters);
    let hooks = attached(&pins).map_err(|error| error.to_string()).and_then(|hooks| {
        let rows: Vec<_> = hooks
            .iter()
            .map(|at| json!({ "interface": at.interface, "program": at.hook.program(), "id": at.id }))
            .collect();
        text(&rows)
    });
    add(parts, "bpf/attached.json".to_owned(), hooks);
    let sizes = map_sizes(&pins);
    let rows: Vec<_> = sizes
        .iter()
        .map(|(map, size)| json!({ "map": map, "entries": size.entries, "capacity": size.capacity }))
        .collect();
    add(parts, "bpf/sizes.json".to_owned(), text(&rows));
    if !from.quick {
        for name in flannel_common::map::PINNED_MAPS {
            let path = pins.map(name).display().to_string();
            let words = ["-j", "map", "dump", "pinned", &path];
            add(parts, format!("bpf/maps/{name}.json"), spoken_now("bpftool", &words));
        }
    }
}

fn read(path: &Path) -> Result<String, String> {
    match fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == ErrorKind::NotFound => Err(format!("no {}", path.display())),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

/// What a program says.
async fn spoken(program: &str, words: &[&str]) -> Result<String, String> {
    let mut command = Command::new(program);
    command.args(words).env("LC_ALL", "C").kill_on_drop(true).stdin(std::process::Stdio::null());
    match timeout(PATIENCE, command.output()).await {
        Ok(Ok(output)) => said(program, &output),
        Ok(Err(error)) => Err(absent(program, &error)),
        Err(_) => Err(format!("{program} has not ended within {} s", PATIENCE.as_secs())),
    }
}

/// The same without waiting for others meanwhile.
fn spoken_now(program: &str, words: &[&str]) -> Result<String, String> {
    match std::process::Command::new(program).args(words).env("LC_ALL", "C").output() {
        Ok(output) => said(program, &output),
        Err(error) => Err(absent(program, &error)),
    }
}

fn absent(program: &str, error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::NotFound => format!("{program} is not installed"),
        _ => format!("{program}: {error}"),
    }
}

fn said(program: &str, output: &std::process::Output) -> Result<String, String> {
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("{program}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()))
}

/// The settings, one a line, as `sysctl` prints them.
fn settings() -> String {
    let mut lines = Vec::new();
    for name in SETTINGS {
        collect(&Path::new("/proc/sys").join(name), &mut lines);
    }
    lines.sort();
    lines.join("\n")
}

fn collect(path: &Path, lines: &mut Vec<String>) {
    if let Ok(entries) = fs::read_dir(path) {
        for entry in entries.flatten() {
            collect(&entry.path(), lines);
        }
        return;
    }
    // Some are for writing only, and some are secret: those for IPv6 addresses that are stable.
    if path.file_name().is_some_and(|name| name == "stable_secret") {
        return;
    }
    if let Ok(value) = fs::read_to_string(path) {
        let name = path.strip_prefix("/proc/sys").unwrap_or(path).display().to_string();
        lines.push(format!("{name} = {}", value.trim()));
    }
}
