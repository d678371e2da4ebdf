//! A thousand nodes, and fifty changes a second. What it takes is printed, not judged: machines differ.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader},
    process::Stdio,
    thread::{self, sleep},
    time::{Duration, Instant},
};

use flannel_lab::{FastPath, Memory, in_kubernetes_lab};
use futures::{StreamExt as _, stream};
use http::{Request, header::CONTENT_TYPE};
use kube::Client;

use super::*;

const NODES: u32 = 1000;
const CHANGES: u32 = 500;
const RATE: u32 = 50;

#[test]
fn a_thousand_nodes_and_fifty_changes_a_second() -> Result<()> {
    in_kubernetes_lab(|lab| {
        let kube = Kube::start(lab)?;
        fs::write(&kube.access.net_config, r#"{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan"}}"#)?;
        kube.api.as_admin(async |client| {
            let made = stream::iter(0..NODES).map(|number| post(&client, number)).buffer_unordered(16);
            made.collect::<Vec<_>>().await.into_iter().collect::<Result<Vec<_>>>().map(drop)
        })?;

        let node = kube.machine(lab)?;
        let mut agent = node.prepared_in_kubernetes(&kube.access, FastPath::All.into());
        let (before, begun) = (agent.subnet_file_now(), Instant::now());
        agent.launch()?;
        agent.await_subnet_file(before)?;
        println!("{NODES} nodes: ready {:?} after the start", begun.elapsed());
        eventually(CONVERGENCE, "a route to every node", || {
            let routes = node.netns().ip("route show dev flannel.1")?.lines().count();
            ensure!(routes == NODES as usize, "{routes} routes");
            Ok(())
        })?;
        let (pid, quiet) = (agent.pid()?, usage(agent.pid()?)?);
        println!("resident {} kB, at most {} kB", quiet.memory.resident, quiet.memory.peak);

        let mut monitor = node
            .netns()
            .command("ip")
            .args(["monitor", "neigh", "dev", "flannel.1"])
            .stdout(Stdio::piped())
            .spawn()?;
        let lines = BufReader::new(monitor.stdout.take().context("no output")?).lines();
        let seen = thread::spawn(move || {
            let stamped = lines.map_while(Result::ok).filter_map(|line| {
                let mac = line.split(" lladdr ").nth(1)?.split(' ').next()?.to_owned();
                Some((mac, Instant::now()))
            });
            // The first of each: what is written again is no news.
            stamped.fold(BTreeMap::new(), |mut seen, (mac, at)| {
                seen.entry(mac).or_insert(at);
                seen
            })
        });
        sleep(Duration::from_millis(500));
        let begun = Instant::now();
        let written = kube.api.as_admin(async |client| {
            let mut ticks = tokio::time::interval(Duration::from_secs(1) / RATE);
            let mut written = BTreeMap::new();
            for change in 0..CHANGES {
                ticks.tick().await;
                let mac = mac(NODES + change);
                let at = Instant::now();
                patch(&client, change % NODES, &mac).await?;
                written.insert(mac, at);
            }
            Ok(written)
        })?;
        let took = begun.elapsed();
        sleep(Duration::from_secs(2));
        let busy = usage(pid)?;
        monitor.kill()?;
        monitor.wait()?;
        let seen = seen.join().map_err(|_| anyhow::anyhow!("panicked"))?;
        let delay = |(mac, at): (&String, &Instant)| Some(seen.get(mac)?.duration_since(*at));
        let mut delays: Vec<Duration> = written.iter().filter_map(delay).collect();
        ensure!(delays.len() == CHANGES as usize, "{} of {CHANGES} changes were seen", delays.len());
        delays.sort_unstable();
        let at = |percent: usize| delays[(delays.len() - 1) * percent / 100];
        println!(
            "{CHANGES} changes in {took:?}: from before the request to the neighbour p50 {:?}, p99 {:?}, longest {:?}; \
             CPU {:.1} % of one; resident {} kB, at most {} kB",
            at(50),
            at(99),
            at(100),
            100.0 * (busy.cpu - quiet.cpu).as_secs_f64() / took.as_secs_f64(),
            busy.memory.resident,
            busy.memory.peak
        );
        agent.check_running()
    })
}

/// A MAC that no other number has.
fn mac(number: u32) -> String {
    let [_, a, b, c] = number.to_be_bytes();
    format!("0e:00:01:{a:02x}:{b:02x}:{c:02x}")
}

async fn post(client: &Client, number: u32) -> Result<()> {
    let [.., high, low] = number.to_be_bytes();
    let cidr = format!("10.{}.{low}.0/24", 100 + high);
    let object = json!({
        "metadata": {"name": format!("many{number}"), "annotations": {
            format!("{PREFIX}/kube-subnet-manager"): "true",
            format!("{PREFIX}/backend-type"): "vxlan",
            format!("{PREFIX}/backend-data"): backend_data(&mac(number)),
            format!("{PREFIX}/public-ip"): format!("172.20.{high}.{low}"),
            // A Node of a real cluster is of some ten kilobytes.
            "example.org/ballast": "x".repeat(8000),
        }},
        "spec": {"podCIDR": cidr, "podCIDRs": [cidr]},
    });
    let request = Request::post("/api/v1/nodes").header(CONTENT_TYPE, "application/json");
    client.request_text(request.body(object.to_string().into_bytes())?).await?;
    Ok(())
}

async fn patch(client: &Client, number: u32, mac: &str) -> Result<()> {
    let patch = json!({"metadata": {"annotations": {format!("{PREFIX}/backend-data"): backend_data(mac)}}});
    let request = Request::patch(format!("/api/v1/nodes/many{number}"));
    let request = request.header(CONTENT_TYPE, "application/merge-patch+json");
    client.request_text(request.body(patch.to_string().into_bytes())?).await?;
    Ok(())
}

fn backend_data(mac: &str) -> String {
    format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#)
}

/// What a process takes.
struct Usage {
    /// In user mode and in the kernel, since it began.
    cpu: Duration,
    memory: Memory,
}

fn usage(pid: u32) -> Result<Usage> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // Behind the name, which may hold anything: state is the first field, utime the twelfth, stime the next.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    // USER_HZ is 100 on every architecture this runs on.
    Ok(Usage { cpu: Duration::from_millis(ticks * 10), memory: Memory::of(pid)? })
}
