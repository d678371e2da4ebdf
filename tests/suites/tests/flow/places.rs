//! Where a pod's packets go: through another pod, to another pod that took over an address, to none any more.

use std::{
    net::{IpAddr, Ipv4Addr, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use flannel_agent::bpf::{Pins, Tables};
use flannel_common::reason::Reason;
use flannel_lab::{
    AgentOptions, CONVERGENCE, Cluster, FastPath, Member, Netns, eventually, in_lab,
    traffic::{Dialogue, Endpoint, Paced, udp_pair},
};

use crate::packets;

/// The fast paths that pass by the bridge.
const FAST: [FastPath; 2] = [FastPath::Flow, FastPath::All];

fn tables(member: &Member) -> Result<Tables> {
    Ok(Tables::open(&Pins::under(member.agent.bpffs())?)?)
}

/// The name of the interface of `node` with this index.
fn name_of(node: &Netns, ifindex: u32) -> Result<String> {
    let links: serde_json::Value = serde_json::from_str(&node.run("ip", &["-j", "link", "show"])?)?;
    let links = links.as_array().context("a list of links")?;
    let link = links.iter().find(|link| link["ifindex"] == ifindex).context("no such interface")?;
    Ok(link["ifname"].as_str().context("a name")?.to_owned())
}

/// A pod whose route leads through another pod of its node, a firewall: in a running connection, that gets every packet
/// from then on, by either family.
#[test]
fn a_pod_that_forwards_is_not_passed_by() -> Result<()> {
    for fast_path in FAST {
        in_lab(|lab| {
            let cluster = Cluster::dual_pair(lab, 2, AgentOptions::new(fast_path, &["--ip-masq"]))?;
            cluster.await_fast_path(0, 1, fast_path)?;
            cluster.await_fast_path_v6(0, 1, fast_path)?;
            let [a, b] = [&cluster.members[0], &cluster.members[1]];
            let firewall = &a.pods[1];
            for (key, value) in [
                ("net/ipv4/ip_forward", "1"),
                ("net/ipv6/conf/all/forwarding", "1"),
                ("net/ipv4/conf/all/send_redirects", "0"),
                ("net/ipv4/conf/eth0/send_redirects", "0"),
            ] {
                firewall.netns().sysctl(key, value)?;
            }
            let deny = "add table inet f; \
                 add chain inet f forward { type filter hook forward priority 0; policy drop; }";
            firewall.netns().run("nft", &[deny])?;
            let v6 = firewall.address_v6().context("an IPv6 address")?;
            for (from, to, gateway) in [
                (a.pod()?, b.pod()?, IpAddr::V4(firewall.address())),
                (a.pod_v6()?, b.pod_v6()?, IpAddr::V6(v6)),
            ] {
                let mut dialogue = Dialogue::open(&from, &to)?;
                dialogue.exchanges(50)?;
                let family = if gateway.is_ipv4() { "-4" } else { "-6" };
                from.netns().ip(&format!("{family} route replace {} via {gateway}", to.address()))?;
                let before = a.counters()?;
                let passed = dialogue.exchange_within(Duration::from_secs(1));
                ensure!(passed.is_err(), "{}: past the firewall, {family}", fast_path.name());
                let counters = a.counters()?.since(&before);
                ensure!(packets(&counters, Reason::NotGateway) > 0, "{counters}");
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// Has `pod` ask for its gateway's MAC as the holder of `address`, as whoever takes an address over announces it.
fn announce(pod: &Endpoint, address: Ipv4Addr, gateway: IpAddr) -> Result<()> {
    pod.netns().ip("neigh flush dev eth0")?;
    let socket = pod.netns().inside(|| Ok(UdpSocket::bind((address, 0))?))?;
    socket.send_to(b"here", (gateway, 9))?;
    Ok(())
}

/// An address that one pod gives up and another takes over and announces: what is sent next arrives there.
#[test]
fn an_address_is_followed_from_pod_to_pod() -> Result<()> {
    for fast_path in FAST {
        in_lab(|lab| {
            let cluster = Cluster::pair(lab, 2, AgentOptions::new(fast_path, &["--ip-masq"]))?;
            cluster.await_fast_path(0, 1, fast_path)?;
            let [a, b] = [&cluster.members[0], &cluster.members[1]];
            let subnet = a.node.subnet_env()?.subnet;
            let (shared, gateway) = (subnet.nth(200).context("address")?, subnet.nth(1).context("gateway")?);
            let at = |pod: usize| Endpoint::new(format!("pod {pod}"), a.pods[pod].netns().clone(), shared);
            let remote = b.pod()?;
            for (old, new) in [(1, 0), (0, 1), (1, 0)] {
                // Not there yet in the first turn.
                let _ = at(old).netns().ip(&format!("addr del {shared}/{} dev eth0", subnet.prefix()));
                at(new).netns().ip(&format!("addr add {shared}/{} dev eth0", subnet.prefix()))?;
                announce(&at(new), shared, gateway.into())?;
                let (here, there) = udp_pair(&at(new), &remote)?;
                for end in [&here, &there] {
                    end.set_read_timeout(Some(Duration::from_secs(2)))?;
                }
                let exchange = || -> Result<()> {
                    for (from, to) in [(&there, &here), (&here, &there)] {
                        from.send(b"packet")?;
                        to.recv(&mut [0; 6])
                            .with_context(|| format!("{}, in pod {new}", fast_path.name()))?;
                    }
                    Ok(())
                };
                // The pod's own packets have gone that way before: the first is answered.
                exchange()?;
                let place = a.pods[new].address().octets();
                // After a repair the agent rests from looks for fifty times its CPU time, at most half a minute.
                eventually(3 * CONVERGENCE, "the agent knows where the address is", || {
                    let pods = tables(a)?.v4.pods.entries()?;
                    let found = pods.get(&shared.octets()).map(|pod| pod.ifindex);
                    ensure!(found == pods.get(&place).map(|pod| pod.ifindex) && found.is_some());
                    Ok(())
                })?;
                (0..20).try_for_each(|_| exchange())?;
            }
            let counters = a.counters()?;
            // Where the agent has looked meanwhile, there was nothing left to be moved.
            ensure!(packets(&counters, Reason::PodMoved) >= 1, "{counters}");
            Ok(())
        })?;
    }
    Ok(())
}

/// A veth that is set down, or taken out of its bridge, gets nothing any more, and everything again afterwards.
#[test]
fn a_veth_that_is_down_or_out_of_its_bridge_gets_nothing() -> Result<()> {
    for fast_path in FAST {
        in_lab(|lab| {
            let cluster = Cluster::pair(lab, 1, AgentOptions::new(fast_path, &["--ip-masq"]))?;
            cluster.await_fast_path(0, 1, fast_path)?;
            let [a, b] = [&cluster.members[0], &cluster.members[1]];
            let pod = a.pod()?;
            let place = || {
                Ok::<_, anyhow::Error>(tables(a)?.v4.pods.entries()?.get(&pod.address_v4().octets()).copied())
            };
            let veth = name_of(a.node.netns(), place()?.context("the pod is known")?.ifindex)?;
            let trickle = Paced::usual(&b.pod()?, &pod)?;
            for (away, back) in [("down", "up"), ("nomaster", "master cni0")] {
                a.node.netns().ip(&format!("link set {veth} {away}"))?;
                eventually(CONVERGENCE, "the pod has no place", || {
                    ensure!(place()?.is_none(), "{away}");
                    Ok(())
                })?;
                let heard = trickle.received().0;
                std::thread::sleep(Duration::from_millis(300));
                ensure!(trickle.received().0 <= heard + 1, "{}: {veth} {away} goes on", fast_path.name());
                a.node.netns().ip(&format!("link set {veth} {back}"))?;
                eventually(CONVERGENCE, "packets arrive again", || {
                    ensure!(trickle.received().0 > heard + 100 && place()?.is_some());
                    Ok(())
                })?;
            }
            trickle.stop().map(drop)
        })?;
    }
    Ok(())
}
