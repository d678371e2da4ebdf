//! What else is on a node, and is not this node's: virtual addresses that move, routes and addresses that a DHCP client
//! gives to every device, tunnels of other network plugins, routes of a backend before.

use std::{
    net::{Ipv4Addr, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use flannel_lab::{
    Agent, Cluster, Etcd, FastPath, Member, Node, PREFIX, UNDERLAY_ADDRESS, eventually, in_lab,
    traffic::Paced,
};
use ipnetwork::Ipv4Network;
use serde_json::Value;

/// How long a node may take for a change of its own, beside busy neighbours.
const CONVERGENCE: Duration = Duration::from_secs(30);
const VIRTUAL: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 200);

/// Gives `eth0` these addresses, in this order, each with its prefix length, and the default route.
fn readdress(node: &Node, addresses: &[String]) -> Result<()> {
    let add: String = addresses.iter().map(|address| format!("addr add {address} dev eth0\n")).collect();
    node.netns().ip_batch(&format!(
        "addr flush dev eth0\n{add}route replace default via {UNDERLAY_ADDRESS} dev eth0\n"
    ))
}

fn own(node: &Node) -> String {
    format!("{}/24", node.address())
}

fn await_published(etcd: &Etcd, subnet: Ipv4Network, address: Ipv4Addr) -> Result<()> {
    eventually(CONVERGENCE, &format!("{subnet} is leased to {address}"), || {
        let leases = etcd.leases()?;
        let lease = leases.get(&subnet).with_context(|| format!("{leases:?}"))?;
        ensure!(lease["PublicIP"] == address.to_string(), "{leases:?}");
        Ok(())
    })
}

fn await_said(agent: &Agent, words: &str) -> Result<()> {
    eventually(CONVERGENCE, words, || {
        let log = agent.log();
        ensure!(log.contains(words), "{log}");
        Ok(())
    })
}

/// Upstream knows a node by its address alone: the second holder of a virtual one takes the first's subnet over, whose
/// pods then have another node's addresses.
#[test]
fn a_virtual_address_that_moves_takes_no_lease_along() -> Result<()> {
    in_lab(|lab| {
        let etcd = lab.etcd()?;
        let nodes = [lab.node()?, lab.node()?];
        let first = format!("{VIRTUAL}/24");
        readdress(&nodes[0], &[first.clone(), own(&nodes[0])])?;
        let [a, b] = nodes;
        let a = Member::start(a, &etcd, FastPath::Flow, 1)?;
        let of_a = a.node.subnet_env()?.subnet;
        await_published(&etcd, of_a, VIRTUAL)?;

        // While the first node runs, and the other has never run before.
        readdress(&a.node, &[own(&a.node)])?;
        readdress(&b, &[first.clone(), own(&b)])?;
        let b = Member::start(b, &etcd, FastPath::Flow, 1)?;
        let of_b = b.node.subnet_env()?.subnet;
        ensure!(of_b != of_a, "the second node took the first one's subnet over");
        await_published(&etcd, of_a, a.node.address())?;
        await_published(&etcd, of_b, VIRTUAL)?;
        let mut cluster = Cluster { members: vec![a, b], etcd };
        cluster.await_reachable(&[])?;

        // Back, while neither runs: each is known by its subnet file and its device.
        cluster.members[0].agent.terminate()?;
        cluster.members[1].agent.terminate()?;
        readdress(&cluster.members[1].node, &[own(&cluster.members[1].node)])?;
        readdress(&cluster.members[0].node, &[first, own(&cluster.members[0].node)])?;
        cluster.members[0].agent.start_again()?;
        await_said(&cluster.members[0].agent, "the lease of another node has our address")?;
        cluster.members[1].agent.start_again()?;
        await_published(&cluster.etcd, of_a, VIRTUAL)?;
        await_published(&cluster.etcd, of_b, cluster.members[1].node.address())?;

        // A single address beside the node's own is never published, and changes nothing.
        let b = &mut cluster.members[1];
        b.agent.terminate()?;
        readdress(&b.node, &["192.168.77.201/32".to_owned(), own(&b.node)])?;
        b.agent.start_again()?;
        cluster.await_reachable(&[])?;
        ensure!(cluster.etcd.leases()?.len() == 2, "{:?}", cluster.etcd.leases()?);
        for (member, subnet, address) in [(0, of_a, VIRTUAL), (1, of_b, cluster.members[1].node.address())] {
            let member = &mut cluster.members[member];
            ensure!(member.node.subnet_env()?.subnet == subnet, "{} has another subnet", member.node.name());
            await_published(&cluster.etcd, subnet, address)?;
            member.agent.check_running()?;
        }
        Ok(())
    })
}

/// A DHCP client that serves every device gives the tunnel a link-local address, the node's own, and a default route.
#[test]
fn what_a_dhcp_client_makes_of_the_tunnel_is_not_taken_for_the_underlay() -> Result<()> {
    in_lab(|lab| {
        let mut cluster = Cluster::start(lab, 2, 1, FastPath::Flow)?;
        let before = cluster.etcd.leases()?;
        let flow = Paced::usual(&cluster.members[0].pod()?, &cluster.members[1].pod()?)?;
        let Member { agent, node, .. } = &mut cluster.members[0];
        node.netns().ip_batch(&format!(
            "addr add 169.254.33.7/16 dev flannel.1\n\
             addr add 192.168.77.125/24 dev flannel.1\n\
             addr add {}/32 dev flannel.1\n\
             route del default\n\
             route add default via {UNDERLAY_ADDRESS} metric 202\n\
             route add default via 192.168.77.253 dev flannel.1 metric 10 onlink\n",
            node.address()
        ))?;
        agent.terminate()?;
        agent.drop_flag("iface");
        agent.start_again()?;
        let log = agent.log();
        let refused = "the IPv4 default route: flannel.1 is a device of flannel's overlay";
        ensure!(log.contains(refused), "{log}");
        let chosen =
            log.lines().rfind(|line| line.contains("external interface chosen")).context("no choice")?;
        ensure!(chosen.contains("interface=eth0") || chosen.contains("interface=\"eth0\""), "{chosen}");
        ensure!(cluster.etcd.leases()? == before, "{:?} instead of {before:?}", cluster.etcd.leases()?);
        let shown = cluster.members[0].node.netns().ip("addr show dev flannel.1")?;
        ensure!(shown.contains("192.168.77.125/24") && shown.contains("169.254.33.7/16"), "{shown}");
        cluster.await_reachable(&[])?;
        flow.stop()?.check_lossless()
    })
}

fn device(node: &Node) -> Result<Value> {
    let shown: Value = serde_json::from_str(&node.netns().ip("-j link show flannel.1")?)?;
    Ok(shown[0].clone())
}

/// Stock flannel ends with "address already in use", and leaves the rest to the operator's imagination.
#[test]
fn a_node_is_not_ready_while_its_port_is_taken_and_the_log_says_by_whom() -> Result<()> {
    in_lab(|lab| {
        let etcd = lab.etcd()?;
        let nodes = [lab.node()?, lab.node()?];
        let ip = |node: &Node, words: &str| node.netns().ip(words).map(drop);
        ip(&nodes[0], "link add cilium_vxlan up type vxlan dstport 8472 external")?;
        let [a, b] = nodes;
        let mut agent = a.prepared_agent(&etcd, FastPath::Flow);
        agent.set_flag("healthz-ip", "127.0.0.1");
        agent.set_flag("healthz-port", "8471");
        let nothing = agent.subnet_file_now();
        agent.launch()?;
        await_said(&agent, "UDP port 8472 is taken by device cilium_vxlan")?;
        await_said(&agent, "not ready: pods of this node would reach no other node")?;
        ensure!(agent.log().contains("delete it (ip link delete cilium_vxlan)"), "{}", agent.log());
        let ready = || {
            a.netns()
                .run("curl", &["-s", "-o", "/dev/null", "-w", "%{http_code}", "http://127.0.0.1:8471/readyz"])
        };
        ensure!(ready()?.trim() == "503", "ready: {:?}", ready()?);
        ensure!(a.subnet_env().is_err() && agent.subnet_file_now() == nothing, "a subnet file was written");
        ensure!(a.netns().ip("link show cilium_vxlan")?.contains("UP"), "somebody else's device was touched");
        agent.check_running()?;

        // It goes, and everything is as it should be, without a restart.
        ip(&a, "link del cilium_vxlan")?;
        agent.await_subnet_file(nothing)?;
        ensure!(ready()?.trim() == "200", "not ready: {:?}", ready()?);
        let a = Member { pods: vec![a.pod("pod1")?], agent, node: a };
        let b = Member::start(b, &etcd, FastPath::Flow, 1)?;
        let mut cluster = Cluster { members: vec![a, b], etcd };
        cluster.await_reachable(&[])?;

        // Other VNIs share the port.
        for (member, peer) in [(0, 1), (1, 0)] {
            let (local, remote) =
                (cluster.members[member].node.address(), cluster.members[peer].node.address());
            cluster.members[member].node.netns().ip_batch(&format!(
                "link add vx9 type vxlan id 9 dev eth0 local {local} remote {remote} dstport 8472\n\
                 addr add 172.20.9.{}/24 dev vx9\nlink set vx9 up\n",
                cluster.members[member].node.number()
            ))?;
        }
        let beside = format!("172.20.9.{}", cluster.members[1].node.number());
        eventually(CONVERGENCE, "the other VNI works", || {
            cluster.members[0].node.netns().run("ping", &["-c", "1", "-W", "1", &beside]).map(drop)
        })?;
        cluster.await_reachable(&[])?;

        // Later, by a process: while the device is down, its port is free to take.
        let Member { agent, node, .. } = &mut cluster.members[0];
        ip(node, "link del vx9")?;
        let holder = node.netns().inside(|| {
            eventually(CONVERGENCE, "the port is taken", || {
                node.netns().ip("link set flannel.1 down")?;
                Ok(UdpSocket::bind(("0.0.0.0", 8472))?)
            })
        })?;
        await_said(agent, &format!("UDP port 8472 is taken by process {}", std::process::id()))?;
        drop(holder);
        eventually(Duration::from_secs(60), "the device is up again", || {
            let device = device(&cluster.members[0].node)?;
            ensure!(device["flags"].to_string().contains("\"UP\""), "{device}");
            Ok(())
        })?;
        cluster.await_reachable(&[])?;

        // Another port is nobody's.
        let Member { agent, node, .. } = &mut cluster.members[0];
        agent.terminate()?;
        cluster.etcd.put(
            &format!("{PREFIX}/config"),
            r#"{"Network":"10.244.0.0/16","SubnetMin":"10.244.16.0","SubnetMax":"10.244.63.0","Backend":{"Type":"vxlan","Port":8473}}"#,
        )?;
        ip(node, "link set flannel.1 down")?;
        ip(node, "link add cilium_vxlan up type vxlan dstport 8472 external")?;
        agent.start_again()?;
        cluster.members[1].agent.terminate()?;
        cluster.members[1].agent.start_again()?;
        cluster.await_reachable(&[])
    })
}

/// Stock flannel leaves the routes over its device, and with them the packets for a peer that only the tunnel reached.
#[test]
fn a_node_that_turns_to_host_gw_sends_nothing_into_the_old_tunnel() -> Result<()> {
    in_lab(|lab| {
        let mut cluster = Cluster::start(lab, 2, 1, FastPath::Flow)?;
        let far: Ipv4Network = "10.244.180.0/24".parse()?;
        let vxlan = r#"{"PublicIP":"203.0.113.7","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:00:00:00:00:07"}}"#;
        cluster.etcd.put_lease(far, vxlan)?;
        let tunnelled = |member: &Member| member.node.netns().ip("route show dev flannel.1");
        eventually(CONVERGENCE, "the far node is reached by the tunnel", || {
            let routes = tunnelled(&cluster.members[0])?;
            ensure!(routes.contains("10.244.180.0/24"), "{routes}");
            Ok(())
        })?;
        // What an administrator has put there.
        let foreign = "10.99.0.0/24 via 10.99.0.0 dev flannel.1 onlink";
        cluster.members[0].node.netns().ip(&format!("route add {foreign}"))?;
        let flow = Paced::usual(&cluster.members[0].pod()?, &cluster.members[1].pod()?)?;

        let config = r#"{"Network":"10.244.0.0/16","SubnetMin":"10.244.16.0","SubnetMax":"10.244.63.0","Backend":{"Type":"host-gw"}}"#;
        cluster.etcd.put(&format!("{PREFIX}/config"), config)?;
        cluster
            .etcd
            .put_lease(far, r#"{"PublicIP":"203.0.113.7","PublicIPv6":null,"BackendType":"host-gw"}"#)?;
        for member in &mut cluster.members {
            member.agent.terminate()?;
        }
        for member in &mut cluster.members {
            member.agent.start_again()?;
        }
        for member in &cluster.members {
            eventually(CONVERGENCE, "no peer is reached by the tunnel", || {
                let routes = tunnelled(member)?;
                ensure!(!routes.contains("10.244."), "{routes}");
                Ok(())
            })?;
        }
        let routes = tunnelled(&cluster.members[0])?;
        ensure!(routes.contains("10.99.0.0/24"), "{routes}");
        cluster.await_reachable(&[])?;
        println!("from vxlan to host-gw: {}", flow.stop()?);
        Ok(())
    })
}
