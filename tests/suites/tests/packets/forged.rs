//! Forged and broken packets: never delivered fast, and counted for what is wrong with them.

use std::net::{Ipv4Addr, UdpSocket};

use anyhow::{Context as _, Result, ensure};
use flannel_common::{
    packet::{
        checksum,
        headers::{ENCAP_LEN, ETHERNET_LEN, IPV4_LEN, UDP_LEN},
    },
    reason::{Class, Direction, Reason},
};
use flannel_common_testing::Frame;
use flannel_lab::{
    CONVERGENCE, Cluster, Dataplane, FastPath, Lab, Member, Xdp,
    counters::Counters,
    eventually,
    traffic::{every_kind, udp, udp_pair, wire::Wire},
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use crate::{FAST, arrived, cluster, counted, left, on_each};

const IP: usize = ETHERNET_LEN;
const UDP: usize = IP + IPV4_LEN;
const VXLAN: usize = UDP + UDP_LEN;
const INNER: usize = ENCAP_LEN;
const INNER_IP: usize = INNER + ETHERNET_LEN;

/// Of each kind.
const COPIES: u64 = 3;

/// The wire to the second node, and what a packet that goes by it must say.
pub(crate) struct Forger {
    wire: Wire,
    /// MAC of the second node's external interface.
    pub(crate) to: [u8; 6],
    /// MAC of its VXLAN device.
    pub(crate) overlay: [u8; 6],
    /// The nodes' own addresses.
    nodes: [[u8; 4]; 2],
    /// A pod on each.
    pods: [[u8; 4]; 2],
    /// Ports of a flow between those.
    pub(crate) ports: (u16, u16),
}

pub(crate) fn mac_of(member: &Member, interface: &str) -> Result<[u8; 6]> {
    Wire::open(member.node.netns(), interface)?.mac()
}

impl Forger {
    /// Takes the place of the first node on the wire to the second, in the flow between `ports`.
    pub(crate) fn new(lab: &Lab, cluster: &Cluster, ports: (u16, u16)) -> Result<Self> {
        let [a, b] = [&cluster.members[0], &cluster.members[1]];
        Ok(Self {
            wire: Wire::open(&lab.underlay()?, "node2")?,
            to: mac_of(b, "eth0")?,
            overlay: mac_of(b, "flannel.1")?,
            nodes: [a.node.address().octets(), b.node.address().octets()],
            pods: [a.pod()?.address_v4().octets(), b.pod()?.address_v4().octets()],
            ports,
        })
    }

    pub(crate) fn inner(&self, payload: &[u8]) -> Frame {
        let (source, destination) = self.ports;
        let length = (UDP_LEN + payload.len()) as u16;
        let header = [source, destination, length, 0].map(u16::to_be_bytes).concat();
        let [from, to] = self.pods;
        // As the first node sends on what its pod has sent: acceptance is for one TTL.
        let frame = Frame::ipv4(from, to, 17, [&header, payload].concat()).ip(|ip| ip.ttl -= 1);
        frame.macs(self.overlay, [0x0e, 0, 0, 0, 0, 1])
    }

    pub(crate) fn outer(&self, inner: &[u8]) -> Frame {
        let [from, to] = self.nodes;
        Frame::vxlan(from, to, inner).macs(self.to, [0x0e, 0, 0, 0, 0, 2])
    }

    pub(crate) fn send(&self, frame: &[u8]) -> Result<()> {
        self.wire.send(frame)
    }

    /// Everything that can be wrong, and what it is counted for.
    fn forgeries(&self) -> Vec<(&'static str, Vec<u8>, Reason)> {
        let inner = || self.inner(&[0x66; 64]);
        let frame = || self.outer(&inner().bytes());
        let bent = |at, bytes: &[u8]| frame().bytes_with(at, bytes);
        let with = |inner: Frame| self.outer(&inner.bytes()).bytes();
        // Cut where the headers say it is longer, and with headers that say what is left.
        let cut = |length: usize| frame().bytes()[..length].to_vec();
        let shortened = |length: usize| {
            let mut bytes = cut(length);
            let total = (length - ETHERNET_LEN) as u16;
            bytes[IP + 2..IP + 4].copy_from_slice(&total.to_be_bytes());
            bytes[UDP + 4..UDP + 6].copy_from_slice(&(total - IPV4_LEN as u16).to_be_bytes());
            let outer = frame().ip(|ip| ip.total_len = total);
            bytes[IP + 10..IP + 12].copy_from_slice(&checksum::of(&outer.ip).to_be_bytes());
            bytes
        };
        let unknown = [192, 168, 77, 99];
        let elsewhere = [10, 244, 250, 7];
        let nested = self.outer(&frame().macs(self.overlay, [0x0e, 0, 0, 0, 0, 3]).bytes());
        let padded = [frame().bytes(), vec![0; 9]].concat();
        vec![
            ("an unknown VTEP", frame().ip(|ip| ip.source = unknown).bytes(), Reason::UnknownVtep),
            ("another VNI", bent(VXLAN + 4, &[0, 0, 2]), Reason::Vni),
            ("no VNI", bent(VXLAN, &[0]), Reason::VxlanFlags),
            ("reserved bits", bent(VXLAN + 1, &[1]), Reason::VxlanFlags),
            ("a third node's pod", with(inner().ip(|ip| ip.source = elsewhere)), Reason::InnerSource),
            ("one of our own pods", with(inner().ip(|ip| ip.source = self.pods[1])), Reason::InnerSource),
            ("a third node", with(inner().ip(|ip| ip.source = unknown)), Reason::InnerSource),
            ("for another node's pod", with(inner().ip(|ip| ip.destination = elsewhere)), Reason::NotOurPod),
            ("for the node itself", with(inner().ip(|ip| ip.destination = self.nodes[1])), Reason::NotOurPod),
            ("for another MAC", bent(INNER, &[0x0e, 9, 9, 9, 9, 9]), Reason::InnerMac),
            ("broadcast within", bent(INNER, &[0xff; 6]), Reason::InnerMac),
            ("ARP within", bent(INNER + 12, &[8, 6]), Reason::NotIp),
            ("a VLAN tag within", bent(INNER + 12, &[0x81, 0]), Reason::NotIp),
            ("a tunnel in the tunnel", nested.bytes(), Reason::NotOurPod),
            ("TTL 1", with(inner().ip(|ip| ip.ttl = 1)), Reason::Ttl),
            ("a fragment within", with(inner().ip(|ip| ip.fragment = 0x2000)), Reason::Fragment),
            ("IP options within", bent(INNER_IP, &[0x46]), Reason::IpOptions),
            ("IPv6 in an IPv4 frame", bent(INNER_IP, &[0x65]), Reason::IpOptions),
            ("a fragment", frame().ip(|ip| ip.fragment = 0x2000).bytes(), Reason::Fragment),
            ("a wrong header checksum", bent(IP + 10, &[0xde, 0xad]), Reason::HeaderChecksum),
            ("longer within than without", with(inner().ip(|ip| ip.total_len += 8)), Reason::Length),
            ("shorter within than without", with(inner().ip(|ip| ip.total_len -= 8)), Reason::Length),
            ("padding", padded, Reason::Length),
            ("cut in the payload", cut(INNER_IP + IPV4_LEN + UDP_LEN + 5), Reason::Length),
            ("cut in the inner UDP header", cut(INNER_IP + IPV4_LEN + 3), Reason::Length),
            ("ending in the VXLAN header", shortened(INNER - 1), Reason::Truncated),
            ("ending in the inner Ethernet header", shortened(INNER_IP - 1), Reason::Truncated),
            ("ending in the inner IP header", shortened(INNER_IP + IPV4_LEN - 1), Reason::Truncated),
        ]
    }
}

fn delivered(counters: &Counters) -> u64 {
    counters.packets(Direction::Ingress, Class::Fast)
}

/// Two sockets of pods on both nodes that have talked enough for their flow to be fast, the forger that knows it, and
/// the receiving one.
pub(crate) fn flow(lab: &Lab, cluster: &Cluster) -> Result<(UdpSocket, UdpSocket, Forger)> {
    let (a, b) = udp_pair(&cluster.members[0].pod()?, &cluster.members[1].pod()?)?;
    for _ in 0..4 {
        for (from, to) in [(&a, &b), (&b, &a)] {
            from.send(b"hello")?;
            eventually(CONVERGENCE, "an opening", || Ok(to.recv(&mut [0; 9])?))?;
        }
    }
    let ports = (a.local_addr()?.port(), b.local_addr()?.port());
    let forger = Forger::new(lab, cluster, ports)?;
    Ok((a, b, forger))
}

#[test]
fn forged_packets_are_never_fast() -> Result<()> {
    on_each(FAST, forged)
}

fn forged(lab: &Lab, dataplane: Dataplane) -> Result<()> {
    let cluster = cluster(lab, dataplane, 1)?;
    let (_a, b, forger) = flow(lab, &cluster)?;
    // The forger is good: what it does not bend is fast, and arrives.
    let honest = forger.outer(&forger.inner(b"honest").bytes());
    let [_, at_b] = counted(&cluster, || {
        forger.send(&honest.bytes())?;
        let mut heard = [0; 32];
        let length = eventually(CONVERGENCE, "the honest packet arrives", || Ok(b.recv(&mut heard)?))?;
        ensure!(&heard[..length] == b"honest", "something else arrived");
        Ok(())
    })?;
    ensure!(arrived(&at_b, Reason::DeliverPod) == 1, "{at_b}");

    for (about, frame, reason) in forger.forgeries() {
        let reason = match reason {
            Reason::UnknownVtep if dataplane.xdp != Xdp::Off => Reason::VtepDropped,
            reason => reason,
        };
        let before = cluster.members[1].counters()?;
        let [_, at_b] = counted(&cluster, || {
            for _ in 0..COPIES {
                forger.send(&frame)?;
            }
            eventually(CONVERGENCE, about, || {
                let counted = cluster.members[1].counters()?.since(&before);
                ensure!(arrived(&counted, reason) >= COPIES, "not counted for {reason:?}: {counted}");
                Ok(())
            })
        })?;
        // ARP between the nodes counts for that one, too.
        let others = reason == Reason::NotIp && arrived(&at_b, reason) > COPIES;
        ensure!(arrived(&at_b, reason) == COPIES || others, "{about}: not counted for {reason:?}: {at_b}");
        ensure!(delivered(&at_b) == 0, "{about}: delivered fast: {at_b}");
    }

    // Whatever bytes there are: what is fast is what no byte of the headers is bent in.
    let mut random = StdRng::seed_from_u64(7);
    let valid = forger.outer(&forger.inner(&[0x66; 64]).bytes()).bytes();
    let [_, at_b] = counted(&cluster, || {
        for _ in 0..2_000 {
            let mut frame = valid.clone();
            // The outer source port, and the inner TTL, identification and so on, may be any; the checks are for the rest.
            let at = [IP, IP + 9, UDP + 2, VXLAN, VXLAN + 5, INNER, INNER + 12, INNER_IP]
                [random.random_range(0..8)];
            frame[at] ^= random.random_range(1..=255u8);
            frame.truncate(random.random_range(ETHERNET_LEN + IPV4_LEN..=frame.len()));
            forger.send(&frame)?;
        }
        Ok(())
    })?;
    ensure!(delivered(&at_b) == 0, "bent, and delivered fast: {at_b}");
    every_kind(&cluster.members[0].pod()?, &cluster.members[1].pod()?)
}

#[test]
fn a_pod_cannot_use_anothers_address() -> Result<()> {
    on_each(FAST, |lab, dataplane| {
        let cluster = cluster(lab, dataplane, 2)?;
        let [pod, victim] = &cluster.members[0].pods[..] else { anyhow::bail!("two pods") };
        let there = cluster.members[1].pod()?;
        udp::echo(&victim.endpoint(), &there, 64, 5)?;
        // The victim's address, one nobody has, a node's, and a remote pod's own.
        let nobody: Ipv4Addr = cluster.members[0].node.subnet_env()?.subnet.nth(200).context("a host")?;
        let reasons = [
            (victim.address(), Reason::Spoofed),
            (nobody, Reason::UnknownPod),
            (cluster.members[1].node.address(), Reason::UnknownPod),
            (there.address_v4(), Reason::UnknownPod),
        ];
        let wire = Wire::open(pod.netns(), "eth0")?;
        let gateway = mac_of(&cluster.members[0], "cni0")?;
        for (source, reason) in reasons {
            let frame =
                Frame::udp(source.octets(), there.address_v4().octets(), 64).macs(gateway, wire.mac()?);
            let [at_a, _] = counted(&cluster, || {
                let before = cluster.members[0].counters()?;
                // Again and again, until the agent has found the victim, too.
                eventually(CONVERGENCE, "they are counted", || {
                    for _ in 0..COPIES {
                        wire.send(&frame.bytes())?;
                    }
                    let counted = cluster.members[0].counters()?.since(&before);
                    ensure!(left(&counted, reason) >= COPIES, "from {source}: {counted}");
                    Ok(())
                })
            })?;
            ensure!(left(&at_a, reason) >= COPIES, "from {source}: {at_a}");
            ensure!(left(&at_a, Reason::EncapPod) == 0, "from {source}: {at_a}");
        }
        udp::echo(&victim.endpoint(), &there, 64, 5)
    })
}

/// Masqueraded it would carry its node's address, and be the tunnel's to the other node.
#[test]
fn a_pod_that_makes_vxlan_itself_speaks_for_no_other_pod() -> Result<()> {
    let overlay = FastPath::Overlay.with(Xdp::Off);
    on_each([overlay, FAST[0], FAST[3]], |lab, dataplane| {
        let cluster = cluster(lab, dataplane, 1)?;
        let [a, b] = [&cluster.members[0], &cluster.members[1]];
        let (pod, there) = (a.pod()?, b.pod()?);
        let victim: Ipv4Addr = a.node.subnet_env()?.subnet.nth(200).context("a host")?;
        let sender = pod.netns().inside(|| Ok(UdpSocket::bind(pod.socket_address(0))?))?;
        // Each packet within VXLAN of `vni` for a pod of `to`, sent to `address`.
        let send = |to: &Member, address: Ipv4Addr, vni: u8| -> Result<()> {
            let (inner, mac) = (to.pod()?.address_v4().octets(), mac_of(to, "flannel.1")?);
            let frame = Frame::udp(victim.octets(), inner, 32).macs(mac, [0x0e, 0, 0, 0, 0, 1]).bytes();
            let packet = [&[8, 0, 0, 0, 0, 0, vni, 0], &frame[..]].concat();
            for _ in 0..COPIES {
                sender.send_to(&packet, (address, 8472))?;
            }
            Ok(())
        };
        let heard = |member: &Member| -> Result<UdpSocket> {
            let pod = member.pod()?;
            // The port of the frames.
            let socket = pod.netns().inside(|| Ok(UdpSocket::bind(pod.socket_address(5001))?))?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        let sockets = [heard(a)?, heard(b)?];
        let dropped = |about, member: &Member, direction, work: &dyn Fn() -> Result<()>| -> Result<()> {
            let before = member.counters()?;
            work()?;
            eventually(CONVERGENCE, about, || {
                let packets = member.counters()?.since(&before).get(direction, Reason::PodVxlan).packets;
                ensure!(packets == COPIES, "{about}: {packets} dropped");
                Ok(())
            })
        };
        let egress = Direction::Egress;
        dropped("for the other node", a, egress, &|| send(b, b.node.address(), 1))?;
        dropped("for its own node", a, egress, &|| send(a, a.node.address(), 1))?;
        let gateway = a.node.subnet_env()?.subnet.nth(1).context("a gateway")?;
        dropped("for its gateway", a, egress, &|| send(a, gateway, 1))?;
        if dataplane != overlay {
            // Its own node cannot tell that address from a pod's.
            let device = b.node.overlay_endpoint()?.address_v4();
            dropped("for the other node's device", b, Direction::Ingress, &|| send(b, device, 1))?;
        }
        // Another network's goes its way, and so does what is for a pod.
        let socket = there.netns().inside(|| Ok(UdpSocket::bind(there.socket_address(8472))?))?;
        socket.set_nonblocking(true)?;
        let counts = counted(&cluster, || {
            send(b, b.node.address(), 9)?;
            send(b, there.address_v4(), 1)?;
            eventually(CONVERGENCE, "a pod hears of a tunnel of its own", || Ok(socket.recv(&mut [0; 9])?))?;
            Ok(())
        })?;
        for counters in counts {
            let refused = left(&counters, Reason::PodVxlan) + arrived(&counters, Reason::PodVxlan);
            ensure!(refused == 0, "{counters}");
        }
        for socket in sockets {
            ensure!(socket.recv(&mut [0; 9]).is_err(), "what a pod sent as another arrived");
        }
        Ok(())
    })
}
