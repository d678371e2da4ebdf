//! What the TOS of a pod's packets decides, and to which station they go.

use std::{net::UdpSocket, time::Duration};

use anyhow::{Context as _, Result, ensure};
use flannel_common::reason::Reason;
use flannel_lab::{AgentOptions, Cluster, FastPath, Lab, eventually, in_lab};
use nix::sys::socket::{
    setsockopt,
    sockopt::{Ipv4Tos, Ipv6TClass},
};

use crate::{counted, detours::Conversation, fast, packets};

/// Telephony (DSCP EF), and an interactive session of old.
const EXPEDITED: i32 = 0xb8;
const LOW_DELAY: i32 = 0x10;
/// `--flow-refresh`, so long that no acceptance ends during a test.
const REFRESH: &str = "--flow-refresh=30";
const PATIENCE: Duration = Duration::from_secs(10);

fn set_class(socket: &UdpSocket, class: i32) -> Result<()> {
    if socket.local_addr()?.is_ipv4() {
        Ok(setsockopt(socket, Ipv4Tos, &class)?)
    } else {
        Ok(setsockopt(socket, Ipv6TClass, &class)?)
    }
}

fn cluster(lab: &Lab, fast_path: FastPath) -> Result<Cluster> {
    let cluster = Cluster::dual_pair(lab, 1, AgentOptions::new(fast_path, &["--ip-masq", REFRESH]))?;
    // UDP is looked at as often as connection tracking forgets it.
    for member in &cluster.members {
        for key in ["nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"] {
            member.node.netns().sysctl(&format!("net/netfilter/{key}"), "300")?;
        }
    }
    cluster.await_fast_path(0, 1, fast_path)?;
    cluster.await_fast_path_v6(0, 1, fast_path)?;
    Ok(cluster)
}

/// What is made and unmade on the first node, so that packets with `class` to `$B` get lost.
struct Rule {
    class: i32,
    is_ipv6: bool,
    make: &'static str,
    undo: &'static str,
}

const RULES: [Rule; 4] = [
    Rule {
        class: EXPEDITED,
        is_ipv6: false,
        make: "iptables -I FORWARD -d $B -m dscp --dscp 46 -j DROP",
        undo: "iptables -D FORWARD -d $B -m dscp --dscp 46 -j DROP",
    },
    Rule {
        class: EXPEDITED,
        is_ipv6: true,
        make: "ip6tables -I FORWARD -d $B -m dscp --dscp 46 -j DROP",
        undo: "ip6tables -D FORWARD -d $B -m dscp --dscp 46 -j DROP",
    },
    Rule {
        class: LOW_DELAY,
        is_ipv6: false,
        make: "ip rule add tos 0x10 blackhole",
        undo: "ip rule del tos 0x10 blackhole",
    },
    // One value of ECN, which no packet had when the flow was accepted.
    Rule {
        class: 3,
        is_ipv6: false,
        make: "iptables -I FORWARD -d $B -m ecn --ecn-ip-ect 3 -j DROP",
        undo: "iptables -D FORWARD -d $B -m ecn --ecn-ip-ect 3 -j DROP",
    },
];

fn holds(cluster: &Cluster, rule: &Rule) -> Result<()> {
    let [a, b] = match rule.is_ipv6 {
        false => [cluster.members[0].pod()?, cluster.members[1].pod()?],
        true => [cluster.members[0].pod_v6()?, cluster.members[1].pod_v6()?],
    };
    let run = |script: &str| {
        let script = format!("B={}; {script}", b.socket_address(0).ip());
        cluster.members[0].node.netns().run("sh", &["-ec", &script]).map(drop)
    };
    run(rule.make)?;
    let conversation = Conversation::new(&a, &b)?;
    for round in 0..3 {
        // All but the others of its packets are let through, and skip the stack where they may.
        set_class(&conversation.from, 0)?;
        conversation.exchanges(20)?;
        set_class(&conversation.from, rule.class)?;
        let passed = conversation.passes(5)?;
        ensure!(passed == 0, "{passed} of 5 packets have passed in round {round}");
    }
    run(rule.undo)?;
    eventually(PATIENCE, "they pass without the rule", || conversation.exchanges(1))
}

fn rules_hold(fast_path: FastPath) -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster(lab, fast_path)?;
        RULES.iter().try_for_each(|rule| holds(&cluster, rule).context(rule.make))
    })
}

#[test]
fn rules_about_some_packets_of_a_flow_by_their_tos_hold_with_off() -> Result<()> {
    rules_hold(FastPath::Off)
}

#[test]
fn rules_about_some_packets_of_a_flow_by_their_tos_hold_with_flow() -> Result<()> {
    rules_hold(FastPath::Flow)
}

/// A flow that changes its TOS for good is fast again, with either.
#[test]
fn a_flow_with_another_tos_is_learned_anew() -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster(lab, FastPath::Flow)?;
        let [a, b] = [cluster.members[0].pod()?, cluster.members[1].pod()?];
        let conversation = Conversation::new(&a, &b)?;
        for class in [0, LOW_DELAY, EXPEDITED, 0] {
            set_class(&conversation.from, class)?;
            let [at_a, at_b] = counted(&cluster, || conversation.exchanges(50))?;
            ensure!(fast(&at_a)[0] > 40 && fast(&at_b)[1] > 40, "TOS {class:#x}: {at_a} {at_b}");
            ensure!(class == 0 || packets(&at_a, Reason::FlowFields) > 0, "TOS {class:#x}: {at_a}");
        }
        Ok(())
    })
}

/// The bridge floods a frame to a station that is behind no port, and no pod takes it.
#[test]
fn a_neighbour_with_a_mac_that_nobody_has_gets_nothing() -> Result<()> {
    in_lab(|lab| {
        let options = AgentOptions::new(FastPath::Flow, &["--ip-masq", "--flow-refresh=1"]);
        let cluster = Cluster::dual_pair(lab, 1, options)?;
        cluster.await_fast_path(0, 1, FastPath::Flow)?;
        cluster.await_fast_path_v6(0, 1, FastPath::Flow)?;
        let node = cluster.members[1].node.netns();
        for [a, b] in [
            [cluster.members[0].pod()?, cluster.members[1].pod()?],
            [cluster.members[0].pod_v6()?, cluster.members[1].pod_v6()?],
        ] {
            let conversation = Conversation::new(&a, &b)?;
            conversation.exchanges(20)?;
            let b = b.socket_address(0).ip();
            node.ip(&format!("neigh replace {b} lladdr 02:00:00:00:de:ad dev cni0 nud permanent"))?;
            eventually(PATIENCE, "the flow has stopped", || {
                let passed = conversation.passes(20)?;
                ensure!(passed == 0, "{passed} of 20 packets have arrived");
                Ok(())
            })?;
            node.ip(&format!("neigh del {b} dev cni0"))?;
        }
        Ok(())
    })
}
