//! Between two pods on one bridge: what netfilter has accepted skips bridge and netfilter, and nothing else does.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result, ensure};
use flannel_agent::bpf::{Pins, Tables};
use flannel_common::reason::Reason;
use flannel_lab::{
    AgentOptions, CONVERGENCE, Cluster, FastPath, Lab, Member, Pod, eventually, in_lab,
    traffic::{Endpoint, every_kind_both_ways, tcp, udp},
};

use crate::{detours::Conversation, packets};

/// `--flow-refresh`.
const REFRESH: Duration = Duration::from_secs(1);
/// Bytes of the transfer whose packets are counted, and the least segments it takes.
const BULK: u64 = 32 << 20;
const SEGMENTS: u64 = BULK / 1398;
const DATAGRAMS: u64 = 300;

/// Two pods of one node whose bridge lets netfilter see all packets, by both families.
fn cluster(lab: &Lab, refresh: Duration) -> Result<Cluster> {
    let refresh = format!("--flow-refresh={}", refresh.as_secs());
    let options = AgentOptions::new(FastPath::Flow, &["--ip-masq", &refresh]);
    let cluster = Cluster::dual_pair(lab, 2, options)?;
    seen_by_netfilter(&cluster.members[0], true)?;
    Ok(cluster)
}

pub(crate) fn seen_by_netfilter(member: &Member, is_seen: bool) -> Result<()> {
    let script = format!("echo {} | tee /proc/sys/net/bridge/bridge-nf-call-ip*tables", u8::from(is_seen));
    member.node.netns().run("sh", &["-ec", &script]).map(drop)
}

fn families(member: &Member) -> Result<[[Endpoint; 2]; 2]> {
    let [a, b] = &member.pods[..] else { anyhow::bail!("not two pods") };
    Ok([[a.endpoint(), b.endpoint()], [a.endpoint_v6()?, b.endpoint_v6()?]])
}

/// Packets that were handed from pod to pod while `work` was done.
fn handed(member: &Member, work: impl FnOnce() -> Result<()>) -> Result<u64> {
    let counted = member.counted(work)?;
    Ok(packets(&counted, Reason::SwitchPod))
}

/// Waits until a conversation between the pods is fast, or none is.
fn await_handed(member: &Member, what: &str, [a, b]: &[Endpoint; 2], are_handed: bool) -> Result<()> {
    eventually(CONVERGENCE, what, || {
        let packets = handed(member, || udp::echo(a, b, 56, 20))?;
        ensure!((packets > 0) == are_handed, "{packets} of 40 packets were handed from pod to pod");
        Ok(())
    })
}

/// The host sides of the pods' veths, by name.
fn veth(member: &Member, pod: &Pod) -> Result<String> {
    let tables = Tables::open(&Pins::under(member.agent.bpffs())?)?;
    let place = tables.v4.pods.entries()?.get(&pod.address().octets()).copied();
    let index = place.with_context(|| format!("{} has no place", pod.name()))?.ifindex;
    let links: BTreeMap<String, String> = member
        .node
        .netns()
        .ip("-o link")?
        .lines()
        .filter_map(|line| {
            let (index, rest) = line.split_once(": ")?;
            Some((index.to_owned(), rest.split(['@', ':']).next()?.to_owned()))
        })
        .collect();
    links.get(&index.to_string()).cloned().with_context(|| format!("no interface {index}"))
}

/// The MAC of a pod, as `ip` writes it.
fn mac_of(pod: &Pod) -> Result<String> {
    let shown = pod.netns().ip("-br link show dev eth0")?;
    Ok(shown.split_whitespace().nth(2).context("a MAC")?.to_owned())
}

#[test]
fn accepted_flows_between_pods_of_one_node_skip_bridge_and_netfilter() -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster(lab, REFRESH)?;
        let member = &cluster.members[0];
        for pods in families(member)? {
            await_handed(member, "pods hand each other packets", &pods, true)?;
            let [a, b] = &pods;
            let counted = member.counted(|| udp::echo(a, b, 200, DATAGRAMS))?;
            // All but the first of each direction.
            ensure!(packets(&counted, Reason::SwitchPod) >= 2 * DATAGRAMS - 10, "{counted}");
            let counted = member.counted(|| tcp::bulk(a, b, BULK).map(drop))?;
            ensure!(packets(&counted, Reason::SwitchPod) > SEGMENTS * 9 / 10, "{counted}");
            // The handshake and the end of the connection stay with the kernel.
            ensure!(packets(&counted, Reason::FlowControl) >= 2, "{counted}");
            every_kind_both_ways(a, b)?;
        }
        Ok(())
    })
}

#[test]
fn rules_and_shapers_between_pods_of_one_node_hold() -> Result<()> {
    in_lab(|lab| {
        let mut cluster = cluster(lab, REFRESH)?;
        let member = &cluster.members[0];
        let netns = member.node.netns();
        for (pods, iptables) in families(member)?.iter().zip(["iptables", "ip6tables"]) {
            await_handed(member, "pods hand each other packets", pods, true)?;
            let [a, b] = pods;
            let rule = |verb| {
                let rule = format!("-w {verb} FORWARD -s {} -d {} -j DROP", a.address(), b.address());
                netns.run(iptables, &rule.split(' ').collect::<Vec<_>>()).map(drop)
            };
            let conversation = Conversation::new(a, b)?;
            conversation.exchanges(20)?;
            rule("-I")?;
            eventually(CONVERGENCE, "a running flow is denied", || {
                let passed = conversation.passes(5)?;
                ensure!(passed == 0, "{passed} of 5 packets passed");
                Ok(())
            })?;
            rule("-D")?;
            eventually(CONVERGENCE, "it is allowed again", || conversation.exchanges(1))?;
            await_handed(member, "it is fast again", pods, true)?;
        }

        // As the CNI plugin `bandwidth` shapes what a pod gets.
        let [pods, _] = families(member)?;
        let veth = veth(member, &member.pods[1])?;
        netns.run(
            "tc",
            &format!("qdisc add dev {veth} root tbf rate 1gbit burst 1mb latency 50ms")
                .split(' ')
                .collect::<Vec<_>>(),
        )?;
        await_handed(member, "a shaper sees each packet", &pods, false)?;
        netns.run("tc", &["qdisc", "del", "dev", &veth, "root"])?;
        await_handed(member, "fast again without it", &pods, true)?;

        // Nobody accepts what netfilter does not see.
        seen_by_netfilter(member, false)?;
        await_handed(member, "the bridge alone carries them", &pods, false)?;
        seen_by_netfilter(member, true)?;
        await_handed(member, "fast again with netfilter", &pods, true)?;

        // With a pod goes what is known of it.
        let gone = cluster.members[0].pods.pop().context("a second pod")?;
        let address = gone.address().octets();
        gone.remove()?;
        let tables = Tables::open(&Pins::under(cluster.members[0].agent.bpffs())?)?;
        eventually(CONVERGENCE, "the flows of the pod are gone", || {
            let flows = tables.v4.flows.entries()?;
            let left =
                flows.iter().filter(|(flow, _)| flow.local == address || flow.remote == address).count();
            ensure!(left == 0, "{left} flows are left");
            Ok(())
        })
    })
}

/// What the bridge goes by decides about running flows, too, long before their acceptance ends.
#[test]
fn ports_and_entries_of_the_bridge_hold_for_flows_that_skip_it() -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster(lab, 2 * CONVERGENCE)?;
        let member = &cluster.members[0];
        let netns = member.node.netns();
        // A tenth of it bounds the acceptance.
        netns.run("sh", &["-ec", "echo 600 | tee /proc/sys/net/netfilter/nf_conntrack_udp_timeout*"])?;
        let [pods, _] = families(member)?;
        let [from, to] = [veth(member, &member.pods[0])?, veth(member, &member.pods[1])?];
        let mac = mac_of(&member.pods[1])?;
        let both = |switch: &str| {
            format!("for veth in {from} {to}; do bridge link set dev $veth isolated {switch}; done")
        };
        for (what, add, remove) in [
            ("isolated ports", both("on"), both("off")),
            (
                "an entry that leads elsewhere",
                format!("bridge fdb replace {mac} dev {from} master static sticky"),
                format!("bridge fdb del {mac} dev {from} master"),
            ),
            (
                "a station that the bridge is not to know",
                format!(
                    "bridge link set dev {to} learning off flood off; bridge fdb del {mac} dev {to} master"
                ),
                format!("bridge link set dev {to} learning on flood on"),
            ),
        ] {
            await_handed(member, "pods hand each other packets", &pods, true)?;
            let conversation = Conversation::new(&pods[0], &pods[1])?;
            conversation.exchanges(20)?;
            netns.run("sh", &["-ec", &add]).context(what)?;
            eventually(CONVERGENCE, what, || {
                let passed = conversation.passes(5)?;
                ensure!(passed == 0, "{passed} of 5 packets passed");
                Ok(())
            })?;
            netns.run("sh", &["-ec", &remove]).context(what)?;
            eventually(CONVERGENCE, "they pass again", || conversation.exchanges(1))?;
        }
        Ok(())
    })
}
