//! The host-gw backend on the kernel's path: agents among each other, and beside a node built by plain `ip`.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use flannel_tests::{
    eventually,
    lab::{CONVERGENCE, Cluster, Etcd, FastPath, Lab, Member, Node, PREFIX, Pod, SubnetEnv, in_lab},
    traffic::{Paced, every_kind_both_ways},
};
use ipnetwork::Ipv4Network;

const CONFIG: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"host-gw"}}"#;

fn etcd(lab: &Lab) -> Result<Etcd> {
    let etcd = lab.etcd()?;
    etcd.put(&format!("{PREFIX}/config"), CONFIG)?;
    Ok(etcd)
}

/// A cluster of agents. They ask for programs, and must do without.
fn cluster(lab: &Lab, nodes: usize) -> Result<Cluster> {
    let etcd = etcd(lab)?;
    let members = (0..nodes)
        .map(|_| Member::start(lab.node()?, &etcd, FastPath::All, 1))
        .collect::<Result<Vec<_>>>()?;
    let cluster = Cluster { members, etcd };
    cluster.await_reachable(&[])?;
    Ok(cluster)
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
            let log = from.agent.log();
            ensure!(
                log.contains("host-gw routes in the kernel"),
                "the log does not say why no programs:\n{log}"
            );
            let links = from.agent.bpffs().join("flannel/v1/links");
            ensure!(fs::read_dir(&links).map_or(0, Iterator::count) == 0, "programs are attached");
        }
        every_kind_both_ways(&a.pod()?, &b.pod()?)?;

        let plain = Plain::join(lab, &cluster)?;
        cluster.await_reachable(&[plain.pod.endpoint()])?;
        every_kind_both_ways(&a.pod()?, &plain.pod.endpoint())?;
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

/// What a flannel left that nobody leases any more goes, what an administrator set up stays.
#[test]
fn stale_routes_go_at_the_start() -> Result<()> {
    in_lab(|lab| {
        let etcd = etcd(lab)?;
        let (a, b) = (lab.node()?, lab.node()?);
        let b = Member::start(b, &etcd, FastPath::Off, 1)?;
        let to = subnet(&b)?;
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
        let a = Member::start(a, &etcd, FastPath::Off, 1)?;
        await_route(&a, "10.244.150.0/24".parse()?, "")?;
        await_route(&a, to, &format!("{to} via {} dev eth0", b.node.address()))?;
        for route in kept {
            let destination = route.split(' ').next().context("empty")?.parse()?;
            await_route(&a, destination, route)?;
        }
        let cluster = Cluster { members: vec![a, b], etcd };
        cluster.await_reachable(&[])
    })
}
