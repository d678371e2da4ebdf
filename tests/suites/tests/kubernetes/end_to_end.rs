//! kube-flannel's manifest, end to end.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    thread::sleep,
    time::Duration,
};

use flannel_common::reason::{Class, Direction};
use flannel_lab::{
    counted,
    counters::Counters,
    in_kubernetes_lab,
    kubernetes::{Backend, Service, TrafficPolicy},
    traffic::{Paced, Serving, every_kind_both_ways, tcp::Stream},
};

use super::{
    installed::{Families, Installed},
    *,
};

const NODE_PORT: u16 = 30_080;
const BACKEND_PORT: u16 = 8080;

/// What the nodes' files say of their subnets.
fn subnets(members: &[Member]) -> Result<Vec<String>> {
    let subnet = |member: &Member| Ok(fs::read_to_string(member.node.subnet_file())?);
    members.iter().map(subnet).collect()
}

/// One of the families.
#[derive(Clone, Copy, Debug)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn pod(self, pod: &Pod) -> Result<Endpoint> {
        match self {
            Self::V4 => Ok(pod.endpoint()),
            Self::V6 => pod.endpoint_v6(),
        }
    }

    fn node(self, node: &Node) -> Endpoint {
        match self {
            Self::V4 => node.underlay_endpoint(),
            Self::V6 => Endpoint::new(node.name(), node.netns().clone(), node.address_v6()),
        }
    }

    fn cluster_ip(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(10, 96, 1, 1).into(),
            Self::V6 => Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0x1001).into(),
        }
    }
}

/// Every node's first pod behind one address, and behind a port of every node: each is met from a pod of another
/// node, from a node and from outside.
fn services(lab: &Lab, site: &Installed, family: Family) -> Result<()> {
    let members = &site.kube.members;
    let backends: Vec<Endpoint> =
        members.iter().map(|member| family.pod(&member.pods[0])).collect::<Result<_>>()?;
    let service = Service {
        name: "web".to_owned(),
        address: family.cluster_ip(),
        port: 80,
        target: BACKEND_PORT,
        node_port: Some(NODE_PORT),
        policy: TrafficPolicy::Cluster,
        affinity: false,
        backends: members
            .iter()
            .zip(&backends)
            .map(|(member, backend)| Backend { address: backend.address(), node: member.node.name() })
            .collect(),
    };
    site.kube.api.add_service(&service)?;
    site.proxies.iter().try_for_each(|proxy| proxy.await_service(&service))?;
    let serving = Serving::new(&backends, BACKEND_PORT)?;
    let cluster_ip = service.socket_address();
    let node_port = family.node(&members[1].node).socket_address(NODE_PORT);
    let (pod, outside) = (family.pod(&members[0].pods[1])?, family.node(&lab.dual_node()?));
    for (client, to) in [
        (&pod, cluster_ip),
        (&family.node(&members[0].node), cluster_ip),
        (&outside, node_port),
        (&pod, node_port),
    ] {
        let mut served = vec![0; backends.len()];
        let mut long = Vec::new();
        while served.contains(&0) {
            ensure!(long.len() < 100, "{} at {to}: {served:?} connections", client.name());
            let mut dialogue = serving.connect(client, 0, to)?;
            dialogue.exchanges(10)?;
            served[serving.backend(&dialogue)?] += 1;
            long.push(dialogue);
            serving.ask(&Serving::asker(client, to)?, long.len() as u64)?;
        }
        long.iter_mut().try_for_each(|dialogue| dialogue.exchanges(10))?;
    }
    site.kube.api.remove_service(&service)
}

/// Of the packets that pods sent to other nodes, how many skipped the host's stack, and of those that came for them.
fn fast_share(counters: &Counters) -> [f64; 2] {
    [Direction::Egress, Direction::Ingress].map(|direction| {
        let [fast, kernel] = [Class::Fast, Class::Kernel].map(|class| counters.packets(direction, class));
        fast as f64 / (fast + kernel).max(1) as f64
    })
}

/// The manifest as it is, from its objects to Services, and then with another argument, which rolls over the nodes
/// while pods talk.
fn end_to_end(families: Families) -> Result<()> {
    in_kubernetes_lab(|lab| {
        let mut site = Installed::start(lab, families, |_| ())?.with_nodes(lab, 3)?;
        let [a, b] = [site.pod(0, 0)?, site.pod(1, 0)?];
        every_kind_both_ways(&a, &b)?;
        services(lab, &site, Family::V4)?;
        if families == Families::Both {
            let six = |member: usize| site.kube.members[member].pods[0].endpoint_v6();
            every_kind_both_ways(&six(0)?, &six(1)?).context("IPv6")?;
            services(lab, &site, Family::V6).context("IPv6")?;
        }
        for Member { node, agent, .. } in &site.kube.members {
            ensure!(agent.log().contains("programs loaded"), "{}", agent.log());
            for trouble in ["WARN", "ERROR", "forbidden"] {
                ensure!(!agent.log().contains(trouble), "{trouble} on {}:\n{}", node.name(), agent.log());
            }
        }

        let streams = [Stream::start(&a, &b)?, Stream::start(&site.pod(2, 0)?, &a)?];
        // Each begins on the kernel's path.
        eventually(CONVERGENCE, "streams are fast", || {
            let counted = counted(&site.kube.members, || {
                sleep(Duration::from_secs(1));
                Ok(())
            })?;
            for (member, counters) in site.kube.members.iter().zip(&counted) {
                let share = fast_share(counters);
                println!(
                    "{}: {:.4} of what pods sent, {:.4} of what came, was fast",
                    member.node.name(),
                    share[0],
                    share[1]
                );
                ensure!(share.into_iter().all(|share| share > 0.9), "{}: {counters}", member.node.name());
            }
            Ok(())
        })?;
        for stream in streams {
            ensure!(stream.stop()?.0 > 0, "nothing arrived");
        }

        let before = subnets(&site.kube.members)?;
        let traffic = [Paced::usual(&a, &b)?, Paced::usual(&b, &site.pod(2, 1)?)?];
        site.flannel().edit(|container| {
            if let Some(args) = container["args"].as_array_mut() {
                args.push(json!("--fast-path=overlay"));
            }
        })?;
        site.roll_out()?;
        for one in traffic {
            one.stop()?.check_lossless()?;
        }
        let after = subnets(&site.kube.members)?;
        ensure!(before == after, "{before:?}\nand after the rollout\n{after:?}");
        site.await_reachable()?;
        services(lab, &site, Family::V4).context("with --fast-path=overlay")
    })
}

#[test]
fn the_manifest_end_to_end() -> Result<()> {
    end_to_end(Families::V4)
}

#[test]
fn the_manifest_end_to_end_with_both_families() -> Result<()> {
    end_to_end(Families::Both)
}

/// Upstream's host-gw and alloc under Kubernetes, by another word in the ConfigMap.
#[test]
fn other_backends() -> Result<()> {
    in_kubernetes_lab(|lab| {
        let host_gw = |config: &mut Value| config["Backend"]["Type"] = json!("host-gw");
        let mut site = Installed::start(lab, Families::V4, host_gw)?.with_nodes(lab, 2)?;
        every_kind_both_ways(&site.pod(0, 0)?, &site.pod(1, 0)?)?;
        for Member { node, .. } in &site.kube.members {
            let written = site.kube.annotations(&node.name())?;
            ensure!(written["backend-type"] == "host-gw" && written["backend-data"] == "null", "{written:?}");
            ensure!(node.netns().ip("link show dev flannel.1").is_err(), "a tunnel on {}", node.name());
        }
        let route = site.kube.members[0].node.netns().ip(&format!("route show {}", cidr(2)))?;
        ensure!(route.contains("via 192.168.77.2 dev eth0"), "{route}");

        // alloc moves no packets: lease, file and condition are all there is.
        let alloc = json!({"Network": "10.244.0.0/16", "Backend": {"Type": "alloc"}});
        let mut map = manifest::object("ConfigMap")?;
        map["data"]["net-conf.json"] = json!(alloc.to_string());
        site.kube.api.apply(&[map])?;
        let running = &site.kube.members[0];
        site.flannel().renew_volumes(&running.node)?;
        await_log(&running.agent, "the network config has changed; this node keeps")?;
        let node = site.machine(lab)?;
        let mut agent = site.flannel().start_pod(&node)?;
        // As upstream's, which names no backend there.
        ensure!(site.kube.annotations(&node.name())?["backend-type"].is_empty());
        ensure!(node.subnet_env()?.subnet.to_string() == cidr(node.number()));
        let routes = node.netns().ip("route show")?;
        ensure!(!routes.contains("10.244."), "{routes}");
        site.kube.await_condition(&node)?;
        agent.check_running()
    })
}

/// In a DaemonSet that does not give the host's settings, as flannel's does not, what depends on them is left out.
#[test]
fn a_daemon_set_without_the_hosts_settings() -> Result<()> {
    in_kubernetes_lab(|lab| {
        let mut site = Installed::start(lab, Families::V4, |_| ())?.with_nodes(lab, 1)?;
        site.flannel().edit(|container| {
            if let Some(mounts) = container["volumeMounts"].as_array_mut() {
                mounts.retain(|mount| mount["name"] != "sysctl-net");
            }
        })?;
        site.join(lab)?;
        let log = site.kube.members[1].agent.log();
        let said = log.lines().filter(|line| line.contains("WARN") && line.contains("fast_path=\"overlay\""));
        ensure!(said.count() == 1, "{log}");
        site.await_reachable()?;
        every_kind_both_ways(&site.pod(0, 0)?, &site.pod(1, 0)?)
    })
}

/// Without the capabilities that eBPF takes, the kernel path carries all traffic, and the Node says so.
#[test]
fn a_node_tells_that_it_fell_back_to_the_kernels_path() -> Result<()> {
    in_kubernetes_lab(|lab| {
        let mut site = Installed::start(lab, Families::V4, |_| ())?.with_nodes(lab, 1)?;
        site.flannel().edit(|container| {
            container["securityContext"]["capabilities"]["add"] = json!(["NET_ADMIN", "NET_RAW"]);
        })?;
        site.join(lab)?;
        let fallen = &site.kube.members[1];
        let note = site.kube.await_event(&fallen.node, "KernelPath")?;
        ensure!(note.contains("the kernel path carries all traffic") && note.contains("CAP_BPF"), "{note}");
        ensure!(fallen.agent.log().contains("WARN"), "{}", fallen.agent.log());
        site.await_reachable()?;
        every_kind_both_ways(&site.pod(0, 0)?, &site.pod(1, 0)?)
    })
}
