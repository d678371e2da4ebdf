//! Whatever the interfaces on the way do for packets, or leave undone: delivered bytes equal sent bytes, and each
//! checksum on the wire is right.

use anyhow::{Context as _, Result, ensure};
use flannel_common::reason::Reason;
use flannel_lab::{
    CONVERGENCE, Cluster, Dataplane, FastPath, Lab, Member, Netns, Pod, Xdp, eventually,
    traffic::{
        Endpoint, overlay_frame, tcp,
        udp::{self, Receiver},
        wire::Wire,
    },
};

use crate::{FAST, arrived, cluster, counted, left, on_each, options};

const BULK: u64 = 8 << 20;

/// Where an interface is.
#[derive(Clone, Copy, Debug)]
enum At {
    /// In the pods.
    Pods,
    /// The host sides of their veths.
    Veths,
    /// The nodes' external interfaces.
    Underlay,
    /// flannel.1.
    Overlay,
}

/// What `ethtool -K` turns off, one after the other, and on again, and whether packets take the fast path meanwhile: not
/// where the kernel would do to them what the fast path does not.
const MATRIX: [(At, &[&str], bool); 10] = [
    (At::Pods, &["tso"], true),
    (At::Pods, &["tx"], true),
    (At::Pods, &["gso", "tso"], true),
    (At::Veths, &["gro"], true),
    (At::Veths, &["tso", "tx"], false),
    (At::Underlay, &["gro"], true),
    (At::Underlay, &["tx-udp_tnl-segmentation"], true),
    (At::Underlay, &["tso", "gso"], true),
    (At::Overlay, &["gro"], true),
    // As is advised for cards that break the checksums of tunnelled packets.
    (At::Overlay, &["tx-checksum-ip-generic"], false),
];

fn set(cluster: &Cluster, at: At, features: &[&str], to: &str) -> Result<()> {
    for member in &cluster.members {
        let node = member.node.netns();
        let switches: Vec<&str> = features.iter().flat_map(|feature| [*feature, to]).collect();
        let change = |netns: &Netns, interface: &str| {
            netns.run("ethtool", &[&["-K", interface], &switches[..]].concat()).map(drop)
        };
        match at {
            At::Pods => member.pods.iter().try_for_each(|pod| change(pod.netns(), "eth0"))?,
            At::Underlay => change(node, "eth0")?,
            At::Overlay => change(node, "flannel.1")?,
            At::Veths => {
                for line in node.ip("-o link show master cni0")?.lines() {
                    let name = line.split_whitespace().nth(1).context("a port of the bridge")?;
                    change(node, name.split('@').next().context("a name")?)?;
                }
            }
        }
    }
    Ok(())
}

/// TCP in bulk, UDP in batches and one by one, of packets of up to `mtu` bytes.
fn traffic(a: &Endpoint, b: &Endpoint, mtu: usize) -> Result<()> {
    let full = mtu - udp::HEADERS;
    for (from, to) in [(a, b), (b, a)] {
        tcp::bulk(from, to, BULK)?;
        for receiver in [Receiver::Plain, Receiver::Gro] {
            udp::gso(from, to, full, 60_000 / full, 3, receiver)?;
        }
        udp::echo(from, to, full, 20)?;
        udp::echo(from, to, 1, 20)?;
    }
    Ok(())
}

/// Most of it took the fast path, out and in.
fn fast(cluster: &Cluster, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let both = counted(cluster, work)?;
    for counters in &both {
        let segments = BULK / 10_000;
        ensure!(left(counters, Reason::EncapPod) > segments, "{counters}");
        let decapsulated = arrived(counters, Reason::DeliverPod) + arrived(counters, Reason::DeliverOverlay);
        ensure!(decapsulated > segments, "{counters}");
        ensure!(left(counters, Reason::Refused) + arrived(counters, Reason::Refused) == 0, "{counters}");
    }
    Ok(())
}

/// All of it takes the kernel path, as soon as the agents know.
fn slow(cluster: &Cluster, work: impl Fn() -> Result<()>) -> Result<()> {
    eventually(CONVERGENCE, "packets take the kernel path", || {
        for counters in &counted(cluster, &work)? {
            let fast = left(counters, Reason::EncapPod) + arrived(counters, Reason::DeliverPod);
            ensure!(fast + arrived(counters, Reason::DeliverOverlay) == 0, "{counters}");
        }
        Ok(())
    })
}

#[test]
fn offloads_on_and_off() -> Result<()> {
    on_each(FAST, |lab, dataplane| {
        let cluster = cluster(lab, dataplane, 1)?;
        let (a, b) = (cluster.members[0].pod()?, cluster.members[1].pod()?);
        for (at, features, is_fast) in MATRIX {
            set(&cluster, at, features, "off")?;
            let done = match is_fast {
                true => fast(&cluster, || traffic(&a, &b, 1450)),
                false => slow(&cluster, || traffic(&a, &b, 1450)),
            };
            done.with_context(|| format!("{features:?} off at {at:?}"))?;
            set(&cluster, at, features, "on")?;
            if !is_fast {
                cluster.await_dataplane(dataplane)?;
            }
        }
        Ok(())
    })
}

/// The underlay takes jumbo frames, and pods get what is left of them.
#[test]
fn jumbo_frames() -> Result<()> {
    on_each(FAST, jumbo)
}

fn jumbo(lab: &Lab, dataplane: Dataplane) -> Result<()> {
    let etcd = lab.etcd()?;
    let nodes = [lab.node()?, lab.node()?];
    for (port, node) in ["node1", "node2"].into_iter().zip(&nodes) {
        lab.underlay()?.ip(&format!("link set {port} mtu 9000"))?;
        node.netns().ip("link set eth0 mtu 9000")?;
    }
    let members = nodes.into_iter().map(|node| Member::start(node, &etcd, options(dataplane), 1));
    let cluster = Cluster { members: members.collect::<Result<_>>()?, etcd };
    cluster.await_reachable(&[])?;
    cluster.await_dataplane(dataplane)?;
    ensure!(cluster.members[0].node.subnet_env()?.mtu == 8950, "pods get another MTU");
    let (a, b) = (cluster.members[0].pod()?, cluster.members[1].pod()?);
    fast(&cluster, || traffic(&a, &b, 8950))
}

/// The nodes' interfaces compute no checksum and cut no aggregate, as the plainest card: what is on the wire is then
/// as any receiver sees it, and all of it is right.
#[test]
fn checksums_on_the_wire() -> Result<()> {
    on_each(FAST, |lab, dataplane| {
        let cluster = cluster(lab, dataplane, 1)?;
        let (a, b) = (cluster.members[0].pod()?, cluster.members[1].pod()?);
        set(&cluster, At::Underlay, &["tx", "tso", "gso"], "off")?;
        let wire = Wire::open(&lab.underlay()?, "node2")?;
        fast(&cluster, || traffic(&a, &b, 1450))?;
        let mut seen = [0; 2];
        for frame in wire.drain()? {
            match overlay_frame::check(&frame)
                .with_context(|| format!("{:02x?}", &frame[..frame.len().min(110)]))?
            {
                Some(6) => seen[0] += 1,
                Some(17) => seen[1] += 1,
                _ => {}
            }
        }
        // Both ways go by here; the socket may have had no room for all.
        ensure!(seen[0] > 4_000 && seen[1] > 200, "{seen:?} packets of TCP and UDP on the wire");
        Ok(())
    })
}

/// The host's side of the veth of `pod` on `member`, by name.
pub(crate) fn host_side(member: &Member, pod: &Pod) -> Result<String> {
    let own = pod.netns().ip("-o link show dev eth0")?;
    let peer = own.split("@if").nth(1).and_then(|rest| rest.split(':').next()).context("the other end")?;
    let links = member.node.netns().ip("-o link")?;
    let line = links
        .lines()
        .find_map(|line| line.strip_prefix(&format!("{peer}: ")))
        .context("no such interface")?;
    Ok(line.split(['@', ':']).next().unwrap_or_default().to_owned())
}

/// What a pod gets of TCP and UDP while `work` is done: frames that a receiver without any offload takes, and others.
fn taken(pod: &Pod, work: impl FnOnce() -> Result<()>) -> Result<[usize; 2]> {
    let wire = Wire::open(pod.netns(), "eth0")?;
    let mac = wire.mac()?;
    work()?;
    let mut found = [0; 2];
    for frame in wire.drain()?.iter().filter(|frame| frame.starts_with(&mac)) {
        match overlay_frame::check_inner(frame, 1450) {
            Ok(Some(_)) => found[0] += 1,
            Ok(None) => {}
            Err(_) => found[1] += 1,
        }
    }
    Ok(found)
}

/// A stack of its own behind a packet socket takes no aggregates, and no checksum that somebody else is to compute. So
/// the host's side of its veth is told to send none.
#[test]
fn a_pod_behind_a_veth_without_offloads_gets_single_segments_with_checksums() -> Result<()> {
    on_each([FastPath::Flow.with(Xdp::Native), FastPath::All.with(Xdp::Off)], |lab, dataplane| {
        let cluster = cluster(lab, dataplane, 2)?;
        let [a, b] = [&cluster.members[0], &cluster.members[1]];
        let node = b.node.netns();
        // Pods of one node are fast where netfilter sees them.
        node.run("sh", &["-ec", "echo 1 > /proc/sys/net/bridge/bridge-nf-call-iptables"])?;
        let (to, veth) = (&b.pods[0], host_side(b, &b.pods[0])?);
        let traffic = |from: &Endpoint| {
            tcp::bulk(from, &to.endpoint(), BULK / 8)?;
            udp::gso(from, &to.endpoint(), 1400, 40, 2, Receiver::Plain)
        };
        let change = |to: &str| node.run("ethtool", &["-K", &veth, "tx", to, "tso", to, "gso", to]).map(drop);
        for from in [&a.pods[0], &b.pods[1]] {
            let from = from.endpoint();
            let await_taken = |what: &str, as_wanted: fn([usize; 2]) -> bool| {
                eventually(CONVERGENCE, what, || {
                    let taken = taken(to, || traffic(&from))?;
                    ensure!(as_wanted(taken), "{taken:?} frames with and without checksums of their own");
                    Ok(())
                })
            };
            await_taken("the kernel of a pod takes more", |[_, others]| others > 0)?;
            change("off")?;
            await_taken("each segment with its checksum", |[whole, others]| whole > 500 && others == 0)?;
            change("on")?;
        }
        let log = b.agent.log();
        ensure!(
            log.contains("tx-checksum-ip-generic and") && log.contains("other offloads off at egress"),
            "{log}"
        );
        Ok(())
    })
}
