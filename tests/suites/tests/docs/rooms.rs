//! Keeps the rooms of the agent apart: each directory of its sources uses those below it, and no other.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use flannel_ebpf_toolchain::workspace_root;
use regex::Regex;

/// The rooms from the ground up, and what each may use. All of that stands before it: so no circle can be written down
/// here.
const ROOMS: &[(&str, &[&str])] = &[
    ("values", &[]),
    ("host", &["values"]),
    ("wire", &["values"]),
    ("telemetry", &["values", "host"]),
    ("control", &[]),
    // The drivers: they know nothing of plans, of the configuration or of flags.
    ("netlink", &["values", "host"]),
    ("bpf", &["values", "host", "netlink", "telemetry"]),
    ("cloud", &["values", "telemetry"]),
    ("translate", &["values", "host", "telemetry", "netlink", "bpf"]),
    // The udp backend's packets: it knows nothing of the rest.
    ("tunnel", &[]),
    // One file for each way in which packets reach other nodes. Whoever asks for one does so by the traits of this room.
    ("backend", &["values", "host", "wire", "telemetry", "netlink", "cloud", "tunnel"]),
    ("config", &["values", "backend"]),
    ("lease", &["values", "host", "wire", "backend", "config", "telemetry"]),
    ("subnet_file", &["values", "host", "config", "lease"]),
    ("cni", &["values", "host", "netlink", "config", "subnet_file"]),
    ("plan", &["values", "backend", "lease", "netlink"]),
    ("exempt", &["values", "host", "plan"]),
    ("datapath", &["values", "backend", "config", "telemetry", "netlink", "bpf", "plan"]),
    ("masq", &["values", "telemetry", "control", "netlink"]),
    ("node", &["values", "host", "backend", "config", "telemetry", "netlink", "lease", "plan"]),
    (
        "reconcile",
        &["values", "host", "telemetry", "control", "netlink", "bpf", "backend", "lease", "plan", "datapath"],
    ),
    ("metrics", &["host", "control", "bpf"]),
    ("trace", &["values"]),
    ("inspect", &["values", "host", "control", "netlink", "bpf"]),
    ("explain", &["values", "host", "netlink", "bpf", "masq", "inspect"]),
    (
        "cmd",
        &["values", "telemetry", "control", "netlink", "bpf", "lease", "masq", "explain", "trace", "inspect"],
    ),
    ("cli", &["values", "telemetry", "bpf", "exempt", "node", "cmd"]),
    // What a fuzzer feeds: it is part of no program.
    ("fuzz", &["values", "control", "tunnel", "config", "lease", "subnet_file", "cni", "masq"]),
    (
        "app",
        &[
            "values",
            "host",
            "backend",
            "config",
            "telemetry",
            "control",
            "metrics",
            "netlink",
            "bpf",
            "translate",
            "lease",
            "subnet_file",
            "plan",
            "exempt",
            "datapath",
            "masq",
            "node",
            "reconcile",
            "inspect",
            "cmd",
            "cli",
        ],
    ),
];

/// Rooms whose types are not those of the command line.
const WITHOUT_FLAGS: [&str; 7] = ["backend", "netlink", "bpf", "plan", "datapath", "reconcile", "node"];

#[test]
fn each_room_of_the_agent_uses_only_rooms_below_it() -> Result<()> {
    let mut below = BTreeSet::new();
    for (room, uses) in ROOMS.iter().copied() {
        for used in uses {
            ensure!(
                below.contains(used),
                "{room} may use {used} by the table, which does not stand before it"
            );
        }
        below.insert(room);
    }
    let allowed: BTreeMap<_, _> = ROOMS.iter().copied().collect();
    let sources = workspace_root().join("flannel-agent/src");
    let inline = Regex::new(r"\bcrate::(\w+)")?;
    let mut wrong = BTreeSet::new();
    let mut arrows = 0;
    for file in files(&sources)? {
        let name = file.strip_prefix(&sources)?.display().to_string();
        let Some((room, _)) = name.split_once('/') else {
            ensure!(
                ["lib.rs", "main.rs"].contains(&name.as_str()),
                "{name} stands in no room: move it into a directory of flannel-agent/src"
            );
            continue;
        };
        if room == "bin" {
            continue;
        }
        let uses =
            allowed.get(room).with_context(|| format!("{room} is in no line of the table of rooms"))?;
        let text = product(&fs::read_to_string(&file)?);
        if WITHOUT_FLAGS.contains(&room) && text.contains("clap::") {
            wrong.insert(format!("{name} uses clap: what a flag takes is said in cli"));
        }
        let used = inline.captures_iter(&text).map(|found| found[1].to_owned());
        for used in used.chain(grouped(&text)).filter(|used| allowed.contains_key(used.as_str())) {
            arrows += 1;
            if used != room && !uses.contains(&used.as_str()) {
                wrong.insert(format!(
                    "{name} uses {used}, and {room} may use {uses:?} only: move what it needs to a room below, or have \
                     a room above bring the two together"
                ));
            }
        }
    }
    ensure!(wrong.is_empty(), "{wrong:#?}");
    ensure!(
        arrows > 200,
        "only {arrows} uses of one room by another were found: the test reads them wrongly"
    );
    Ok(())
}

/// All sources but tests.
fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match path.is_dir() {
            true if name != "tests" => found.extend(files(&path)?),
            false if name.ends_with(".rs") && name != "tests.rs" => found.push(path),
            _ => {}
        }
    }
    Ok(found)
}

/// A source without its comments and unit tests.
fn product(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    text.lines().map(|line| line.split("//").next().unwrap_or_default()).fold(
        String::new(),
        |mut all, line| {
            all.push_str(line);
            all.push('\n');
            all
        },
    )
}

/// The first names in each `use crate::{...}`.
fn grouped(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    for group in text.split("use crate::{").skip(1) {
        let mut depth = 0;
        let mut name = String::new();
        for character in group.chars() {
            match character {
                '}' if depth == 0 => break,
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 0 => names.push(std::mem::take(&mut name)),
                character if depth == 0 && !character.is_whitespace() => name.push(character),
                _ => {}
            }
        }
        names.push(name);
    }
    names.iter().filter_map(|path| Some(path.split("::").next()?.to_owned())).collect()
}
