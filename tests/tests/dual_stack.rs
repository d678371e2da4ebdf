//! Clusters of IPv6, alone and beside IPv4: forwarding, files, repair, restart and stock peers.

use std::{thread::sleep, time::Duration};

use anyhow::{Context as _, Result, ensure};
use flannel_tests::{
    eventually,
    lab::{Cluster, Etcd, FastPath, Lab, Member, in_lab},
    traffic::{Endpoint, Paced, every_kind_both_ways, ping::ping},
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

fn v6(member: &Member) -> Result<Endpoint> {
    member.pods.first().context("a node without pods")?.endpoint_v6()
}

/// Every kind of traffic between pods by both families, and between hosts and pods by IPv6.
fn carries_both(lab: &Lab, fast_path: FastPath) -> Result<()> {
    let cluster = Cluster::start_v6(lab, 2, fast_path, vxlan)?;
    cluster.await_fast_path(0, 1, fast_path)?;
    let [a, b] = [&cluster.members[0], &cluster.members[1]];
    every_kind_both_ways(&a.pod()?, &b.pod()?).context("IPv4")?;
    every_kind_both_ways(&v6(a)?, &v6(b)?).context("IPv6")?;
    let host_a = a.node.overlay_endpoint_v6()?;
    let source = host_a.source_towards(&v6(b)?)?;
    ensure!(source == host_a.address(), "packets to remote pods leave from {source}");
    ping(&host_a, &v6(b)?, 56)?;
    ping(&v6(a)?, &b.node.overlay_endpoint_v6()?, 56)?;
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
        every_kind_both_ways(&v6(a)?, &v6(b)?)?;
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
        every_kind_both_ways(&v6(a)?, &v6(b)?)?;
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
        let cluster = Cluster::start_v6(lab, 2, FastPath::Overlay, vxlan)?;
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
        let traffic = Paced::usual(&v6(&cluster.members[0])?, &v6(&cluster.members[1])?)?;
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
        every_kind_both_ways(&v6(&cluster.members[0])?, &pod.endpoint_v6()?)?;
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
