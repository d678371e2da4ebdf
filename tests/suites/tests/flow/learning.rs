//! Flows become fast once netfilter has accepted them both ways, and carry what they carried before.

use std::{fs, net::UdpSocket, os::unix::fs::PermissionsExt as _, time::Duration};

use anyhow::{Result, ensure};
use flannel_common::{mark::FLOW_MARK, reason::Reason};
use flannel_lab::{
    AgentOptions, CONVERGENCE, Cluster, FastPath, eventually, in_lab,
    traffic::{Dialogue, Endpoint, every_kind_both_ways, tcp, udp},
};
use nix::sys::socket::{setsockopt, sockopt::Mark};

use crate::{cluster, counted, fast, learning, nftables_cluster, packets};

const REFRESH: Duration = Duration::from_secs(30);
/// Bytes of the transfer whose packets are counted, and the least segments it takes.
const BULK: u64 = 32 << 20;
const SEGMENTS: u64 = BULK / 1398;

#[test]
fn every_kind_of_traffic_is_carried() -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster(lab, 1, REFRESH)?;
        let [a, b] = [&cluster.members[0], &cluster.members[1]];
        every_kind_both_ways(&a.pod()?, &b.pod()?)?;
        every_kind_both_ways(&a.node.overlay_endpoint()?, &b.pod()?)
    })
}

#[test]
fn tcp_is_fast_both_ways_after_the_handshake() -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster(lab, 1, REFRESH)?;
        let [a, b] = [cluster.members[0].pod()?, cluster.members[1].pod()?];
        let counted = counted(&cluster, || tcp::bulk(&a, &b, BULK).map(drop))?;
        let [[sent, acknowledged], [answered, delivered]] = [fast(&counted[0]), fast(&counted[1])];
        // All but the first few.
        ensure!(sent > SEGMENTS * 9 / 10 && delivered > SEGMENTS * 9 / 10, "{} {}", counted[0], counted[1]);
        ensure!(acknowledged > 10 && answered > 10, "{} {}", counted[0], counted[1]);
        for counters in &counted {
            // The handshake and the end of the connection stay with the kernel.
            ensure!(packets(counters, Reason::FlowControl) >= 2, "{counters}");
            ensure!(packets(counters, Reason::FlowLearned) >= 2, "{counters}");
        }
        Ok(())
    })
}

#[test]
fn udp_is_fast_both_ways_after_the_first_answer() -> Result<()> {
    const DATAGRAMS: u64 = 500;
    in_lab(|lab| {
        let cluster = cluster(lab, 1, REFRESH)?;
        let [a, b] = [cluster.members[0].pod()?, cluster.members[1].pod()?];
        let counted = counted(&cluster, || udp::echo(&a, &b, 200, DATAGRAMS))?;
        for counters in &counted {
            // Without an answer yet there is no flow, and with it each direction is learned by one packet.
            let [out, back] = fast(counters);
            ensure!(out >= DATAGRAMS - 5 && back >= DATAGRAMS - 5, "{counters}");
            ensure!(packets(counters, Reason::FlowUnknown) >= 2, "{counters}");
        }
        Ok(())
    })
}

/// An idle connection, and one that is used rarely, are renewed by their own packets.
#[test]
fn flows_are_renewed_by_their_own_packets() -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster(lab, 1, Duration::from_secs(1))?;
        let [a, b] = [cluster.members[0].pod()?, cluster.members[1].pod()?];
        let mut dialogue = Dialogue::open(&a, &b)?;
        let counted = counted(&cluster, || {
            (0..80).try_for_each(|_| {
                std::thread::sleep(Duration::from_millis(50));
                dialogue.exchanges(5)
            })
        })?;
        for counters in &counted {
            ensure!(packets(counters, Reason::FlowStale) >= 3, "{counters}");
            let [out, back] = fast(counters);
            ensure!(out > 300 && back > 300, "{counters}");
        }
        Ok(())
    })
}

/// What only ever goes one way after its first answer stays fast: its own packets renew it.
#[test]
fn one_way_flows_stay_fast() -> Result<()> {
    const DATAGRAMS: u64 = 400;
    in_lab(|lab| {
        let cluster = cluster(lab, 1, Duration::from_secs(1))?;
        let [a, b] = [cluster.members[0].pod()?, cluster.members[1].pod()?];
        let bind = |at: &Endpoint| at.netns().inside(|| Ok(UdpSocket::bind(at.socket_address(0))?));
        let (sender, receiver) = (bind(&a)?, bind(&b)?);
        sender.connect(receiver.local_addr()?)?;
        receiver.connect(sender.local_addr()?)?;
        receiver.set_read_timeout(Some(Duration::from_secs(3)))?;
        sender.set_read_timeout(Some(Duration::from_secs(3)))?;
        sender.send(b"question")?;
        receiver.recv(&mut [0; 8])?;
        receiver.send(b"answer")?;
        sender.recv(&mut [0; 8])?;
        let [sent, arrived] = counted(&cluster, || {
            for number in 0..DATAGRAMS {
                let mut heard = [0; 8];
                sender.send(&number.to_be_bytes())?;
                receiver.recv(&mut heard)?;
                ensure!(heard == number.to_be_bytes(), "another datagram arrived");
                std::thread::sleep(Duration::from_millis(10));
            }
            Ok(())
        })?;
        ensure!(packets(&sent, Reason::FlowStale) >= 3 && fast(&sent)[0] > DATAGRAMS * 9 / 10, "{sent}");
        ensure!(
            packets(&arrived, Reason::FlowStale) >= 3 && fast(&arrived)[1] > DATAGRAMS * 9 / 10,
            "{arrived}"
        );
        Ok(())
    })
}

/// Where the mark is not reached, by whosoever's rule, nothing is ever fast, and everything works.
#[test]
fn without_the_mark_nothing_is_learned() -> Result<()> {
    in_lab(|lab| {
        let cluster = learning(lab, lab.etcd()?, 1, REFRESH)?;
        for member in &cluster.members {
            member.node.iptables("-t mangle -I POSTROUTING -j ACCEPT")?;
        }
        let [a, b] = [cluster.members[0].pod()?, cluster.members[1].pod()?];
        let counted = counted(&cluster, || every_kind_both_ways(&a, &b))?;
        for counters in &counted {
            ensure!(fast(counters) == [0, 0] && packets(counters, Reason::FlowLearned) == 0, "{counters}");
            ensure!(packets(counters, Reason::FlowUnknown) > 0, "{counters}");
        }
        Ok(())
    })
}

/// Packets that a pod marks itself lose the mark on their way out of it.
#[test]
fn a_pod_cannot_open_the_gate() -> Result<()> {
    in_lab(|lab| {
        let cluster = learning(lab, lab.etcd()?, 1, REFRESH)?;
        for member in &cluster.members {
            member.node.iptables("-t mangle -I POSTROUTING -j ACCEPT")?;
        }
        let [a, b] = [cluster.members[0].pod()?, cluster.members[1].pod()?];
        let mut dialogue = Dialogue::open(&a, &b)?;
        for end in [&dialogue.client, &dialogue.server] {
            setsockopt(end, Mark, &FLOW_MARK)?;
        }
        let counted = counted(&cluster, || dialogue.exchanges(50))?;
        for counters in &counted {
            ensure!(fast(counters) == [0, 0] && packets(counters, Reason::FlowLearned) == 0, "{counters}");
        }
        Ok(())
    })
}

/// The rule goes with the fast path that needs it, and is put back when somebody removes it.
#[test]
fn the_rule_is_kept_while_it_is_needed() -> Result<()> {
    in_lab(|lab| {
        let mut cluster = cluster(lab, 1, REFRESH)?;
        let node = cluster.members[0].node.netns().clone();
        let rules = || node.run("iptables-save", &["-t", "mangle"]);
        node.run("iptables", &["-w", "-t", "mangle", "-F", "FLANNEL-FLOW"])?;
        eventually(CONVERGENCE, "the rule is back", || {
            let rules = rules()?;
            ensure!(rules.contains("--set-xmark 0x1000/0x1000"), "{rules}");
            Ok(())
        })?;
        let agent = &mut cluster.members[0].agent;
        agent.terminate()?;
        ensure!(rules()?.contains("FLANNEL-FLOW"), "flows outlive the agent, and the rule does not");
        agent.set_flag("fast-path", FastPath::Overlay.name());
        agent.start_again()?;
        eventually(CONVERGENCE, "the rule is gone", || {
            let rules = rules()?;
            ensure!(!rules.contains("FLANNEL"), "{rules}");
            Ok(())
        })
    })
}

/// On nodes without any rule, of flannel's or of others, the one that flows are learned from is there.
#[test]
fn flows_are_learned_where_there_are_no_other_rules() -> Result<()> {
    in_lab(|lab| {
        let flags = vec!["--iptables-forward-rules=false".to_owned()];
        let cluster = Cluster::start(lab, 2, 1, AgentOptions { fast_path: FastPath::Flow, flags })?;
        cluster.await_dataplane(FastPath::Flow.into())?;
        let rules = cluster.members[0].node.netns().run("iptables-save", &["-t", "filter"])?;
        ensure!(!rules.contains("-A "), "{rules}");
        let [a, b] = [cluster.members[0].pod()?, cluster.members[1].pod()?];
        let counted = counted(&cluster, || every_kind_both_ways(&a, &b))?;
        for counters in &counted {
            ensure!(fast(counters).into_iter().all(|packets| packets > SEGMENTS), "{counters}");
        }
        Ok(())
    })
}

/// An iptables that knows no connection tracking, as where the kernel has none.
const WITHOUT_CONNTRACK: &str = r#"#!/bin/sh
input=$(cat)
case "$input" in
*conntrack*) echo "unknown option \"--ctstate\"" >&2; exit 2 ;;
esac
printf '%s\n' "$input" | exec "$(command -v -p "${0##*/}" || echo "/usr/sbin/${0##*/}")" "$@"
"#;

/// Where the rule cannot be had, everything else can, as with `overlay`.
#[test]
fn without_the_rule_flows_stay_on_the_kernels_path() -> Result<()> {
    in_lab(|lab| {
        let mut cluster = learning(lab, lab.etcd()?, 1, Duration::from_secs(1))?;
        let programs = lab.dir().join("programs");
        fs::create_dir(&programs)?;
        for name in ["iptables-restore", "iptables-nft-restore", "iptables-legacy-restore"] {
            fs::write(programs.join(name), WITHOUT_CONNTRACK)?;
            fs::set_permissions(programs.join(name), fs::Permissions::from_mode(0o755))?;
        }
        let path = format!("{}:{}", programs.display(), std::env::var("PATH")?);
        for member in &mut cluster.members {
            member.agent.terminate()?;
            let mangle = member.node.netns();
            mangle.run("iptables", &["-w", "-t", "mangle", "-F"])?;
            mangle.run("iptables", &["-w", "-t", "mangle", "-X", "FLANNEL-FLOW"])?;
            member.agent.set_variable("PATH", &path);
            member.agent.start_again()?;
            let agent = &member.agent;
            eventually(CONVERGENCE, "the agent says why no flow is fast", || {
                let log = agent.log();
                let said = log.lines().filter(|line| line.contains("no flow skips the host's stack")).count();
                ensure!(said == 1, "said {said} times");
                Ok(())
            })?;
        }
        let [a, b] = [cluster.members[0].pod()?, cluster.members[1].pod()?];
        let masquerade = cluster.members[0].node.netns().run("iptables-save", &["-t", "nat"])?;
        ensure!(masquerade.contains("FLANNEL-POSTRTG"), "{masquerade}");
        cluster.await_fast_path(0, 1, FastPath::Overlay)?;
        let counted = counted(&cluster, || every_kind_both_ways(&a, &b))?;
        for counters in &counted {
            ensure!(fast(counters) == [0, 0] && packets(counters, Reason::FlowUnknown) == 0, "{counters}");
        }
        Ok(())
    })
}

/// The same with nft in the place of iptables.
#[test]
fn flows_are_learned_by_nftables() -> Result<()> {
    in_lab(|lab| {
        let cluster = nftables_cluster(lab, 1, REFRESH)?;
        let [a, b] = [cluster.members[0].pod()?, cluster.members[1].pod()?];
        let counted = counted(&cluster, || every_kind_both_ways(&a, &b))?;
        for counters in &counted {
            ensure!(fast(counters).into_iter().all(|packets| packets > SEGMENTS), "{counters}");
        }
        let log = cluster.members[0].agent.log();
        ensure!(!log.contains("restored rules"), "the rules do not read as they were written:\n{log}");
        Ok(())
    })
}

/// The agent tells connection tracking to put up with what it does not see, as soon as there is any.
#[test]
fn connection_tracking_is_made_tolerant() -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster(lab, 1, REFRESH)?;
        let node = cluster.members[0].node.netns();
        let read = |name: &str| -> Result<u64> {
            Ok(node.read_sysctl(&format!("net/netfilter/nf_conntrack_tcp_{name}"))?.parse()?)
        };
        eventually(CONVERGENCE, "connection tracking is tolerant", || {
            let found = (read("be_liberal")?, read("ignore_invalid_rst")?);
            ensure!(found == (1, 1), "{found:?}");
            Ok(())
        })?;
        // Undone by another's hand, it is done again at once.
        node.sysctl("net/netfilter/nf_conntrack_tcp_be_liberal", "0")?;
        eventually(CONVERGENCE, "it is tolerant again", || {
            ensure!(read("be_liberal")? == 1);
            Ok(())
        })?;
        ensure!(
            cluster.members[0]
                .agent
                .log()
                .contains("set connection tracking to tolerate packets that it has not seen")
        );
        Ok(())
    })
}
