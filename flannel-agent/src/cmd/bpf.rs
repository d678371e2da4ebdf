//! `bpf`: the programs and maps by hand, with no agent needed.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand, ValueEnum};
use flannel_common::path::Hook;
use nix::sched::{CloneFlags, setns};
use serde_json::json;

use super::{
    Defaults,
    output::{lines, print, run as run_inquiry, table},
};
use crate::{
    bpf::{Features, LogLevel, PinError, Pins, Programs, TcAttach, read_counters, remove_all},
    netlink::{LinkKind, Netlink, Tunnel, xfrm},
};

/// `flannel-agent bpf ...`.
#[derive(Debug, Subcommand)]
pub enum BpfCommand {
    /// Load the programs through the verifier, pin maps, and attach to an interface if one is named.
    Load(LoadOptions),
    /// Detach every program and remove every pin.
    Unload(UnloadOptions),
    /// Packets and bytes by direction and reason.
    Counters(CounterOptions),
    /// What this kernel supports, found by trying it, and what does not work without.
    Features(FeatureOptions),
}

/// Which pins.
#[derive(Debug, Args)]
pub struct Where {
    /// Mount point of the BPF file system. Default: that of an agent with the same variables, /sys/fs/bpf.
    #[arg(long, value_name = "DIR")]
    pub bpffs: Option<PathBuf>,
    /// How to print.
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Output,
}

impl Where {
    /// The pins there.
    fn pins(&self, defaults: &Defaults) -> Result<Pins, PinError> {
        Pins::under(self.bpffs(defaults))
    }

    fn bpffs<'a>(&'a self, defaults: &'a Defaults) -> &'a Path {
        self.bpffs.as_deref().unwrap_or(&defaults.bpffs)
    }
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// A table for people.
    Table,
    /// JSON for programs.
    Json,
}

/// Options of `bpf unload`.
#[derive(Debug, Args)]
pub struct UnloadOptions {
    /// Which pins.
    #[command(flatten)]
    pub at: Where,
    /// Network namespace of the interfaces whose filters are removed, by its name in /run/netns.
    #[arg(long, value_name = "NAME")]
    pub netns: Option<String>,
}

/// Options of `bpf load`.
#[derive(Debug, Args)]
pub struct LoadOptions {
    /// Which pins.
    #[command(flatten)]
    pub at: Where,
    /// Network namespace of the interface, by its name in /run/netns.
    #[arg(long, value_name = "NAME")]
    pub netns: Option<String>,
    /// Interface to attach to.
    #[arg(long, value_name = "NAME")]
    pub interface: Option<String>,
    /// Program to attach; repeatable.
    #[arg(long = "program", value_name = "NAME", requires = "interface", value_parser = hook)]
    pub programs: Vec<Hook>,
    /// How it is attached.
    #[arg(long, value_name = "WAY", default_value = "auto")]
    pub tc_attach: TcAttach,
    /// What the programs may log.
    #[arg(long, value_name = "LEVEL", default_value = "off")]
    pub bpf_log: LogLevel,
}

/// Options of `bpf counters`.
#[derive(Debug, Args)]
pub struct CounterOptions {
    /// Which pins.
    #[command(flatten)]
    pub at: Where,
    /// Also show counters that are zero.
    #[arg(long)]
    pub all: bool,
}

/// Options of `bpf features`.
#[derive(Debug, Args)]
pub struct FeatureOptions {
    /// How to print.
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Output,
}

fn hook(name: &str) -> Result<Hook, String> {
    Hook::ALL.into_iter().find(|hook| hook.program() == name).ok_or_else(|| {
        let names: Vec<_> = Hook::ALL.into_iter().map(Hook::program).collect();
        format!("write one of {}", names.join(", "))
    })
}

/// Runs a `bpf` subcommand. Enters another network namespace, so it must not run on a thread that goes
/// on to other work.
///
/// # Errors
/// What went wrong, with what to do about it.
pub fn run(command: BpfCommand, defaults: &Defaults) -> anyhow::Result<()> {
    match command {
        BpfCommand::Load(options) => load(options, defaults),
        BpfCommand::Unload(UnloadOptions { at, netns }) => {
            enter(netns)?;
            remove_all(&at.pins(defaults)?)?;
            let mut text = format!("removed every program and map under {}\n", at.bpffs(defaults).display());
            for left in run_inquiry(left_in_kernel())? {
                text.push_str(&format!("left as it is: {left}\n"));
            }
            show(text)
        }
        BpfCommand::Counters(options) => counters(&options, defaults),
        BpfCommand::Features(options) => features(&options),
    }
}

/// What packets still travel by without programs, as with stock flannel; each with what removes it.
async fn left_in_kernel() -> anyhow::Result<Vec<String>> {
    /// Upstream's number of IPsec policies.
    const REQID: u32 = 11;
    let links = Netlink::open()?.links().await?;
    let ours = links.iter().filter(|link| link.name.starts_with("flannel"));
    let mut left: Vec<String> = ours
        .filter_map(|link| {
            let what = match link.kind {
                LinkKind::Vxlan(_) => "with its routes, neighbours and forwarding entries",
                LinkKind::Tunnel(Tunnel::Ipip { .. }) => "with the routes over it",
                LinkKind::Tunnel(Tunnel::Wireguard) => "with its keys, its peers and the routes over it",
                _ => return None,
            };
            Some(format!("device {0}, {what} (ip link delete {0})", link.name))
        })
        .collect();
    let policies = xfrm::tunnel_policies(REQID).await.map(|policies| policies.len()).unwrap_or_default();
    if policies > 0 {
        left.push(format!(
            "{policies} policies of the ipsec backend, and charon (ip xfrm policy delete src S dst D dir W for each of \
             reqid {REQID} in ip xfrm policy)"
        ));
    }
    Ok(left)
}

/// Enters the network namespace of that name, if there is one.
pub(super) fn enter(netns: Option<String>) -> anyhow::Result<()> {
    let Some(name) = netns else { return Ok(()) };
    let path = PathBuf::from("/run/netns").join(&name);
    let file = std::fs::File::open(&path)
        .with_context(|| format!("--netns {name}: {} cannot be opened; see `ip netns`", path.display()))?;
    setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("--netns {name}: cannot enter it"))
}

fn load(options: LoadOptions, defaults: &Defaults) -> anyhow::Result<()> {
    let LoadOptions { at, netns, interface, programs, tc_attach, bpf_log } = options;
    if interface.is_some() && programs.is_empty() {
        bail!("--interface needs --program: name the programs to attach to it");
    }
    let pins = at.pins(defaults)?;
    enter(netns)?;
    let mut loaded = Programs::load(pins.clone(), bpf_log)?;
    let summaries = loaded.summaries()?;
    if let Some(interface) = &interface {
        if let Err(feature) = loaded.attach_by(tc_attach) {
            let why = loaded.features().why_not(feature).unwrap_or_default();
            bail!("--tc-attach={}: this kernel has no {}: {why}", tc_attach.label(), feature.label());
        }
        for hook in &programs {
            loaded.attach(interface, *hook)?;
        }
    }
    let maps = pins.maps();
    if at.output == Output::Json {
        return show(json!({ "programs": summaries, "maps": maps, "links": pins.links() }));
    }
    let mut rows = table(&["program", "id", "verified instructions", "bytes", "attached to"]);
    let number = |value: Option<u32>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
    for summary in &summaries {
        let chosen = programs.iter().any(|hook| hook.program() == summary.name);
        let attached = interface.as_deref().filter(|_| chosen).unwrap_or("-");
        rows.add_row([
            summary.name.to_owned(),
            summary.id.to_string(),
            number(summary.verified_instructions),
            number(summary.translated_bytes),
            attached.to_owned(),
        ]);
    }
    let mut text = format!("{}\n", lines(&rows));
    let mut rows = table(&["map", "pinned at"]);
    for name in flannel_common::map::PINNED_MAPS {
        rows.add_row([name.to_owned(), pins.map(name).display().to_string()]);
    }
    text.push_str(&format!("{}\nLook at them:\n", lines(&rows)));
    for name in flannel_common::map::PINNED_MAPS {
        text.push_str(&format!("  bpftool map dump pinned {}\n", pins.map(name).display()));
    }
    for summary in &summaries {
        text.push_str(&format!("  bpftool prog dump xlated id {}   # {}\n", summary.id, summary.name));
    }
    if interface.is_none() {
        text.push_str(
            "\nNothing is attached, so the programs above are gone with this command; the maps stay pinned.\n",
        );
    }
    show(text.trim_end())
}

/// Prints it, with an end of line.
fn show(text: impl std::fmt::Display) -> anyhow::Result<()> {
    let text = text.to_string();
    print(&format!("{}\n", text.trim_end_matches('\n'))).map(drop)
}

fn counters(options: &CounterOptions, defaults: &Defaults) -> anyhow::Result<()> {
    let rows = read_counters(&options.at.pins(defaults)?)?;
    let rows: Vec<_> = rows.into_iter().filter(|row| options.all || row.packets > 0).collect();
    if options.at.output == Output::Json {
        let rows: Vec<_> = rows
            .iter()
            .map(|row| {
                json!({
                    "direction": row.direction.label(), "reason": row.reason.label(),
                    "path": row.reason.class().label(), "packets": row.packets, "bytes": row.bytes,
                })
            })
            .collect();
        return show(json!(rows));
    }
    let mut table = table(&["direction", "path", "reason", "packets", "bytes", "meaning"]);
    for row in rows {
        table.add_row([
            row.direction.label().to_owned(),
            row.reason.class().label().to_owned(),
            row.reason.label().to_owned(),
            row.packets.to_string(),
            row.bytes.to_string(),
            row.reason.sentence().to_owned(),
        ]);
    }
    show(lines(&table))
}

fn features(options: &FeatureOptions) -> anyhow::Result<()> {
    let features = Features::find()?;
    if options.output == Output::Json {
        let rows: Vec<_> = features
            .rows()
            .map(|(feature, why)| {
                json!({
                    "feature": feature.label(), "found": why.is_none(), "error": why,
                    "without_it": feature.without_it(),
                })
            })
            .collect();
        return show(json!(rows));
    }
    let mut table = table(&["feature", "found", "without it"]);
    for (feature, why) in features.rows() {
        let found = why.map_or_else(|| "yes".to_owned(), |why| format!("no: {why}"));
        table.add_row([feature.label().to_owned(), found, feature.without_it().to_owned()]);
    }
    show(lines(&table))
}
