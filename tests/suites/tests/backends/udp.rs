//! The udp backend: what a network configuration without `Backend` means.

use anyhow::{Context as _, Result, ensure};
use flannel_common::reason::{Class, Direction, Reason};
use flannel_lab::{
    CONVERGENCE, Cluster, Etcd, FastPath, Lab, Member, Node, PREFIX, Pod, StockUdp, eventually, in_lab,
    traffic::{Endpoint, ping::ping, reachability, tcp, udp},
};
use serde_json::{Value, json};

/// Upstream's default, as whoever writes no `Backend` gets it.
const CONFIG: &str = r#"{"Network":"10.244.0.0/16","SubnetMin":"10.244.16.0","SubnetMax":"10.244.63.0"}"#;

fn etcd(lab: &Lab) -> Result<Etcd> {
    let etcd = lab.etcd()?;
    etcd.put(&format!("{PREFIX}/config"), CONFIG)?;
    Ok(etcd)
}

fn members(lab: &Lab, etcd: &Etcd, count: usize) -> Result<Vec<Member>> {
    (0..count).map(|_| Member::start(lab.node()?, etcd, FastPath::Flow, 1)).collect()
}

/// A node of stock flannel with a pod.
fn stock(lab: &Lab, etcd: &Etcd) -> Result<(StockUdp, Pod, Node)> {
    let node = lab.node()?;
    let stock = node.stock_udp()?;
    let pod = node.pod("pod1")?;
    stock.publish(etcd)?;
    stock.sync(etcd)?;
    Ok((stock, pod, node))
}

fn everyone_reaches_everyone(everyone: &[Endpoint]) -> Result<()> {
    eventually(CONVERGENCE, "everyone reaches everyone", || reachability(everyone).check_complete())
}

#[test]
fn nodes_of_ours_and_of_stock_are_one_cluster() -> Result<()> {
    in_lab(|lab| {
        let etcd = etcd(lab)?;
        let shares = lab.node()?;
        on_a_macvlan(&shares)?;
        let start = |node| Member::start(node, &etcd, FastPath::Flow, 1);
        let members = [start(lab.node()?)?, start(shares)?];
        let (_stock, pod, _node) = stock(lab, &etcd)?;
        let ends = [members[0].pod()?, members[1].pod()?, pod.endpoint()];
        everyone_reaches_everyone(&ends)?;
        let [a, b, plain] = &ends;
        for (from, to) in [(a, b), (a, plain), (plain, a)] {
            // In fragments; in aggregates, both ways; and one by one.
            ping(from, to, 8000)?;
            tcp::bulk(from, to, 8 << 20)?;
            udp::echo(from, to, 1400, 50)?;
        }

        let node = &members[0].node;
        let env = node.subnet_env()?;
        ensure!(env.mtu == 1472, "{env:?}");
        let lease = &etcd.leases()?[&env.subnet];
        ensure!(*lease == json!({"PublicIP": node.address(), "PublicIPv6": null}), "{lease}");
        let device: Value = serde_json::from_str(&node.netns().ip("-j addr show flannel0")?)?;
        let address = &device[0]["addr_info"][0];
        ensure!(device[0]["mtu"] == 1472, "{device}");
        ensure!(
            address["local"] == env.subnet.network().to_string() && address["prefixlen"] == 32,
            "{device}"
        );
        let routes = node.netns().ip("route show dev flannel0")?;
        ensure!(routes.trim() == "10.244.0.0/16", "{routes}");

        // Each end of the tunnel counts the TTL down, as each node's routing does.
        let seen = a.netns().run("ping", &["-c1", "-t9", "-W5", &plain.address().to_string()])?;
        ensure!(seen.contains("ttl=60"), "{seen}");
        let ended = a.netns().run("ping", &["-c1", "-t2", "-W5", &b.address().to_string()]);
        let ended = format!("{:#}", ended.err().context("a packet outlived its TTL")?);
        ensure!(ended.contains("Time to live exceeded"), "{ended}");
        // A subnet that nobody has.
        let refused = a.netns().run("ping", &["-c1", "-W5", "10.244.199.9"]);
        let refused = format!("{:#}", refused.err().context("an address of nobody answered")?);
        ensure!(refused.contains("Destination Net Unreachable"), "{refused}");
        Ok(())
    })
}

/// Puts the external interface on a macvlan, as containers have it that are nodes.
fn on_a_macvlan(node: &Node) -> Result<()> {
    node.netns().ip_batch(&format!(
        "link set eth0 down\nlink set eth0 name wire\naddr flush dev wire\nlink set wire up\n\
         link add link wire name eth0 type macvlan mode bridge\naddr add {}/24 dev eth0\nlink set eth0 up\n\
         route add default via 192.168.77.254 dev eth0 onlink\n",
        node.address()
    ))
}

/// Gives the nodes an external interface that finishes packets, as a card does: a veth pair hands over the sums that are to
/// be made, and aggregates, and the agent then leaves nothing to the programs.
fn with_finished_packets(nodes: &[&Node]) -> Result<()> {
    for node in nodes {
        let number = node.number();
        let batch = format!(
            "link set eth0 down\nlink set eth0 name wire\naddr flush dev wire\naddr add 10.99.0.{number}/24 dev wire\n\
             link set wire up\n\
             link add eth0 type vxlan id 99 local 10.99.0.{number} dstport 4790 dev wire\n\
             addr add {}/24 dev eth0\nlink set eth0 mtu 1400 up\nroute add default via 192.168.77.254 dev eth0 onlink\n",
            node.address()
        );
        node.netns().ip_batch(&batch)?;
        for peer in nodes.iter().map(|node| node.number()).filter(|other| *other != number) {
            node.netns().bridge(&format!(
                "fdb append 00:00:00:00:00:00 dev eth0 dst 10.99.0.{peer} self permanent"
            ))?;
        }
    }
    Ok(())
}

/// Flows that netfilter has accepted are put into UDP and taken out of it by the programs, aggregates included, between
/// nodes of ours and of stock.
#[test]
fn the_programs_carry_what_netfilter_has_accepted() -> Result<()> {
    in_lab(|lab| {
        let nodes = [lab.node()?, lab.node()?, lab.node()?];
        with_finished_packets(&nodes.each_ref())?;
        let [a, b, plain] = nodes;
        let etcd = lab.etcd_on(&a)?;
        etcd.put(&format!("{PREFIX}/config"), CONFIG)?;
        let stock = plain.stock_udp()?;
        let pod = plain.pod("pod1")?;
        stock.publish(&etcd)?;
        let start = |node| Member::start(node, &etcd, FastPath::Flow, 1);
        let members = vec![start(a)?, start(b)?];
        stock.sync(&etcd)?;
        let cluster = Cluster { members, etcd };
        let plain = pod.endpoint();
        cluster.await_reachable(std::slice::from_ref(&plain))?;
        cluster.await_dataplane(FastPath::Flow.into())?;
        let [a, b] = [cluster.members[0].pod()?, cluster.members[1].pod()?];
        let [sent, received] = cluster.counted(|| {
            tcp::bulk(&a, &b, 32 << 20)?;
            tcp::bulk(&b, &a, 32 << 20)?;
            udp::echo(&a, &b, 1200, 2000)
        })?;
        for (counters, way) in [(&sent, Direction::Egress), (&received, Direction::Ingress)] {
            let fast = counters.packets(way, Class::Fast);
            ensure!(
                fast > 10_000 && counters.packets(way, Class::Kernel) < fast / 5,
                "{}: {counters}",
                way.label()
            );
        }
        // In fragments, which are the kernel's.
        ping(&a, &b, 8000)?;
        eventually(CONVERGENCE, "packets from and to a stock node take the fast path", || {
            let [ours, _] = cluster.counted(|| udp::echo(&a, &plain, 1000, 100))?;
            ensure!(ours.get(Direction::Egress, Reason::EncapPod).packets > 50, "{ours}");
            ensure!(ours.get(Direction::Ingress, Reason::DeliverPod).packets > 50, "{ours}");
            Ok(())
        })?;
        for (from, to) in [(&a, &plain), (&plain, &a)] {
            tcp::bulk(from, to, 8 << 20)?;
        }
        explained_as_udp(&cluster)
    })
}

/// A packet of no known flow goes by the agent's device, in UDP, on both nodes.
fn explained_as_udp(cluster: &Cluster) -> Result<()> {
    let [a, b] = [&cluster.members[0], &cluster.members[1]];
    let [from, to] = [a.pod()?, b.pod()?].map(|pod| pod.address().to_string());
    let address = b.node.address();
    for (member, words, says) in [
        (a, &[][..], vec!["udp device | flannel0".to_owned(), format!("leaves by eth0 for {address}")]),
        (b, &["--ingress"][..], vec!["udp device | flannel0".to_owned(), "reaches the pod".to_owned()]),
    ] {
        let bpffs = member.agent.bpffs().display().to_string();
        let program = flannel_lab::agent_binary()?.display().to_string();
        let mut all = vec!["explain", &from, &to, "--proto=udp", "--sport=1", "--bpffs", &bpffs];
        all.extend(words);
        let table = member.node.netns().run(&program, &all)?;
        let table = table.split_whitespace().filter(|word| *word != "┆").collect::<Vec<_>>().join(" ");
        for part in says {
            ensure!(table.replace("| ", "").contains(&part.replace("| ", "")), "no {part} in {table}");
        }
    }
    Ok(())
}

#[test]
fn what_goes_of_the_device_comes_back() -> Result<()> {
    in_lab(|lab| {
        let etcd = etcd(lab)?;
        let cluster = Cluster { members: members(lab, &etcd, 2)?, etcd };
        cluster.await_reachable(&[])?;
        let node = &cluster.members[0].node;
        let base = node.subnet_env()?.subnet.network();
        for harm in [
            "link del flannel0",
            "link set flannel0 down",
            "link set flannel0 mtu 1400",
            "route del 10.244.0.0/16",
            &format!("addr del {base}/32 dev flannel0"),
            &format!("addr add {base}/20 dev flannel0"),
        ] {
            node.netns().ip(harm)?;
            eventually(CONVERGENCE, "the device is as it was", || {
                let shown: Value = serde_json::from_str(&node.netns().ip("-j addr show dev flannel0")?)?;
                let v4: Vec<&Value> = shown[0]["addr_info"]
                    .as_array()
                    .context("no addresses")?
                    .iter()
                    .filter(|address| address["family"] == "inet")
                    .collect();
                ensure!(
                    shown[0]["mtu"] == 1472 && v4.len() == 1 && v4[0]["prefixlen"] == 32,
                    "{harm}: {shown}"
                );
                let routes = node.netns().ip("route show dev flannel0")?;
                ensure!(routes.trim() == "10.244.0.0/16", "{harm}: {routes}");
                Ok(())
            })?;
            cluster.await_reachable(&[]).with_context(|| harm.to_owned())?;
        }
        Ok(())
    })
}

#[test]
fn restarts_and_swaps_with_stock_find_the_way_free() -> Result<()> {
    in_lab(|lab| {
        let etcd = etcd(lab)?;
        let mut members = members(lab, &etcd, 2)?;
        let pods = [members[0].pod()?, members[1].pod()?];
        everyone_reaches_everyone(&pods)?;
        let subnet = members[0].node.subnet_env()?.subnet;

        members[0].agent.kill()?;
        members[0].agent.start_again()?;
        everyone_reaches_everyone(&pods)?;
        members[0].agent.terminate()?;
        // The device is its process's, so that stock flannel makes its own.
        let links = members[0].node.netns().ip("link show")?;
        ensure!(!links.contains("flannel0"), "{links}");
        {
            let stock = members[0].node.stock_udp_with(subnet)?;
            stock.sync(&etcd)?;
            everyone_reaches_everyone(&pods)?;
        }
        members[0].agent.start_again()?;
        ensure!(members[0].node.subnet_env()?.subnet == subnet, "another subnet after the swap");
        everyone_reaches_everyone(&pods)
    })
}

#[test]
fn datagrams_of_anybody_harm_nobody() -> Result<()> {
    in_lab(|lab| {
        let etcd = etcd(lab)?;
        let mut cluster = Cluster { members: members(lab, &etcd, 2)?, etcd };
        cluster.await_reachable(&[])?;
        let stranger = lab.node()?;
        let target = cluster.members[0].node.address();
        stranger.netns().inside(|| {
            let socket = std::net::UdpSocket::bind((stranger.address(), 8285))?;
            for len in [0, 1, 19, 20, 28, 1472] {
                for first in [0x45, 0x46, 0x4f, 0x44, 0x60, 0x00, 0xff] {
                    let mut datagram = vec![0xff; len];
                    if let Some(byte) = datagram.first_mut() {
                        *byte = first;
                    }
                    socket.send_to(&datagram, (target, 8285))?;
                }
            }
            Ok(())
        })?;
        cluster.await_reachable(&[])?;
        cluster.members[0].agent.check_running()
    })
}
