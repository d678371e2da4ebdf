//! What others write into etcd, by accident or to do harm, costs nobody a packet.

use std::{
    fs,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use flannel_lab::{CONVERGENCE, Cluster, Etcd, FastPath, Member, eventually, in_lab, traffic::Paced};

const SUBNETS: &str = "/coreos.com/network/subnets";

fn vxlan(public_ip: &str, mac: &str) -> String {
    format!(
        r#"{{"PublicIP":"{public_ip}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
    )
}

/// Keys and values that no flannel writes. `peer` is the third byte of a node's subnet.
fn hostile(peer: u8) -> Vec<(String, String)> {
    let valid = vxlan("192.168.77.60", "0e:00:00:00:02:01");
    let even = peer & !1;
    let mut all: Vec<(String, String)> = [
        // Wider than a node's subnet, and as wide as the network.
        "10.244.0.0-16".to_owned(),
        "10.244.0.0-17".to_owned(),
        "10.244.128.0-17".to_owned(),
        format!("10.244.{even}.0-23"),
        // A second key of one subnet, and one with IPv6.
        format!("x10.244.{peer}.0-24"),
        format!("10.244.{peer}.0-24&fd00:1::-64"),
        // Subnets nothing can be routed to, or that take in the nodes themselves.
        "127.0.0.0-8".to_owned(),
        "224.0.0.0-4".to_owned(),
        "192.0.0.0-8".to_owned(),
        "0.0.0.0-1".to_owned(),
    ]
    .into_iter()
    .map(|key| (key, valid.clone()))
    .collect();
    let addresses = ["224.0.0.5", "127.0.0.1", "255.255.255.255", "0.0.0.0", "10.244.250.7", "8.8.8.8"];
    let values = addresses.map(|address| vxlan(address, "0e:00:00:00:02:02")).into_iter().chain(
        ["00:00:00:00:00:00", "01:00:5e:00:00:01", "", "not a MAC"].map(|mac| vxlan("192.168.77.61", mac)),
    );
    let garbage =
        ["", "{", "null", "[]", r#"{"PublicIP":7}"#, r#"{"PublicIP":"192.168.77.62","BackendType":"vxlan"}"#];
    let values = values.chain(garbage.map(str::to_owned));
    // Ends the line, forges one, clears the screen and turns the reading direction.
    let forged = r#"{"PublicIP":"192.168.77.62","BackendType":"x\n2026 ERROR forged\u001b[2J\u009b\u202e"}"#;
    let long = format!(r#"{{"PublicIP":"192.168.77.62","BackendType":"{}"}}"#, "x".repeat(10_000));
    all.extend(
        (200..)
            .zip(values.chain([forged.to_owned(), long]))
            .map(|(n, value)| (format!("10.244.{n}.0-24"), value)),
    );
    all
}

fn put(etcd: &Etcd, key: &str, value: &str) -> Result<()> {
    etcd.put(&format!("{SUBNETS}/{key}"), value)
}

fn lines(member: &Member) -> usize {
    member.agent.log().lines().count()
}

#[test]
fn hostile_leases_cost_nobody_a_packet() -> Result<()> {
    in_lab(|lab| {
        let mut cluster = Cluster::start(lab, 2, 1, FastPath::All)?;
        cluster.await_fast_path(0, 1, FastPath::All)?;
        cluster.await_fast_path(1, 0, FastPath::All)?;
        let subnet = cluster.members[1].node.subnet_env()?.subnet;
        let all = hostile(subnet.network().octets()[2]);
        let route = || cluster.members[0].node.netns().ip(&format!("route show {}", subnet));
        let (before, logged) = (route()?, lines(&cluster.members[0]));
        ensure!(before.contains("flannel.1"), "no route: {before}");
        let flow = Paced::usual(&cluster.members[0].pod()?, &cluster.members[1].pod()?)?;
        for (key, value) in &all {
            put(&cluster.etcd, key, value)?;
        }
        // One that stands alone comes through: the others have been seen.
        let heard = |key: &str, present: bool| {
            put(&cluster.etcd, key, &vxlan("192.168.77.63", "0e:00:00:00:02:63"))?;
            let subnet = key.replace('-', "/");
            eventually(CONVERGENCE, "the last lease is heard", || {
                let routes = cluster.members[0].node.netns().ip(&format!("route show {subnet}"))?;
                ensure!(routes.is_empty() != present, "{routes}");
                Ok(())
            })
        };
        heard("10.244.251.0-24", true)?;
        ensure!(route()? == before, "the route became {}", route()?);
        for (key, _) in &all {
            cluster.etcd.delete(&format!("{SUBNETS}/{key}"))?;
        }
        heard("10.244.252.0-24", true)?;
        ensure!(route()? == before, "the route became {}", route()?);
        flow.stop()?.check_lossless()?;
        let log = cluster.members[0].agent.log();
        let told: Vec<_> = log.lines().skip(logged).collect();
        ensure!(told.len() < all.len() * 4, "{} lines:\n{}", told.len(), told.join("\n"));
        let longest = told.iter().map(|line| line.len()).max().unwrap_or_default();
        ensure!(longest < 1000, "a line of {longest} bytes");
        let strange = |character: char| character.is_control() || character == '\u{202e}';
        let forged: Vec<_> =
            told.iter().filter(|line| line.starts_with("2026 ") || line.contains(strange)).collect();
        ensure!(forged.is_empty(), "{forged:#?}");
        ensure!(told.iter().any(|line| line.contains(r"x\n2026 ERROR forged\u{1b}[2J")), "it is not told of");
        // Nobody touched what the agent keeps, though two of the routes could not be made.
        let repairs: Vec<_> = told.iter().filter(|line| line.contains("restored:")).collect();
        ensure!(repairs.is_empty(), "{repairs:#?}");
        cluster.members.iter_mut().try_for_each(|member| member.agent.check_running())
    })
}

#[test]
fn an_emptied_etcd_costs_nobody_a_packet() -> Result<()> {
    in_lab(|lab| {
        let mut cluster = Cluster::start(lab, 3, 1, FastPath::All)?;
        cluster.await_fast_path(0, 1, FastPath::All)?;
        cluster.await_fast_path(1, 0, FastPath::All)?;
        let leases = cluster.etcd.leases()?;
        // Its agent is not there to write its lease again.
        cluster.members[2].agent.kill()?;
        let flows = [
            Paced::usual(&cluster.members[0].pod()?, &cluster.members[1].pod()?)?,
            Paced::usual(&cluster.members[0].pod()?, &cluster.members[2].pod()?)?,
        ];
        cluster.etcd.stop()?;
        cluster.etcd.wipe()?;
        cluster.etcd.start()?;
        eventually(CONVERGENCE, "two leases are written again", || {
            let now = cluster.etcd.leases()?;
            ensure!(
                now.len() == 2 && now.iter().all(|(subnet, lease)| leases.get(subnet) == Some(lease)),
                "{now:?}"
            );
            Ok(())
        })?;
        for member in &cluster.members[..2] {
            eventually(CONVERGENCE, "the loss is told", || {
                ensure!(member.agent.log().contains("etcd has lost leases"), "{}", member.agent.log());
                Ok(())
            })?;
        }
        sleep(Duration::from_secs(1));
        for flow in flows {
            flow.stop()?.check_lossless()?;
        }
        // The third finds its subnet as it was, once there is a configuration again.
        cluster.etcd.configure()?;
        cluster.members[2].agent.start_again()?;
        eventually(CONVERGENCE, "all leases are as they were", || {
            let now = cluster.etcd.leases()?;
            ensure!(now == leases, "{now:?}");
            Ok(())
        })
    })
}

#[test]
fn a_route_fight_does_not_flood_the_log() -> Result<()> {
    in_lab(|lab| {
        let mut cluster = Cluster::start(lab, 2, 1, FastPath::Flow)?;
        let subnet = cluster.members[1].node.subnet_env()?.subnet;
        let node = cluster.members[0].node.netns().clone();
        let before = lines(&cluster.members[0]);
        let (start, mut fights) = (Instant::now(), 0);
        while fights < 250 && start.elapsed() < Duration::from_secs(180) {
            fights += usize::from(node.ip(&format!("route del {subnet}")).is_ok());
            sleep(Duration::from_millis(20));
        }
        ensure!(fights == 250, "only {fights} repairs within {:?}", start.elapsed());
        eventually(CONVERGENCE, "the route is back", || {
            ensure!(!node.ip(&format!("route show {subnet}"))?.is_empty(), "no route");
            Ok(())
        })?;
        let told = lines(&cluster.members[0]) - before;
        ensure!((50..150).contains(&told), "{told} lines");
        cluster.members.iter_mut().try_for_each(|member| member.agent.check_running())
    })
}

#[test]
fn the_subnet_file_comes_back() -> Result<()> {
    in_lab(|lab| {
        let cluster = Cluster::start(lab, 1, 0, FastPath::Off)?;
        let file = cluster.members[0].node.subnet_file();
        let before = fs::read_to_string(&file)?;
        fs::remove_file(&file).context("remove the subnet file")?;
        eventually(CONVERGENCE, "the file is there", || {
            ensure!(fs::read_to_string(&file)? == before, "it says something else");
            Ok(())
        })
    })
}
