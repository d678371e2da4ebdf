//! What the kernel forwards by, changed under running flows: they obey as new ones do, and not when their acceptance ends.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use flannel_common::reason::Reason;
use flannel_lab::{
    AgentOptions, Cluster, FastPath, eventually, in_lab,
    traffic::{Dialogue, ping::ping},
};

use crate::{counted, fast, packets};

/// Well before the acceptance of a flow ends by itself (`--flow-refresh` is 30 s).
const AT_ONCE: Duration = Duration::from_secs(10);

#[derive(Clone, Copy)]
enum Ip {
    V4,
    V6,
}

/// What somebody changes on a node: of the pods' addresses, `$A` is one of the first node's, `$B` of the second's.
struct Change {
    node: usize,
    ip: Ip,
    make: &'static str,
    undo: &'static str,
}

const fn change(node: usize, ip: Ip, make: &'static str, undo: &'static str) -> Change {
    Change { node, ip, make, undo }
}

const CHANGES: [Change; 13] = [
    change(0, Ip::V4, "ip route add blackhole $B", "ip route del blackhole $B"),
    change(1, Ip::V4, "ip route add unreachable $B", "ip route del unreachable $B"),
    change(0, Ip::V4, "ip route add $B via 192.168.77.250 onlink dev eth0", "ip route del $B"),
    change(0, Ip::V4, "ip rule add from $A blackhole", "ip rule del from $A blackhole"),
    change(1, Ip::V4, "ip rule add to $B prohibit", "ip rule del to $B prohibit"),
    change(
        0,
        Ip::V4,
        "ip rule add iif cni0 table 99; ip route add unreachable default table 99",
        "ip rule del iif cni0 table 99; ip route flush table 99",
    ),
    change(0, Ip::V4, "echo 0 > /proc/sys/net/ipv4/ip_forward", "echo 1 > /proc/sys/net/ipv4/ip_forward"),
    change(
        1,
        Ip::V4,
        "echo 0 > /proc/sys/net/ipv4/conf/flannel.1/forwarding",
        "echo 1 > /proc/sys/net/ipv4/conf/flannel.1/forwarding",
    ),
    change(0, Ip::V4, "ip xfrm policy setdefault fwd block", "ip xfrm policy setdefault fwd accept"),
    change(1, Ip::V4, "ip xfrm policy setdefault in block", "ip xfrm policy setdefault in accept"),
    change(0, Ip::V6, "ip route add blackhole $B", "ip route del blackhole $B"),
    change(1, Ip::V6, "ip -6 rule add to $B blackhole", "ip -6 rule del to $B blackhole"),
    change(
        0,
        Ip::V6,
        "echo 0 > /proc/sys/net/ipv6/conf/all/forwarding",
        "echo 1 > /proc/sys/net/ipv6/conf/all/forwarding",
    ),
];

fn is_obeyed(cluster: &Cluster, change: &Change) -> Result<()> {
    let [a, b] = match change.ip {
        Ip::V4 => [cluster.members[0].pod()?, cluster.members[1].pod()?],
        Ip::V6 => [cluster.members[0].pod_v6()?, cluster.members[1].pod_v6()?],
    };
    let [source, destination] = [a.socket_address(0).ip(), b.socket_address(0).ip()];
    let run = |script: &str| {
        let script = format!("A={source}; B={destination}; {script}");
        cluster.members[change.node].node.netns().run("sh", &["-ec", &script]).map(drop)
    };
    let mut running = Dialogue::open(&a, &b)?;
    running.exchanges(20)?;
    run(change.make)?;
    eventually(AT_ONCE, "the running flow has stopped", || {
        ensure!(running.exchange_within(Duration::from_millis(300)).is_err(), "it goes on");
        Ok(())
    })?;
    ensure!(ping(&a, &b, 56).is_err(), "a new flow passed");
    run(change.undo)?;
    eventually(AT_ONCE, "pods reach each other", || ping(&a, &b, 56).map(drop))
}

fn each_is_obeyed(fast_path: FastPath) -> Result<()> {
    in_lab(|lab| {
        let cluster = Cluster::dual_pair(lab, 1, AgentOptions::new(fast_path, &["--flow-refresh=30"]))?;
        for change in &CHANGES {
            cluster.await_fast_path(0, 1, fast_path)?;
            cluster.await_fast_path_v6(0, 1, fast_path)?;
            is_obeyed(&cluster, change).with_context(|| format!("node {}: {}", change.node, change.make))?;
        }
        Ok(())
    })
}

#[test]
fn changed_routes_rules_and_settings_are_obeyed_with_off() -> Result<()> {
    each_is_obeyed(FastPath::Off)
}

#[test]
fn changed_routes_rules_and_settings_are_obeyed_with_overlay() -> Result<()> {
    each_is_obeyed(FastPath::Overlay)
}

#[test]
fn changed_routes_rules_and_settings_are_obeyed_with_flow() -> Result<()> {
    each_is_obeyed(FastPath::Flow)
}

/// A routing daemon takes in all routes of the internet, and then a few of pods again and again.
#[test]
fn a_storm_of_other_routes_costs_no_flow_its_way_and_one_of_pods_routes_little() -> Result<()> {
    in_lab(|lab| {
        let cluster = Cluster::pair(lab, 1, AgentOptions::new(FastPath::Flow, &["--flow-refresh=30"]))?;
        cluster.await_dataplane(FastPath::Flow.into())?;
        let [a, b] = [cluster.members[0].pod()?, cluster.members[1].pod()?];
        let netns = cluster.members[0].node.netns();
        // What the pods' own interfaces have changed is over.
        std::thread::sleep(Duration::from_secs(1));
        let mut running = Dialogue::open(&a, &b)?;
        running.exchanges(20)?;
        let batch = |how: &str, routes: &[String]| {
            netns.ip_batch(&routes.iter().map(|route| format!("route {how} {route}\n")).collect::<String>())
        };
        let others: Vec<_> =
            (0..10_000).map(|n| format!("172.{}.{}.0/24 dev eth0", 16 + n / 256, n % 256)).collect();
        let counters = counted(&cluster, || {
            batch("add", &others)?;
            running.exchanges(100)?;
            batch("del", &others)?;
            running.exchanges(100)
        })?;
        ensure!(packets(&counters[0], Reason::FlowStale) == 0, "{}", counters[0]);
        ensure!(fast(&counters[0])[0] >= 200, "{}", counters[0]);
        // Routes to addresses that no pod has.
        let unused: Vec<_> = (0..200).map(|n| format!("blackhole 10.244.255.{n}/32")).collect();
        let counters = counted(&cluster, || {
            for _ in 0..5 {
                batch("add", &unused)?;
                running.exchanges(100)?;
                batch("del", &unused)?;
                running.exchanges(100)?;
            }
            Ok(())
        })?;
        ensure!(packets(&counters[0], Reason::FlowStale) > 0, "{}", counters[0]);
        // Each end of acceptance lasts until the programs' coarse clock goes on.
        ensure!(fast(&counters[0])[0] >= 500, "{}", counters[0]);
        Ok(())
    })
}
