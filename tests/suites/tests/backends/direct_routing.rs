//! VXLAN with `DirectRouting`: each peer by the tunnel or without, as the underlay reaches it.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, ensure};
use flannel_agent::bpf::{Pins, Tables};
use flannel_common::{
    family::V4,
    layout::{Route, RouteKind, SubnetV4},
    reason::{Direction, Reason},
};
use flannel_lab::{
    CONVERGENCE, Cluster, FastPath, Lab, Member, Node, PREFIX, eventually, in_lab,
    traffic::{Paced, every_kind_both_ways},
};
use ipnetwork::Ipv4Network;

const CONFIG: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}"#;

/// A second address of the router.
const OTHER_ROUTER: &str = "192.168.77.253";

/// Two nodes on one link, and one behind a router.
fn cluster(lab: &Lab, fast_path: FastPath) -> Result<Cluster> {
    let etcd = lab.etcd()?;
    etcd.put(&format!("{PREFIX}/config"), CONFIG)?;
    let near = [lab.node()?, lab.node()?];
    let far = lab.node()?;
    put_behind_router(lab, &far)?;
    let members = near.into_iter().chain([far]).map(|node| Member::start(node, &etcd, fast_path, 1));
    let cluster = Cluster { members: members.collect::<Result<_>>()?, etcd };
    cluster.await_reachable(&[])?;
    Ok(cluster)
}

/// Moves `node` to a link of its own: the underlay's namespace routes between that and the others'.
fn put_behind_router(lab: &Lab, node: &Node) -> Result<()> {
    let underlay = lab.underlay()?;
    underlay.sysctl("net/ipv4/ip_forward", "1")?;
    for interface in ["all", "br0"] {
        underlay.sysctl(&format!("net/ipv4/conf/{interface}/send_redirects"), "0")?;
    }
    underlay.ip_batch(&format!(
        "link add br1 address 0e:00:00:00:78:fe type bridge forward_delay 0 stp_state 0 mcast_snooping 0\n\
         addr add 192.168.78.254/24 dev br1\n\
         link set br1 up\n\
         link set node{} master br1\n\
         addr add {OTHER_ROUTER}/24 dev br0\n",
        node.number()
    ))?;
    node.netns().ip_batch(&format!(
        "addr del {}/24 dev eth0\naddr add 192.168.78.{}/24 dev eth0\nroute replace default via 192.168.78.254\n",
        node.address(),
        node.number()
    ))
}

fn subnet(member: &Member) -> Result<Ipv4Network> {
    Ok(member.node.subnet_env()?.subnet)
}

/// What the programs of `at` know of `peer`.
fn entry(at: &Member, peer: &Member) -> Result<Route<V4>> {
    let subnet = subnet(peer)?;
    let key = SubnetV4::of(subnet.network().octets(), subnet.prefix().into());
    let routes = Tables::open(&Pins::under(at.agent.bpffs())?)?.v4.routes.entries()?;
    routes.get(&key).copied().context("no such peer")
}

fn await_kind(at: &Member, peer: &Member, kind: RouteKind) -> Result<Route<V4>> {
    eventually(CONVERGENCE, &format!("{} reaches {} by {kind:?}", at.node.name(), peer.node.name()), || {
        let found = entry(at, peer)?;
        ensure!(found.kind == kind, "{found:?}");
        Ok(())
    })?;
    entry(at, peer)
}

fn await_next_hop(at: &Member, peer: &Member, next_hop: &str) -> Result<()> {
    let next_hop: Ipv4Addr = next_hop.parse()?;
    eventually(CONVERGENCE, &format!("{} sends by {next_hop}", at.node.name()), || {
        let found = entry(at, peer)?;
        ensure!((found.kind, found.next_hop) == (RouteKind::Vxlan, next_hop.octets()), "{found:?}");
        Ok(())
    })
}

/// The route of `at` to the subnet of `peer`.
fn route(at: &Member, peer: &Member) -> Result<String> {
    let shown = at.node.netns().ip(&format!("route show {}", subnet(peer)?))?;
    Ok(shown.split_whitespace().collect::<Vec<_>>().join(" "))
}

fn direct(peer: &Member) -> Result<String> {
    Ok(format!("{} via {} dev eth0", subnet(peer)?, peer.node.address()))
}

fn tunnelled(peer: &Member) -> Result<String> {
    let subnet = subnet(peer)?;
    Ok(format!("{subnet} via {} dev flannel.1 onlink", subnet.network()))
}

fn await_route(at: &Member, peer: &Member, expected: &str) -> Result<()> {
    eventually(CONVERGENCE, &format!("{} has route {expected}", at.node.name()), || {
        let found = route(at, peer)?;
        ensure!(found == expected, "{found}");
        Ok(())
    })
}

/// Whether `at` keeps a neighbour and a forwarding entry for `peer`.
fn has_tunnel(at: &Member, peer: &Member) -> Result<[bool; 2]> {
    let base = subnet(peer)?.network().to_string();
    let neighbours = at.node.netns().ip("neigh show dev flannel.1")?;
    let neighbour = neighbours.lines().find(|line| line.split(' ').next() == Some(&base));
    let entries = at.node.netns().bridge("fdb show dev flannel.1")?;
    let address = format!("dst {} ", peer.node.address());
    Ok([neighbour.is_some(), entries.contains(&address)])
}

fn each_peer_by_its_way(fast_path: FastPath) -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster(lab, fast_path)?;
        let [a, b, far] = [&cluster.members[0], &cluster.members[1], &cluster.members[2]];
        for (from, to) in [(0, 1), (1, 0), (0, 2), (2, 0)] {
            cluster.await_fast_path(from, to, fast_path)?;
        }
        // As upstream: the tunnel's MTU for all pods, and nothing of the tunnel for a peer that needs none.
        ensure!(a.node.subnet_env()?.mtu == 1450, "{:?}", a.node.subnet_env()?);
        ensure!(route(a, b)? == direct(b)? && route(b, a)? == direct(a)?, "{}", route(a, b)?);
        ensure!(route(a, far)? == tunnelled(far)? && route(far, a)? == tunnelled(a)?, "{}", route(a, far)?);
        ensure!(has_tunnel(a, b)? == [false, false] && has_tunnel(far, b)? == [true, true]);
        let found = entry(a, far)?;
        ensure!((found.kind, found.next_hop) == (RouteKind::Vxlan, [192, 168, 77, 254]), "{found:?}");

        let near = a.counted(|| every_kind_both_ways(&a.pod()?, &b.pod()?))?;
        let [out, back, encapsulated, decapsulated] = near.past_the_stack();
        ensure!(out > 10_000 && back > 10_000 && [encapsulated, decapsulated] == [0, 0], "{near}");
        let away = a.counted(|| every_kind_both_ways(&a.pod()?, &far.pod()?))?;
        let [out, back, encapsulated, decapsulated] = away.past_the_stack();
        ensure!(encapsulated > 10_000 && decapsulated > 10_000 && [out, back] == [0, 0], "{away}");
        Ok(())
    })
}

#[test]
fn all_packets_by_the_way_of_their_peer() -> Result<()> {
    each_peer_by_its_way(FastPath::All)
}

#[test]
fn flows_by_the_way_of_their_peer() -> Result<()> {
    each_peer_by_its_way(FastPath::Flow)
}

/// The kernel alone, as stock flannel: the same routes.
#[test]
fn without_programs_the_kernel_takes_the_same_ways() -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster(lab, FastPath::Off)?;
        let [a, b, far] = [&cluster.members[0], &cluster.members[1], &cluster.members[2]];
        ensure!(route(a, b)? == direct(b)? && route(a, far)? == tunnelled(far)?, "{}", route(a, b)?);
        every_kind_both_ways(&a.pod()?, &b.pod()?)?;
        every_kind_both_ways(&a.pod()?, &far.pod()?)
    })
}

fn the_underlay_decides_again(fast_path: FastPath) -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster(lab, fast_path)?;
        let [a, b, far] = [&cluster.members[0], &cluster.members[1], &cluster.members[2]];
        for (from, to) in [(0, 1), (1, 0), (0, 2), (2, 0)] {
            cluster.await_fast_path(from, to, fast_path)?;
        }
        let flows = [Paced::usual(&a.pod()?, &b.pod()?)?, Paced::usual(&a.pod()?, &far.pod()?)?];
        for _ in 0..3 {
            for (at, to) in [(a, b), (b, a)] {
                at.node.netns().ip(&format!("route add {}/32 via 192.168.77.254", to.node.address()))?;
            }
            for (at, to) in [(a, b), (b, a)] {
                await_kind(at, to, RouteKind::Vxlan)?;
                await_next_hop(at, to, "192.168.77.254")?;
                await_route(at, to, &tunnelled(to)?)?;
            }
            for (at, to) in [(a, b), (b, a)] {
                at.node.netns().ip(&format!("route del {}/32 via 192.168.77.254", to.node.address()))?;
            }
            for (at, to) in [(a, b), (b, a)] {
                await_kind(at, to, RouteKind::Direct)?;
                await_route(at, to, &direct(to)?)?;
                eventually(CONVERGENCE, "nothing of the tunnel is left", || {
                    ensure!(has_tunnel(at, to)? == [false, false]);
                    Ok(())
                })?;
            }
        }
        // Another gateway to the far node, and back.
        for gateway in [OTHER_ROUTER, "192.168.77.254"] {
            a.node.netns().ip(&format!("route replace 192.168.78.0/24 via {gateway}"))?;
            await_next_hop(a, far, gateway)?;
        }
        for flow in flows {
            let report = flow.stop()?;
            println!("while ways and gateways changed: {report}");
            report.check_lossless()?;
        }
        Ok(())
    })
}

#[test]
fn the_underlay_decides_again_for_all_packets() -> Result<()> {
    the_underlay_decides_again(FastPath::All)
}

#[test]
fn the_underlay_decides_again_for_flows() -> Result<()> {
    the_underlay_decides_again(FastPath::Flow)
}

/// Of several next hops the kernel chooses, and the log says so.
#[test]
fn multipath_is_left_to_the_kernel() -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster(lab, FastPath::All)?;
        let [a, far] = [&cluster.members[0], &cluster.members[2]];
        cluster.await_fast_path(0, 2, FastPath::All)?;
        let flow = Paced::usual(&a.pod()?, &far.pod()?)?;
        a.node.netns().ip(&format!(
            "route add 192.168.78.0/24 nexthop via 192.168.77.254 dev eth0 nexthop via {OTHER_ROUTER} dev eth0"
        ))?;
        await_kind(a, far, RouteKind::Kernel)?;
        let counters = a.counted(|| every_kind_both_ways(&a.pod()?, &far.pod()?))?;
        ensure!(counters.past_the_stack()[2] == 0, "{counters}");
        ensure!(counters.get(Direction::Egress, Reason::PeerOnKernel).packets > 10_000, "{counters}");
        let log = a.agent.log();
        ensure!(log.contains("has several next hops, of which the kernel chooses"), "{log}");
        a.node.netns().ip("route del 192.168.78.0/24")?;
        await_next_hop(a, far, "192.168.77.254")?;
        cluster.await_fast_path(0, 2, FastPath::All)?;
        flow.stop()?.check_lossless()
    })
}

/// What somebody takes away comes back, and agents come and go without loss.
#[test]
fn ways_are_repaired_and_adopted() -> Result<()> {
    in_lab(|lab| {
        let mut cluster = cluster(lab, FastPath::All)?;
        let flow = Paced::usual(&cluster.members[0].pod()?, &cluster.members[1].pod()?)?;
        for member in &mut cluster.members {
            member.agent.kill()?;
            member.agent.start_again()?;
        }
        flow.stop()?.check_lossless()?;
        let [a, b] = [&cluster.members[0], &cluster.members[1]];
        let (to, via) = (subnet(b)?, b.node.address());
        for damage in [
            format!("route del {to}"),
            format!("route replace {to} via 192.168.77.99 dev eth0"),
            format!("route replace {to} via {} dev flannel.1 onlink", to.network()),
        ] {
            a.node.netns().ip(&damage)?;
            await_route(a, b, &direct(b)?)?;
        }
        cluster.await_reachable(&[])?;
        // A lease that goes takes its direct route along, at once and at a start.
        let leased = [subnet(a)?, to];
        let free = (150..).map(|number| Ipv4Network::new([10, 244, number, 0].into(), 24));
        let stale = free.flatten().find(|free| !leased.contains(free)).context("no subnet is free")?;
        cluster.members[0].agent.terminate()?;
        let netns = cluster.members[0].node.netns().clone();
        netns.ip(&format!("route add {stale} via {via} dev eth0"))?;
        cluster.members[0].agent.start_again()?;
        eventually(CONVERGENCE, "the stale route is gone", || {
            let found = netns.ip(&format!("route show {stale}"))?;
            ensure!(found.is_empty(), "{found}");
            Ok(())
        })
    })
}

/// A stock node sends through the tunnel what it is sent without, as flannel without the option does.
#[test]
fn a_peer_may_choose_otherwise() -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster(lab, FastPath::All)?;
        let a = &cluster.members[0];
        let node = lab.node()?;
        let mut stock = node.stock()?;
        for member in [0, 1] {
            let subnet = subnet(&cluster.members[member])?;
            let lease = cluster.etcd.leases()?[&subnet].clone();
            let peer = flannel_lab::Peer::from_lease(subnet, &lease)?.context("no vxlan lease")?;
            stock.add_peer(peer)?;
        }
        stock.publish(&cluster.etcd)?;
        let pod = node.pod("pod1")?;
        let near: Vec<_> = cluster.members[..2].iter().map(Member::pod).collect::<Result<_>>()?;
        let everyone = [near, vec![pod.endpoint()]].concat();
        eventually(CONVERGENCE, "the stock node is reached", || {
            flannel_lab::traffic::reachability(&everyone).check_complete()
        })?;
        let counters = a.counted(|| every_kind_both_ways(&a.pod()?, &pod.endpoint()))?;
        let [out, back, encapsulated, decapsulated] = counters.past_the_stack();
        ensure!(out > 10_000 && decapsulated > 100 && [back, encapsulated] == [0, 0], "{counters}");
        Ok(())
    })
}
