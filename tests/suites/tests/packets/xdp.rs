//! XDP on the external interface: it carries what the dataplane carries without it, takes part where it should,
//! and keeps unknown VTEPs out.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
    thread::sleep,
    time::Duration,
};

use anyhow::{Result, bail, ensure};
use flannel_common::{
    layout::AddressV6,
    reason::{Direction, Reason},
};
use flannel_common_testing::{Frame, FrameV6};
use flannel_lab::{
    AgentOptions, CONVERGENCE, Cluster, Dataplane, FastPath, Lab, Node, Xdp, eventually, in_lab,
    traffic::{Endpoint, Paced, every_kind_both_ways, tcp, wire::Wire},
};

/// Bytes of a transfer whose packets are counted.
const BULK: u64 = 8 << 20;
/// Of each packet of an unknown VTEP.
const COPIES: u64 = 3;
/// MAC that it is from.
const SENDER: [u8; 6] = [2, 0, 0, 0, 0, 9];

fn cluster(lab: &Lab, dataplane: impl Into<Dataplane>, flags: &[&str]) -> Result<Cluster> {
    let dataplane = dataplane.into();
    let cluster = Cluster::start(lab, 2, 1, AgentOptions::new(dataplane, flags))?;
    cluster.await_dataplane(dataplane)?;
    Ok(cluster)
}

/// Every kind of traffic, and what of a transfer was decapsulated early and delivered past the stack.
fn carries(lab: &Lab, dataplane: Dataplane) -> Result<(u64, u64)> {
    let cluster = cluster(lab, dataplane, &["--ip-masq"])?;
    let [a, b] = [&cluster.members[0], &cluster.members[1]];
    every_kind_both_ways(&a.pod()?, &b.pod()?)?;
    every_kind_both_ways(&a.node.overlay_endpoint()?, &b.pod()?)?;
    let before = b.counters()?;
    tcp::bulk(&a.pod()?, &b.pod()?, BULK)?;
    let counted = b.counters()?.since(&before);
    let ingress = |reason| counted.get(Direction::Ingress, reason).packets;
    let (decapsulated, delivered) = (ingress(Reason::DecapsulatedEarly), ingress(Reason::DeliverPod));
    ensure!(delivered >= BULK / 1398 / 2, "{counted}");
    Ok((decapsulated, delivered))
}

#[test]
fn native_pops_early_what_all_delivers() -> Result<()> {
    in_lab(|lab| {
        let (decapsulated, _) = carries(lab, FastPath::All.with(Xdp::Native))?;
        ensure!(decapsulated >= BULK / 1398, "{decapsulated}");
        Ok(())
    })
}

#[test]
fn native_pops_early_the_flows_that_netfilter_has_accepted() -> Result<()> {
    in_lab(|lab| {
        let (decapsulated, _) = carries(lab, FastPath::Flow.with(Xdp::Native))?;
        ensure!(decapsulated >= BULK / 1398 / 2, "{decapsulated}");
        Ok(())
    })
}

#[test]
fn generic_leaves_the_pop_to_tc() -> Result<()> {
    [FastPath::All, FastPath::Flow].into_iter().try_for_each(|fast_path| {
        in_lab(|lab| {
            let (decapsulated, _) = carries(lab, fast_path.with(Xdp::Generic))?;
            ensure!(
                decapsulated == 0,
                "{decapsulated} packets decapsulated early with fast path {fast_path:?}"
            );
            Ok(())
        })
    })
}

#[test]
fn overlay_with_native_xdp_leaves_every_packet_to_the_stack() -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster(lab, FastPath::Overlay.with(Xdp::Native), &[])?;
        let [a, b] = [&cluster.members[0], &cluster.members[1]];
        every_kind_both_ways(&a.pod()?, &b.pod()?)?;
        let decapsulated = b.counters()?.get(Direction::Ingress, Reason::DecapsulatedEarly).packets;
        ensure!(decapsulated == 0, "{decapsulated}");
        Ok(())
    })
}

#[test]
fn auto_stays_off_on_a_veth_and_says_why() -> Result<()> {
    in_lab(|lab| {
        let options = AgentOptions { fast_path: FastPath::All, flags: vec!["--xdp=auto".to_owned()] };
        let cluster = Cluster::start(lab, 2, 1, options)?;
        cluster.await_dataplane(FastPath::All.into())?;
        let member = &cluster.members[0];
        let log = member.agent.log();
        let line = log.lines().find(|line| line.contains("XDP on the external interface"));
        ensure!(line.is_some_and(|line| line.contains("no network card")), "{line:?}");
        Ok(())
    })
}

/// Large frames come in several buffers.
#[test]
fn native_takes_frames_of_several_buffers() -> Result<()> {
    in_lab(|lab| {
        let mut cluster = cluster(lab, FastPath::All.with(Xdp::Native), &[])?;
        for member in &cluster.members {
            member.node.netns().ip("link set eth0 mtu 9000")?;
        }
        let port = lab.underlay()?;
        for member in &cluster.members {
            port.ip(&format!("link set node{} mtu 9000", member.node.number()))?;
        }
        port.ip("link set br0 mtu 9000")?;
        for member in &mut cluster.members {
            let file = || member.node.subnet_env();
            eventually(CONVERGENCE, "pods are told the new MTU", || {
                ensure!(file()?.mtu == 8950, "{:?}", file()?);
                Ok(())
            })?;
            // The bridge stays as narrow as its narrowest port, unless it is told.
            member.node.netns().ip("link set cni0 mtu 8950")?;
            member.pods.insert(0, member.node.pod("large")?);
        }
        cluster.await_fast_path(0, 1, FastPath::All)?;
        let [a, b] = [&cluster.members[0], &cluster.members[1]];
        let before = b.counters()?;
        every_kind_both_ways(&a.pod()?, &b.pod()?)?;
        tcp::bulk(&a.pod()?, &b.pod()?, BULK)?;
        let counted = b.counters()?.since(&before);
        let decapsulated = counted.get(Direction::Ingress, Reason::DecapsulatedEarly);
        ensure!(decapsulated.bytes / decapsulated.packets.max(1) > 3000, "{counted}");
        Ok(())
    })
}

/// A datagram of one pod to another as a frame within VXLAN, its outer addresses, and where it is heard.
struct Forged {
    to: Endpoint,
    /// The address of the lease, and another one of the node: the kernel's device takes VXLAN at any.
    vteps: [IpAddr; 2],
    any: IpAddr,
    frame: Vec<u8>,
}

impl Forged {
    fn over_ipv4(cluster: &Cluster) -> Result<Self> {
        let [member, other] = [&cluster.members[0], &cluster.members[1]];
        let (source, to) = (other.pod()?.address_v4().octets(), member.pod()?);
        let mac = Wire::open(member.node.netns(), "flannel.1")?.mac()?;
        let frame = Frame::udp(source, to.address_v4().octets(), 32).macs(mac, SENDER).bytes();
        let vteps = [member.node.address().into(), member.node.overlay_endpoint()?.address()];
        Ok(Self { to, vteps, any: Ipv4Addr::UNSPECIFIED.into(), frame })
    }

    fn over_ipv6(cluster: &Cluster) -> Result<Self> {
        let [member, other] = [&cluster.members[0], &cluster.members[1]];
        let address = |endpoint: &Endpoint| match endpoint.address() {
            IpAddr::V6(address) => Ok(AddressV6::new(address.octets())),
            IpAddr::V4(_) => bail!("not IPv6"),
        };
        let (source, to) = (address(&other.pod_v6()?)?, member.pod_v6()?);
        let mac = Wire::open(member.node.netns(), "flannel-v6.1")?.mac()?;
        let frame = FrameV6::udp(source, address(&to)?, 32).macs(mac, SENDER).bytes();
        let vteps = [member.node.address_v6().into(), member.node.overlay_endpoint_v6()?.address()];
        Ok(Self { to, vteps, any: Ipv6Addr::UNSPECIFIED.into(), frame })
    }

    /// Sends it to `vtep` from `unknown VTEP`, a node that holds no lease, and says whether it arrived.
    fn reaches(&self, unknown: &Node, vtep: IpAddr) -> Result<bool> {
        // The port of the frames that the fixtures are made of.
        let address = self.to.socket_address(5001);
        let socket = self.to.netns().inside(|| Ok(UdpSocket::bind(address)?))?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        self.send(unknown, vtep)?;
        Ok(socket.recv(&mut [0; 64]).is_ok())
    }

    fn send(&self, unknown: &Node, to: IpAddr) -> Result<()> {
        unknown.netns().inside(|| {
            let sender = UdpSocket::bind((self.any, 0))?;
            let packet = [&[8, 0, 0, 0, 0, 0, 1, 0], &self.frame[..]].concat();
            for _ in 0..COPIES {
                sender.send_to(&packet, (to, 8472))?;
            }
            Ok(())
        })
    }

    /// Whether the same reaches a pod that has a tunnel of its own, by way of the node: whatever its port and VNI, it is
    /// none of the node's.
    fn passes_by(&self, unknown: &Node) -> Result<bool> {
        let address = self.to.socket_address(8472);
        let socket = self.to.netns().inside(|| Ok(UdpSocket::bind(address)?))?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        self.send(unknown, self.to.address())?;
        Ok(socket.recv(&mut [0; 64]).is_ok())
    }
}

/// Over IPv4 and over IPv6: whether what an unknown VTEP sends `arrives`, and is counted for `reason` only.
fn unknown_vteps(xdp: Xdp, what: &str, arrives: bool, reason: Option<Reason>) -> Result<()> {
    in_lab(|lab| {
        let (dataplane, flag) = (FastPath::All.with(xdp), format!("--xdp-unknown-vtep={what}"));
        let options = AgentOptions::new(dataplane, &[&flag]);
        let cluster = Cluster::start_v6(lab, 2, options, |etcd| etcd.configure_dual("vxlan"))?;
        cluster.await_dataplane(dataplane)?;
        cluster.await_fast_path_v6(0, 1, FastPath::All)?;
        cluster.await_fast_path_v6(1, 0, FastPath::All)?;
        let unknown = lab.dual_node()?;
        let node = &cluster.members[0].node;
        // Whoever is on the link may send to any address of the node.
        let (subnet, subnet_v6) = (node.subnet_env()?.subnet, node.subnet_env_v6()?.subnet);
        unknown.netns().ip(&format!("route add {subnet} via {}", node.address()))?;
        unknown.netns().ip(&format!("route add {subnet_v6} via {}", node.address_v6()))?;
        for forged in [Forged::over_ipv4(&cluster)?, Forged::over_ipv6(&cluster)?] {
            for vtep in forged.vteps {
                let before = cluster.members[0].counters()?;
                let arrived = forged.reaches(&unknown, vtep)?;
                ensure!(arrived == arrives, "to {vtep}: arrived: {arrived}");
                // What was sent may still be on its way where CPUs are busy.
                eventually(CONVERGENCE, "all are counted", || {
                    let counted = cluster.members[0].counters()?.since(&before);
                    for each in [Reason::VtepDropped, Reason::VtepSeen] {
                        let packets = counted.get(Direction::Ingress, each).packets;
                        let expected = if Some(each) == reason { COPIES } else { 0 };
                        ensure!(packets == expected, "to {vtep}: {each:?}: {packets} packets");
                    }
                    Ok(())
                })?;
            }
            ensure!(forged.passes_by(&unknown)?, "for {}, behind the node: dropped", forged.to.address());
        }
        Ok(())
    })
}

#[test]
fn unknown_vteps_are_dropped_by_native_xdp() -> Result<()> {
    unknown_vteps(Xdp::Native, "drop", false, Some(Reason::VtepDropped))
}

#[test]
fn unknown_vteps_are_dropped_by_generic_xdp() -> Result<()> {
    unknown_vteps(Xdp::Generic, "drop", false, Some(Reason::VtepDropped))
}

#[test]
fn unknown_vteps_are_counted_where_that_is_asked_for() -> Result<()> {
    unknown_vteps(Xdp::Native, "count", true, Some(Reason::VtepSeen))
}

#[test]
fn unknown_vteps_pass_as_with_stock_flannel_where_that_is_asked_for() -> Result<()> {
    unknown_vteps(Xdp::Generic, "off", true, None)
}

#[test]
fn modes_follow_one_another_without_a_loss() -> Result<()> {
    in_lab(|lab| {
        let mut cluster = cluster(lab, FastPath::All, &[])?;
        let flow = Paced::usual(&cluster.members[0].pod()?, &cluster.members[1].pod()?)?;
        for xdp in [Xdp::Generic, Xdp::Native, Xdp::Generic, Xdp::Off] {
            for kill in [false, true] {
                for member in &mut cluster.members {
                    if kill {
                        member.agent.kill()?;
                    } else {
                        member.agent.terminate()?;
                    }
                    member.agent.set_flag("xdp", xdp.name());
                    member.agent.start_again()?;
                    eventually(CONVERGENCE, "XDP is as asked for", || {
                        let now = member.xdp()?;
                        ensure!(now == xdp, "{xdp:?}: {now:?}");
                        Ok(())
                    })?;
                }
                sleep(Duration::from_millis(300));
            }
        }
        for member in &cluster.members {
            let log = member.agent.log();
            ensure!(!log.contains("another XDP program"), "it was our own: {log}");
        }
        let report = flow.stop()?;
        report.check_lossless()
    })
}
