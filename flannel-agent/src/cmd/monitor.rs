//! `monitor`: what happens on a node, one line an event.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::ExitCode,
    time::Duration,
};

use clap::Args;
use flannel_common::{
    layout::trace::{TRACE_RECORDS, TraceFilter, TraceRecord},
    reason::Reason,
};
use serde::Serialize;
use tokio::{
    runtime, select,
    signal::unix::{SignalKind, signal},
    time::{MissedTickBehavior, interval},
};

use super::{
    CannotLook, Defaults,
    bpf::Output,
    output::Lines,
    trace_session::{
        OfAgent, OfPackets, TraceSession, end_after, enter_node, interface, node_name, reason_bits,
    },
    value::{at_least_one, number},
};
use crate::{
    control::{
        Client,
        snapshot::{self, Peers, Snapshot},
    },
    telemetry::{output::say, visible},
    trace::{Clock, Event},
};

/// How often the agent is asked.
const ASK: Duration = Duration::from_secs(1);

/// The reasons that are worth a line.
const REASONS: [Reason; 14] = [
    Reason::FlowLearned,
    Reason::FlowForgotten,
    Reason::FlowChanged,
    Reason::PodMoved,
    Reason::ForwarderLearned,
    Reason::Spoofed,
    Reason::InnerSource,
    Reason::UnknownVtep,
    Reason::VtepDropped,
    Reason::VtepSeen,
    Reason::PodVxlan,
    Reason::TunnelClosed,
    Reason::TunnelDiffers,
    Reason::Refused,
];

/// `flannel-agent monitor ...`.
#[derive(Debug, Args)]
pub struct MonitorOptions {
    /// Of which packets.
    #[command(flatten)]
    pub packets: OfPackets,
    /// End after so many lines, 1 or more.
    #[arg(long, value_name = "N", value_parser = at_least_one("lines"))]
    pub count: Option<u64>,
    /// End after so many seconds, 1 or more.
    #[arg(long = "for", value_name = "SECONDS", value_parser = at_least_one("seconds"))]
    pub seconds: Option<u64>,
    /// Show one of so many packets, 1 or more.
    #[arg(long, value_name = "N", default_value = "1", value_parser = number("packets"))]
    pub sample: u32,
    /// Show so many packets a second on each CPU at most, 1 or more.
    #[arg(long, value_name = "N", default_value = "20", value_parser = number("packets"))]
    pub rate: u32,
    /// Show nothing of packets.
    #[arg(long)]
    pub no_packets: bool,
    /// Which agent.
    #[command(flatten)]
    pub agent: OfAgent,
    /// How to print: lines for people, or a line of JSON for each event.
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Output,
}

/// Something that happened.
#[derive(Debug, Serialize)]
struct Happened<'a> {
    time: &'a str,
    node: &'a str,
    /// `agent`, `lease`, `repair` or `packet`.
    kind: &'static str,
    text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    packet: Option<&'a Event>,
}

/// Runs `monitor`.
///
/// # Errors
/// [`CannotLook`], with what to do about it.
pub fn run(options: &MonitorOptions, defaults: &Defaults) -> anyhow::Result<ExitCode> {
    let watch = || -> anyhow::Result<()> {
        let filter = TraceFilter {
            mode: TRACE_RECORDS,
            reasons: reason_bits(&REASONS),
            every: options.sample,
            rate: options.rate,
            ..options.packets.filter()?
        };
        enter_node(&options.agent)?;
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async { follow(options, options.agent.client(defaults).await?, filter).await })
    };
    watch().map_err(CannotLook)?;
    Ok(ExitCode::SUCCESS)
}

async fn follow(options: &MonitorOptions, client: Client, filter: TraceFilter) -> anyhow::Result<()> {
    let mut seen = Seen::ask(&client).await?;
    let mut session = None;
    if !options.no_packets {
        match TraceSession::begin(client.clone()).await {
            Ok(mut begun) => {
                begun.want(filter)?;
                session = Some(begun);
            }
            // What the agent does is worth a look without.
            Err(error) => say(format_args!("nothing of packets: {}", visible(&format_args!("{error:#}")))),
        }
    }
    // Whoever reads the line may interrupt at once.
    let mut interrupts = signal(SignalKind::interrupt())?;
    say("monitoring; Ctrl-C ends it");
    let lines = Lines { left: options.count };
    let mut printer = Printer { output: options.output, node: node_name(), lines };
    let mut end = std::pin::pin!(end_after(options.seconds));
    let mut asking = interval(ASK);
    asking.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut limited = 0;
    loop {
        let records = async {
            match &mut session {
                Some(session) => session.maps.records().await,
                None => std::future::pending().await,
            }
        };
        let records = select! {
            biased;
            _ = interrupts.recv() => break,
            () = &mut end => break,
            _ = asking.tick() => {
                let now = Seen::ask(&client).await?;
                for (kind, text) in seen.changes(&now) {
                    if !printer.print(kind, text, None)? {
                        return Ok(());
                    }
                }
                seen = now;
                if let Some(session) = &session {
                    session.go_on().await?;
                    let untold = session.maps.untold()?;
                    let total = untold.limited + untold.lost;
                    if total > limited {
                        let text = format!("{} packets more, not shown for --rate", total - limited);
                        limited = total;
                        if !printer.print("packet", text, None)? {
                            return Ok(());
                        }
                    }
                }
                continue;
            }
            records = records => records,
        };
        if !printer.print_all(records)? {
            return Ok(());
        }
    }
    // What came until then, and was not read yet.
    let rest = session.map(|mut session| session.maps.told()).unwrap_or_default();
    printer.print_all(rest).map(drop)
}

struct Printer {
    output: Output,
    node: String,
    lines: Lines,
}

impl Printer {
    /// Prints a line for each packet; whether there may be more.
    fn print_all(&mut self, mut records: Vec<TraceRecord>) -> anyhow::Result<bool> {
        records.sort_by_key(|record| record.time);
        let (clock, node) = (Clock::now()?, self.node.clone());
        for event in records.iter().filter_map(|record| Event::of(record, &node, &clock, interface)) {
            let text = event.to_string();
            // Time and node stand in front already.
            let text = text.splitn(3, ' ').nth(2).unwrap_or(&text).to_owned();
            if !self.print("packet", text, Some(&event))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Prints a line; whether there may be another one.
    fn print(&mut self, kind: &'static str, text: String, packet: Option<&Event>) -> anyhow::Result<bool> {
        let now = Clock::world();
        let time = packet.map_or(now.as_str(), |event| &event.time);
        let happened = Happened { time, node: &self.node, kind, text, packet };
        let line = match self.output {
            Output::Json => serde_json::to_string(&happened)?,
            Output::Table => {
                let clock = time.get(11..26).unwrap_or(time);
                format!("{clock} {} {kind:<6} {}", self.node, visible(&happened.text))
            }
        };
        self.lines.print(&line)
    }
}

/// What the agent said when it was last asked.
struct Seen {
    snapshot: Snapshot,
    peers: Peers,
}

impl Seen {
    async fn ask(client: &Client) -> anyhow::Result<Self> {
        Ok(Self { snapshot: client.snapshot().await?, peers: client.peers().await? })
    }

    /// What has happened until `now`.
    fn changes(&self, now: &Self) -> Vec<(&'static str, String)> {
        let mut changes = Vec::new();
        self.of_agent(now, &mut changes);
        self.of_leases(now, &mut changes);
        self.of_repairs(now, &mut changes);
        changes
    }

    fn of_agent(&self, now: &Self, changes: &mut Vec<(&'static str, String)>) {
        let (old, new) = (&self.snapshot.agent, &now.snapshot.agent);
        if old.pid != new.pid {
            changes
                .push(("agent", format!("another agent runs: process {} in place of {}", new.pid, old.pid)));
        }
        if old.ready != new.ready {
            let why = new.not_ready.as_deref().map_or_else(String::new, |why| format!(": {why}"));
            let text = if new.ready { "ready".to_owned() } else { format!("not ready{why}") };
            changes.push(("agent", text));
        }
        let trouble = |seen: &Snapshot| seen.store.as_ref().and_then(|store| store.trouble.clone());
        match (trouble(&self.snapshot), trouble(&now.snapshot)) {
            (None, Some(trouble)) => changes.push(("agent", format!("the store does not answer: {trouble}"))),
            (Some(_), None) => changes.push(("agent", "the store answers again".to_owned())),
            _ => {}
        }
        let error =
            |seen: &Snapshot| seen.dataplane.as_ref().and_then(|dataplane| dataplane.last_error.clone());
        match (error(&self.snapshot), error(&now.snapshot)) {
            (old, Some(error)) if old.as_ref() != Some(&error) => {
                changes.push(("agent", format!("a change fails: {error}")))
            }
            (Some(_), None) => changes.push(("agent", "all changes are made".to_owned())),
            _ => {}
        }
    }

    fn of_leases(&self, now: &Self, changes: &mut Vec<(&'static str, String)>) {
        let peers = |seen: &Self| -> BTreeMap<String, snapshot::Peer> {
            seen.peers.peers.iter().map(|peer| (peer.subnet.to_string(), peer.clone())).collect()
        };
        let (old, new) = (peers(self), peers(now));
        for (subnet, peer) in &new {
            let node = peer
                .node
                .as_deref()
                .map_or_else(|| peer.public_ip.to_string(), |name| format!("{name} ({})", peer.public_ip));
            match old.get(subnet) {
                None => changes.push(("lease", format!("{subnet} joined: node {node}, by {}", peer.way))),
                Some(before) if before.public_ip != peer.public_ip || before.mac != peer.mac => {
                    changes
                        .push(("lease", format!("{subnet} moved from {} to node {node}", before.public_ip)));
                }
                Some(before) if before.way != peer.way || before.on_kernel != peer.on_kernel => {
                    let way = peer
                        .on_kernel
                        .as_deref()
                        .map_or(peer.way.clone(), |why| format!("{}, kernel path: {why}", peer.way));
                    changes.push(("lease", format!("{subnet} is reached by {way}")));
                }
                Some(_) => {}
            }
        }
        for (subnet, peer) in old.iter().filter(|(subnet, _)| !new.contains_key(*subnet)) {
            changes.push(("lease", format!("{subnet} left: it was of node {}", peer.public_ip)));
        }
        let skipped = |seen: &Self| -> BTreeSet<String> {
            seen.peers
                .skipped
                .iter()
                .map(|skipped| format!("{} is not followed: {}", skipped.lease, skipped.reason))
                .collect()
        };
        for text in skipped(now).difference(&skipped(self)) {
            changes.push(("lease", text.clone()));
        }
    }

    fn of_repairs(&self, now: &Self, changes: &mut Vec<(&'static str, String)>) {
        let objects = |seen: &Snapshot| seen.dataplane.as_ref().map_or(0, |dataplane| dataplane.restored);
        let new = objects(&now.snapshot).saturating_sub(objects(&self.snapshot));
        let last = now.snapshot.dataplane.iter().flat_map(|dataplane| &dataplane.last_restored);
        let listed: Vec<_> = last.take(usize::try_from(new).unwrap_or(usize::MAX)).collect();
        // They come newest first.
        for restored in listed.iter().rev() {
            changes.push(("repair", format!("put back: {}", restored.what)));
        }
        if let Some(more) = new.checked_sub(listed.len() as u64).filter(|more| *more > 0) {
            changes.push(("repair", format!("put back: {more} objects more")));
        }
        for rules in &now.snapshot.rules {
            let before = self.snapshot.rules.iter().find(|before| before.kept_by == rules.kept_by);
            if rules.restored > before.map_or(0, |before| before.restored) {
                let what = rules.last_restored.as_ref().map_or("rules", |restored| &restored.what);
                changes.push(("repair", format!("{}: put back: {what}", rules.kept_by)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(subnet: &str, public_ip: &str) -> snapshot::Peer {
        snapshot::Peer {
            subnet: subnet.parse().unwrap(),
            node: None,
            public_ip: public_ip.parse().unwrap(),
            way: "vxlan".to_owned(),
            mac: None,
            on_kernel: None,
            next_hop: None,
            pending: Vec::new(),
            probe: None,
        }
    }

    fn seen(peers: &[snapshot::Peer], restored: u64, what: &[&str]) -> Seen {
        let last_restored =
            what.iter().map(|what| snapshot::Restored { at: 1, what: (*what).to_owned() }).collect();
        let dataplane = snapshot::Dataplane { restored, last_restored, ..snapshot::Dataplane::default() };
        let snapshot = Snapshot { dataplane: Some(dataplane), ..Snapshot::default() };
        Seen { snapshot, peers: Peers { peers: peers.to_vec(), skipped: Vec::new() } }
    }

    #[test]
    fn what_changed_is_told_once_and_in_order() {
        let [a, b] = [peer("10.244.1.0/24", "10.0.0.1"), peer("10.244.2.0/24", "10.0.0.2")];
        let moved = peer("10.244.1.0/24", "10.0.0.9");
        let before = seen(&[a, b], 1, &["an old route"]);
        assert!(before.changes(&seen(&before.peers.peers, 1, &["an old route"])).is_empty());
        let after = seen(
            &[moved, peer("10.244.3.0/24", "10.0.0.3")],
            3,
            &["the second", "the first", "an old route"],
        );
        let told: Vec<String> =
            before.changes(&after).into_iter().map(|(kind, text)| format!("{kind} {text}")).collect();
        assert_eq!(
            told,
            [
                "lease 10.244.1.0/24 moved from 10.0.0.1 to node 10.0.0.9",
                "lease 10.244.3.0/24 joined: node 10.0.0.3, by vxlan",
                "lease 10.244.2.0/24 left: it was of node 10.0.0.2",
                "repair put back: the first",
                "repair put back: the second",
            ]
        );
    }
}
