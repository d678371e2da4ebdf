//! Aggregates, which programs cannot pop for everyone: of UDP, and for pods that forward.

use anyhow::{Context as _, Result, ensure};
use flannel_common::reason::{Direction, Reason};
use flannel_lab::{
    Cluster, FastPath, Xdp, in_lab,
    traffic::{
        Endpoint, every_kind_both_ways, tcp,
        udp::{self, Receiver},
    },
};

use crate::{FAST, arrived, cluster, counted, left, on_each};

const BULK: u64 = 64 << 20;

/// From pod `from` to pod `to`: most of a bulk transfer comes in aggregates, which are counted for `reason` at the
/// receiver's node.
fn bulk_by(cluster: &Cluster, from: &Endpoint, to: &Endpoint, reason: Reason) -> Result<()> {
    let [at_a, at_b] = counted(cluster, || tcp::bulk(from, to, BULK).map(drop))?;
    let sent = at_a.get(Direction::Egress, Reason::EncapPod).bytes;
    let delivered = at_b.get(Direction::Ingress, reason).bytes;
    ensure!(sent > BULK, "{at_a}");
    ensure!(delivered > BULK / 10 * 9, "{reason:?}: {at_b}");
    Ok(())
}

#[test]
fn of_udp_skip_the_stack_once_the_kernel_has_decapsulated_them() -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster(lab, FastPath::Flow.into(), 1)?;
        let (a, b) = (cluster.members[0].pod()?, cluster.members[1].pod()?);
        for receiver in [Receiver::Plain, Receiver::Gro] {
            let [at_a, at_b] = counted(&cluster, || udp::gso(&a, &b, 1400, 40, 25, receiver))?;
            ensure!(left(&at_a, Reason::EncapPod) >= 800, "{at_a}");
            // A notice of the kernel's that ends what was accepted may still come; it costs an aggregate or two.
            ensure!(arrived(&at_b, Reason::UdpAggregate) >= 800, "{at_b}");
            ensure!(arrived(&at_b, Reason::DeliverOverlay) >= 800, "{at_b}");
        }
        Ok(())
    })
}

/// A pod that forwards is noticed by what it sends, and gets aggregates that nothing of the tunnel clings to; its
/// neighbour, which only receives, gets them the shortest way all the while.
#[test]
fn a_pod_that_forwards() -> Result<()> {
    on_each(FAST, |lab, dataplane| {
        let cluster = cluster(lab, dataplane, 2)?;
        let a = cluster.members[0].pod()?;
        let [router, neighbour] = &cluster.members[1].pods[..] else { anyhow::bail!("two pods") };
        bulk_by(&cluster, &a, &router.endpoint(), Reason::DeliverPod).context("before it forwards")?;
        let nested = lab.behind(&router.endpoint())?;
        every_kind_both_ways(&a, &nested)?;
        // What XDP pops is made into aggregates behind that, which nothing of the tunnel clings to.
        let clean = if dataplane.xdp == Xdp::Native { Reason::DeliverPod } else { Reason::DeliverOverlay };
        bulk_by(&cluster, &a, &nested, clean).context("to the pod that forwards")?;
        let learned = left(&cluster.members[1].counters()?, Reason::ForwarderLearned);
        ensure!(learned > 0, "nothing was learned");
        bulk_by(&cluster, &a, &neighbour.endpoint(), Reason::DeliverPod).context("to its neighbour")?;
        let learned = left(&cluster.members[0].counters()?, Reason::ForwarderLearned);
        ensure!(learned == 0, "a pod that only talks counts as one that forwards");
        Ok(())
    })
}
