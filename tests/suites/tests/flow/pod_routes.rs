//! Routes to pods that do more than lead there, a bridge that takes less than the tunnel, and peers behind another
//! interface: what the kernel does there befalls each packet.

use std::{
    io::ErrorKind,
    net::UdpSocket,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use flannel_common::reason::{Direction, Reason};
use flannel_lab::{
    AgentOptions, CONVERGENCE, Cluster, FastPath, eventually, in_lab,
    traffic::{Endpoint, udp},
};

use crate::fast;

const MODES: [FastPath; 4] = [FastPath::Off, FastPath::Overlay, FastPath::Flow, FastPath::All];
/// What the routes and bridges of these tests let pass, bytes.
const NARROW: usize = 1300;
/// Bytes of payload, with which a packet fits the tunnel and not [`NARROW`].
const LARGE: usize = 1350;
const PACKETS: usize = 6;

#[derive(Clone, Copy)]
enum Ip {
    V4,
    V6,
}

impl Ip {
    fn pods(self, cluster: &Cluster) -> Result<[Endpoint; 2]> {
        let [a, b] = [&cluster.members[0], &cluster.members[1]];
        Ok(match self {
            Self::V4 => [a.pod()?, b.pod()?],
            Self::V6 => [a.pod_v6()?, b.pod_v6()?],
        })
    }

    fn await_fast(self, cluster: &Cluster, mode: FastPath) -> Result<()> {
        match self {
            Self::V4 => cluster.await_fast_path(0, 1, mode),
            Self::V6 => cluster.await_fast_path_v6(0, 1, mode),
        }
    }
}

/// Runs `script` on a node: `$B` is the second node's pod, `$S` its subnet's first address and length, `$V` the host side of
/// the pod's veth on this node.
fn run(cluster: &Cluster, node: usize, ip: Ip, script: &str) -> Result<()> {
    let pod = ip.pods(cluster)?[1].address();
    let subnet = match ip {
        Ip::V4 => cluster.members[1].node.subnet_env()?.subnet.to_string(),
        Ip::V6 => cluster.members[1].node.subnet_env_v6()?.subnet.to_string(),
    };
    let veth = "bridge link show master cni0 | sed -n 's/^[0-9]*: \\([^@:]*\\).*/\\1/p'";
    let script = format!("B={pod}; S={subnet}; G=${{S%/*}}; V=$({veth}); {script}");
    cluster.members[node].node.netns().run("sh", &["-ec", &script]).map(drop).context(script)
}

/// A UDP flow whose packets are not to be cut: both ends. The pod it comes from does not hear what routers say of the
/// path.
struct Flow([UdpSocket; 2]);

impl Flow {
    fn open(from: &Endpoint, to: &Endpoint) -> Result<Self> {
        let socket = |at: &Endpoint| at.netns().inside(|| Ok(UdpSocket::bind(at.socket_address(0))?));
        let rules = "add table inet deaf; flush table inet deaf; \
             add chain inet deaf in { type filter hook input priority 0; }; \
             add rule inet deaf in icmp type destination-unreachable drop; \
             add rule inet deaf in icmpv6 type packet-too-big drop";
        from.netns().run("nft", &[rules])?;
        let ends = [socket(from)?, socket(to)?];
        for (end, other) in [(&ends[0], &ends[1]), (&ends[1], &ends[0])] {
            end.connect(other.local_addr()?)?;
            end.set_read_timeout(Some(Duration::from_millis(300)))?;
        }
        Ok(Self(ends))
    }

    /// How many of [`PACKETS`] with `size` bytes of payload arrive, after both ends have talked.
    fn arriving(&self, size: usize) -> Result<usize> {
        let [a, b] = &self.0;
        let mut buffer = [0; 2048];
        for _ in 0..5 {
            for (from, to) in [(a, b), (b, a)] {
                from.send(&[1; 32])?;
                let start = Instant::now();
                // What was late before may come in between.
                while to.recv(&mut buffer).map_or(true, |length| length != 32) {
                    ensure!(start.elapsed() < Duration::from_secs(5), "small packets do not arrive");
                    from.send(&[1; 32])?;
                }
            }
        }
        for _ in 0..PACKETS {
            a.send(&vec![2; size])?;
            thread::sleep(Duration::from_millis(2));
        }
        let mut arrived = 0;
        loop {
            match b.recv(&mut buffer) {
                Ok(length) => arrived += usize::from(length == size),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Ok(arrived);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// The MTUs that a node gives to pods' packets: which node, and how.
const NARROWED: [(usize, Ip, &str, &str); 7] = [
    (
        0,
        Ip::V4,
        "ip route change $S via $G dev flannel.1 onlink mtu 1300",
        "ip route change $S via $G dev flannel.1 onlink",
    ),
    (1, Ip::V4, "ip route add $B/32 dev cni0 mtu 1300", "ip route del $B/32"),
    (
        0,
        Ip::V4,
        "ip rule add from 10.244.0.0/16 table 9; ip route add $S via $G dev flannel.1 onlink mtu lock 1300 table 9",
        "ip rule del table 9; ip route flush table 9",
    ),
    (
        0,
        Ip::V6,
        "ip -6 route change $S via $G dev flannel-v6.1 onlink mtu 1300",
        "ip -6 route replace $S via $G dev flannel-v6.1 onlink",
    ),
    (1, Ip::V6, "ip -6 route add $B/128 dev cni0 mtu 1300", "ip -6 route del $B/128"),
    // Last: with the bridge's also its routes' MTU changes.
    (1, Ip::V4, "ip link set cni0 mtu 1300", "ip link set cni0 mtu 1500"),
    // A bridge whose MTU somebody has set keeps it.
    (1, Ip::V4, "ip link set $V mtu 1300", "ip link set $V mtu 1500"),
];

#[test]
fn an_mtu_of_a_route_to_pods_or_of_their_bridge_holds_for_every_packet() -> Result<()> {
    for mode in MODES {
        in_lab(|lab| {
            let cluster = Cluster::dual_pair(lab, 1, AgentOptions::new(mode, &["--flow-refresh=30"]))?;
            for (node, ip, narrow, widen) in NARROWED {
                ip.await_fast(&cluster, mode)?;
                let [a, b] = ip.pods(&cluster)?;
                let flow = Flow::open(&a, &b)?;
                let before = flow.arriving(LARGE)?;
                ensure!(before == PACKETS, "{narrow}: {before} arrive before");
                run(&cluster, node, ip, narrow)?;
                eventually(CONVERGENCE, narrow, || {
                    let arrived = flow.arriving(LARGE)?;
                    ensure!(arrived == 0, "{arrived} large packets arrive");
                    Ok(())
                })?;
                let fits = flow.arriving(NARROW - 48)?;
                ensure!(fits == PACKETS, "{narrow}: {fits} of those that fit arrive");
                // What fits is as fast as before.
                ip.await_fast(&cluster, mode).with_context(|| narrow)?;
                run(&cluster, node, ip, widen)?;
                eventually(CONVERGENCE, widen, || {
                    let arrived = flow.arriving(LARGE)?;
                    ensure!(arrived == PACKETS, "{arrived} large packets arrive");
                    Ok(())
                })?;
            }
            Ok(())
        })
        .with_context(|| format!("--fast-path={}", mode.name()))?;
    }
    Ok(())
}

/// What of the second node's pod takes the fast path: what it sends, and what it gets.
fn await_paths(cluster: &Cluster, ip: Ip, node: usize, what: &str, wanted: [bool; 2]) -> Result<()> {
    let [a, b] = ip.pods(cluster)?;
    eventually(CONVERGENCE, what, || {
        let counted = cluster.members[node].counted(|| udp::echo(&a, &b, 56, 20))?;
        let found = fast(&counted).map(|packets| packets > 0);
        ensure!(found == wanted, "{found:?}: {counted}");
        Ok(())
    })
}

/// Encapsulation of a route, here for devices that do not look at it, is the kernel's alone.
#[test]
fn what_routes_to_pods_encapsulate_stays_on_the_kernel_path() -> Result<()> {
    in_lab(|lab| {
        let cluster = Cluster::dual_pair(lab, 1, AgentOptions::new(FastPath::Flow, &["--flow-refresh=30"]))?;
        for (ip, node, add, remove, left) in [
            (
                Ip::V4,
                0,
                "ip route change $S encap ip id 7 dst 192.0.2.9 via $G dev flannel.1 onlink",
                "ip route change $S via $G dev flannel.1 onlink",
                [false, true],
            ),
            (
                Ip::V4,
                1,
                "ip route add $B/32 encap ip id 7 dst 192.0.2.9 dev cni0",
                "ip route del $B/32",
                [false, false],
            ),
            (
                Ip::V6,
                0,
                "ip -6 route replace $S encap ip id 7 dst 192.0.2.9 via $G dev flannel-v6.1 onlink",
                "ip -6 route replace $S via $G dev flannel-v6.1 onlink",
                [false, true],
            ),
        ] {
            await_paths(&cluster, ip, node, "fast before", [true, true])?;
            run(&cluster, node, ip, add)?;
            // Before that, a new flow may be too short to become fast on a busy machine.
            eventually(CONVERGENCE, "the log tells of the route", || {
                let log = cluster.members[node].agent.log();
                ensure!(log.contains("with encap"), "{add}:\n{log}");
                Ok(())
            })?;
            await_paths(&cluster, ip, node, add, left)?;
            run(&cluster, node, ip, remove)?;
            await_paths(&cluster, ip, node, remove, [true, true])?;
        }
        Ok(())
    })
}

/// A second link between the nodes, by which one of them reaches the other: a chain there sees what the external
/// interface does not send.
#[test]
fn a_chain_at_egress_of_another_interface_that_leads_to_a_peer_sees_every_packet() -> Result<()> {
    for mode in [FastPath::Off, FastPath::Overlay, FastPath::Flow] {
        in_lab(|lab| {
            let cluster = Cluster::dual_pair(lab, 1, AgentOptions::new(mode, &["--flow-refresh=30"]))?;
            let [a, b] = [&cluster.members[0].node, &cluster.members[1].node];
            let name = b.netns().name();
            a.netns().ip(&format!("link add eth1 type veth peer name eth1 netns {name}"))?;
            for (node, number) in [(a, 1), (b, 2)] {
                node.netns().ip_batch(&format!(
                    "addr add 192.168.78.{number}/24 dev eth1\naddr add fd78::{number}/64 dev eth1 nodad\n\
                     link set eth1 up\n"
                ))?;
                node.netns().sysctl("net/ipv4/conf/eth1/rp_filter", "0")?;
            }
            let (from, to) = (a.address(), b.address());
            a.netns().ip(&format!("route add {to}/32 via 192.168.78.2 dev eth1 src {from}"))?;
            let (from, to) = (a.address_v6(), b.address_v6());
            a.netns().ip(&format!("-6 route add {to}/128 via fd78::2 dev eth1 src {from}"))?;
            for ip in [Ip::V4, Ip::V6] {
                let [a_pod, b_pod] = ip.pods(&cluster)?;
                // The other node gets them by an interface that is not its external one.
                let sent_by = match mode {
                    FastPath::Flow => Some(Reason::EncapPod),
                    FastPath::Overlay => Some(Reason::EncapOverlay),
                    _ => None,
                };
                if let Some(sent_by) = sent_by {
                    eventually(CONVERGENCE, "programs send", || {
                        let counted = cluster.members[0].counted(|| udp::echo(&a_pod, &b_pod, 56, 5))?;
                        ensure!(counted.get(Direction::Egress, sent_by).packets > 0, "{counted}");
                        Ok(())
                    })?;
                }
                let flow = Flow::open(&a_pod, &b_pod)?;
                ensure!(flow.arriving(100)? == PACKETS);
                a.nft(
                    "table netdev other {\nchain c {\ntype filter hook egress device eth1 priority 0\n\
                     udp dport 8472 udp length > 500 drop\n}\n}",
                )?;
                eventually(CONVERGENCE, "the chain sees what it is to drop", || {
                    let arrived = flow.arriving(600)?;
                    ensure!(arrived == 0, "{arrived} packets arrive");
                    Ok(())
                })?;
                if mode != FastPath::Off {
                    let log = cluster.members[0].agent.log();
                    ensure!(log.contains("nftables chain netdev other c at egress"), "{log}");
                }
                a.nft("delete table netdev other")?;
            }
            Ok(())
        })
        .with_context(|| format!("--fast-path={}", mode.name()))?;
    }
    Ok(())
}
