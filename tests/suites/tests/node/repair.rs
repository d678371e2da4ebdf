//! Whatever of the dataplane somebody takes away comes back by itself: how soon, and what it cost a paced
//! flow of 1000 packets a second between two pods, is printed in a table.

use std::{
    collections::BTreeMap,
    fs,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use comfy_table::Table;
use flannel_agent::bpf::{Attachment, Pins, Tables, TcAttach};
use flannel_common::{layout::Config, map, path::Hook};
use flannel_lab::{
    AgentOptions, Cluster, FastPath, Member,
    command::{run, tool},
    in_lab,
    traffic::{Loss, Paced},
};
use serde_json::Value;

/// How long a repair may take on a machine that has other things to do; the table says how long it took.
const LIMIT: Duration = Duration::from_secs(20);

const OVERLAY: &str = "flannel.1";

/// All that the agent keeps on a node, object by object, as text to compare.
type Objects = BTreeMap<String, String>;

fn objects(member: &Member) -> Result<Objects> {
    let node = member.node.netns();
    let mut all = Objects::new();
    let mut put = |name: &str, text: String| all.insert(name.to_owned(), text);
    let device = json(&node.ip(&format!("-d -j link show dev {OVERLAY}")).unwrap_or_default());
    // The index of a device made anew is another; nothing else may be.
    for field in ["address", "mtu", "linkinfo"] {
        put(&format!("device {field}"), device[field].to_string());
    }
    let up = device["flags"].as_array().is_some_and(|flags| flags.contains(&Value::from("UP")));
    put("device up", up.to_string());
    let address = json(&node.ip(&format!("-4 -j addr show dev {OVERLAY}")).unwrap_or_default());
    let address = address["addr_info"].get(0).cloned().unwrap_or_default();
    put("device address", format!("{}/{}", address["local"], address["prefixlen"]));
    put("routes", node.ip(&format!("route show dev {OVERLAY}")).unwrap_or_default());
    put(
        "neighbours",
        sorted(&node.ip(&format!("neigh show dev {OVERLAY} nud permanent")).unwrap_or_default()),
    );
    let fdb = node.bridge(&format!("fdb show dev {OVERLAY}")).unwrap_or_default();
    put("FDB", sorted(&fdb.lines().filter(|line| line.contains(" dst ")).collect::<Vec<_>>().join("\n")));

    let pins = Pins::under(member.agent.bpffs())?;
    for name in map::PINNED_MAPS {
        put(&format!("pin of {name}"), pins.map(name).exists().to_string());
    }
    if let Ok(tables) = Tables::open(&pins) {
        let config = tables.v4.config.get()?;
        let leads_to = config.map(|config| device["ifindex"] == config.overlay_ifindex);
        put("device of config_v4 is the one that is there", format!("{leads_to:?}"));
        put(map::CONFIG_V4, format!("{:?}", config.map(|config| Config { overlay_ifindex: 0, ..config })));
        put(map::ROUTES_V4, format!("{:?}", tables.v4.routes.entries()?));
        put(map::VTEPS_V4, format!("{:?}", tables.v4.vteps.entries()?));
        put(map::PODS_V4, format!("{:?}", tables.v4.pods.entries()?));
        put(map::SNAT_EXEMPT_V4, format!("{:?}", tables.v4.exempt.entries()?));
    }
    put("pinned links", format!("{:?}", pins.pinned_links()?));
    put("programs", format!("{:?}", node.attachments()?));
    Ok(all)
}

fn json(text: &str) -> Value {
    let list: Vec<Value> = serde_json::from_str(text).unwrap_or_default();
    list.into_iter().next().unwrap_or_default()
}

fn sorted(text: &str) -> String {
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort_unstable();
    lines.join("\n")
}

type Damage = Box<dyn Fn(&Member) -> Result<()>>;

fn tables(edit: impl Fn(&mut Tables) -> Result<()> + 'static) -> Damage {
    Box::new(move |member| edit(&mut Tables::open(&Pins::under(member.agent.bpffs())?)?))
}

fn ip(words: &'static str) -> Damage {
    Box::new(move |member| member.node.netns().ip(words).map(drop))
}

/// The pinned link of `hook`.
fn link(member: &Member, hook: Hook) -> Result<std::path::PathBuf> {
    let pins = Pins::under(member.agent.bpffs())?;
    let links = pins.pinned_links()?;
    let found = links.iter().find(|(_, found)| *found == hook);
    let (interface, _) = found.with_context(|| format!("{} is not attached", hook.program()))?;
    Ok(pins.link(interface, hook))
}

fn unpinned(hook: Hook) -> Damage {
    Box::new(move |member| fs::remove_file(link(member, hook)?).context("remove the pin"))
}

fn detached(hook: Hook) -> Damage {
    Box::new(move |member| {
        run(tool("bpftool").args(["link", "detach", "pinned"]).arg(link(member, hook)?)).map(drop)
    })
}

/// Words of `tc` about the interface that runs the program of `hook`.
fn tc(hook: Hook, words: &'static str) -> Damage {
    Box::new(move |member| {
        let node = member.node.netns();
        let attached = node.attachments()?;
        let found = attached.keys().find(|(_, program)| *program == hook.program());
        let (interface, _) = found.with_context(|| format!("{} is not attached", hook.program()))?;
        let words = words.replace("DEV", interface);
        node.run("tc", &words.split_whitespace().collect::<Vec<_>>()).map(drop)
    })
}

/// What only links can lose.
fn damages_to_links(finds_pods: bool) -> Vec<(&'static str, Damage)> {
    let mut all: Vec<(&'static str, Damage)> = vec![
        ("link of from_pod: detached", detached(Hook::FromPod)),
        ("link of from_pod: pin", unpinned(Hook::FromPod)),
        ("link of to_overlay: detached", detached(Hook::ToOverlay)),
        ("link of to_overlay: pin", unpinned(Hook::ToOverlay)),
    ];
    if finds_pods {
        all.extend([
            ("link of from_underlay: detached", detached(Hook::FromUnderlay)),
            ("link of from_underlay: pin", unpinned(Hook::FromUnderlay)),
        ]);
    }
    all
}

/// What only filters can lose.
fn damages_to_filters() -> Vec<(&'static str, Damage)> {
    vec![
        ("filter of from_pod: deleted", tc(Hook::FromPod, "filter del dev DEV ingress")),
        ("filter of to_overlay: deleted", tc(Hook::ToOverlay, "filter del dev DEV egress")),
        ("qdisc of from_pod: deleted", tc(Hook::FromPod, "qdisc del dev DEV clsact")),
        ("qdisc of to_overlay: deleted", tc(Hook::ToOverlay, "qdisc del dev DEV clsact")),
    ]
}

/// The words of the first line of `text`.
fn first_line(text: &str) -> Result<Vec<&str>> {
    Ok(text.lines().next().context("nothing is listed")?.split_whitespace().collect())
}

fn damages(fast_path: FastPath, way: Attachment) -> Vec<(&'static str, Damage)> {
    let mut all: Vec<(&'static str, Damage)> = vec![
        (
            "map routes_v4: an entry",
            tables(|tables| {
                let key = *tables.v4.routes.entries()?.keys().next().context("no routes")?;
                Ok(tables.v4.routes.remove(&key)?)
            }),
        ),
        (
            "map vteps_v4: an entry",
            tables(|tables| {
                let key = *tables.v4.vteps.entries()?.keys().next().context("no VTEPs")?;
                Ok(tables.v4.vteps.remove(&key)?)
            }),
        ),
        (
            "map snat_exempt_v4: an entry",
            tables(|tables| {
                let key = *tables.v4.exempt.entries()?.keys().next().context("no exemptions")?;
                Ok(tables.v4.exempt.remove(&key)?)
            }),
        ),
        ("map config_v4: emptied", tables(|tables| Ok(tables.v4.config.clear()?))),
        (
            "pin of map routes_v4",
            Box::new(|member| Ok(fs::remove_file(Pins::under(member.agent.bpffs())?.map(map::ROUTES_V4))?)),
        ),
        ("all pins, by bpf unload", Box::new(|member| Ok(Pins::under(member.agent.bpffs())?.remove_all()?))),
        ("flannel.1: deleted", ip("link del flannel.1")),
        ("flannel.1: down", ip("link set flannel.1 down")),
        ("flannel.1: another MAC", ip("link set flannel.1 address 0e:00:00:00:00:99")),
        ("flannel.1: address", ip("addr flush dev flannel.1")),
        (
            "a route",
            Box::new(|member| {
                let node = member.node.netns();
                let routes = node.ip("route show dev flannel.1")?;
                node.ip(&format!("route del {} dev flannel.1", first_line(&routes)?[0])).map(drop)
            }),
        ),
        (
            "a neighbour",
            Box::new(|member| {
                let node = member.node.netns();
                let neighbours = node.ip("neigh show dev flannel.1 nud permanent")?;
                node.ip(&format!("neigh del {} dev flannel.1", first_line(&neighbours)?[0])).map(drop)
            }),
        ),
        (
            "an FDB entry",
            Box::new(|member| {
                let node = member.node.netns();
                let entries = node.bridge("fdb show dev flannel.1")?;
                let entry = entries.lines().find(|line| line.contains(" dst ")).context("no entry")?;
                node.bridge(&format!("fdb del {} dev flannel.1 self", first_line(entry)?[0])).map(drop)
            }),
        ),
    ];
    let finds_pods = matches!(fast_path, FastPath::Flow | FastPath::All);
    if finds_pods {
        all.push((
            "map pods_v4: an entry",
            tables(|tables| {
                let key = *tables.v4.pods.entries()?.keys().next().context("no pods")?;
                Ok(tables.v4.pods.remove(&key)?)
            }),
        ));
    }
    match way {
        Attachment::Clsact => all.extend(damages_to_filters()),
        Attachment::Tcx => all.extend(damages_to_links(finds_pods)),
    }
    all
}

/// What a damage cost.
struct Cost {
    recovery: Duration,
    forward: Loss,
    backward: Loss,
}

fn damaged(cluster: &Cluster, name: &str, damage: &Damage) -> Result<Cost> {
    let [member, peer] = [&cluster.members[0], &cluster.members[1]];
    let before = objects(member)?;
    // A link without its pin may still be there when the agent attaches the program anew: then it does so a moment later.
    let repairs = || -> usize {
        let log = member.agent.log();
        ["restored: ", "failed changes have been applied"].map(|line| log.matches(line).count()).iter().sum()
    };
    let repaired = repairs();
    let flow = Paced::usual(&member.pod()?, &peer.pod()?)?;
    // At any moment between two looks of the agent.
    sleep(Duration::from_millis(rand::random_range(300..1300)));
    let start = Instant::now();
    damage(member).with_context(|| name.to_owned())?;
    let recovery = loop {
        let now = objects(member)?;
        let whole = now == before && repairs() > repaired;
        if whole || start.elapsed() > LIMIT {
            ensure!(whole, "{name}: not repaired within {LIMIT:?}:\n{now:#?}\nbefore:\n{before:#?}");
            break start.elapsed();
        }
        sleep(Duration::from_millis(5));
    };
    sleep(Duration::from_millis(300));
    let report = flow.stop()?;
    ensure!(report.forward.received > 0 && report.backward.received > 0, "{name}: {report}");
    Ok(Cost { recovery, forward: report.forward, backward: report.backward })
}

fn everything_comes_back(options: impl Into<AgentOptions>, way: Attachment) -> Result<()> {
    let options = options.into();
    let fast_path = options.fast_path;
    in_lab(|lab| {
        let cluster = Cluster::start(lab, 3, 1, options)?;
        cluster.await_fast_path(0, 1, fast_path)?;
        cluster.await_fast_path(1, 0, fast_path)?;
        let mut table = Table::new();
        table.set_header(["taken away", "back after", "lost out", "lost in", "longest gap"]);
        for (name, damage) in damages(fast_path, way) {
            let Cost { recovery, forward, backward } = damaged(&cluster, name, &damage)?;
            table.add_row([
                name.to_owned(),
                format!("{} ms", recovery.as_millis()),
                format!("{} of {}", forward.lost(), forward.sent),
                format!("{} of {}", backward.lost(), backward.sent),
                format!("{} ms", forward.longest_gap.max(backward.longest_gap).as_millis()),
            ]);
        }
        println!(
            "fast path {} by {}, 1000 packets a second each way:\n{table}",
            fast_path.name(),
            way.label()
        );
        // And in the end everything is as fast as it was.
        cluster.await_fast_path(0, 1, fast_path)?;
        cluster.await_fast_path(1, 0, fast_path)
    })
}

#[test]
fn what_is_taken_away_comes_back_with_all() -> Result<()> {
    everything_comes_back(FastPath::All, Attachment::Tcx)
}

#[test]
fn what_is_taken_away_comes_back_with_flow() -> Result<()> {
    everything_comes_back(FastPath::Flow, Attachment::Tcx)
}

#[test]
fn what_is_taken_away_comes_back_with_flow_by_clsact() -> Result<()> {
    everything_comes_back(FastPath::Flow.attached_by(TcAttach::Clsact), Attachment::Clsact)
}

#[test]
fn what_is_taken_away_comes_back_with_overlay() -> Result<()> {
    everything_comes_back(FastPath::Overlay, Attachment::Tcx)
}
