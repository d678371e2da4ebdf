//! Upstream's functional test "multi": daemons on each of two hosts, one network by vxlan and one by host-gw, each
//! with an etcd prefix and a subnet file of its own. Beside them a second one by vxlan, with the same VNI and so the same
//! device.

use std::{net::Ipv4Addr, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use flannel_lab::{
    Etcd, Node, SubnetEnv, agent_binary,
    command::{Daemon, run},
    eventually, in_lab,
};

const PATIENCE: Duration = Duration::from_secs(30);

/// Prefix, configuration, and the device that packets between the hosts leave by.
const NETWORKS: [(&str, &str, &str); 3] = [
    ("vxlan", r#"{"Network":"10.11.0.0/16","Backend":{"Type":"vxlan"}}"#, "flannel.1"),
    ("hostgw", r#"{"Network":"10.12.0.0/16","Backend":{"Type":"host-gw"}}"#, "eth0"),
    ("vxlan2", r#"{"Network":"10.13.0.0/16","Backend":{"Type":"vxlan"}}"#, "flannel.1"),
];

/// A host's daemon for one network.
struct Membership {
    daemon: Daemon,
    /// First address of the subnet, which a bridge holds.
    address: Ipv4Addr,
}

impl Membership {
    fn start(node: &Node, etcd: &Etcd, name: &str) -> Result<Self> {
        let file: PathBuf = node.dir().join(name).join("subnet.env");
        let mut command = node.netns().command(&agent_binary()?.to_string_lossy());
        command.args([
            format!("--etcd-endpoints={}", etcd.endpoint()),
            format!("--etcd-prefix=/{name}/network"),
            format!("--subnet-file={}", file.display()),
            format!("--bpffs={}", node.bpffs().display()),
        ]);
        let mut daemon = Daemon::spawn(&mut command, &node.log(name))?;
        let env = eventually(PATIENCE, "the subnet file is written", || {
            daemon.check_running()?;
            SubnetEnv::read(&file)
        })?;
        let address = env.subnet.nth(1).context("a subnet of one address")?;
        node.netns().ip_batch(&format!(
            "link add {name} type bridge\n\
             addr add {address}/{} dev {name}\n\
             link set {name} up\n",
            env.subnet.prefix()
        ))?;
        Ok(Self { daemon, address })
    }
}

fn ping(node: &Node, from: &str, to: Ipv4Addr) -> Result<()> {
    let to = to.to_string();
    run(node.netns().command("ping").args(["-c", "3", "-i", "0.2", "-W", "2", "-I", from, &to])).map(drop)
}

#[test]
fn daemons_on_each_host_carry_a_network_each() -> Result<()> {
    in_lab(|lab| {
        let etcd = lab.etcd()?;
        for (name, config, _) in NETWORKS {
            etcd.put(&format!("/{name}/network/config"), config)?;
        }
        let nodes = [lab.node()?, lab.node()?];
        let mut members = Vec::new();
        for node in &nodes {
            members.push(NETWORKS.map(|(name, ..)| Membership::start(node, &etcd, name)));
        }
        let members: Vec<Vec<Membership>> = members
            .into_iter()
            .map(|of_host| of_host.into_iter().collect::<Result<_>>())
            .collect::<Result<_>>()?;
        for (host, peer) in [(0, 1), (1, 0)] {
            for (network, (name, _, device)) in NETWORKS.iter().enumerate() {
                let (from, to) = (members[host][network].address, members[peer][network].address);
                eventually(PATIENCE, name, || ping(&nodes[host], &from.to_string(), to))?;
                ping(&nodes[host], device, to).with_context(|| format!("{name} by {device}"))?;
                let wrong = if *device == "eth0" { "flannel.1" } else { "eth0" };
                ensure!(ping(&nodes[host], wrong, to).is_err(), "{name} is reached by {wrong}");
            }
        }
        each_leaves_alone_what_is_anothers(&nodes[0], &etcd)?;
        for mut membership in members.into_iter().flatten() {
            membership.daemon.check_running()?;
            let log = membership.daemon.log();
            ensure!(!log.contains("restored: "), "one daemon undoes what another does:\n{log}");
        }
        Ok(())
    })
}

/// A node of both networks has one device, one MAC and one forwarding entry: it goes with the last of its leases.
fn each_leaves_alone_what_is_anothers(node: &Node, etcd: &Etcd) -> Result<()> {
    const MAC: &str = "0e:00:00:00:00:fa";
    let lease = format!(
        r#"{{"PublicIP":"192.168.77.250","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{MAC}"}}}}"#
    );
    let leases = [("/vxlan/network/subnets", "10.11.250.0"), ("/vxlan2/network/subnets", "10.13.250.0")];
    for (directory, base) in leases {
        etcd.put(&format!("{directory}/{base}-24"), &lease)?;
    }
    let await_peer = |base: &str, there: bool, forwarded: bool| {
        eventually(PATIENCE, base, || {
            let routes = node.netns().ip("route show dev flannel.1")?;
            let neighbours = node.netns().ip("neigh show dev flannel.1")?;
            let entries = node.netns().bridge("fdb show dev flannel.1")?;
            let all = format!("{routes}{neighbours}{entries}");
            ensure!(routes.contains(base) == there && neighbours.contains(base) == there, "{all}");
            ensure!(entries.contains(MAC) == forwarded, "{all}");
            Ok(())
        })
    };
    await_peer("10.11.250.0", true, true)?;
    await_peer("10.13.250.0", true, true)?;
    etcd.delete(&format!("{}/{}-24", leases[0].0, leases[0].1))?;
    await_peer("10.11.250.0", false, true)?;
    await_peer("10.13.250.0", true, true)?;
    etcd.delete(&format!("{}/{}-24", leases[1].0, leases[1].1))?;
    await_peer("10.13.250.0", false, false)
}
