//! Prometheus scrapes the lab, and each query of dashboard and alert rules has an answer.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use flannel_agent::metrics::METRICS;
use flannel_common::reason::{Direction, Reason};
use flannel_ebpf_toolchain::workspace_root;
use flannel_lab::{
    AgentOptions, CONVERGENCE, Cluster, FastPath, Member, Xdp,
    command::{Daemon, run, tool},
    eventually, in_lab,
    traffic::udp,
};
use serde_json::{Value, json};

/// Of both agents.
const PORT: u16 = 8081;
/// Absent unless the store says when leases end; before the first probe of a peer; while no change of a peer fails.
const UNTOLD: [&str; 3] = [
    "flannel_lease_expiry_timestamp_seconds",
    "flannel_probe_round_trip_max_seconds",
    "flannel_peer_changes_pending",
];
const PATIENCE: Duration = Duration::from_secs(30);

fn packaging(name: &str) -> PathBuf {
    workspace_root().join("flannel-agent/packaging/prometheus").join(name)
}

fn page(member: &Member) -> Result<String> {
    member
        .node
        .netns()
        .run("curl", &["-sS", "--fail", &format!("http://{}:{PORT}/metrics", member.node.address())])
}

/// Each query of the dashboard, as Grafana fills it in, and of the rules.
fn queries() -> Result<Vec<String>> {
    let dashboard: Value = serde_json::from_str(&fs::read_to_string(packaging("dashboard.json"))?)?;
    let panels = dashboard["panels"].as_array().context("panels")?;
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let mut queries: Vec<String> = targets
        .filter_map(|target| target["expr"].as_str())
        .map(|query| query.replace("$instance", ".*").replace("$__rate_interval", "10s"))
        .collect();
    ensure!(queries.len() > 20, "{queries:?}");
    let rules: Value = serde_saphyr::from_str(&fs::read_to_string(packaging("rules.yml"))?)?;
    let rules = rules["groups"][0]["rules"].as_array().context("rules")?;
    queries.extend(rules.iter().filter_map(|rule| rule["expr"].as_str()).map(str::to_owned));
    Ok(queries)
}

#[test]
fn prometheus_answers_each_query_of_dashboard_and_rules() -> Result<()> {
    in_lab(|lab| {
        let flags = ["--ip-masq", "--healthz-port=8081", "--metrics-peers"];
        let options = AgentOptions::new(FastPath::Flow.with(Xdp::Off), &flags);
        let cluster = Cluster::start(lab, 2, 1, options)?;
        let [a, b] = [&cluster.members[0], &cluster.members[1]];
        let directory = tempfile::tempdir()?;
        let home = directory.path();
        let config = json!({
            "global": { "scrape_interval": "1s" },
            "rule_files": [packaging("rules.yml")],
            "scrape_configs": [{
                "job_name": "flannel",
                "static_configs": [{ "targets": [
                    format!("{}:{PORT}", a.node.address()), format!("{}:{PORT}", b.node.address()),
                ] }],
            }],
        });
        let path = home.join("prometheus.yml");
        fs::write(&path, config.to_string())?;
        let mut command = a.node.netns().command("prometheus");
        command.arg(format!("--config.file={}", path.display()));
        command.arg(format!("--storage.tsdb.path={}", home.join("data").display()));
        command.arg("--web.listen-address=127.0.0.1:9090");
        let _prometheus = Daemon::spawn(&mut command, &a.node.log("prometheus"))?;
        let ask = |query: &str| -> Result<Vec<Value>> {
            let query = format!("query={query}");
            let url = "http://127.0.0.1:9090/api/v1/query";
            let answer = a.node.netns().run("curl", &["-sS", "-G", url, "--data-urlencode", &query])?;
            let answer: Value = serde_json::from_str(&answer)?;
            ensure!(answer["status"] == "success", "{query}: {answer}");
            Ok(answer["data"]["result"].as_array().cloned().unwrap_or_default())
        };
        eventually(PATIENCE, "both nodes are scraped, twice", || {
            udp::echo(&a.pod()?, &b.pod()?, 56, 3)?;
            let twice = ask("count_over_time(flannel_ready[1m]) >= 3")?;
            ensure!(twice.len() == 2, "{twice:?}");
            Ok(())
        })?;

        // What it is about nothing wrong: a comparison has no result, and its left side has.
        for query in queries()? {
            let sides: Vec<&str> = query.split(" or ").collect();
            for side in sides.into_iter().filter(|side| !UNTOLD.iter().any(|untold| side.contains(untold))) {
                let compared = [" == ", " > ", " < "].into_iter().find_map(|by| side.split_once(by));
                let left = compared.map_or(side, |(left, _)| left).trim_start_matches("count(");
                let found = ask(left)?;
                ensure!(!found.is_empty(), "no answer to {left}");
            }
            ask(&query)?;
        }
        let alerts = ask("ALERTS")?;
        ensure!(alerts.is_empty(), "a healthy cluster raises {alerts:?}");

        // The numbers are those of the counters.
        let counted = a.counters()?.get(Direction::Egress, Reason::EncapPod).packets;
        let text = page(a)?;
        let line = "flannel_packets_total{direction=\"egress\",path=\"fast\",reason=\"encap_pod\"} ";
        let shown = text.lines().find_map(|found| found.strip_prefix(line)).context("encap_pod")?;
        ensure!(
            shown.parse::<f64>()? >= counted as f64 && counted > 0,
            "{shown}, and {counted} were counted"
        );
        the_page_is_the_table(&text, b)?;
        a_fault_moves_its_metric(&cluster)
    })
}

/// Each series is of the table, and each metric of the table is there, or is known not to be.
fn the_page_is_the_table(text: &str, peer: &Member) -> Result<()> {
    ensure!(text.ends_with("# EOF\n"), "not whole");
    ensure!(text.len() < 200_000, "{} bytes", text.len());
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap_or_default();
        ensure!(METRICS.iter().any(|metric| metric.name() == name), "{name} is in no table");
    }
    for metric in METRICS.iter().filter(|metric| !UNTOLD.contains(&metric.name().as_str())) {
        let name = metric.name();
        let there = text.lines().any(|line| line.split(['{', ' ']).next() == Some(name.as_str()));
        ensure!(there, "{name} is not on the page: {text}");
    }
    let address = format!("public_ip=\"{}\"", peer.node.address());
    ensure!(
        text.lines().any(|line| line.starts_with("flannel_peer_info{") && line.contains(&address)),
        "{text}"
    );
    Ok(())
}

/// What somebody deletes is put back, and counted.
fn a_fault_moves_its_metric(cluster: &Cluster) -> Result<()> {
    let [a, b] = [&cluster.members[0], &cluster.members[1]];
    let restored = || -> Result<f64> {
        let text = page(a)?;
        let shown = text.lines().find_map(|line| line.strip_prefix("flannel_objects_restored_total "));
        Ok(shown.context("restored")?.parse()?)
    };
    let before = restored()?;
    let subnet = b.node.subnet_env()?.subnet;
    a.node.netns().ip(&format!("route del {}/{}", subnet.network(), subnet.prefix()))?;
    eventually(CONVERGENCE, "the route is put back, and counted", || {
        ensure!(restored()? > before, "not yet");
        Ok(())
    })
}

#[test]
fn the_alert_rules_pass_their_own_tests() -> Result<()> {
    let directory = packaging("");
    for words in [["check", "rules", "rules.yml"], ["test", "rules", "rules-test.yml"]] {
        let mut promtool: Command = tool("promtool");
        run(promtool.args(words).current_dir(&directory))?;
    }
    // None is without its test.
    let [rules, tests] = ["rules.yml", "rules-test.yml"].map(|name| fs::read_to_string(packaging(name)));
    let (rules, tests) = (rules?, tests?);
    for alert in rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        let named = tests.matches(&format!("alertname: {alert}")).count();
        ensure!(named >= 2, "{alert} has no test for either case");
    }
    Ok(())
}
