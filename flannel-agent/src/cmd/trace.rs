//! `trace`: packets at each hook of the programs, as they pass.

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, bail};
use clap::Args;
use flannel_common::{
    layout::trace::{TRACE_RECORDS, TraceFilter, TraceRecord},
    path::Hook,
    reason::Reason,
};
use tokio::{
    runtime, select,
    signal::unix::{SignalKind, signal},
};

use super::{
    CannotLook, Defaults,
    bpf::Output,
    output::Lines,
    trace_session::{
        OfAgent, OfPackets, TraceSession, bits, end_after, enter_node, hooks, interface, node_name,
        reason_bits,
    },
    value::{at_least_one, number},
};
use crate::{
    control::Client,
    telemetry::output::say,
    trace::{Clock, Event},
};

/// `flannel-agent trace ...`.
#[derive(Debug, Args)]
pub struct TraceOptions {
    /// Which packets.
    #[command(flatten)]
    pub packets: OfPackets,
    /// At this hook; repeatable.
    #[arg(long = "hook", value_name = "PROGRAM", value_parser = hook)]
    pub hooks: Vec<Hook>,
    /// Counted for this reason; repeatable.
    #[arg(long = "reason", value_name = "REASON", value_parser = reason)]
    pub reasons: Vec<Reason>,
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
    #[arg(long, value_name = "N", default_value = "1000", value_parser = number("packets"))]
    pub rate: u32,
    /// Instead of looking at packets, merge what `trace -o json` has written on several nodes, by time; repeatable.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["ends", "count", "seconds"])]
    pub merge: Vec<PathBuf>,
    /// Which agent.
    #[command(flatten)]
    pub agent: OfAgent,
    /// How to print: lines for people, or a line of JSON for each packet.
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Output,
}

pub(super) fn hook(name: &str) -> Result<Hook, String> {
    Hook::ALL.into_iter().find(|hook| hook.program() == name).ok_or_else(|| {
        let names: Vec<_> = Hook::ALL.into_iter().map(Hook::program).collect();
        format!("write one of {}", names.join(", "))
    })
}

pub(super) fn reason(name: &str) -> Result<Reason, String> {
    let found = Reason::ALL.iter().copied().find(|reason| reason.label() == name);
    found.ok_or_else(|| "write a reason as `flannel-agent bpf counters --all` lists them".to_owned())
}

/// Runs `trace`.
///
/// # Errors
/// [`CannotLook`], with what to do about it.
pub fn run(options: &TraceOptions, defaults: &Defaults) -> anyhow::Result<ExitCode> {
    let looked = if options.merge.is_empty() { look(options, defaults) } else { merge(options) };
    looked.map_err(CannotLook)?;
    Ok(ExitCode::SUCCESS)
}

fn look(options: &TraceOptions, defaults: &Defaults) -> anyhow::Result<()> {
    let hooks = hooks(&options.hooks);
    let filter = TraceFilter {
        mode: TRACE_RECORDS,
        hooks: bits(&hooks),
        reasons: reason_bits(&options.reasons),
        every: options.sample,
        rate: options.rate,
        ..options.packets.filter()?
    };
    enter_node(&options.agent)?;
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { follow(options, options.agent.client(defaults).await?, filter).await })
}

async fn follow(options: &TraceOptions, client: Client, filter: TraceFilter) -> anyhow::Result<()> {
    let mut session = TraceSession::begin(client).await?;
    session.want(filter)?;
    // Whoever reads the line may interrupt at once.
    let mut interrupts = signal(SignalKind::interrupt())?;
    say("looking at packets; Ctrl-C ends it");
    let mut printer =
        Printer { output: options.output, node: node_name(), lines: Lines { left: options.count } };
    let mut end = std::pin::pin!(end_after(options.seconds));
    let mut going_on = std::pin::pin!(session.going_on());
    let ended = loop {
        let records = select! {
            biased;
            _ = interrupts.recv() => break Ok(()),
            () = &mut end => break Ok(()),
            error = &mut going_on => break Err(error),
            records = session.maps.records() => records,
        };
        if !printer.print_all(records)? {
            return untold(&session);
        }
    };
    // What came until then, and was not read yet.
    printer.print_all(session.maps.told())?;
    ended.and(untold(&session))
}

/// Says what was not shown.
fn untold(session: &TraceSession) -> anyhow::Result<()> {
    let untold = session.maps.untold()?;
    if untold.limited > 0 {
        say(format_args!("not shown for --rate: {} packets", untold.limited));
    }
    if untold.lost > 0 {
        say(format_args!("lost, since they came faster than they could be printed: {} packets", untold.lost));
    }
    Ok(())
}

struct Printer {
    output: Output,
    node: String,
    lines: Lines,
}

impl Printer {
    /// Prints a line for each packet; whether there may be more.
    fn print_all(&mut self, mut records: Vec<TraceRecord>) -> anyhow::Result<bool> {
        // Each CPU's are in order; those of several are not.
        records.sort_by_key(|record| record.time);
        let clock = Clock::now().context("the clock")?;
        for record in &records {
            let Some(event) = Event::of(record, &self.node, &clock, interface) else { continue };
            if !self.print(&event)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Prints a line; whether there may be another one.
    fn print(&mut self, event: &Event) -> anyhow::Result<bool> {
        let line = match self.output {
            Output::Json => serde_json::to_string(event)?,
            Output::Table => event.to_string(),
        };
        self.lines.print(&line)
    }
}

/// Prints the events of several files by their time.
fn merge(options: &TraceOptions) -> anyhow::Result<()> {
    let mut events = Vec::new();
    for path in &options.merge {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let Ok(event) = serde_json::from_str::<Event>(line) else {
                bail!("{}, line {}: not written by `trace -o json`", path.display(), number + 1);
            };
            events.push(event);
        }
    }
    events.sort_by(|a, b| a.time.cmp(&b.time));
    let mut printer = Printer { output: options.output, node: node_name(), lines: Lines { left: None } };
    for event in &events {
        if !printer.print(event)? {
            break;
        }
    }
    Ok(())
}
