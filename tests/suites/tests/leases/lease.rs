//! What becomes of a running node when its lease, its address, the network config or the way to etcd changes.

use std::{net::IpAddr, path::Path, thread::sleep, time::Duration};

use anyhow::{Context as _, Result, ensure};
use flannel_agent::values::Mac;
use flannel_lab::{
    Agent, CONVERGENCE, Cluster, FastPath, Lab, Member, PREFIX, UNDERLAY_ADDRESS,
    etcd::{self, KeyAndCertificate},
    eventually, in_lab,
    traffic::Paced,
};
use ipnetwork::Ipv4Network;
use serde_json::Value;

/// Waits until the agent has logged `words`.
fn await_said(agent: &Agent, words: &str) -> Result<()> {
    eventually(Duration::from_secs(30), &format!("the agent says {words:?}"), || {
        ensure!(agent.log().contains(words), "its log:\n{}", agent.log());
        Ok(())
    })
}

fn lease_of(cluster: &Cluster, subnet: Ipv4Network) -> Result<Value> {
    cluster.etcd.leases()?.remove(&subnet).with_context(|| format!("{subnet} is not leased"))
}

fn of_another_node() -> String {
    let mac = Mac::random();
    format!(
        r#"{{"PublicIP":"192.168.77.240","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
    )
}

/// Stock flanneld ends when its lease is deleted; a restart later it would have the same subnet again.
#[test]
fn a_deleted_lease_is_taken_back_and_said() -> Result<()> {
    in_lab(|lab| {
        let mut cluster = Cluster::start(lab, 2, 1, FastPath::Off)?;
        let subnet = cluster.members[0].node.subnet_env()?.subnet;
        let before = lease_of(&cluster, subnet)?;
        cluster.etcd.delete_lease(subnet)?;
        await_said(&cluster.members[0].agent, "nobody had taken the subnet, it is ours again")?;
        ensure!(lease_of(&cluster, subnet)? == before, "another lease than before");
        cluster.await_reachable(&[])?;
        cluster.members[0].agent.check_running()
    })
}

/// The one case in which going on would do harm: other nodes send our pods' packets elsewhere.
#[test]
fn a_lease_that_another_node_holds_ends_the_agent_with_an_error() -> Result<()> {
    in_lab(|lab| {
        let mut cluster = Cluster::start(lab, 2, 1, FastPath::Off)?;
        let subnet = cluster.members[0].node.subnet_env()?.subnet;
        cluster.etcd.put_lease(subnet, &of_another_node())?;
        let Member { agent, node, .. } = &mut cluster.members[0];
        let status = agent.wait_for_end(CONVERGENCE)?;
        ensure!(status.code() == Some(1), "{status}");
        let log = agent.log();
        let last = log.lines().last().unwrap_or_default();
        for words in [
            "flannel-agent: our lease of",
            "node 192.168.77.240 holds it now",
            "pods of both nodes have the same addresses",
            "Restart this agent to get another subnet, then restart this node's pods",
        ] {
            ensure!(last.contains(words), "{words:?} is missing in {last:?}");
        }
        let routes = node.netns().ip("route show dev flannel.1")?;
        ensure!(routes.contains("onlink"), "the dataplane did not stay: {routes}");
        // As the error says.
        agent.start_again()?;
        ensure!(node.subnet_env()?.subnet != subnet, "took the other node's subnet");
        Ok(())
    })
}

#[test]
fn a_changed_network_config_is_said_once_and_changes_nothing() -> Result<()> {
    in_lab(|lab| {
        let mut cluster = Cluster::start(lab, 2, 1, FastPath::Off)?;
        let traffic = Paced::usual(&cluster.members[0].pod()?, &cluster.members[1].pod()?)?;
        let key = format!("{PREFIX}/config");
        let said = |cluster: &Cluster, words: &str| {
            cluster.members.iter().try_for_each(|member| await_said(&member.agent, words))
        };
        cluster.etcd.put(&key, r#"{"Network":"10.99.0.0/16","Backend":{"Type":"vxlan","VNI":3}}"#)?;
        said(&cluster, "Network: 10.244.0.0/16 -> 10.99.0.0/16")?;
        cluster.etcd.put(&key, r#"{"Network":"10.99.0.0/16","Backend":{"Type":"vxlan","VNI":3}}"#)?;
        cluster.etcd.put(&key, r#"{"Network":"nonsense"}"#)?;
        said(&cluster, "Network: expected an IPv4 network")?;
        cluster.etcd.delete(&key)?;
        said(&cluster, "the network config was deleted")?;
        sleep(Duration::from_millis(500));
        for member in &mut cluster.members {
            let log = member.agent.log();
            ensure!(log.matches("the network config has changed; this node keeps").count() == 1, "{log}");
            member.agent.check_running()?;
        }
        traffic.stop()?.check_lossless()
    })
}

/// Upstream would lease another subnet, and leave the node's pods with addresses that are routed to nobody.
#[test]
fn a_node_whose_address_changed_keeps_its_subnet_and_pods() -> Result<()> {
    in_lab(|lab| {
        let mut cluster = Cluster::start(lab, 2, 1, FastPath::Off)?;
        let subnet = cluster.members[0].node.subnet_env()?.subnet;
        let before = lease_of(&cluster, subnet)?;
        let Member { agent, node, .. } = &mut cluster.members[0];
        agent.terminate()?;
        node.netns().ip_batch(&format!(
            "addr del {}/24 dev eth0\n\
             addr add 192.168.77.150/24 dev eth0\n\
             route replace default via {UNDERLAY_ADDRESS} dev eth0\n",
            node.address()
        ))?;
        agent.start_again()?;
        ensure!(node.subnet_env()?.subnet == subnet, "took another subnet: {}", agent.log());
        await_said(agent, "this node's address has changed; it keeps its subnet")?;
        let after = lease_of(&cluster, subnet)?;
        ensure!(after["PublicIP"] == "192.168.77.150", "{after}");
        ensure!(after["BackendData"] == before["BackendData"], "another MAC: {after}, before {before}");
        ensure!(cluster.etcd.leases()?.len() == 2, "an old lease stayed");
        cluster.await_reachable(&[])
    })
}

/// An etcd of the underlay that speaks TLS, and the cluster's agents moved to it.
fn moved_to_tls(lab: &Lab, cluster: &mut Cluster) -> Result<(etcd::Etcd, KeyAndCertificate)> {
    let within = ["ip", "netns", "exec", lab.underlay()?.name()].map(str::to_owned).to_vec();
    let address = IpAddr::V4(UNDERLAY_ADDRESS);
    let etcd = etcd::Etcd::with(etcd::Options { address, within, tls: true, ..Default::default() })?;
    etcd.put(&format!("{PREFIX}/config"), r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#)?;
    let good = etcd.authority()?.client()?;
    good.write_to(&etcd.path("node"))?;
    for member in &mut cluster.members {
        member.agent.terminate()?;
        let flag = |path: &Path| path.display().to_string();
        member.agent.set_flag("etcd-endpoints", &etcd.endpoint());
        member.agent.set_flag("etcd-cafile", &flag(&etcd.path("ca.pem")));
        member.agent.set_flag("etcd-certfile", &flag(&etcd.path("node.pem")));
        member.agent.set_flag("etcd-keyfile", &flag(&etcd.path("node.key")));
        member.agent.start_again()?;
    }
    cluster.await_reachable(&[])?;
    Ok((etcd, good))
}

/// Of our client certificate and of etcd's own: the log says which, and packets do not care.
#[test]
fn expired_certificates_are_named_and_forwarding_goes_on() -> Result<()> {
    in_lab(|lab| {
        let mut cluster = Cluster::start(lab, 2, 1, FastPath::Off)?;
        let (mut etcd, good) = moved_to_tls(lab, &mut cluster)?;
        let traffic = Paced::usual(&cluster.members[0].pod()?, &cluster.members[1].pod()?)?;

        etcd.authority()?.expired_client()?.write_to(&etcd.path("node"))?;
        etcd.stop();
        etcd.start_again()?;
        await_said(&cluster.members[0].agent, "node.pem: the certificate expired on 2021-01-01")?;
        cluster.members[0].agent.check_running()?;
        // One that starts now is told at once.
        let agent = &mut cluster.members[1].agent;
        agent.terminate()?;
        agent.launch()?;
        let status = agent.wait_for_end(CONVERGENCE)?;
        ensure!(status.code() == Some(1), "{status}");
        let log = agent.log();
        let last = log.lines().last().unwrap_or_default();
        let words = "node.pem: the certificate expired on 2021-01-01T00:00:00Z: renew it";
        ensure!(last.starts_with("flannel-agent: --etcd-certfile") && last.contains(words), "{last}");

        good.write_to(&etcd.path("node"))?;
        await_said(&cluster.members[0].agent, "watch resumed")?;
        cluster.members[1].agent.start_again()?;

        let own = etcd.authority()?.server(UNDERLAY_ADDRESS.into())?;
        etcd.authority()?.expired_server(UNDERLAY_ADDRESS.into())?.write_to(&etcd.path("server"))?;
        etcd.stop();
        etcd.start_again()?;
        for member in &cluster.members {
            await_said(&member.agent, "etcd's own certificate has expired: renew it")?;
        }
        own.write_to(&etcd.path("server"))?;
        etcd.stop();
        etcd.start_again()?;
        for member in &mut cluster.members {
            member.agent.check_running()?;
        }
        traffic.stop()?.check_lossless()
    })
}
