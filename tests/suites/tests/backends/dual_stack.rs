//! Clusters of IPv6, alone and beside IPv4: forwarding, files, repair, restart and stock peers.

use std::{net::IpAddr, thread::sleep, time::Duration};

use anyhow::{Context as _, Result, ensure};
use flannel_lab::{
    AgentOptions, Cluster, Etcd, FastPath, Lab, NETWORK_V6, Node, PREFIX, SubnetEnvV6, eventually, in_lab,
    traffic::{Paced, every_kind_both_ways, ping::ping, source_seen},
};

fn vxlan(etcd: &Etcd) -> Result<()> {
    etcd.configure_dual("vxlan")
}

fn host_gw(etcd: &Etcd) -> Result<()> {
    etcd.configure_dual("host-gw")
}

fn v6_only(etcd: &Etcd) -> Result<()> {
    etcd.configure_v6_only("vxlan")
}

/// Every kind of traffic between pods by both families, and between hosts and pods by IPv6.
fn carries_both(lab: &Lab, fast_path: FastPath) -> Result<()> {
    let cluster = Cluster::start_v6(lab, 2, fast_path, vxlan)?;
    cluster.await_fast_path(0, 1, fast_path)?;
    let [a, b] = [&cluster.members[0], &cluster.members[1]];
    every_kind_both_ways(&a.pod()?, &b.pod()?).context("IPv4")?;
    every_kind_both_ways(&a.pod_v6()?, &b.pod_v6()?).context("IPv6")?;
    let host_a = a.node.overlay_endpoint_v6()?;
    let source = host_a.source_towards(&b.pod_v6()?)?;
    ensure!(source == host_a.address(), "packets to remote pods leave from {source}");
    ping(&host_a, &b.pod_v6()?, 56)?;
    ping(&a.pod_v6()?, &b.node.overlay_endpoint_v6()?, 56)?;
    for member in [a, b] {
        let file = std::fs::read_to_string(member.node.subnet_file())?;
        let (v4, v6) = (member.node.subnet_env()?, member.node.subnet_env_v6()?);
        let wanted = format!(
            "FLANNEL_NETWORK={}\nFLANNEL_SUBNET={}/24\nFLANNEL_IPV6_NETWORK={}\nFLANNEL_IPV6_SUBNET={}1/64\n\
             FLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n",
            v4.network,
            v4.subnet.nth(1).context("no first host")?,
            v6.network,
            v6.subnet.network()
        );
        ensure!(file == wanted, "{file}\ninstead of\n{wanted}");
        let key = format!("{}-24&{}-64", v4.subnet.network(), v6.subnet.network());
        let lease = &cluster.etcd.lease_keys()?[&key];
        ensure!(lease["PublicIPv6"] == member.node.address_v6().to_string(), "{lease}");
    }
    Ok(())
}

#[test]
fn off_carries_both_families() -> Result<()> {
    in_lab(|lab| carries_both(lab, FastPath::Off))
}

#[test]
fn all_carries_both_families() -> Result<()> {
    in_lab(|lab| carries_both(lab, FastPath::All))
}

#[test]
fn host_gw_routes_both_families() -> Result<()> {
    in_lab(|lab| {
        let cluster = Cluster::start_v6(lab, 2, FastPath::Off, host_gw)?;
        let [a, b] = [&cluster.members[0], &cluster.members[1]];
        every_kind_both_ways(&a.pod_v6()?, &b.pod_v6()?)?;
        let subnet = b.node.subnet_env_v6()?.subnet;
        let route = a.node.netns().ip(&format!("-6 route show {subnet}"))?;
        let via = format!("{subnet} via {} dev eth0 metric 1024", b.node.address_v6());
        ensure!(route.starts_with(&via), "{route} instead of {via}");
        // What somebody takes away comes back.
        a.node.netns().ip(&format!("-6 route del {subnet}"))?;
        cluster.await_reachable_v6(&[])
    })
}

#[test]
fn a_cluster_of_ipv6_alone_carries_every_kind_of_traffic() -> Result<()> {
    in_lab(|lab| {
        let cluster = Cluster::start_v6(lab, 3, FastPath::Off, v6_only)?;
        let [a, b, _] = &cluster.members[..] else { unreachable!() };
        every_kind_both_ways(&a.pod_v6()?, &b.pod_v6()?)?;
        let file = std::fs::read_to_string(a.node.subnet_file())?;
        ensure!(!file.contains("FLANNEL_SUBNET=") && file.contains("FLANNEL_MTU=1430\n"), "{file}");
        ensure!(cluster.etcd.lease_keys()?.keys().all(|key| key.starts_with("0.0.0.0-0&fd00:")), "keys");
        ensure!(a.node.netns().ip("link show dev flannel.1").is_err(), "a device of IPv4");
        Ok(())
    })
}

#[test]
fn what_ipv6_loses_comes_back_by_itself() -> Result<()> {
    in_lab(|lab| {
        let cluster = Cluster::start_v6(lab, 2, FastPath::Flow, vxlan)?;
        let node = &cluster.members[0].node;
        let mac = || node.netns().ip("-br link show dev flannel-v6.1");
        let before = mac()?;
        let v4 = Paced::usual(&cluster.members[0].pod()?, &cluster.members[1].pod()?)?;
        for damage in [
            "-6 route flush dev flannel-v6.1 proto boot",
            "-6 neigh flush dev flannel-v6.1 nud permanent",
            "-6 addr flush dev flannel-v6.1 scope global",
            "link set flannel-v6.1 down",
            "link del flannel-v6.1",
        ] {
            node.netns().ip(damage)?;
            cluster.await_reachable_v6(&[]).context(damage)?;
        }
        v4.stop()?.check_lossless().context("IPv4 meanwhile")?;
        let field = |text: &str| text.split_whitespace().nth(2).map(str::to_owned);
        ensure!(field(&mac()?) == field(&before), "the MAC has changed: {before} {}", mac()?);
        Ok(())
    })
}

#[test]
fn a_restart_loses_no_packet_of_ipv6() -> Result<()> {
    in_lab(|lab| {
        let mut cluster = Cluster::start_v6(lab, 2, FastPath::Off, vxlan)?;
        let subnet = cluster.members[0].node.subnet_env_v6()?.subnet;
        let traffic = Paced::usual(&cluster.members[0].pod_v6()?, &cluster.members[1].pod_v6()?)?;
        for end in [true, false] {
            let agent = &mut cluster.members[0].agent;
            if end {
                agent.terminate()?;
            } else {
                agent.kill()?;
            }
            sleep(Duration::from_millis(500));
            agent.start_again()?;
        }
        traffic.stop()?.check_lossless()?;
        ensure!(cluster.members[0].node.subnet_env_v6()?.subnet == subnet, "another subnet");
        Ok(())
    })
}

#[test]
fn stock_nodes_of_both_families_and_of_one_are_peers() -> Result<()> {
    in_lab(|lab| {
        let cluster = Cluster::start_v6(lab, 2, FastPath::All, vxlan)?;
        // One as stock flannel makes it, with both; one with IPv4 alone, as before the cluster had IPv6.
        let (both, old) = (lab.dual_node()?, lab.node()?);
        let mut v4 = both.stock()?;
        let v6_part = both.stock_v6()?;
        v6_part.publish(&v4, &cluster.etcd)?;
        v4.sync(&cluster.etcd)?;
        v6_part.sync(&cluster.etcd)?;
        let mut alone = old.stock()?;
        alone.publish(&cluster.etcd)?;
        alone.sync(&cluster.etcd)?;
        let (pod, old_pod) = (both.pod("pod1")?, old.pod("pod1")?);
        cluster.await_reachable_v6(&[pod.endpoint_v6()?])?;
        v4.sync(&cluster.etcd)?;
        cluster.await_reachable(&[pod.endpoint(), old_pod.endpoint()])?;
        every_kind_both_ways(&cluster.members[0].pod_v6()?, &pod.endpoint_v6()?)?;
        let log = cluster.members[0].agent.log();
        ensure!(log.contains("it has no IPv6 subnet") && !log.contains("panicked"), "{log}");
        Ok(())
    })
}

#[test]
fn another_ipv6_address_is_followed() -> Result<()> {
    in_lab(|lab| {
        let cluster = Cluster::start_v6(lab, 2, FastPath::Off, vxlan)?;
        let [a, _] = [&cluster.members[0], &cluster.members[1]];
        let netns = a.node.netns();
        netns.ip_batch(&format!(
            "addr del {}/64 dev eth0\naddr add fd77::77/64 dev eth0 nodad\n",
            a.node.address_v6()
        ))?;
        eventually(Duration::from_secs(15), "the lease has the new address", || {
            let leases = cluster.etcd.leases_v6()?;
            let lease = &leases[&a.node.subnet_env_v6()?.subnet];
            ensure!(lease["PublicIPv6"] == "fd77::77", "{lease}");
            Ok(())
        })?;
        cluster.await_reachable_v6(&[])?;
        cluster.await_reachable(&[])
    })
}

/// What ip6tables holds of `table`, as `ip6tables-save` writes it.
fn saved(node: &Node, table: &str) -> Result<Vec<String>> {
    let text = node.netns().run("ip6tables-save", &["-t", table])?;
    Ok(text.lines().filter(|line| line.starts_with("-A ")).map(str::to_owned).collect())
}

fn ip6tables_golden(env: &SubnetEnvV6) -> [(&'static str, Vec<String>); 2] {
    let (p, c) = (env.subnet, env.network);
    let range = format!("{}-{}", p.network(), p.broadcast());
    let masq = "-m comment --comment \"flanneld masq\" -j";
    let forward = "-m comment --comment \"flanneld forward\" -j";
    let nat = [
        format!(
            "POSTROUTING -s {p} -d {c} -m iprange ! --dst-range {range} -m mark ! --mark 0x4000/0x4000 \
             -m comment --comment \"flanneld exempt\" -j RETURN"
        ),
        format!("POSTROUTING {masq} FLANNEL-POSTRTG"),
        format!("FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 {masq} RETURN"),
        format!("FLANNEL-POSTRTG -s {p} -d {c} {masq} RETURN"),
        format!("FLANNEL-POSTRTG -s {c} -d {p} {masq} RETURN"),
        format!("FLANNEL-POSTRTG ! -s {c} -d {p} {masq} RETURN"),
        format!("FLANNEL-POSTRTG -s {c} ! -d ff00::/8 {masq} MASQUERADE --random-fully"),
        format!("FLANNEL-POSTRTG ! -s {c} -d {c} {masq} MASQUERADE --random-fully"),
    ];
    let filter = [
        format!("FORWARD {forward} FLANNEL-FWD"),
        format!("FLANNEL-FWD -s {c} {forward} ACCEPT"),
        format!("FLANNEL-FWD -d {c} {forward} ACCEPT"),
    ];
    let lines = |rules: &[String]| rules.iter().map(|rule| format!("-A {rule}")).collect();
    [("nat", lines(&nat)), ("filter", lines(&filter))]
}

fn nft_golden(env: &SubnetEnvV6) -> Vec<String> {
    let (p, c) = (env.subnet, env.network);
    let text = format!(
        "meta mark & 0x4000 != 0x4000 ip6 saddr {p} ip6 daddr {c} ip6 daddr != {p} snat to ip6 saddr
        meta mark & 0x4000 == 0x4000 return
        ip6 saddr {p} ip6 daddr {c} return
        ip6 saddr {c} ip6 daddr {p} return
        ip6 saddr != {c} ip6 daddr {p} return
        ip6 saddr {c} ip6 daddr != ff00::/8 masquerade fully-random
        ip6 saddr != {c} ip6 daddr {c} masquerade fully-random
        ip6 saddr {c} accept
        ip6 daddr {c} accept"
    );
    text.lines().map(|line| line.trim().to_owned()).collect()
}

fn check_rules(node: &Node, nftables: bool) -> Result<()> {
    let env = node.subnet_env_v6()?;
    if nftables {
        let text = node.netns().run("nft", &["-s", "list", "table", "ip6", "flannel-ipv6"])?;
        let rules =
            text.lines().map(str::trim).filter(|line| line.starts_with("ip6 ") || line.starts_with("meta "));
        let rules: Vec<String> =
            rules.map(|line| line.replace("0x000000", "0x").replace("0x0000", "0x")).collect();
        ensure!(rules == nft_golden(&env), "nft has\n{}", rules.join("\n"));
        return Ok(());
    }
    for (table, golden) in ip6tables_golden(&env) {
        let rules = saved(node, table)?;
        ensure!(rules == golden, "there is\n{}\nwanted\n{}", rules.join("\n"), golden.join("\n"));
    }
    Ok(())
}

/// The rules are upstream's, they come back, and everybody sees the right source.
fn masquerades(lab: &Lab, nftables: bool) -> Result<()> {
    let options = AgentOptions { fast_path: FastPath::Off, flags: vec!["--ip-masq".to_owned()] };
    let cluster = Cluster::start_v6(lab, 2, options, |etcd| {
        let config = format!(
            r#"{{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"{NETWORK_V6}","EnableNFTables":{nftables},"Backend":{{"Type":"vxlan"}}}}"#
        );
        etcd.put(&format!("{PREFIX}/config"), &config)
    })?;
    let [a, b] = [&cluster.members[0], &cluster.members[1]];
    check_rules(&a.node, nftables)?;
    let damage: &[&str] = match nftables {
        true => &["nft", "flush", "table", "ip6", "flannel-ipv6"],
        false => &["ip6tables", "-t", "nat", "-F", "FLANNEL-POSTRTG"],
    };
    a.node.netns().run(damage[0], &damage[1..])?;
    eventually(Duration::from_secs(20), "the rules are back", || check_rules(&a.node, nftables))?;
    let outside = lab.dual_node()?.underlay_endpoint_v6();
    let (pod_a, pod_b) = (a.pod_v6()?, b.pod_v6()?);
    for (to, expected) in [(&pod_b, pod_a.address()), (&outside, IpAddr::V6(a.node.address_v6()))] {
        let seen = source_seen(&pod_a, to, 4711, to.socket_address(4711))?;
        ensure!(seen == expected, "{} sees {seen}, not {expected}", to.name());
    }
    Ok(())
}

#[test]
fn ip6tables_has_upstreams_rules_and_everybody_sees_the_right_source() -> Result<()> {
    in_lab(|lab| masquerades(lab, false))
}

#[test]
fn nftables_of_ipv6_has_upstreams_rules_and_everybody_sees_the_right_source() -> Result<()> {
    in_lab(|lab| masquerades(lab, true))
}

#[test]
fn a_stock_node_of_both_families_becomes_ours_without_loss() -> Result<()> {
    in_lab(|lab| {
        let cluster = Cluster::start_v6(lab, 1, FastPath::Off, vxlan)?;
        let node = lab.dual_node()?;
        let (mut v4, v6_part) = (node.stock()?, node.stock_v6()?);
        v6_part.publish(&v4, &cluster.etcd)?;
        v4.sync(&cluster.etcd)?;
        v6_part.sync(&cluster.etcd)?;
        let pod = node.pod("pod1")?;
        cluster.await_reachable(&[pod.endpoint()])?;
        cluster.await_reachable_v6(&[pod.endpoint_v6()?])?;
        let devices = || node.netns().ip("-br link show type vxlan");
        let before = (devices()?, node.subnet_env()?.subnet, node.subnet_env_v6()?.subnet);
        let other = &cluster.members[0];
        let traffic = [
            Paced::usual(&pod.endpoint(), &other.pod()?)?,
            Paced::usual(&pod.endpoint_v6()?, &other.pod_v6()?)?,
        ];
        let agent = node.agent(&cluster.etcd, FastPath::Off.into())?;
        sleep(Duration::from_millis(500));
        for paced in traffic {
            paced.stop()?.check_lossless()?;
        }
        let after = (devices()?, node.subnet_env()?.subnet, node.subnet_env_v6()?.subnet);
        ensure!(after == before, "{before:?} has become {after:?}");
        drop(agent);
        Ok(())
    })
}
