//! A cluster on one machine, in one command: etcd, three nodes with an agent each, two pods each; who
//! reaches whom, which way the packets went, and how fast it is.

use std::time::Duration;

use anyhow::{Context as _, Result};
use flannel_bench::{Case, Mode, Progress, Scenario, Workload};
use flannel_common::reason::Direction;
use flannel_lab::{
    Cluster, FastPath, Lab,
    counters::Counters,
    output::{print, say},
    requirements, sweep, teardown,
    traffic::{Matrix, reachability, tcp},
};
use ipnetwork::Ipv4Network;
use serde_json::{Value, json};

use crate::{enter, tables};

/// The lab's name: one demo at a time on a machine.
const NAME: &str = "demo";

const NODES: usize = 3;
const PODS: usize = 2;

/// Bytes each node's first pod sends to the next node's, so that there is something to count.
const SAMPLE: u64 = 64 << 20;

/// How long the cluster takes to come up, be looked at, and go.
const CLUSTER: Duration = Duration::from_secs(10);

/// What a demo found.
#[derive(Debug)]
pub(crate) struct Findings {
    /// Leases in etcd: subnet and JSON.
    pub(crate) leases: Vec<(Ipv4Network, Value)>,
    /// Which pod reaches which.
    pub(crate) matrix: Matrix,
    /// What each node's programs counted.
    pub(crate) counters: Vec<(String, Counters)>,
    /// Bare network, kernel and ours side by side.
    pub(crate) comparison: flannel_bench::Report,
}

/// Brings the cluster up, looks at it and takes it down, or with `keep` leaves it. Fails if any two
/// pods cannot talk, after showing everything.
pub(crate) fn run(keep: bool, as_json: bool, progress: &Progress) -> Result<()> {
    requirements::check(&flannel_bench::Options::PROGRAMS)?;
    let seconds = (measurement().estimate() + CLUSTER).as_secs().next_multiple_of(10);
    say(format_args!("The demo takes about {seconds} seconds from here."));
    let lab = Lab::named(NAME).context("start the demo; `cargo xtask demo --down` removes one that is up")?;
    let nodes = format!("etcd, {NODES} nodes with an agent each, {PODS} pods each");
    let cluster = progress.step(&nodes, || Cluster::start(&lab, NODES, PODS, FastPath::Flow))?;
    let findings = look(&cluster, progress)?;
    if as_json {
        print(&format!("{:#}\n", findings.to_json()))?;
    } else {
        print(&tables::show(&findings).to_string())?;
    }
    let outcome = findings.matrix.check_complete();
    if keep {
        say(enter::instructions(&cluster)?.trim_end());
        cluster.release();
        lab.keep()?;
    } else {
        drop(cluster);
        progress.step("taking it down", || lab.close())?;
    }
    outcome
}

/// Removes the demo, whoever left it and how, and every lab whose owner was killed.
pub(crate) fn down(progress: &Progress) -> Result<()> {
    progress.step("removing the demo", || {
        sweep();
        teardown::remove(&Lab::id_of(NAME))
    })
}

/// A small benchmark.
fn measurement() -> flannel_bench::Options {
    flannel_bench::Options {
        cases: [Mode::Bare, Mode::KernelRules, Mode::Flow]
            .map(|mode| Case::new(Scenario::Vxlan, mode))
            .to_vec(),
        workloads: vec![Workload::Tcp, Workload::Udp64, Workload::TcpPingPong],
        rounds: 3,
        seconds: 1,
        all_or_nothing: true,
    }
}

fn look(cluster: &Cluster, progress: &Progress) -> Result<Findings> {
    progress.step("waiting until pods take the fast path", || {
        (0..NODES).try_for_each(|node| cluster.await_fast_path(node, (node + 1) % NODES, FastPath::Flow))
    })?;
    let pods = cluster.pods();
    let matrix = progress.step("every pod pings every other", || Ok(reachability(&pods)))?;
    if matrix.failures().is_empty() {
        progress.step("each node sends 64 MiB to the next", || {
            (0..NODES).try_for_each(|node| {
                let (from, to) = (&cluster.members[node], &cluster.members[(node + 1) % NODES]);
                tcp::bulk(&from.pod()?, &to.pod()?, SAMPLE).map(drop)
            })
        })?;
    }
    let counters = cluster.members.iter().map(|member| Ok((member.node.name(), member.counters()?)));
    let counters = counters.collect::<Result<Vec<_>>>()?;
    let options = measurement();
    let comparison = progress.follow("measuring", |report| flannel_bench::run(&options, report))?;
    let leases = cluster.etcd.leases()?.into_iter().collect();
    Ok(Findings { leases, matrix, counters, comparison })
}

impl Findings {
    /// All of it, for programs.
    pub(crate) fn to_json(&self) -> Value {
        let cell = |cell: &Option<Result<Duration, String>>| match cell {
            None => Value::Null,
            Some(Ok(time)) => json!({ "milliseconds": time.as_secs_f64() * 1e3 }),
            Some(Err(error)) => json!({ "error": error }),
        };
        let rows: Vec<Vec<Value>> =
            self.matrix.cells.iter().map(|row| row.iter().map(cell).collect()).collect();
        let leases: Vec<Value> = self
            .leases
            .iter()
            .map(|(subnet, lease)| json!({ "subnet": subnet.to_string(), "lease": lease }))
            .collect();
        let counters: Vec<Value> = self
            .counters
            .iter()
            .flat_map(|(node, counters)| {
                counters.nonzero().map(move |(direction, reason, count)| {
                    json!({
                        "node": node,
                        "direction": direction.label(),
                        "reason": reason.label(),
                        "class": reason.class().label(),
                        "packets": count.packets,
                        "bytes": count.bytes,
                    })
                })
            })
            .collect();
        let past_the_stack: Vec<Value> = self
            .counters
            .iter()
            .map(|(node, counters)| {
                json!({
                    "node": node,
                    "egress": counters.share_past_the_stack(Direction::Egress),
                    "ingress": counters.share_past_the_stack(Direction::Ingress),
                })
            })
            .collect();
        json!({
            "leases": leases,
            "reachability": { "pods": self.matrix.names, "round_trips": rows },
            "counters": counters,
            "past_the_stack": past_the_stack,
            "comparison": self.comparison.to_json(),
        })
    }
}
