//! What only the kernel's path can answer: packets too large, at the end of their time, in fragments, with options or
//! tags. The answers are the same on every path, for flows that are fast as well.

use std::{
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::{AsRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use etherparse::{Icmpv4Slice, Icmpv4Type, Ipv4HeaderSlice, UdpHeaderSlice};
use flannel_common::reason::Reason;
use flannel_common_testing::Frame;
use flannel_lab::{
    CONVERGENCE, Cluster, FastPath, Lab, eventually,
    traffic::{
        Endpoint,
        ping::ping,
        tcp,
        udp::{self, HEADERS},
        udp_pair,
        wire::Wire,
    },
};
use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket,
            sockopt::{Ipv4Tos, ReceiveTimeout},
        },
        time::{TimeVal, TimeValLike as _},
    },
};

use crate::{
    FAST, arrived, cluster, counted,
    forged::{Forger, mac_of},
    left, on_each,
};

const PATIENCE: Duration = Duration::from_secs(5);

/// How long to look out for what must not come.
const MOMENT: Duration = Duration::from_millis(500);

/// ICMP errors as they come to a pod.
struct Errors(OwnedFd);

/// One of them: who says it, and what.
#[derive(Debug, PartialEq, Eq)]
struct IcmpError {
    from: Ipv4Addr,
    says: Icmpv4Type,
}

impl Errors {
    fn open(at: &Endpoint) -> Result<Self> {
        at.netns().inside(|| {
            let socket =
                socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Icmp)?;
            setsockopt(&socket, ReceiveTimeout, &TimeVal::milliseconds(50))?;
            Ok(Self(socket))
        })
    }

    /// The next error about a UDP packet from `source` to `destination`.
    fn about(&self, source: SocketAddr, destination: SocketAddr) -> Result<IcmpError> {
        let start = Instant::now();
        let mut buffer = [0; 2048];
        while start.elapsed() < PATIENCE {
            let length = match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) => length,
                Err(Errno::EAGAIN | Errno::EINTR) => continue,
                Err(error) => return Err(error).context("receive ICMP"),
            };
            let Some((error, quoted)) = read(&buffer[..length]) else { continue };
            if quoted == (source, destination) {
                return Ok(error);
            }
        }
        bail!("no ICMP error about {source} to {destination} within {PATIENCE:?}")
    }
}

/// An ICMP error and the ends of the UDP packet that it quotes.
fn read(packet: &[u8]) -> Option<(IcmpError, (SocketAddr, SocketAddr))> {
    let ip = Ipv4HeaderSlice::from_slice(packet).ok()?;
    let icmp = Icmpv4Slice::from_slice(packet.get(ip.slice().len()..)?).ok()?;
    let quoted = Ipv4HeaderSlice::from_slice(icmp.payload()).ok()?;
    let udp = UdpHeaderSlice::from_slice(icmp.payload().get(quoted.slice().len()..)?).ok()?;
    let end = |address: Ipv4Addr, port| SocketAddr::from((address, port));
    let source = end(quoted.source_addr(), udp.source_port());
    let ends = (source, end(quoted.destination_addr(), udp.destination_port()));
    let error = IcmpError { from: ip.source_addr(), says: icmp.icmp_type() };
    Some((error, ends))
}

/// Two sockets whose flow is as fast as it may be.
fn opened(a: &Endpoint, b: &Endpoint) -> Result<(UdpSocket, UdpSocket)> {
    let (at_a, at_b) = udp_pair(a, b)?;
    for _ in 0..4 {
        for (from, to) in [(&at_a, &at_b), (&at_b, &at_a)] {
            from.send(b"hello")?;
            eventually(CONVERGENCE, "an opening", || Ok(to.recv(&mut [0; 9])?))?;
        }
    }
    Ok((at_a, at_b))
}

/// Reads what has arrived at `socket`, `count` datagrams of `length` bytes.
fn receive(socket: &UdpSocket, count: usize, length: usize) -> Result<()> {
    let mut buffer = vec![0; 65_536];
    for number in 0..count {
        let heard = eventually(CONVERGENCE, "a datagram", || Ok(socket.recv(&mut buffer)?))?;
        ensure!(heard == length, "datagram {number} has {heard} bytes, not {length}");
    }
    Ok(())
}

#[test]
fn errors_are_those_of_the_kernels_path() -> Result<()> {
    // On the kernel's path, too: what the others are held to.
    let each = [FastPath::Off.into()].into_iter().chain(FAST);
    on_each(each, |lab, dataplane| {
        let (cluster, fast_path) = (cluster(lab, dataplane, 1)?, dataplane.fast_path);
        traceroute(&cluster, fast_path).context("traceroute")?;
        nobody_listens(&cluster, fast_path).context("nobody listens")?;
        fragments_and_options(&cluster, fast_path).context("fragments and options")?;
        tagged(&cluster, fast_path).context("VLAN tags")?;
        congestion(lab, &cluster, fast_path).context("congestion")?;
        too_large(&cluster, fast_path).context("too large")
    })
}

/// The nodes answer for the packets whose time ends there, and the pod for those that reach it; in the midst of a
/// flow that is fast.
fn traceroute(cluster: &Cluster, fast_path: FastPath) -> Result<()> {
    let [a, b] = [&cluster.members[0], &cluster.members[1]];
    let (from, to) = (a.pod()?, b.pod()?);
    let errors = Errors::open(&from)?;
    let (at_a, at_b) = opened(&from, &to)?;
    let ends = (at_a.local_addr()?, at_b.local_addr()?);
    let hops =
        [a.node.subnet_env()?.subnet.nth(1).context("a gateway")?, b.node.overlay_endpoint()?.address_v4()];
    let both = counted(cluster, || {
        for (ttl, hop) in (1..).zip(hops) {
            at_a.set_ttl(ttl)?;
            at_a.send(&[0; 64])?;
            let error = errors.about(ends.0, ends.1).with_context(|| format!("TTL {ttl}"))?;
            ensure!(matches!(error.says, Icmpv4Type::TimeExceeded(_)), "TTL {ttl}: {error:?}");
            ensure!(error.from == hop, "TTL {ttl}: {error:?} is not from {hop}");
            // The error is told to the socket, too.
            let _ = at_a.take_error();
        }
        Ok(())
    })?;
    if fast_path != FastPath::Off {
        ensure!(
            left(&both[0], Reason::Ttl) >= 1 && arrived(&both[1], Reason::Ttl) >= 1,
            "{} {}",
            both[0],
            both[1]
        );
    }
    // The third hop is the pod.
    at_a.set_ttl(3)?;
    eventually(CONVERGENCE, "a packet that just reaches the pod", || {
        at_a.send(&[7; 77])?;
        receive_some(&at_b, 77)
    })
}

fn receive_some(socket: &UdpSocket, length: usize) -> Result<()> {
    let mut buffer = [0; 2048];
    let heard = socket.recv(&mut buffer)?;
    ensure!(heard == length, "{heard} bytes");
    Ok(())
}

/// The pod's own answer to a datagram for a port that is closed any more.
fn nobody_listens(cluster: &Cluster, fast_path: FastPath) -> Result<()> {
    let (from, to) = (cluster.members[0].pod()?, cluster.members[1].pod()?);
    let errors = Errors::open(&from)?;
    let (at_a, at_b) = opened(&from, &to)?;
    let ends = (at_a.local_addr()?, at_b.local_addr()?);
    drop(at_b);
    let both = counted(cluster, || {
        at_a.send(&[1; 100])?;
        let error = errors.about(ends.0, ends.1)?;
        ensure!(
            matches!(error.says, Icmpv4Type::DestinationUnreachable(_)) && error.from == to.address(),
            "{error:?}"
        );
        eventually(CONVERGENCE, "the socket hears of it", || match at_a.recv(&mut [0; 1]) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
            other => bail!("{other:?}"),
        })
    })?;
    if fast_path != FastPath::Off {
        // The datagram was fast; its answer of another protocol is only where there is no gate.
        ensure!(arrived(&both[1], Reason::DeliverPod) == 1, "{}", both[1]);
        let gated = left(&both[1], Reason::FlowProtocol) == 1;
        ensure!(gated == (fast_path == FastPath::Flow), "{}", both[1]);
    }
    Ok(())
}

fn fragments_and_options(cluster: &Cluster, fast_path: FastPath) -> Result<()> {
    let (from, to) = (cluster.members[0].pod()?, cluster.members[1].pod()?);
    let both = counted(cluster, || {
        ping(&from, &to, 5000)?;
        udp::echo(&from, &to, 4000, 20)
    })?;
    if fast_path != FastPath::Off {
        ensure!(
            left(&both[0], Reason::Fragment) >= 60 && arrived(&both[1], Reason::Fragment) >= 60,
            "{} {}",
            both[0],
            both[1]
        );
    }
    let (at_a, at_b) = opened(&from, &to)?;
    // Three times "no operation", and the end.
    let options = [1u8, 1, 1, 0];
    let sender = Sender::new(cluster, &at_a, &at_b)?;
    let frame = sender.frame(300, true).ip(|ip| {
        ip.version_ihl = 0x46;
        ip.total_len += 4;
    });
    // The checksum of the header without them, and what they add to it.
    let sum = u32::from(!frame.ip.checksum) + 0x0101 + 0x0100;
    let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    let frame = frame.bytes_with(24, &sum.to_be_bytes());
    let frame = [&frame[..34], &options, &frame[34..]].concat();
    let both = counted(cluster, || {
        for _ in 0..5 {
            sender.wire.send(&frame)?;
        }
        receive(&at_b, 5, 300)
    })?;
    if fast_path != FastPath::Off {
        ensure!(
            left(&both[0], Reason::IpOptions) >= 5 && arrived(&both[1], Reason::IpOptions) == 5,
            "{} {}",
            both[0],
            both[1]
        );
    }
    Ok(())
}

/// A frame with a VLAN tag is no packet for a pod elsewhere: nobody gets it, whichever way it is looked at.
fn tagged(cluster: &Cluster, fast_path: FastPath) -> Result<()> {
    let (from, to) = (cluster.members[0].pod()?, cluster.members[1].pod()?);
    let (at_a, at_b) = opened(&from, &to)?;
    let sender = Sender::new(cluster, &at_a, &at_b)?;
    let plain = sender.frame(9, true).bytes();
    let tagged = [&plain[..12], &[0x81, 0x00, 0, 10], &plain[12..]].concat();
    let both = counted(cluster, || {
        sender.wire.send(&tagged)?;
        // What comes after it has overtaken nothing: the first to arrive is the one without a tag.
        sender.wire.send(&plain)?;
        receive(&at_b, 1, 9)?;
        ensure!(at_b.recv(&mut [0; 9]).is_err(), "the tagged frame arrived, too");
        Ok(())
    })?;
    if fast_path != FastPath::Off {
        ensure!(left(&both[0], Reason::Vlan) == 1 && left(&both[0], Reason::EncapPod) == 1, "{}", both[0]);
    }
    Ok(())
}

/// Marks of congestion: those of the underlay reach the pod, if its flow can be told; those of a pod are on the outer
/// header.
fn congestion(lab: &Lab, cluster: &Cluster, fast_path: FastPath) -> Result<()> {
    const CE: u8 = 0b11;
    let (from, to) = (cluster.members[0].pod()?, cluster.members[1].pod()?);
    let (at_a, at_b) = opened(&from, &to)?;
    let ports = (at_a.local_addr()?.port(), at_b.local_addr()?.port());
    let forger = Forger::new(lab, cluster, ports)?;
    let wire = Wire::open(to.netns(), "eth0")?;
    let tos_of = |length: usize, patience| {
        wire.find(patience, "the packet at the pod", |frame| {
            let ip = Ipv4HeaderSlice::from_slice(frame.get(14..)?).ok()?;
            let ours = ip.protocol() == etherparse::IpNumber::UDP
                && usize::from(ip.total_len()) == HEADERS + length
                && ip.source_addr() == from.address();
            ours.then(|| {
                let header = ip.to_header();
                (header.calc_header_checksum() == header.header_checksum).then(|| frame[15])
            })?
        })
    };
    // Inner and outer mark, and what the pod sees (RFC 6040); none for what is dropped.
    let table = [
        (0b10, CE, Some(CE)),
        (0b01, CE, Some(CE)),
        (0b10, 0b01, Some(0b01)),
        (0, 0b10, Some(0)),
        (CE, 0, Some(CE)),
        (0, CE, None),
    ];
    let both = counted(cluster, || {
        for (length, (inner, outer, seen)) in (201..).zip(table) {
            let inner = forger.inner(&vec![5; length]).ip(|ip| ip.tos = 0xb8 | inner);
            forger.send(&forger.outer(&inner.bytes()).ip(|ip| ip.tos = outer).bytes())?;
            match seen {
                Some(mark) => {
                    let tos = tos_of(length, PATIENCE).with_context(|| format!("outer mark {outer:#04b}"))?;
                    ensure!(
                        tos == 0xb8 | mark,
                        "inner {:#x}, outer {outer:#x}: the pod sees {tos:#x}",
                        inner.ip.tos
                    );
                }
                None => ensure!(
                    tos_of(length, MOMENT).is_err(),
                    "delivered, though its flow cannot be told of congestion"
                ),
            }
        }
        Ok(())
    })?;
    if fast_path != FastPath::Off {
        // Of a flow, the first with each mark takes the kernel path.
        let [fast, first] = [Reason::DeliverPod, Reason::FlowFields].map(|reason| arrived(&both[1], reason));
        let only_fast = fast_path == FastPath::Flow || first == 0;
        ensure!(fast + first == 5 && only_fast && arrived(&both[1], Reason::Ecn) == 1, "{}", both[1]);
    }
    // And out: the mark of the flow, but congestion before the tunnel is not congestion in it.
    let underlay = Wire::open(&lab.underlay()?, "node1")?;
    for (length, (tos, outer)) in (301..).zip([(0xb8, 0), (0xba, 0b10), (0xb9, 0b01), (0xbb, 0b10)]) {
        set_tos(&at_a, tos)?;
        at_a.send(&vec![6; length])?;
        let found = underlay.find(PATIENCE, "the packet on the wire", |frame| {
            let inner = frame.get(14 + 50..)?;
            let ours = inner.len() == HEADERS + length && inner[12..16] == from.address_v4().octets();
            ours.then(|| (frame[15], inner[1]))
        })?;
        ensure!(found == (outer, tos as u8), "a pod's {tos:#x}: outer and inner {found:x?}");
    }
    Ok(())
}

/// The underlay grows narrower under flows that are fast.
fn too_large(cluster: &Cluster, fast_path: FastPath) -> Result<()> {
    let (from, to) = (cluster.members[0].pod()?, cluster.members[1].pod()?);
    let (at_a, at_b) = opened(&from, &to)?;
    let node = &cluster.members[0].node;
    node.netns().ip("link set eth0 mtu 1400")?;
    eventually(CONVERGENCE, "the overlay is narrower, too", || {
        let device = node.netns().ip("link show flannel.1")?;
        ensure!(device.contains("mtu 1350 "), "{device}");
        Ok(())
    })?;
    let full = 1450 - HEADERS;
    let sender = Sender::new(cluster, &at_a, &at_b)?;
    let errors = Errors::open(&from)?;
    let ends = (at_a.local_addr()?, at_b.local_addr()?);
    let both = counted(cluster, || {
        // May be cut: the node does it, and it arrives.
        for _ in 0..5 {
            sender.wire.send(&sender.frame(full, true).bytes())?;
        }
        receive(&at_b, 5, full)?;
        // May not: the node says how much it takes.
        sender.wire.send(&sender.frame(full, false).bytes())?;
        let error = errors.about(ends.0, ends.1)?;
        let gateway = node.subnet_env()?.subnet.nth(1).context("a gateway")?;
        let expected = Icmpv4Type::DestinationUnreachable(
            etherparse::icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1350 },
        );
        ensure!(error.says == expected && error.from == gateway, "{error:?}");
        eventually(CONVERGENCE, "the pod knows", || {
            let route = from.netns().ip(&format!("route get {}", to.address()))?;
            ensure!(route.contains("mtu 1350"), "{route}");
            Ok(())
        })?;
        tcp::bulk(&from, &to, 16 << 20).map(drop)
    })?;
    if fast_path != FastPath::Off {
        ensure!(left(&both[0], Reason::TooBig) >= 6, "{}", both[0]);
        ensure!(left(&both[0], Reason::EncapPod) > 1000, "{}", both[0]);
    }
    node.netns().ip("link set eth0 mtu 1500").map(drop)
}

fn set_tos(socket: &UdpSocket, tos: i32) -> Result<()> {
    Ok(setsockopt(socket, Ipv4Tos, &tos)?)
}

/// Sends frames of a flow of a pod's byte for byte, out of the pod.
struct Sender {
    wire: Wire,
    frame: Frame,
}

impl Sender {
    /// In the place of `socket`, which is that of the first node's pod.
    fn new(cluster: &Cluster, from: &UdpSocket, to: &UdpSocket) -> Result<Self> {
        let wire = Wire::open(cluster.members[0].pod()?.netns(), "eth0")?;
        let (SocketAddr::V4(source), SocketAddr::V4(destination)) = (from.local_addr()?, to.local_addr()?)
        else {
            bail!("not IPv4")
        };
        let frame = Frame::udp(source.ip().octets(), destination.ip().octets(), 0)
            .macs(mac_of(&cluster.members[0], "cni0")?, wire.mac()?);
        let ports = [source.port(), destination.port()].map(u16::to_be_bytes).concat();
        Ok(Self { wire, frame: Frame { payload: [&ports, &frame.payload[4..]].concat(), ..frame } })
    }

    /// With `length` bytes of data; may it be cut, or not.
    fn frame(&self, length: usize, may_be_cut: bool) -> Frame {
        let mut frame = self.frame.clone();
        frame.payload.resize(8 + length, 0x55);
        frame.payload[4..6].copy_from_slice(&((8 + length) as u16).to_be_bytes());
        frame.ip(|ip| {
            ip.total_len = (HEADERS + length) as u16;
            ip.fragment = if may_be_cut { 0 } else { 0x4000 };
        })
    }
}
