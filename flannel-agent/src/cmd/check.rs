//! `check`: asks the peers, looks at the node, and says what is wrong, why, and what to do.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Instant,
};

use anyhow::Context as _;
use clap::Args;
use comfy_table::Cell;
use flannel_common::packet::headers::{PROTOCOL_IPIP, PROTOCOL_UDP};
use serde::Serialize;
use tokio::{sync::Semaphore, task::JoinSet};

use super::{
    Defaults, Health, Place,
    look::Look,
    output::{Tone, Watch, lines, run as run_inquiry, show, span, table, toned, wrapped},
    peers::{is_named, nobody_called},
};
use crate::{
    control::{
        AskError,
        snapshot::{self, Probed, Probes, Snapshot},
    },
    inspect::{
        checks::{
            ENDED, Filters, Finding, Seen, Severity, Surroundings, attribute, hampers, of_kernel_path,
            of_leases, of_peer, of_routes,
        },
        peers::{PeerRow, State, nodes},
        probe::{Outcome, Target, behind, hops, probe},
        standing::{Problem, problems},
    },
    netlink::Netlink,
    telemetry::visible,
    values::Family,
};

/// Peers that are asked at the same time.
const AT_ONCE: usize = 32;

/// So many findings are shown below the one that they follow from.
const FOLLOWING: usize = 3;

/// The largest packet where nothing tells how large they may be, bytes: what any link of IPv6 carries.
const LEAST_MTU: u32 = 1280;

/// Options of `check`.
#[derive(Debug, Args)]
pub struct CheckOptions {
    /// Only these peers: names of nodes, subnets, or addresses of nodes or pods. Default: all.
    #[arg(value_name = "PEER")]
    pub peers: Vec<String>,
    /// Also show what is as it should be.
    #[arg(long)]
    pub all: bool,
    /// Which agent.
    #[command(flatten)]
    pub at: Place,
    /// Whether to go on.
    #[command(flatten)]
    pub watch: Watch,
}

/// What was found.
#[derive(Debug, Serialize)]
struct Report {
    /// Why the agent says nothing.
    without_agent: Option<String>,
    /// Checks that were made.
    checks: usize,
    /// Peers that were asked: nodes, whether they have subnets of one family or of both.
    peers: usize,
    /// What was found: the worst first.
    findings: Vec<Finding>,
}

/// Checks, and prints what was found.
///
/// # Errors
/// When it cannot be looked, or no peer is of a name that was given.
pub fn run(options: &CheckOptions, defaults: &Defaults) -> anyhow::Result<Health> {
    run_inquiry(show(options.at.output, options.watch, async || look(options, defaults).await, render))
}

async fn look(options: &CheckOptions, defaults: &Defaults) -> anyhow::Result<(Report, Health)> {
    let mut found = Look::at(&options.at, defaults, true).await?;
    let client = options.at.client(defaults);
    if let Ok(told) = &mut found.agent
        && let Ok(store) = client.store().await
    {
        // By itself the agent notices after a while that it is gone.
        told.store = store;
    }
    let told = found.agent.as_ref().ok();
    let mut findings = Vec::new();
    let mut around = found.surroundings().await?;
    match &found.agent {
        Ok(told) => findings.extend(of_agent(told)),
        Err(error) => findings.extend(of_end(error)),
    }
    let rows = wanted(found.rows(), &options.peers)?;
    let peers = nodes(&rows);
    let asked = ask(rows.clone(), told, &found).await?;
    around.count_bad_checksums();
    let mut of_node = found.of_node(&around);
    // What is wrong with these makes the kernel refuse everything.
    let is_why = |finding: &Finding| {
        finding.severity == Severity::Error && ["forwarding", "pods", "interface"].contains(&finding.check)
    };
    if !of_node.iter().any(is_why) {
        let mut netlink = Netlink::open()?;
        of_node.extend(of_routes(&mut netlink, told, &found.kernel, &around, &rows).await?);
    }
    if told.is_some() {
        // An agent of an earlier version does not take it, and asks by itself.
        let _ = client.tell_probes(&asked.told()).await;
    }
    findings.extend(asked.findings(&found, &around));
    findings.extend(of_leases(&rows));
    findings.extend(of_node);
    findings.extend(told.map(|told| of_kernel_path(told, &rows, snapshot::now())).unwrap_or_default());
    let without_agent = found.without_agent();
    let checks = findings.len();
    let mut findings = attribute(findings);
    let wrong = findings.iter().any(|finding| finding.severity == Severity::Error);
    findings.retain(|finding| options.all || finding.severity != Severity::Ok);
    let health = Health::of(without_agent.is_none(), wrong);
    Ok((Report { without_agent, checks, peers, findings }, health))
}

/// What the agent says of itself.
fn of_agent(told: &Snapshot) -> Vec<Finding> {
    let silent = told.store.as_ref().is_some_and(|store| store.trouble.is_some());
    let of_store = told.store.as_ref().map(|store| format!("{}: ", store.server)).unwrap_or_default();
    // What its own probes found a while ago is asked again.
    let told = Snapshot { probes: Probes::default(), ..told.clone() };
    let finding = |problem: Problem| {
        let is_store = silent && problem.what.starts_with(&of_store);
        Finding::error(if is_store { "store" } else { "agent" }, problem.what, problem.remedy)
    };
    let found: Vec<Finding> = problems(&told, None, snapshot::now()).into_iter().map(finding).collect();
    match found.is_empty() {
        true => vec![Finding::ok("agent", "it runs, and everything that is this node's is in place")],
        false => found,
    }
}

/// Why there is no agent, where it has left that.
fn of_end(error: &AskError) -> Option<Finding> {
    let AskError::Ended { ended, .. } = error else { return None };
    let ago = span(snapshot::now().saturating_sub(ended.at));
    let text = format!("the agent ended {ago} ago: {}", ended.error);
    let remedy = "do what that says and start it again: until then nothing follows what other nodes do, nor puts back what \
                  is deleted here";
    Some(Finding::error(ENDED, text, remedy))
}

/// Those that were asked for.
fn wanted(rows: Vec<PeerRow>, names: &[String]) -> anyhow::Result<Vec<PeerRow>> {
    for name in names {
        anyhow::ensure!(rows.iter().any(|row| is_named(row, name)), nobody_called(name));
    }
    let is_wanted = |row: &PeerRow| names.is_empty() || names.iter().any(|name| is_named(row, name));
    Ok(rows.into_iter().filter(is_wanted).collect())
}

/// What became of asking.
struct Asked {
    /// When it began.
    since: Instant,
    /// Each peer with what it was asked, where it was.
    peers: Vec<(PeerRow, Option<Echoed>)>,
}

/// What a peer was asked, and what it answered.
struct Echoed {
    target: Target,
    outcome: Outcome,
    /// What carries packets to it.
    tunnel: String,
    /// The same by its protocol and port, where that is known.
    carrier: Option<(u8, u16)>,
}

impl Echoed {
    /// What drops on this node what carries packets to a peer that does not answer through the tunnel; `None` where that is not
    /// asked. `filters` are those that were needed before.
    fn dropped_by(
        &self,
        found: &Look,
        around: &Surroundings,
        filters: &mut BTreeMap<Family, Filters>,
    ) -> Option<Vec<String>> {
        self.outcome.overlay.filter(|overlay| overlay.rtt.is_none())?;
        let carrier = self.carrier?;
        let external = found.agent.as_ref().ok()?.interface.as_ref()?;
        let peer = self.target.public_ip;
        let family = Family::of(peer);
        let own = external.addresses.iter().find(|own| Family::of(**own) == family)?;
        let filters = filters.entry(family).or_insert_with(|| Filters::among(around, family));
        Some(filters.drops_carrier((*own, peer), carrier, &external.name))
    }
}

impl Asked {
    /// As the agent keeps it.
    fn told(&self) -> Vec<Probed> {
        let now = snapshot::now();
        let of_peer = |(row, asked): &(PeerRow, Option<Echoed>)| {
            let Echoed { target, outcome, .. } = asked.as_ref()?;
            Some(Probed { subnet: row.subnet, probe: outcome.told(now, hampers(target, outcome)) })
        };
        self.peers.iter().filter_map(of_peer).collect()
    }

    fn findings(self, found: &Look, around: &Surroundings) -> Vec<Finding> {
        let is_silent = |outcome: &Outcome| outcome.through().rtt.is_none();
        let any_silent =
            self.peers.iter().any(|(_, asked)| asked.as_ref().is_some_and(|asked| is_silent(&asked.outcome)));
        // What has come from them meanwhile.
        let taken = self.since.elapsed();
        let later = if any_silent { found.heard_now() } else { BTreeMap::new() };
        let mut all = Vec::new();
        let mut filters = BTreeMap::new();
        for (row, asked) in &self.peers {
            let Some(echoed) = asked else {
                all.extend(skipped(row));
                continue;
            };
            let Echoed { target, outcome, tunnel, .. } = echoed;
            let heard_since = later.get(&row.subnet).is_some_and(|ago| *ago < taken.as_secs());
            let dropped_by = echoed.dropped_by(found, around, &mut filters).unwrap_or_default();
            let seen = Seen { tunnel: tunnel.clone(), heard_since, dropped_by };
            all.extend(of_peer(row, target, outcome, &seen));
        }
        all
    }
}

/// Asks the peers of `rows`, some at a time.
async fn ask(rows: Vec<PeerRow>, told: Option<&Snapshot>, found: &Look) -> anyhow::Result<Asked> {
    let since = Instant::now();
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut asked = JoinSet::new();
    for (number, row) in rows.into_iter().enumerate() {
        let target = target(&row, told, found);
        let port = tunnel_port(&row, told, found);
        let tunnel = tunnel(&row, port);
        let by_ip = || (row.way == "ipip").then_some((PROTOCOL_IPIP, 0));
        let carrier = port.map(|port| (PROTOCOL_UDP, port)).or_else(by_ip);
        let places = places.clone();
        asked.spawn(async move {
            let Some(target) = target else { return (number, (row, None)) };
            let _place = places.acquire_owned().await;
            let asking = target.clone();
            let outcome = tokio::task::spawn_blocking(move || probe(&asking)).await.unwrap_or_default();
            (number, (row, Some(Echoed { target, outcome, tunnel, carrier })))
        });
    }
    let mut peers = BTreeMap::new();
    while let Some(result) = asked.join_next().await {
        let (number, of_peer) = result.context("a probe has panicked")?;
        peers.insert(number, of_peer);
    }
    Ok(Asked { since, peers: peers.into_values().collect() })
}

/// What to ask of a peer; nothing of one whose lease is not followed.
fn target(row: &PeerRow, told: Option<&Snapshot>, found: &Look) -> Option<Target> {
    if row.state == State::Skipped {
        return None;
    }
    let public_ip = row.public_ip?;
    if let Some((backend, external)) =
        told.and_then(|told| Some((told.backend.as_ref()?, told.interface.as_ref()?)))
    {
        return Some(Target::of(row.subnet, public_ip, &row.way, Some(backend), external));
    }
    // Without an agent, what is asked is what the kernel has.
    let vxlan = found.kernel.tunnels.get(&Family::of_network(row.subnet)).filter(|_| row.way == "vxlan");
    let ways = found.kernel.routes_to(row.subnet);
    let by = found.kernel.links.iter().find(|link| ways.iter().any(|(_, index)| *index == link.index));
    let overlay = matches!(row.way.as_str(), "vxlan" | "ipip" | "wireguard").then(|| row.subnet.network());
    let mtu = vxlan.map(|tunnel| tunnel.device.mtu).or_else(|| by.map(|link| link.mtu));
    let (behind, hops) = (behind(row.subnet), hops(&row.way));
    Some(Target { public_ip, overlay, behind, hops, mtu: mtu.unwrap_or(LEAST_MTU), interface: None })
}

/// The UDP port that carries packets to it.
fn tunnel_port(row: &PeerRow, told: Option<&Snapshot>, found: &Look) -> Option<u16> {
    let device = told
        .and_then(|told| told.backend.as_ref())
        .and_then(|backend| backend.device_to(row.subnet, &row.way)?.port);
    let vxlan = found.kernel.tunnels.get(&Family::of_network(row.subnet)).filter(|_| row.way == "vxlan");
    device.or_else(|| vxlan.map(|tunnel| tunnel.device.port))
}

/// What carries packets to it.
fn tunnel(row: &PeerRow, port: Option<u16>) -> String {
    match port {
        Some(port) => format!("UDP port {port}"),
        None if row.way == "ipip" => "IP protocol 4 (IP in IP)".to_owned(),
        None => format!("packets of the {} backend", row.way),
    }
}

fn skipped(row: &PeerRow) -> Vec<Finding> {
    let remedy = row.remedy.as_deref().unwrap_or("correct or delete that lease");
    let finding = |evidence: &String| Finding {
        peer: Some(row.subnet.to_string()),
        ..Finding::warning("lease", format!("its lease is not followed: {evidence}"), remedy)
    };
    row.differences.iter().map(finding).collect()
}

/// What follows from another finding has no remedy of its own.
fn row(finding: &Finding) -> [Cell; 4] {
    let tone = match finding.severity {
        Severity::Ok => Tone::Good,
        Severity::Warning => Tone::Notable,
        Severity::Error => Tone::Bad,
    };
    let follows = finding.follows_from.is_some();
    let text = match finding.remedy.is_empty() || follows {
        true => visible(&finding.evidence),
        false => visible(&format_args!("{}; {}", finding.evidence, finding.remedy)),
    };
    [
        toned(if follows { "follows" } else { finding.severity.label() }, tone),
        Cell::new(finding.check),
        Cell::new(visible(&finding.peer.as_deref().unwrap_or("-"))),
        Cell::new(text),
    ]
}

fn render(report: &Report) -> String {
    let mut text = String::new();
    if let Some(why) = &report.without_agent {
        text.push_str(&wrapped(&format!("{why}. What can be seen without it:"), 0));
        text.push('\n');
    }
    let mut rows = table(&["finding", "check", "peer", "evidence and remedy"]);
    for group in report.findings.chunk_by(|_, next| next.follows_from.is_some()) {
        let (shown, more) = group.split_at(group.len().min(FOLLOWING + 1));
        for finding in shown {
            rows.add_row(row(finding));
        }
        if !more.is_empty() {
            let peers: BTreeSet<&str> = more.iter().filter_map(|finding| finding.peer.as_deref()).collect();
            let text = format!("{} more findings, of {} peers (-o json lists them)", more.len(), peers.len());
            rows.add_row(["follows", "", "", &text].map(Cell::new));
        }
    }
    if !report.findings.is_empty() {
        text.push_str(&lines(&rows));
    }
    let bad = |severity| report.findings.iter().filter(|finding| finding.severity == severity).count();
    text.push_str(&format!(
        "{} checks, {} peers: {} errors, {} warnings\n",
        report.checks,
        report.peers,
        bad(Severity::Error),
        bad(Severity::Warning)
    ));
    text
}
