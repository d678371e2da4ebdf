//! Each command of the documentation is run by a test, or its words are held to the program they are for.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use regex::Regex;

use super::{cargo, pages, read};
use How::{Ci, Test, Unrun, Usage};

/// What becomes of a command.
#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    /// A step of `.ci/run`.
    Ci,
    /// The program takes these words: they are given to it, with `--help` behind them.
    Usage,
    /// A test runs it, or does by other means what it does: a file and the function in it.
    Test(&'static str),
    /// Nothing here can run it, for this reason.
    Unrun(&'static str),
}

const BY_HAND: How = Test("tests/suites/tests/docs/by_hand.rs::the_commands_to_start_and_to_look_inside");
const SCREENS: How =
    Test("tests/suites/tests/operators/screens.rs::a_node_says_how_it_stands_with_and_without_its_agent");
const FAULTS: How = Test("tests/suites/tests/operators/faults.rs::a_healthy_cluster_has_no_findings");
const DOCKER: How =
    Test("tests/suites/tests/host/packaging.rs::a_docker_host_is_set_up_by_the_readmes_commands");
const TO_OURS: How = Test(
    "tests/suites/tests/host/packaging.rs::a_node_goes_to_ours_and_back_under_systemd_by_the_documented_commands",
);
const ROLL_OUT: How = Test(
    "tests/suites/tests/kubernetes/rollback.rs::a_node_goes_from_flannel_to_ours_and_back_by_the_documented_commands",
);
const IMAGES: How =
    Test("tests/suites/tests/docs/commands.rs::the_registry_is_written_into_each_image_of_the_manifest");
const IMAGE: How = Test("tests/suites/tests/kubernetes/manifests/mod.rs::the_image_has_upstreams_paths");
const TRACE: How = Test("tests/suites/tests/packets/trace.rs::trace_shows_packets_at_each_hook_in_order");
const EXPLAIN: How = Test("tests/suites/tests/packets/explain.rs::explain_agrees_with_what_packets_then_do");
const CHART: How =
    Test("tests/suites/tests/kubernetes/manifests/chart.rs::the_charts_values_do_what_they_say");

const MIGRATION: How = Test("tests/suites/tests/leases/etcd/migrate.rs::nodes_move_to_v3_one_at_a_time");
const UNDONE: How =
    Test("tests/suites/tests/leases/etcd/migrate.rs::it_is_neither_finished_nor_undone_too_early");

/// Each command of the pages, with `&&` taken apart.
const COMMANDS: &[(&str, How)] = &[
    (".ci/run", Unrun("it runs this test")),
    ("cargo xtask setup", Ci),
    ("cargo xtask test", Ci),
    ("cargo xtask old-kernel", Ci),
    ("cargo xtask old-kernel --tunnels", Ci),
    ("cargo xtask kernels", Usage),
    ("cargo xtask fuzz", Usage),
    (
        "cargo xtask soak",
        Unrun("it builds a release of the agent first, even to show its usage, for minutes"),
    ),
    (
        "cargo xtask scale",
        Unrun("it builds a release of the agent first; tests/suites/tests/leases/scale.rs runs what it runs"),
    ),
    ("cargo xtask demo", Ci),
    ("cargo xtask dist", Usage),
    ("cargo build --release", Usage),
    ("cargo test -p flannel-common", Usage),
    ("cargo xtask build-ebpf", Usage),
    ("cargo xtask bench", Usage),
    ("cargo xtask bench --quick", Usage),
    ("cargo xtask bench --json run.json --svg run.svg", Usage),
    ("cargo xtask bench --scenarios vxlan,kubernetes", Usage),
    ("cargo xtask bench --compare run.json", Usage),
    ("cargo xtask bench services", Usage),
    ("cargo xtask bench control-plane", Usage),
    ("cargo xtask bench programs", Usage),
    ("cargo xtask build-and-load --bpffs /sys/fs/bpf", Usage),
    ("cargo xtask build-and-load --netns node1 --interface eth0 --program from_underlay", Usage),
    ("cargo xtask build-and-load --unload", Usage),
    (
        r#"etcdctl put /coreos.com/network/config '{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}'"#,
        BY_HAND,
    ),
    ("mount -t bpf bpf /sys/fs/bpf", BY_HAND),
    ("target/release/flannel-agent --etcd-endpoints=http://127.0.0.1:2379 --iface=eth0", BY_HAND),
    ("flannel-agent status", SCREENS),
    ("flannel-agent peers", SCREENS),
    ("flannel-agent drift", SCREENS),
    ("flannel-agent check", FAULTS),
    ("flannel-agent etcd-migrate --etcd-endpoints=http://10.0.0.1:2379 --dry-run", MIGRATION),
    ("flannel-agent etcd-migrate --etcd-endpoints=http://10.0.0.1:2379", MIGRATION),
    ("flannel-agent etcd-migrate --etcd-endpoints=http://10.0.0.1:2379 --finish", MIGRATION),
    ("flannel-agent etcd-migrate --etcd-endpoints=http://10.0.0.1:2379 --undo", UNDONE),
    ("flannel-agent bpf counters", BY_HAND),
    ("flannel-agent bpf features", BY_HAND),
    ("flannel-agent bpf unload", BY_HAND),
    ("flannel-agent explain 10.244.1.2 10.244.2.3 --proto udp --dport 53", EXPLAIN),
    ("flannel-agent trace 10.244.1.2 10.244.2.0/24 --proto udp --port 53 --count 20", TRACE),
    ("flannel-agent trace --merge node1.json --merge node2.json", TRACE),
    (
        "flannel-agent monitor --for 60",
        Test("tests/suites/tests/packets/trace.rs::monitor_tells_what_happens"),
    ),
    ("flannel-agent top", Test("tests/suites/tests/packets/trace.rs::top_shows_what_passes")),
    ("flannel-agent bugreport", Test("tests/suites/tests/packets/trace.rs::a_bug_report_holds_no_secret")),
    ("bpftool map dump pinned /sys/fs/bpf/flannel/v4/maps/routes_v4", BY_HAND),
    (
        r#"etcdctl --endpoints=http://10.0.0.1:2379 put /coreos.com/network/config '{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}'"#,
        DOCKER,
    ),
    ("install -m 755 target/release/flannel-agent /usr/bin/flanneld", DOCKER),
    (
        "install -D -m 755 flannel-agent/packaging/mk-docker-opts.sh /usr/libexec/flannel/mk-docker-opts.sh",
        DOCKER,
    ),
    ("cp -r flannel-agent/packaging/systemd/* /etc/systemd/system/", DOCKER),
    ("echo 'FLANNELD_ETCD_ENDPOINTS=http://10.0.0.1:2379' >/etc/default/flanneld", DOCKER),
    ("systemctl enable --now flanneld", DOCKER),
    ("systemctl restart docker", DOCKER),
    ("systemctl daemon-reload", TO_OURS),
    ("install -m 755 /usr/bin/flanneld /usr/bin/flanneld.stock", TO_OURS),
    ("install -m 755 target/release/flannel-agent /usr/bin/flanneld.new", TO_OURS),
    ("mv /usr/bin/flanneld.new /usr/bin/flanneld", TO_OURS),
    ("systemctl restart --job-mode=ignore-dependencies flanneld", TO_OURS),
    ("systemctl status flanneld", TO_OURS),
    ("cat /run/flannel/subnet.env", TO_OURS),
    ("install -D -m 755 mk-docker-opts.sh /usr/libexec/flannel/mk-docker-opts.sh", TO_OURS),
    ("install -D -m 644 systemd/flanneld.service /etc/systemd/system/flanneld.service", TO_OURS),
    (
        "install -D -m 644 systemd/docker.service.d/flannel.conf /etc/systemd/system/docker.service.d/flannel.conf",
        TO_OURS,
    ),
    ("$EDITOR /etc/default/flanneld", TO_OURS),
    ("systemctl reenable flanneld", TO_OURS),
    ("mv /usr/bin/flanneld /usr/bin/flannel-agent", TO_OURS),
    ("mv /usr/bin/flanneld.stock /usr/bin/flanneld", TO_OURS),
    ("install -d /etc/systemd/system/flanneld.service.d", TO_OURS),
    (r"printf '[Service]\nWatchdogSec=0\n' >/etc/systemd/system/flanneld.service.d/stock.conf", TO_OURS),
    ("install -m 644 supervisord/flanneld.conf /etc/supervisor/conf.d/flanneld.conf", Unrun(SUPERVISORD)),
    ("$EDITOR /etc/supervisor/conf.d/flanneld.conf", Unrun(SUPERVISORD)),
    ("supervisorctl reread", Unrun(SUPERVISORD)),
    ("supervisorctl update", Unrun(SUPERVISORD)),
    (
        "docker build -t REGISTRY/flannel-ebpf:0.1.0 -f flannel-agent/packaging/kubernetes/Containerfile .",
        IMAGE,
    ),
    ("docker push REGISTRY/flannel-ebpf:0.1.0", Unrun("the tests have no registry")),
    (
        "sed -i 's,image: flannel-ebpf,image: REGISTRY/flannel-ebpf,' flannel-agent/packaging/kubernetes/kube-flannel.yml",
        IMAGES,
    ),
    ("sed -i 's,image: flannel-ebpf,image: REGISTRY/flannel-ebpf,' kube-flannel.yml", IMAGES),
    ("kubectl apply -f flannel-agent/packaging/kubernetes/kube-flannel.yml", ROLL_OUT),
    (
        "apt-get install ./flannel-ebpf_0.1.0_amd64.deb",
        Unrun("`dist` builds the package, for minutes; its tests read one"),
    ),
    ("kubectl apply -f kube-flannel.yml", ROLL_OUT),
    ("kubectl apply -f flannels-own-kube-flannel.yml", ROLL_OUT),
    ("kubectl -n kube-flannel rollout status daemonset/kube-flannel-ds", ROLL_OUT),
    ("kubectl -n kube-flannel get configmap kube-flannel-cfg -o yaml >kube-flannel-cfg.yml", ROLL_OUT),
    (
        "kubectl get daemonsets -A -o custom-columns=NS:.metadata.namespace,NAME:.metadata.name,SELECTOR:.spec.selector.matchLabels | grep flannel",
        Unrun("the tests have an API server, and no kubectl"),
    ),
    (
        "helm install flannel chart/kube-flannel --namespace kube-flannel --create-namespace --set flannel.image.repository=REGISTRY/flannel-ebpf --set flannel.flannel_cni.image.repository=REGISTRY/flannel-ebpf",
        CHART,
    ),
    (
        "kubectl label namespace kube-flannel pod-security.kubernetes.io/enforce=privileged",
        Unrun("the tests have an API server, and no kubectl"),
    ),
];

const SUPERVISORD: &str = "the tests have no supervisord";

/// The commands of a page, without comments, each in one line.
fn commands_of(text: &str) -> Result<Vec<String>> {
    let comment = Regex::new(r"\s+#.*$")?;
    let mut commands = Vec::new();
    for block in text.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap_or_default()) {
        let mut whole = String::new();
        for line in block.lines() {
            let line = comment.replace(line, "");
            let line = line.trim();
            let (part, goes_on) = match line.strip_suffix('\\') {
                Some(part) => (part.trim_end(), true),
                None => (line, line.ends_with('|')),
            };
            whole.push_str(if whole.is_empty() || part.is_empty() { "" } else { " " });
            whole.push_str(part);
            if !goes_on {
                commands.extend(whole.split(" && ").map(str::to_owned).filter(|command| !command.is_empty()));
                whole.clear();
            }
        }
    }
    Ok(commands)
}

/// Whoever adds a command to a page adds the test that runs it; whoever removes one removes it here.
#[test]
fn each_command_has_its_test() -> Result<()> {
    let mut documented: BTreeMap<String, String> = BTreeMap::new();
    for page in pages()? {
        for command in commands_of(&page.text)? {
            documented.insert(command, page.name.clone());
        }
    }
    let known = |command: &str| COMMANDS.iter().any(|(known, _)| *known == command);
    let unknown: Vec<_> = documented.iter().filter(|(command, _)| !known(command)).collect();
    ensure!(unknown.is_empty(), "these commands of pages are run by no test: {unknown:#?}");
    let gone: Vec<_> = COMMANDS
        .iter()
        .map(|(command, _)| *command)
        .filter(|command| !documented.contains_key(*command))
        .collect();
    ensure!(gone.is_empty(), "these commands stand in no page any more: {gone:#?}");
    Ok(())
}

#[test]
fn the_tests_that_run_commands_exist() -> Result<()> {
    let steps = read(".ci/run")?;
    for (command, how) in COMMANDS {
        match how {
            Ci => ensure!(
                steps.lines().any(|line| line.trim() == format!("step {command}")),
                "{command} is no step of .ci/run"
            ),
            Test(name) => {
                let (file, function) = name.split_once("::").context("a file and a function")?;
                let text = read(file).with_context(|| format!("for {command}"))?;
                ensure!(text.contains(&format!("\nfn {function}(")), "{name}, for {command}, is gone");
            }
            Usage | Unrun(_) => {}
        }
    }
    Ok(())
}

/// `cargo xtask bench`.
#[derive(Parser)]
struct Bench {
    #[command(flatten)]
    _arguments: flannel_bench::Arguments,
}

#[test]
fn the_programs_know_the_words_of_their_commands() -> Result<()> {
    for (command, _) in COMMANDS.iter().filter(|(_, how)| *how == Usage) {
        let mut words: Vec<&str> = command.split(' ').skip(1).collect();
        if words.starts_with(&["xtask", "bench"]) {
            Bench::try_parse_from(&words[1..]).with_context(|| command.to_string())?;
            continue;
        }
        // Of cargo itself `--help` shows a manual.
        words.push(if words[0] == "xtask" { "--help" } else { "-h" });
        let shown = cargo(&words).with_context(|| format!("{command} is not understood"))?;
        ensure!(shown.contains("Usage:"), "{command} shows no usage: {shown}");
    }
    Ok(())
}

/// One image serves the daemon and both init containers.
#[test]
fn the_registry_is_written_into_each_image_of_the_manifest() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("kube-flannel.yml");
    let manifest = read("flannel-agent/packaging/kubernetes/kube-flannel.yml")?;
    std::fs::write(&path, &manifest)?;
    let command = "sed -i 's,image: flannel-ebpf,image: REGISTRY/flannel-ebpf,' kube-flannel.yml";
    ensure!(COMMANDS.iter().any(|(known, _)| *known == command));
    let mut shell = std::process::Command::new("sh");
    flannel_lab::command::run(shell.current_dir(&directory).args(["-ec", command]))?;
    let images: Vec<String> = std::fs::read_to_string(&path)?
        .lines()
        .filter_map(|line| line.trim().strip_prefix("image: ").map(str::to_owned))
        .collect();
    ensure!(images.len() == 3, "{images:?}");
    ensure!(images.iter().all(|image| image == "REGISTRY/flannel-ebpf:0.1.0"), "{images:?}");
    Ok(())
}

/// Commands of `page` below its heading `chapter`, as they stand there.
pub(super) fn chapter(page: &str, chapter: &str) -> Result<Vec<String>> {
    let text = read(page)?;
    let (_, rest) =
        text.split_once(&format!("\n## {chapter}\n")).with_context(|| format!("{page}: {chapter}"))?;
    commands_of(rest.split("\n## ").next().unwrap_or_default())
}
