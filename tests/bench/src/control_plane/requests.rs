//! The agent's requests to the kernel, counted by `strace`.

use std::{collections::BTreeMap, fs, path::Path, thread::sleep, time::Duration};

use anyhow::{Context as _, Result};
use flannel_lab::{Node, command::Daemon};
use rand::rngs::StdRng;

use super::{Options, PATIENCE, SETTLE, peers::Peers, probe::Probe, process::Process, store::Store};

/// Calls by name.
pub(super) type Requests = BTreeMap<String, u64>;

/// Counts from a start until nothing is left to do, at rest, and under changes; the last two over `options.seconds`.
pub(super) fn count(
    node: &Node,
    etcd: &str,
    options: &Options,
    store: &mut Store,
    peers: &mut Peers,
    random: &mut StdRng,
) -> Result<[(&'static str, Requests); 3]> {
    let summary = node.dir().join("strace");
    let path = summary.to_string_lossy().into_owned();
    // An empty node: what the last agent left would need no requests.
    node.netns().ip("link del flannel.1")?;
    fs::remove_dir_all(node.bpffs().join("flannel")).context("unpin the maps")?;

    let words = ["strace", "--follow-forks", "--summary-only", "--output", &path, "--"];
    let mut traced = Process::start_under(node, etcd, &words)?;
    traced.await_log("ready", PATIENCE)?;
    let probe = Probe::await_maps(node, PATIENCE, || traced.check_running())?;
    probe.await_all(peers, PATIENCE, || traced.check_running())?;
    sleep(SETTLE);
    traced.stop_traced()?;
    let start = read(&summary)?;

    let mut agent = Process::start(node, etcd)?;
    agent.await_log("ready", PATIENCE)?;
    sleep(SETTLE);
    let seconds = Duration::from_secs(options.seconds.into());
    let rest = attached(&agent, &summary, node, || {
        sleep(seconds);
        Ok(())
    })?;
    let churn = attached(&agent, &summary, node, || {
        super::events::churn(store, &probe, peers, (options.rate, options.seconds), random).map(drop)
    })?;
    agent.check_running()?;
    agent.stop()?;
    Ok([("start", start), ("rest", rest), ("churn", churn)])
}

fn attached(
    agent: &Process,
    summary: &Path,
    node: &Node,
    work: impl FnOnce() -> Result<()>,
) -> Result<Requests> {
    let mut strace = flannel_lab::command::tool("strace");
    strace
        .args(["--follow-forks", "--summary-only", "--attach", &agent.id().to_string(), "--output"])
        .arg(summary);
    let mut strace = Daemon::spawn(&mut strace, &node.log("strace"))?;
    sleep(Duration::from_millis(300));
    strace.check_running()?;
    work()?;
    // Interrupted, it detaches and sums up.
    strace.signal(nix::sys::signal::Signal::SIGINT, Duration::from_secs(10))?;
    read(summary)
}

/// The table that `strace -c` writes: calls in the fourth column, the name in the last.
fn read(path: &Path) -> Result<Requests> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let requests = parse(&text);
    anyhow::ensure!(!requests.is_empty(), "strace counted nothing:\n{text}");
    Ok(requests)
}

fn parse(text: &str) -> Requests {
    let row = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let name = *words.last()?;
        let calls = words.get(3)?.parse().ok()?;
        words.first()?.parse::<f64>().ok()?;
        (name != "total").then(|| (name.to_owned(), calls))
    };
    text.lines().filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_summary() {
        let text = "\
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 60.00    0.000300           3       100         2 bpf
 40.00    0.000200           4        50           sendto
------ ----------- ----------- --------- --------- ----------------
100.00    0.000500           3       150         2 total
";
        let expected = [("bpf".to_owned(), 100), ("sendto".to_owned(), 50)];
        assert_eq!(parse(text), Requests::from(expected));
    }
}
