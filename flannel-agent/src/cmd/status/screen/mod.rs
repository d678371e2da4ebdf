//! The screen of `status`.

use std::collections::BTreeMap;

use comfy_table::{Cell, Table};

use super::Report;
use crate::{
    cmd::output::{Tone, lines, span, table, toned, wrapped},
    control::snapshot::{self, Snapshot},
    inspect::standing::Problem,
    telemetry::visible,
    values::utc,
};

/// The screen, at the time `now`.
pub(super) fn render(report: &Report, now: u64) -> String {
    let mut rows = table(&[]);
    let tone = match report.verdict {
        "healthy" => Tone::Good,
        "no agent" => Tone::Notable,
        _ => Tone::Bad,
    };
    rows.add_row([Cell::new("Verdict"), toned(report.verdict, tone)]);
    match (&report.agent, &report.without_agent) {
        (Some(agent), _) => of_agent(&mut rows, agent, now),
        (None, why) => line(&mut rows, "Agent", why.as_deref().unwrap_or("-")),
    }
    line(&mut rows, "Programs", &programs(report));
    line(&mut rows, "Maps", &maps(report));
    if let Some([known, differing]) = report.known_peers {
        line(&mut rows, "Peers", &format!("{known} known to kernel and maps, {differing} of them differ"));
        if let Some(seconds) = report.hold_seconds {
            let text = match seconds {
                0 => "over: all packets take the kernel path until an agent runs".to_owned(),
                seconds => format!("the programs go on without an agent for {}", span(seconds)),
            };
            line(&mut rows, "Hold", &text);
        }
    }
    let mut text = lines(&rows);
    if !report.problems.is_empty() {
        text.push_str("\nProblems\n");
    }
    for Problem { what, remedy } in &report.problems {
        text.push_str(&wrapped(&format!("- {what}; {remedy}"), 2));
        text.push('\n');
    }
    text
}

fn line(rows: &mut Table, name: &str, text: &str) {
    rows.add_row([name, &visible(&text)]);
}

fn of_agent(rows: &mut Table, told: &Snapshot, now: u64) {
    let agent = &told.agent;
    let ready = match (agent.ready, &agent.not_ready) {
        (true, _) => "ready".to_owned(),
        (false, Some(why)) => format!("not ready: {why}"),
        (false, None) => "not ready".to_owned(),
    };
    let up = span(now.saturating_sub(agent.started));
    line(
        rows,
        "Agent",
        &format!("{}, process {}, up {up}, {}; {ready}", agent.version, agent.pid, agent.doing),
    );
    if let Some(store) = &told.store {
        let since = span(now.saturating_sub(store.since));
        let mut text = match &store.trouble {
            None => format!("{}, answers since {since}", store.server),
            Some(trouble) => format!("{}, since {since}: {trouble}", store.server),
        };
        text.extend(store.revision.iter().map(|revision| format!("; revision {revision}")));
        text.extend(store.heard.map(|heard| format!(", heard {} ago", span(now.saturating_sub(heard)))));
        line(rows, "Store", &text);
    }
    if let Some(lease) = told.lease.as_ref().filter(|lease| !lease.subnets.is_empty()) {
        let end = match lease.expires {
            None => "no end".to_owned(),
            Some(end) if end <= now => format!("ended at {}", utc(snapshot::time(end))),
            Some(end) => format!("ends in {} unless renewed", span(end - now)),
        };
        let [subnets, networks] = [&lease.subnets, &lease.networks].map(|all| list(all));
        let mut text = format!("{subnets} of {networks}, published at {}; {end}", list(&lease.public));
        if lease.mended > 0 {
            text.push_str(&format!("; changed by others and written again {} times", lease.mended));
        }
        line(rows, "Lease", &text);
    }
    if let Some(interface) = &told.interface {
        let addresses = list(&interface.addresses);
        line(rows, "Interface", &format!("{}, MTU {}, {addresses}", interface.name, interface.mtu));
    }
    if let Some(backend) = &told.backend {
        line(rows, "Backend", &self::backend(backend));
    }
    if let Some(fast_path) = &told.fast_path {
        let mut text = fast_path.granted.clone();
        if fast_path.granted != fast_path.asked {
            text = format!("{text}, though {} was asked for", fast_path.asked);
        }
        text.extend(fast_path.attached_by.iter().map(|by| format!(", attached by {by}")));
        text.push_str(&format!(", XDP {}", fast_path.xdp));
        text.extend(fast_path.limit.iter().map(|limit| format!("; limited: {limit}")));
        line(rows, "Fast path", &text);
    }
    if let Some(traffic) = &told.traffic {
        let asked = told.probes.asked.is_some_and(|[_, last]| last + traffic.seconds >= now);
        let probes = if asked && traffic.any() { "; probes of peers are among them" } else { "" };
        line(rows, "Traffic", &format!("{}{probes}", self::traffic(traffic)));
    }
    match (&told.dataplane, &told.without_dataplane) {
        (Some(dataplane), _) => of_dataplane(rows, dataplane, now),
        (None, why) => line(rows, "Peers", why.as_deref().unwrap_or("unknown")),
    }
    let peers = told.dataplane.as_ref().map_or(0, |dataplane| dataplane.peers);
    if told.probes.peers > 0 || peers > 0 {
        line(rows, "Probes", &probes(&told.probes, peers, now));
    }
    let rules = told.rules.iter().map(|rules| {
        let state = if rules.in_place { "in place" } else { "not in place" };
        let error = rules.error.iter().map(|error| format!(" ({error})")).collect::<String>();
        format!("{}: {state}{error}, put back {} times", rules.kept_by, rules.restored)
    });
    let rules = rules.collect::<Vec<_>>();
    line(rows, "Rules", &if rules.is_empty() { "none kept".to_owned() } else { rules.join("; ") });
    for rule in told.rules.iter().flat_map(|rules| &rules.each_packet) {
        line(rows, "Kernel path", &format!("{rule}: flows that it can see"));
    }
}

fn of_dataplane(rows: &mut Table, dataplane: &snapshot::Dataplane, now: u64) {
    let snapshot::Dataplane { peers, peers_pending, faults, on_kernel, .. } = dataplane;
    let others = dataplane.skipped.iter().filter(|skipped| !skipped.fault).count();
    let in_place = peers.saturating_sub(*peers_pending);
    let mut text = format!("{in_place} in place, {peers_pending} pending, {faults} skipped for a fault");
    if others > 0 {
        text.push_str(&format!(", {others} of other kinds"));
    }
    if *on_kernel > 0 {
        text.push_str(&format!("; {on_kernel} on the kernel path"));
    }
    line(rows, "Peers", &text);
    for hooked in &dataplane.hooked {
        line(rows, "Kernel path", &format!("{} on {}: {}", hooked.hook, hooked.interface, hooked.left));
    }
    let last = dataplane.last_restored.first();
    let last = last.map(|last| format!(", last {} ago: {}", span(now.saturating_sub(last.at)), last.what));
    line(rows, "Repairs", &format!("{}{}", dataplane.restored, last.unwrap_or_default()));
    line(rows, "Last error", dataplane.last_error.as_deref().unwrap_or("none"));
}

fn backend(backend: &snapshot::Backend) -> String {
    let mut text = backend.kind.clone();
    for device in &backend.devices {
        text.push_str(&format!(": {}", device.name));
        text.extend(device.vni.map(|vni| format!(", VNI {vni}")));
        text.extend(device.port.map(|port| format!(", UDP port {port}")));
        text.push_str(&format!(", MTU {}", device.mtu));
    }
    if backend.direct_routing {
        text.push_str("; direct routes on the link");
    }
    format!("{text}; pods have MTU {}", backend.pod_mtu)
}

fn traffic(traffic: &snapshot::Traffic) -> String {
    let all = traffic.fast + traffic.kernel + traffic.dropped;
    let over = format!("in the last {}", span(traffic.seconds));
    match all {
        0 => format!("no packets between pods {over}"),
        _ => {
            let share = traffic.fast as f64 * 100.0 / all as f64;
            let dropped = match traffic.dropped {
                0 => String::new(),
                dropped => format!(", {dropped} dropped"),
            };
            format!("{share:.0} % fast {over}: {} of {all} packets{dropped}", traffic.fast)
        }
    }
}

/// What the last probes of each of `peers` found, and how long ago that was.
fn probes(probes: &snapshot::Probes, peers: usize, now: u64) -> String {
    let snapshot::Probes { peers: number, unanswered, hampered, asked, .. } = probes;
    let Some(asked) = asked else { return "no peer was asked yet".to_owned() };
    let [first, last] = asked.map(|at| span(now.saturating_sub(at)));
    let ago = if first == last { format!("{last} ago") } else { format!("{last} to {first} ago") };
    let mut text = format!("{} of {number} peers that were asked answered, {ago}", number - unanswered);
    if *hampered > 0 {
        text.push_str(&format!("; to {hampered} of them something is wrong on the way"));
    }
    match peers.saturating_sub(*number) {
        0 => text,
        more => format!("{text}; {more} were not asked yet"),
    }
}

/// Where there are many interfaces, their number: of each program.
fn programs(report: &Report) -> String {
    let mut by_program = BTreeMap::<&str, Vec<&str>>::new();
    for attached in &report.programs {
        by_program.entry(&attached.program).or_default().push(&attached.interface);
    }
    if by_program.is_empty() {
        return match (&report.agent, &report.without_maps) {
            (None, Some(why)) => format!("cannot be seen: {why}"),
            _ => "none attached".to_owned(),
        };
    }
    let programs = by_program.iter().map(|(program, interfaces)| match interfaces[..] {
        [one] => format!("{program} {one}"),
        _ => format!("{program} {} interfaces", interfaces.len()),
    });
    programs.collect::<Vec<_>>().join(", ")
}

/// Those in use: the fullest first.
fn maps(report: &Report) -> String {
    if let Some(why) = &report.without_maps {
        return format!("cannot be read: {why}");
    }
    let mut maps: Vec<_> = report.maps.iter().filter(|map| map.entries > 0).collect();
    maps.sort_by(|a, b| b.ratio().total_cmp(&a.ratio()));
    if maps.is_empty() {
        return "none in use".to_owned();
    }
    let shown = maps.iter().take(4).map(|map| format!("{} {} of {}", map.map, map.entries, map.room));
    shown.collect::<Vec<_>>().join(", ")
}

fn list<T: ToString>(all: &[T]) -> String {
    all.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
