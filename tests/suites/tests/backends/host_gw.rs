//! The host-gw backend: agents among each other, and beside a node built by plain `ip`.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use flannel_common::reason::{Direction, Reason};
use flannel_lab::{
    CONVERGENCE, Cluster, Etcd, FastPath, Lab, Member, Node, PREFIX, Pod, SubnetEnv, eventually, in_lab,
    make_dir,
    traffic::{
        Dialogue, Endpoint, Paced, every_kind_both_ways,
        ping::ping,
        source_seen, tcp,
        udp::{self, HEADERS, Receiver},
    },
};
use ipnetwork::Ipv4Network;

const CONFIG: &str = r#"{"Network":"10.244.0.0/16","SubnetMin":"10.244.16.0","SubnetMax":"10.244.63.0","Backend":{"Type":"host-gw"}}"#;

fn etcd(lab: &Lab) -> Result<Etcd> {
    let etcd = lab.etcd()?;
    etcd.put(&format!("{PREFIX}/config"), CONFIG)?;
    Ok(etcd)
}

/// A cluster of agents whose packets go past the host's stack.
fn cluster(lab: &Lab, nodes: usize) -> Result<Cluster> {
    cluster_by(lab, nodes, FastPath::All)
}

fn cluster_by(lab: &Lab, nodes: usize, fast_path: FastPath) -> Result<Cluster> {
    let etcd = etcd(lab)?;
    let members =
        (0..nodes).map(|_| Member::start(lab.node()?, &etcd, fast_path, 1)).collect::<Result<Vec<_>>>()?;
    let cluster = Cluster { members, etcd };
    cluster.await_reachable(&[])?;
    Ok(cluster)
}

/// Packets as large as an MTU of 1500 lets them be, singly and in aggregates of both kinds.
fn full_size(a: &Endpoint, b: &Endpoint) -> Result<()> {
    let full = 1500 - HEADERS;
    for (from, to) in [(a, b), (b, a)] {
        ping(from, to, full)?;
        udp::echo(from, to, full, 20)?;
        for receiver in [Receiver::Plain, Receiver::Gro] {
            udp::gso(from, to, full, 40, 5, receiver)?;
        }
        tcp::bulk(from, to, 64 << 20)?;
    }
    Ok(())
}

fn subnet(member: &Member) -> Result<Ipv4Network> {
    Ok(member.node.subnet_env()?.subnet)
}

fn lease(node: &Node) -> String {
    format!(r#"{{"PublicIP":"{}","PublicIPv6":null,"BackendType":"host-gw"}}"#, node.address())
}

/// Waits until the routes of `member` to `subnet` are `expected`; how long that took.
fn await_route(member: &Member, subnet: Ipv4Network, expected: &str) -> Result<Duration> {
    let start = std::time::Instant::now();
    eventually(CONVERGENCE, &format!("{} routes {subnet}: {expected:?}", member.node.name()), || {
        let shown = member.node.netns().ip(&format!("route show {subnet}"))?;
        ensure!(shown.trim() == expected, "{:?}\nof {}", shown.trim(), member.node.netns().ip("route show")?);
        Ok(())
    })?;
    Ok(start.elapsed())
}

/// A node as stock flannel's host-gw makes one.
struct Plain {
    pod: Pod,
    subnet: Ipv4Network,
    node: Node,
}

impl Plain {
    fn join(lab: &Lab, cluster: &Cluster) -> Result<Self> {
        let node = lab.node()?;
        let subnet = format!("10.244.{}.0/24", 200 + node.number()).parse()?;
        let network = "10.244.0.0/16".parse()?;
        SubnetEnv { network, subnet, mtu: 1500, ip_masq: false }.write(&node.subnet_file())?;
        for member in &cluster.members {
            let (to, via) = (self::subnet(member)?, member.node.address());
            node.netns().ip(&format!("route add {to} via {via} dev eth0"))?;
        }
        cluster.etcd.put_lease(subnet, &lease(&node))?;
        Ok(Self { pod: node.pod("pod1")?, subnet, node })
    }
}

#[test]
fn agents_and_a_plain_node_make_one_cluster() -> Result<()> {
    in_lab(|lab| {
        let mut cluster = cluster(lab, 2)?;
        let [a, b] = [&cluster.members[0], &cluster.members[1]];
        let bystanders = Paced::usual(&a.pod()?, &b.pod()?)?;
        for (from, to) in [(a, b), (b, a)] {
            let route = format!("{} via {} dev eth0", subnet(to)?, to.node.address());
            await_route(from, subnet(to)?, &route)?;
            ensure!(from.node.subnet_env()?.mtu == 1500, "{:?}", from.node.subnet_env()?);
            let published = cluster.etcd.leases()?[&subnet(from)?].clone();
            ensure!(
                published == serde_json::from_str::<serde_json::Value>(&lease(&from.node))?,
                "{published}"
            );
            ensure!(!from.node.netns().ip("link show")?.contains("flannel"), "a device was made");
        }
        cluster.await_fast_path(0, 1, FastPath::All)?;
        cluster.await_fast_path(1, 0, FastPath::All)?;
        every_kind_both_ways(&a.pod()?, &b.pod()?)?;

        let plain = Plain::join(lab, &cluster)?;
        cluster.await_reachable(&[plain.pod.endpoint()])?;
        let counters = a.counted(|| every_kind_both_ways(&a.pod()?, &plain.pod.endpoint()))?;
        let [out, back, encapsulated, decapsulated] = counters.past_the_stack();
        ensure!(out > 10_000 && back > 10_000 && [encapsulated, decapsulated] == [0, 0], "{counters}");
        every_kind_both_ways(&a.node.underlay_endpoint(), &plain.pod.endpoint()).context("our host")?;
        every_kind_both_ways(&plain.node.underlay_endpoint(), &b.pod()?).context("its host")?;

        // A vxlan node in the cluster is nobody's peer here, and nobody's trouble.
        let vxlan = "10.244.190.0/24".parse()?;
        let attrs = r#"{"PublicIP":"192.168.77.190","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:00:00:00:00:01"}}"#;
        cluster.etcd.put_lease(vxlan, attrs)?;
        eventually(CONVERGENCE, "the vxlan lease is reported as skipped", || {
            let log = cluster.members[0].agent.log();
            ensure!(log.contains("its backend is \"vxlan\", ours is \"host-gw\""), "{log}");
            Ok(())
        })?;
        await_route(&cluster.members[0], vxlan, "")?;

        cluster.etcd.delete_lease(plain.subnet)?;
        for member in &mut cluster.members {
            await_route(member, plain.subnet, "")?;
            member.agent.check_running()?;
        }
        bystanders.stop()?.check_lossless()
    })
}

/// Both kinds of aggregates go past the stack as they are: no tunnel's marks are on them.
#[test]
fn every_packet_and_aggregate_skips_the_stack() -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster(lab, 2)?;
        let [a, b] = [&cluster.members[0], &cluster.members[1]];
        cluster.await_fast_path(0, 1, FastPath::All)?;
        cluster.await_fast_path(1, 0, FastPath::All)?;
        let before = b.counters()?;
        let at_a = a.counted(|| full_size(&a.pod()?, &b.pod()?))?;
        let at_b = b.counters()?.since(&before);
        for counters in [&at_a, &at_b] {
            let [out, back, encapsulated, decapsulated] = counters.past_the_stack();
            ensure!(out > 10_000 && back > 10_000 && [encapsulated, decapsulated] == [0, 0], "{counters}");
            for reason in [Reason::UdpAggregate, Reason::TooBig, Reason::Refused, Reason::Length] {
                for direction in Direction::ALL {
                    ensure!(counters.get(direction, reason).packets == 0, "{counters}");
                }
            }
        }
        // A packet more than the link takes, and what is no packet of its own, is the kernel's.
        let large = a.counted(|| ping(&a.pod()?, &b.pod()?, 5000).map(drop))?;
        ensure!(large.past_the_stack() == [0; 4], "{large}");
        Ok(())
    })
}

/// What netfilter has accepted both ways skips the stack, learned where it leaves without a tunnel.
#[test]
fn flows_are_learned_on_the_external_interface() -> Result<()> {
    const DATAGRAMS: u64 = 500;
    in_lab(|lab| {
        let cluster = cluster_by(lab, 2, FastPath::Flow)?;
        let [a, b] = [&cluster.members[0], &cluster.members[1]];
        cluster.await_fast_path(0, 1, FastPath::Flow)?;
        cluster.await_fast_path(1, 0, FastPath::Flow)?;
        let (from, to) = (a.pod()?, b.pod()?);
        let before = b.counters()?;
        let at_a = a.counted(|| udp::echo(&from, &to, 200, DATAGRAMS))?;
        for counters in [at_a, b.counters()?.since(&before)] {
            let [out, back, encapsulated, decapsulated] = counters.past_the_stack();
            ensure!(out >= DATAGRAMS - 5 && back >= DATAGRAMS - 5, "{counters}");
            ensure!([encapsulated, decapsulated] == [0, 0], "{counters}");
        }
        let counters = a.counted(|| {
            every_kind_both_ways(&from, &to)?;
            full_size(&from, &to)
        })?;
        let [out, back, ..] = counters.past_the_stack();
        ensure!(out > 10_000 && back > 10_000, "{counters}");
        let control = counters.get(Direction::Egress, Reason::FlowControl).packets;
        ensure!(control >= 4, "handshakes do not stay with the kernel: {counters}");
        // What skips the stack is not taken for a sign that it does so unasked.
        let mut dialogue = Dialogue::open(&from, &to)?;
        dialogue.exchanges(20)?;
        let counters = a.counted(|| dialogue.exchanges(500))?;
        let [out, back, ..] = counters.past_the_stack();
        ensure!(out >= 500 && back >= 500, "{counters}");
        ensure!(counters.get(Direction::Egress, Reason::FlowForgotten).packets == 0, "{counters}");

        // A policy that comes later bites when the flow asks again, at the latest.
        let plain = Plain::join(lab, &cluster)?;
        cluster.await_reachable(&[plain.pod.endpoint()])?;
        let far = plain.pod.endpoint();
        let counters = a.counted(|| udp::echo(&from, &far, 200, DATAGRAMS))?;
        let [out, back, ..] = counters.past_the_stack();
        ensure!(out >= DATAGRAMS - 5 && back >= DATAGRAMS - 5, "{counters}");
        Ok(())
    })
}

/// Where every packet goes through the host's stack, pods still keep their address.
#[test]
fn on_the_kernels_path_pods_keep_their_address() -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster_by(lab, 2, FastPath::Overlay)?;
        let [a, b] = [&cluster.members[0], &cluster.members[1]];
        a.node.iptables("-t nat -A POSTROUTING -o eth0 -j MASQUERADE")?;
        let (from, to) = (a.pod()?, b.pod()?);
        let seen = source_seen(&from, &to, 8080, to.socket_address(8080))?;
        ensure!(seen == from.address(), "{seen}");
        let counters = a.counted(|| every_kind_both_ways(&from, &to))?;
        ensure!(counters.past_the_stack() == [0; 4], "{counters}");
        ensure!(counters.get(Direction::Egress, Reason::SnatExempt).packets > 0, "{counters}");
        Ok(())
    })
}

/// Traffic goes on while the agent is away, dies, and is replaced.
#[test]
fn agents_come_and_go_without_loss() -> Result<()> {
    in_lab(|lab| {
        let mut cluster = cluster(lab, 2)?;
        cluster.await_fast_path(0, 1, FastPath::All)?;
        let flow = Paced::usual(&cluster.members[0].pod()?, &cluster.members[1].pod()?)?;
        for member in &mut cluster.members {
            member.agent.kill()?;
            member.agent.start_again()?;
            member.agent.terminate()?;
            member.agent.start_again()?;
        }
        flow.stop()?.check_lossless()?;
        cluster.await_fast_path(0, 1, FastPath::All)
    })
}

#[test]
fn routes_are_repaired() -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster(lab, 2)?;
        let [a, b] = [&cluster.members[0], &cluster.members[1]];
        let (to, via) = (subnet(b)?, b.node.address());
        let route = format!("{to} via {via} dev eth0");
        for damage in [
            format!("route del {to}"),
            format!("route replace {to} via 192.168.77.99 dev eth0"),
            format!("route replace {to} via {via} dev eth0 proto static"),
            "route flush dev eth0 via 192.168.77.2".to_owned(),
        ] {
            let flow = Paced::usual(&a.pod()?, &b.pod()?)?;
            a.node.netns().ip(&damage)?;
            let took = await_route(a, to, &route)?;
            cluster.await_reachable(&[])?;
            println!("{damage}: repaired after {took:?}; {}", flow.stop()?);
        }
        // Going down takes all routes of the interface, also the default route, which is not ours.
        a.node.netns().ip("link set eth0 down")?;
        std::thread::sleep(Duration::from_millis(500));
        await_route(a, to, "")?;
        a.node.netns().ip("link set eth0 up")?;
        let took = await_route(a, to, &route)?;
        println!("eth0 down and up: repaired {took:?} after it is up");
        cluster.await_reachable(&[])
    })
}

#[test]
fn a_node_off_the_link_is_pending_alone() -> Result<()> {
    in_lab(|lab| {
        let mut cluster = cluster(lab, 2)?;
        let [a, b] = [&cluster.members[0], &cluster.members[1]];
        let flow = Paced::usual(&a.pod()?, &b.pod()?)?;
        let far = "10.244.180.0/24".parse()?;
        let attrs = r#"{"PublicIP":"203.0.113.7","PublicIPv6":null,"BackendType":"host-gw"}"#;
        cluster.etcd.put_lease(far, attrs)?;
        eventually(CONVERGENCE, "the log names the node and the remedy", || {
            let log = a.agent.log();
            for part in ["10.244.180.0/24 via 203.0.113.7", "is not on the link", "use the vxlan backend"] {
                ensure!(log.contains(part), "no {part:?} in\n{log}");
            }
            Ok(())
        })?;
        await_route(a, far, "")?;
        let plain = Plain::join(lab, &cluster)?;
        cluster.await_reachable(&[plain.pod.endpoint()]).context("beside it")?;

        // As soon as the link has its network, it is reached.
        a.node.netns().ip("addr add 203.0.113.1/24 dev eth0")?;
        await_route(a, far, "10.244.180.0/24 via 203.0.113.7 dev eth0")?;
        flow.stop()?.check_lossless()?;

        // And an agent that starts beside such a lease still becomes ready.
        cluster.members[1].agent.kill()?;
        cluster.members[1].agent.start_again()?;
        cluster.await_reachable(&[plain.pod.endpoint()])
    })
}

#[test]
fn behind_a_nat_it_refuses_to_start() -> Result<()> {
    in_lab(|lab| {
        let etcd = etcd(lab)?;
        let mut agent = lab.node()?.agent(&etcd, FastPath::Off.into())?;
        agent.terminate()?;
        let leases = etcd.leases()?;
        agent.set_flag("public-ip", "203.0.113.9");
        agent.launch()?;
        let status = agent.wait_for_end(Duration::from_secs(20))?;
        ensure!(status.code() == Some(1), "{status}");
        let log = agent.log();
        for part in [
            "your PublicIP differs from interface IP, meaning that probably you're on a NAT, which is not supported \
             by host-gw backend",
            "PublicIP 203.0.113.9, interface eth0 192.168.77.1",
            "use the vxlan backend",
        ] {
            ensure!(log.contains(part), "no {part:?} in\n{log}");
        }
        ensure!(etcd.leases()? == leases, "it touched its lease");
        Ok(())
    })
}

/// What a flannel left that nobody leases any more goes as soon as etcd is known to be the one it had its leases in, what
/// an administrator set up stays.
#[test]
fn stale_routes_go_at_the_start() -> Result<()> {
    in_lab(|lab| {
        let etcd = lab.etcd()?;
        // Any subnet may be a node's here, but those that these nodes had before are theirs again.
        etcd.put(&format!("{PREFIX}/config"), r#"{"Network":"10.244.0.0/16","Backend":{"Type":"host-gw"}}"#)?;
        let (a, b) = (lab.node()?, lab.node()?);
        for (number, node) in [(20, &a), (21, &b)] {
            let file = node.subnet_file();
            make_dir(file.parent().context("no directory")?)?;
            let before = format!("FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.{number}.1/24\n");
            fs::write(file, before + "FLANNEL_MTU=1500\nFLANNEL_IPMASQ=false\n")?;
        }
        let b = Member::start(b, &etcd, FastPath::Off, 1)?;
        let to = subnet(&b)?;
        ensure!(to == "10.244.21.0/24".parse()?, "{to}");
        let kept = [
            "10.244.151.0/24 via 192.168.77.254 dev eth0",
            "10.244.152.0/25 via 192.168.77.98 dev eth0",
            "10.244.153.0/24 via 192.168.77.99 dev eth0 proto static",
            "10.99.0.0/24 via 192.168.77.98 dev eth0",
        ];
        a.netns().ip("route add 10.244.150.0/24 via 192.168.77.99 dev eth0")?;
        a.netns().ip(&format!("route add {to} via 192.168.77.99 dev eth0"))?;
        for route in kept {
            a.netns().ip(&format!("route add {route}"))?;
        }
        let mut a = Member::start(a, &etcd, FastPath::Off, 1)?;
        let stale = "10.244.150.0/24".parse()?;
        await_route(&a, stale, "10.244.150.0/24 via 192.168.77.99 dev eth0")?;
        ensure!(a.agent.log().contains("peers that have no lease in etcd"), "{}", a.agent.log());
        a.agent.terminate()?;
        a.agent.start_again()?;
        await_route(&a, stale, "")?;
        await_route(&a, to, &format!("{to} via {} dev eth0", b.node.address()))?;
        for route in kept {
            let destination = route.split(' ').next().context("empty")?.parse()?;
            await_route(&a, destination, route)?;
        }
        let cluster = Cluster { members: vec![a, b], etcd };
        cluster.await_reachable(&[])
    })
}
