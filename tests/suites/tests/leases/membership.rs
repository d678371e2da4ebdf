//! Nodes come, go and change, whatever they run, and nobody else notices.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use flannel_lab::{
    CONVERGENCE, Cluster, Etcd, FastPath, Member, Node, Pod, Stock, eventually, in_lab,
    traffic::{Endpoint, Paced, every_kind_both_ways, ping::ping},
};

/// Waits until `member`'s kernel has, or no longer has, a route to `subnet`.
fn await_route(member: &Member, subnet: &str, present: bool) -> Result<()> {
    eventually(CONVERGENCE, &format!("{} has a route to {subnet}: {present}", member.node.name()), || {
        let routes = member.node.netns().ip("route show")?;
        ensure!(routes.lines().any(|line| line.starts_with(subnet)) == present, "routes:\n{routes}");
        Ok(())
    })
}

/// Fails if `from` still gets answers from `to`.
fn check_unreachable(from: &Endpoint, to: &Endpoint) -> Result<()> {
    match ping(from, to, 56) {
        Ok(_) => bail!("{} still reaches {}", from.name(), to.name()),
        Err(_) => Ok(()),
    }
}

/// A kernel-only node in a cluster of agents, with a pod.
struct KernelPeer {
    pod: Pod,
    stock: Stock,
    // Keeps the machine's files in place.
    _node: Node,
}

impl KernelPeer {
    fn join(lab: &flannel_lab::Lab, etcd: &Etcd) -> Result<Self> {
        let node = lab.node()?;
        let mut stock = node.stock()?;
        stock.publish(etcd)?;
        stock.sync(etcd)?;
        Ok(Self { pod: node.pod("pod1")?, stock, _node: node })
    }
}

#[test]
fn an_agent_joins_and_leaves() -> Result<()> {
    in_lab(|lab| {
        let mut cluster = Cluster::start(lab, 2, 1, FastPath::All)?;
        let bystanders = Paced::usual(&cluster.members[0].pod()?, &cluster.members[1].pod()?)?;
        cluster.join(lab, FastPath::All)?;
        cluster.await_reachable(&[])?;
        cluster.await_fast_path(0, 2, FastPath::All)?;
        cluster.await_fast_path(2, 1, FastPath::All)?;
        every_kind_both_ways(&cluster.members[0].pod()?, &cluster.members[2].pod()?)?;

        let mut leaving = cluster.members.pop().context("three nodes")?;
        leaving.agent.kill()?;
        let subnet = leaving.node.subnet_env()?.subnet;
        cluster.etcd.delete_lease(subnet)?;
        for member in &cluster.members {
            await_route(member, &subnet.to_string(), false)?;
            check_unreachable(&member.pod()?, &leaving.pod()?)?;
        }
        bystanders.stop()?.check_lossless()
    })
}

/// The same node gets the same subnet, whose pods are still there.
#[test]
fn a_node_that_left_comes_back() -> Result<()> {
    in_lab(|lab| {
        let mut cluster = Cluster::start(lab, 2, 1, FastPath::All)?;
        let subnet = cluster.members[1].node.subnet_env()?.subnet;
        cluster.members[1].agent.kill()?;
        cluster.etcd.delete_lease(subnet)?;
        await_route(&cluster.members[0], &subnet.to_string(), false)?;
        cluster.members[1].agent.start_again()?;
        ensure!(cluster.members[1].node.subnet_env()?.subnet == subnet, "got another subnet");
        cluster.await_reachable(&[])?;
        cluster.await_fast_path(0, 1, FastPath::All)
    })
}

fn with_kernel_peer(fast_path: FastPath) -> Result<()> {
    in_lab(|lab| {
        let cluster = Cluster::start(lab, 2, 1, fast_path)?;
        cluster.await_fast_path(0, 1, fast_path)?;
        cluster.await_fast_path(1, 0, fast_path)?;
        let bystanders = Paced::usual(&cluster.members[0].pod()?, &cluster.members[1].pod()?)?;

        let mut peer = KernelPeer::join(lab, &cluster.etcd)?;
        let pod = peer.pod.endpoint();
        cluster.await_reachable(std::slice::from_ref(&pod))?;
        let ours = &cluster.members[0];
        every_kind_both_ways(&ours.pod()?, &pod)?;
        every_kind_both_ways(&ours.node.overlay_endpoint()?, &pod).context("our host")?;

        peer.stock.change_mac()?;
        peer.stock.publish(&cluster.etcd)?;
        cluster.await_reachable(std::slice::from_ref(&pod)).context("after a new MAC")?;
        every_kind_both_ways(&ours.pod()?, &pod)?;

        peer.stock.change_public_ip([192, 168, 77, 103].into())?;
        peer.stock.publish(&cluster.etcd)?;
        cluster.await_reachable(std::slice::from_ref(&pod)).context("after a new PublicIP")?;
        every_kind_both_ways(&ours.pod()?, &pod)?;

        let subnet = peer.stock.own().subnet;
        peer.stock.withdraw(&cluster.etcd)?;
        for member in &cluster.members {
            await_route(member, &subnet.to_string(), false)?;
            check_unreachable(&member.pod()?, &pod)?;
        }
        bystanders.stop()?.check_lossless()
    })
}

#[test]
fn a_kernel_peer_joins_changes_and_leaves_beside_all() -> Result<()> {
    with_kernel_peer(FastPath::All)
}

#[test]
fn a_kernel_peer_joins_changes_and_leaves_beside_flow() -> Result<()> {
    with_kernel_peer(FastPath::Flow)
}

#[test]
fn a_kernel_peer_joins_changes_and_leaves_beside_off() -> Result<()> {
    with_kernel_peer(FastPath::Off)
}

/// Leases change and etcd forgets how, while the agents cannot reach it.
#[test]
fn compaction_while_disconnected_is_caught_up_with() -> Result<()> {
    in_lab(|lab| {
        let mut cluster = Cluster::start(lab, 2, 1, FastPath::All)?;
        let mut leaving = KernelPeer::join(lab, &cluster.etcd)?;
        let mut changing = KernelPeer::join(lab, &cluster.etcd)?;
        leaving.stock.sync(&cluster.etcd)?;
        cluster.await_reachable(&[leaving.pod.endpoint(), changing.pod.endpoint()])?;
        let bystanders = Paced::usual(&cluster.members[0].pod()?, &cluster.members[1].pod()?)?;

        for member in &cluster.members {
            let cut = "table inet cut { chain output { type filter hook output priority 0; tcp dport 2379 drop; }; }";
            member.node.netns().run("nft", &[cut])?;
        }
        leaving.stock.withdraw(&cluster.etcd)?;
        changing.stock.change_mac()?;
        changing.stock.publish(&cluster.etcd)?;
        let joining = KernelPeer::join(lab, &cluster.etcd)?;
        changing.stock.sync(&cluster.etcd)?;
        cluster.etcd.compact()?;
        // A new server process knows none of the watches it had, and no history before the compaction.
        cluster.etcd.stop()?;
        cluster.etcd.start()?;
        for member in &cluster.members {
            member.node.netns().run("nft", &["delete table inet cut"])?;
        }

        let present = [changing.pod.endpoint(), joining.pod.endpoint()];
        let everyone = [cluster.pods(), present.to_vec()].concat();
        eventually(Duration::from_secs(30), "everyone reaches everyone", || {
            flannel_lab::traffic::reachability(&everyone).check_complete()
        })?;
        for member in &cluster.members {
            await_route(member, &leaving.stock.own().subnet.to_string(), false)?;
        }
        bystanders.stop()?.check_lossless()?;
        for member in &mut cluster.members {
            member.agent.check_running()?;
        }
        Ok(())
    })
}

/// A lease nobody can read concerns nobody else.
#[test]
fn an_undecodable_lease_is_skipped() -> Result<()> {
    in_lab(|lab| {
        let mut cluster = Cluster::start(lab, 2, 1, FastPath::All)?;
        let steady = Paced::usual(&cluster.members[0].pod()?, &cluster.members[1].pod()?)?;
        for (key, value) in [
            ("10.244.250.0-24", "{\"PublicIP\":"),
            (
                "10.244.251.0-24",
                "{\"PublicIP\":\"192.168.77.200\",\"BackendType\":\"vxlan\",\"BackendData\":7}",
            ),
            ("not-a-subnet", "{}"),
        ] {
            cluster.etcd.put(&format!("{}/subnets/{key}", flannel_lab::PREFIX), value)?;
        }
        // Later leases still get through, whether watched or listed.
        cluster.join(lab, FastPath::All)?;
        cluster.await_reachable(&[])?;
        steady.stop()?.check_lossless()?;
        for member in &mut cluster.members {
            member.agent.check_running()?;
        }
        Ok(())
    })
}
