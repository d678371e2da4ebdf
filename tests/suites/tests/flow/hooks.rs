//! What others have set up at one interface meets every packet, as with stock flannel.

use std::cell::RefCell;

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf,
    maps::{MapData, PerCpuArray},
    programs::{
        self as program, LinkOrder, SchedClassifier, TcAttachType, XdpMode,
        tc::{SchedClassifierLink, TcAttachOptions},
    },
};
use flannel_agent::bpf::{Compiled, TcAttach};
use flannel_common::{
    map::{COUNTERS, XDP_UNDERLAY},
    reason::{Direction, Reason, slot},
};
use flannel_lab::{CONVERGENCE, Cluster, FastPath, Netns, Xdp, eventually, in_lab, traffic::udp};
use serde_json::Value;

use crate::{cluster, cluster_behind, fast};

/// Exchanges that each hook is to see: many more than a flow is on the kernel's path for.
const EXCHANGES: u64 = 20;

/// Which packets of the second node stay on the fast path.
#[derive(Clone, Copy)]
enum Fast {
    Neither,
    /// What its pod sends.
    Out,
    /// What its pod gets.
    In,
    Both,
}

/// Something that somebody sets up on the second node.
struct Hook<'a> {
    what: &'static str,
    add: &'a str,
    remove: &'a str,
    /// Shows in JSON how many `packets` met it; nothing to count where it is empty.
    show: &'a str,
    fast: Fast,
}

/// Runs `script` in `netns`, with the veth of the node's pod as `$V`.
fn shell(netns: &Netns, script: &str) -> Result<String> {
    let veths = netns.ip("-o link show master cni0")?;
    let name = veths.split_whitespace().nth(1).context("no port of the bridge")?;
    let veth = name.split(['@', ':']).next().unwrap_or_default();
    netns.run("sh", &["-ec", &format!("V={veth}; {script}")]).context(script.to_owned())
}

/// Every number of `packets` in `shown`, added up.
fn packets(shown: &Value) -> u64 {
    match shown {
        Value::Array(items) => items.iter().map(packets).sum(),
        Value::Object(fields) => {
            let own = fields.get("packets").and_then(Value::as_u64).unwrap_or(0);
            own + fields.values().map(packets).sum::<u64>()
        }
        _ => 0,
    }
}

fn count(netns: &Netns, show: &str) -> Result<u64> {
    let shown = shell(netns, show)?;
    Ok(packets(&serde_json::from_str(&shown).with_context(|| shown.clone())?))
}

/// Waits until every packet is counted by `count`, if anything is, and those that are not to be `fast` are the kernel's.
fn await_met(
    cluster: &Cluster,
    what: &str,
    stays: Fast,
    count: impl Fn() -> Result<Option<u64>>,
) -> Result<()> {
    let [a, b] = [&cluster.members[0], &cluster.members[1]];
    eventually(CONVERGENCE, what, || {
        let before = count()?;
        let counted = b.counted(|| udp::echo(&a.pod()?, &b.pod()?, 56, EXCHANGES))?;
        let met = count()?.zip(before).map(|(now, before)| now - before);
        ensure!(met.is_none_or(|met| met >= EXCHANGES), "it met {met:?} packets: {counted}");
        let expected = match stays {
            Fast::Neither => [false, false],
            Fast::Out => [true, false],
            Fast::In => [false, true],
            Fast::Both => [true, true],
        };
        ensure!(fast(&counted).map(|packets| packets > 0) == expected, "{counted}");
        Ok(())
    })
}

fn await_fast(cluster: &Cluster, what: &str) -> Result<()> {
    await_met(cluster, &format!("fast again without: {what}"), Fast::Both, || Ok(None))
}

fn try_all(cluster: &Cluster, hooks: &[Hook<'_>]) -> Result<()> {
    let netns = cluster.members[1].node.netns();
    for Hook { what, add, remove, show, fast } in hooks {
        shell(netns, add)?;
        let counted = || if show.is_empty() { Ok(None) } else { count(netns, show).map(Some) };
        await_met(cluster, what, *fast, counted)?;
        shell(netns, remove)?;
        await_fast(cluster, what)?;
    }
    Ok(())
}

const MIRROR: &str = "protocol ip u32 match ip protocol 17 0xff match ip dport 8472 0xffff \
                      action mirred egress mirror dev ifb7";

/// What shapes as the bandwidth plugin does, and what mirrors, drops and counts by tc, nftables and the bridge.
#[test]
fn what_others_hook_to_an_interface_meets_every_packet() -> Result<()> {
    in_lab(|lab| {
        let mut cluster = cluster(lab, 1, std::time::Duration::from_secs(30))?;
        let netns = cluster.members[1].node.netns().clone();
        netns.ip_batch("link add ifb7 type ifb\nlink set ifb7 up\n")?;
        shell(&netns, "tc qdisc add dev ifb7 root tbf rate 1gbit burst 1mb latency 50ms")?;
        let tbf = |device: &str| {
            let add = format!("tc qdisc add dev {device} root tbf rate 1gbit burst 1mb latency 50ms");
            (add, format!("tc qdisc del dev {device} root"), format!("tc -s -j qdisc show dev {device} root"))
        };
        let chain = |family: &str, hook: &str, rule: &str| {
            format!(
                "nft add table {family} other; nft \"add chain {family} other c {{ type filter hook {hook} priority \
                0; }}\"; \
                 nft add rule {family} other c {rule} counter"
            )
        };
        let [veth, overlay, bridge] = ["$V", "flannel.1", "cni0"].map(tbf);
        let mirror = format!(
            "tc qdisc add dev eth0 handle ffff: ingress; tc filter add dev eth0 parent ffff: {MIRROR}"
        );
        let arrivals = chain("netdev", "ingress device eth0", "udp dport 8472");
        let first = format!("tc qdisc add dev eth0 clsact; tc filter add dev eth0 ingress prio 1 {MIRROR}");
        let departures = chain("netdev", "egress device eth0", "udp dport 8472");
        let from_pod = chain("netdev", "ingress device $V", "");
        let to_pod = chain("netdev", "egress device $V", "");
        let bridged = chain("bridge", "prerouting", "");
        let (netdev_gone, netdev_shown) = ("nft delete table netdev other", "nft -j list table netdev other");
        try_all(
            &cluster,
            &[
                Hook {
                    what: "a limit on what a pod gets",
                    add: &veth.0,
                    remove: &veth.1,
                    show: &veth.2,
                    fast: Fast::Neither,
                },
                Hook {
                    what: "a limit on what a pod sends",
                    add: "tc qdisc add dev $V handle ffff: ingress; tc filter add dev $V parent ffff: protocol all u32 \
                          match u32 0 0 action mirred egress redirect dev ifb7",
                    remove: "tc qdisc del dev $V ingress",
                    show: "tc -s -j qdisc show dev ifb7 root",
                    fast: Fast::Neither,
                },
                Hook {
                    what: "a mirror of what the node gets",
                    add: &mirror,
                    remove: "tc qdisc del dev eth0 ingress",
                    show: "tc -s -j filter show dev eth0 ingress",
                    fast: Fast::Out,
                },
                // Links of tcx come before filters of any priority.
                Hook {
                    what: "a mirror of the first priority of what the node gets",
                    add: &first,
                    remove: "tc qdisc del dev eth0 clsact",
                    show: "tc -s -j filter show dev eth0 ingress",
                    fast: Fast::Out,
                },
                Hook {
                    what: "a chain for what the node sends",
                    add: &departures,
                    remove: netdev_gone,
                    show: netdev_shown,
                    fast: Fast::In,
                },
                Hook {
                    what: "a chain for what the node gets",
                    add: &arrivals,
                    remove: netdev_gone,
                    show: netdev_shown,
                    fast: Fast::Out,
                },
                Hook {
                    what: "a chain for what a pod sends",
                    add: &from_pod,
                    remove: netdev_gone,
                    show: netdev_shown,
                    fast: Fast::Neither,
                },
                Hook {
                    what: "a chain for what a pod gets",
                    add: &to_pod,
                    remove: netdev_gone,
                    show: netdev_shown,
                    fast: Fast::Neither,
                },
                Hook {
                    what: "a chain of bridges",
                    add: &bridged,
                    remove: "nft delete table bridge other",
                    show: "nft -j list table bridge other",
                    fast: Fast::Neither,
                },
                Hook {
                    what: "a limit on the tunnel",
                    add: &overlay.0,
                    remove: &overlay.1,
                    show: &overlay.2,
                    fast: Fast::Neither,
                },
                Hook {
                    what: "a limit on the bridge",
                    add: &bridge.0,
                    remove: &bridge.1,
                    show: &bridge.2,
                    fast: Fast::Neither,
                },
                Hook {
                    what: "a TOS byte of the tunnel's own",
                    add: "ip link set flannel.1 type vxlan tos inherit",
                    remove: "ip link set flannel.1 type vxlan tos 0",
                    show: "",
                    fast: Fast::Neither,
                },
                Hook {
                    what: "a limit on the aggregates that a pod gets",
                    add: "ip link set $V gso_max_size 3000",
                    remove: "ip link set $V gso_max_size 65536",
                    show: "",
                    fast: Fast::Neither,
                },
                Hook {
                    what: "a limit on the aggregates of the bridge",
                    add: "ip link set cni0 gso_max_size 3000",
                    remove: "ip link set cni0 gso_max_size 65536",
                    show: "",
                    fast: Fast::Neither,
                },
                // Nothing passes that by, so that nothing is left to the kernel for it.
                Hook {
                    what: "a limit on what the node sends",
                    add: "tc qdisc add dev eth0 root handle 1: htb default 1; \
                          tc class add dev eth0 parent 1: classid 1:1 htb rate 10gbit",
                    remove: "tc qdisc del dev eth0 root",
                    show: "tc -s -j qdisc show dev eth0 root",
                    fast: Fast::Both,
                },
                Hook {
                    what: "a bridge that forgets soon where a pod is",
                    add: "ip link set cni0 type bridge ageing_time 1000",
                    remove: "ip link set cni0 type bridge ageing_time 30000",
                    show: "",
                    fast: Fast::Neither,
                },
                Hook {
                    what: "an isolated port, which is so for other ports alone",
                    add: "bridge link set dev $V isolated on",
                    remove: "bridge link set dev $V isolated off",
                    show: "",
                    fast: Fast::Both,
                },
                Hook {
                    what: "a chain without rules",
                    add: "nft add table bridge other; nft \"add chain bridge other c { type filter hook input priority 0; }\"",
                    remove: "nft delete table bridge other",
                    show: "",
                    fast: Fast::Both,
                },
            ],
        )?;
        programs_of_others(&cluster)?;
        xdp_in_a_pod(&cluster)?;

        // There before the agent.
        shell(&netns, &veth.0)?;
        cluster.members[1].agent.kill()?;
        cluster.members[1].agent.start_again()?;
        await_met(&cluster, "a limit from before", Fast::Neither, || count(&netns, &veth.2).map(Some))?;
        let log = cluster.members[1].agent.log();
        ensure!(
            log.contains("the fast path would skip this hook") && log.contains("qdisc tbf at egress"),
            "{log}"
        );
        Ok(())
    })
}

/// A program of tcx that lets everything pass, and counts it: one of ours that was never configured, by another name.
struct Counting {
    ebpf: Ebpf,
}

impl Counting {
    fn load() -> Result<Self> {
        let mut object = Compiled::programs().to_vec();
        let (ours, other) = (b"from_pod\0", b"seen_pod\0");
        for at in 0..object.len() - ours.len() {
            if object[at..].starts_with(ours) {
                object[at..at + other.len()].copy_from_slice(other);
            }
        }
        let mut ebpf = Ebpf::load(&object)?;
        Self::program(&mut ebpf)?.load()?;
        Ok(Self { ebpf })
    }

    fn program(ebpf: &mut Ebpf) -> Result<&mut SchedClassifier> {
        Ok(ebpf.program_mut("seen_pod").context("no such program")?.try_into()?)
    }

    fn attach(
        &mut self,
        netns: &Netns,
        interface: &str,
        side: TcAttachType,
        order: LinkOrder,
    ) -> Result<SchedClassifierLink> {
        let program = Self::program(&mut self.ebpf)?;
        netns.inside(move || {
            let id = program.attach_with_options(interface, side, TcAttachOptions::TcxOrder(order))?;
            Ok(program.take_link(id)?)
        })
    }

    fn count(&self) -> Result<u64> {
        let map: PerCpuArray<&MapData, [u64; 2]> =
            self.ebpf.map(COUNTERS).context("no counters")?.try_into()?;
        Ok(map.get(&slot(Direction::Egress, Reason::NoConfig), 0)?.iter().map(|[packets, _]| packets).sum())
    }
}

fn programs_of_others(cluster: &Cluster) -> Result<()> {
    let netns = cluster.members[1].node.netns();
    let veth = shell(netns, "echo $V")?;
    let counting = RefCell::new(Counting::load()?);
    let counted = || counting.borrow().count().map(Some);
    for (what, interface, side, order, stays) in [
        // Ours takes its place behind them.
        ("a program behind ours at a pod", veth.trim(), TcAttachType::Ingress, LinkOrder::last(), Fast::Both),
        (
            "a program ahead of ours at a pod",
            veth.trim(),
            TcAttachType::Ingress,
            LinkOrder::first(),
            Fast::Both,
        ),
        ("a program behind ours at the node", "eth0", TcAttachType::Ingress, LinkOrder::last(), Fast::Both),
        (
            "a program on the way to a pod",
            veth.trim(),
            TcAttachType::Egress,
            LinkOrder::first(),
            Fast::Neither,
        ),
        ("a program at the tunnel", "flannel.1", TcAttachType::Ingress, LinkOrder::last(), Fast::Neither),
    ] {
        let link = counting.borrow_mut().attach(netns, interface, side, order)?;
        await_met(cluster, what, stays, counted)?;
        drop(link);
        await_fast(cluster, what)?;
    }
    Ok(())
}

/// The driver of a pod's interface calls XDP for what the other end of the pair sends, and not for what is put behind it.
fn xdp_in_a_pod(cluster: &Cluster) -> Result<()> {
    let mut ebpf = Ebpf::load(&Compiled::programs())?;
    // One of ours that was never configured lets all pass.
    let program: &mut program::Xdp = ebpf.program_mut(XDP_UNDERLAY).context("no such program")?.try_into()?;
    program.load()?;
    let link = cluster.members[1].pods[0].netns().inside(|| {
        let id = program.attach("eth0", XdpMode::Driver)?;
        Ok(program.take_link(id)?)
    })?;
    await_met(cluster, "XDP in a pod", Fast::Neither, || Ok(None))?;
    drop(link);
    await_fast(cluster, "XDP in a pod")
}

#[test]
fn what_others_hook_to_an_interface_meets_every_packet_by_clsact() -> Result<()> {
    in_lab(|lab| {
        let cluster = Cluster::start(lab, 2, 1, FastPath::All.attached_by(TcAttach::Clsact))?;
        cluster.await_fast_path(0, 1, FastPath::All)?;
        cluster.await_fast_path(1, 0, FastPath::All)?;
        let netns = cluster.members[1].node.netns();
        netns.ip_batch("link add ifb7 type ifb\nlink set ifb7 up\n")?;
        let mirror = |priority: u32| {
            (
                format!("tc filter add dev eth0 ingress prio {priority} {MIRROR}"),
                format!("tc filter del dev eth0 ingress prio {priority}"),
                format!("tc -s -j filter show dev eth0 ingress prio {priority}"),
            )
        };
        let [ahead, behind] = [1, 9000].map(mirror);
        try_all(
            &cluster,
            &[
                Hook {
                    what: "a limit on what a pod gets",
                    add: "tc qdisc add dev $V root tbf rate 1gbit burst 1mb latency 50ms",
                    remove: "tc qdisc del dev $V root",
                    show: "tc -s -j qdisc show dev $V root",
                    fast: Fast::Neither,
                },
                Hook {
                    what: "a mirror of what a pod sends",
                    add: "tc filter add dev $V ingress prio 9000 protocol all u32 match u32 0 0 \
                          action mirred egress mirror dev ifb7",
                    remove: "tc filter del dev $V ingress prio 9000",
                    show: "tc -s -j filter show dev $V ingress prio 9000",
                    fast: Fast::Neither,
                },
                Hook {
                    what: "a mirror behind ours of what the node gets",
                    add: &behind.0,
                    remove: &behind.1,
                    show: &behind.2,
                    fast: Fast::Out,
                },
                // It ends a packet's way through filters, and ours is not met.
                Hook {
                    what: "a mirror ahead of ours of what the node gets",
                    add: &ahead.0,
                    remove: &ahead.1,
                    show: &ahead.2,
                    fast: Fast::Out,
                },
            ],
        )
    })
}

/// XDP pops before tc, where a filter would look for the outer headers.
#[test]
fn a_mirror_of_what_the_node_gets_sees_the_tunnel_behind_xdp() -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster_behind(Xdp::Native, lab, 1, std::time::Duration::from_secs(30))?;
        cluster.members[1].node.netns().ip_batch("link add ifb7 type ifb\nlink set ifb7 up\n")?;
        let add = format!(
            "tc qdisc add dev eth0 handle ffff: ingress; tc filter add dev eth0 parent ffff: {MIRROR}"
        );
        try_all(
            &cluster,
            &[Hook {
                what: "a mirror of what the node gets",
                add: &add,
                remove: "tc qdisc del dev eth0 ingress",
                show: "tc -s -j filter show dev eth0 ingress",
                fast: Fast::Out,
            }],
        )
    })
}
