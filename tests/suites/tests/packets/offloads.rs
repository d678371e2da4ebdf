//! Whatever the interfaces on the way do for packets, or leave undone: delivered bytes equal sent bytes, and each
//! checksum on the wire is right.

use anyhow::{Context as _, Result, ensure};
use flannel_common::reason::Reason;
use flannel_lab::{
    Cluster, Dataplane, Lab,
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

/// What `ethtool -K` turns off, one after the other, and on again.
const MATRIX: [(At, &[&str]); 9] = [
    (At::Pods, &["tso"]),
    (At::Pods, &["tx"]),
    (At::Pods, &["gso", "tso"]),
    (At::Veths, &["gro"]),
    (At::Veths, &["tso", "tx"]),
    (At::Underlay, &["gro"]),
    (At::Underlay, &["tx-udp_tnl-segmentation"]),
    (At::Underlay, &["tso", "gso"]),
    (At::Overlay, &["gro", "tx"]),
];

fn set(cluster: &Cluster, at: At, features: &[&str], to: &str) -> Result<()> {
    for member in &cluster.members {
        let node = member.node.netns();
        let switches: Vec<&str> = features.iter().flat_map(|feature| [*feature, to]).collect();
        let change = |netns: &flannel_lab::Netns, interface: &str| {
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

#[test]
fn offloads_on_and_off() -> Result<()> {
    on_each(FAST, |lab, dataplane| {
        let cluster = cluster(lab, dataplane, 1)?;
        let (a, b) = (cluster.members[0].pod()?, cluster.members[1].pod()?);
        for (at, features) in MATRIX {
            set(&cluster, at, features, "off")?;
            let done = fast(&cluster, || traffic(&a, &b, 1450));
            done.with_context(|| format!("{features:?} off at {at:?}"))?;
            set(&cluster, at, features, "on")?;
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
    let members =
        nodes.into_iter().map(|node| flannel_lab::Member::start(node, &etcd, options(dataplane), 1));
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
