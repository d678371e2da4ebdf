//! Network policies, as agents write them into FORWARD, or beside it into tables of their own.

use std::{
    net::{Ipv4Addr, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use flannel_common::reason::Reason;
use flannel_lab::{
    AgentOptions, CONVERGENCE, Cluster, Dataplane, FastPath, Lab, Node, Xdp, eventually, in_lab,
    traffic::{Dialogue, Endpoint, Paced, dialogue::listen},
};

use crate::{behind, cluster, cluster_behind, counted, fast, nftables_etcd, packets, start};

const REFRESH: Duration = Duration::from_secs(2);
const DENIED: u16 = 7777;

/// How a policy agent writes. The agent under test writes its own rules in the same way.
#[derive(Clone, Copy)]
enum Writer {
    Iptables,
    Nftables,
}

impl Writer {
    /// What is tried behind: XDP knows nothing of rules, so with one writer it is enough.
    fn xdps(self) -> &'static [Xdp] {
        match self {
            Self::Iptables => &Xdp::EACH,
            Self::Nftables => &[Xdp::Off],
        }
    }

    fn cluster(self, xdp: Xdp, lab: &Lab) -> Result<Cluster> {
        match self {
            Self::Iptables => cluster_behind(xdp, lab, 1, REFRESH),
            Self::Nftables => start(xdp, lab, nftables_etcd(lab)?, 1, REFRESH),
        }
    }

    /// Nobody may open a connection to `pod` on `node` but `allowed`: all else is what a pod hears that some
    /// policy selects and none allows.
    fn isolate(self, node: &Node, pod: Ipv4Addr, allowed: &[Ipv4Addr]) -> Result<()> {
        match self {
            Self::Iptables => {
                self.lift(node)?;
                let mut rules = vec!["-N POLICY".to_owned()];
                rules.push("-A POLICY -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT".to_owned());
                rules.extend(allowed.iter().map(|peer| format!("-A POLICY -s {peer} -j ACCEPT")));
                rules.push("-A POLICY -j DROP".to_owned());
                rules.push(format!("-I FORWARD -d {pod} -j POLICY"));
                rules.iter().try_for_each(|rule| node.iptables(rule))
            }
            Self::Nftables => {
                let allowed: String =
                    allowed.iter().map(|peer| format!("ip saddr {peer} accept\n")).collect();
                load(
                    node,
                    &format!(
                        "chain isolated {{\nct state established,related accept\n{allowed}drop\n}}\n\
                         chain forward {{\ntype filter hook forward priority filter - 5\n\
                         ip daddr {pod} jump isolated\n}}\n"
                    ),
                )
            }
        }
    }

    /// Nothing from `from` reaches `to` any more, not even what is established.
    fn cut(self, node: &Node, from: Ipv4Addr, to: Ipv4Addr) -> Result<()> {
        match self {
            Self::Iptables => node.iptables(&format!("-I FORWARD -s {from} -d {to} -j DROP")),
            Self::Nftables => load(
                node,
                &format!(
                    "chain forward {{\ntype filter hook forward priority filter - 5\n\
                     ip saddr {from} ip daddr {to} drop\n}}\n"
                ),
            ),
        }
    }

    /// No policy any more.
    fn lift(self, node: &Node) -> Result<()> {
        match self {
            Self::Iptables => {
                let rules = node.netns().run("iptables-save", &["-t", "filter"])?;
                for rule in rules.lines().filter(|rule| rule.starts_with("-A FORWARD")) {
                    if rule.ends_with("-j POLICY") || rule.ends_with("-j DROP") && !rule.contains("INVALID") {
                        node.iptables(&rule.replacen("-A", "-D", 1))?;
                    }
                }
                if rules.contains(":POLICY ") {
                    node.iptables("-F POLICY")?;
                    node.iptables("-X POLICY")?;
                }
                Ok(())
            }
            Self::Nftables => load(node, ""),
        }
    }
}

/// Replaces the policy agent's table.
fn load(node: &Node, chains: &str) -> Result<()> {
    let rules = format!(
        "add table inet network-policy\ndelete table inet network-policy\ntable inet network-policy {{\n{chains}}}\n"
    );
    node.nft(&rules)
}

/// A UDP socket that hears what arrives, and does not wait for it.
fn hearing(at: &Endpoint, port: u16) -> Result<UdpSocket> {
    let socket = at.netns().inside(|| Ok(UdpSocket::bind(at.socket_address(port))?))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn denied_is_denied(lab: &Lab, dataplane: Dataplane) -> Result<()> {
    let cluster = match dataplane {
        Dataplane { fast_path: FastPath::Flow, xdp } => cluster_behind(xdp, lab, 1, REFRESH)?,
        other => Cluster::start(lab, 2, 1, AgentOptions::new(other, &[]))?,
    };
    let [a, b] = [&cluster.members[0], &cluster.members[1]];
    // At the sender's node for one, at the receiver's for the other.
    for (member, from, to) in [(a, a.pod()?, b.pod()?), (b, a.pod()?, b.pod()?)] {
        let rule = format!("FORWARD -p tcp -d {} --dport {DENIED} -j REJECT", to.address());
        member.node.iptables(&format!("-I {rule}"))?;
        let listener = listen(&to, DENIED)?;
        for _ in 0..3 {
            let outcome = Dialogue::through(&from, 0, to.socket_address(DENIED), &[&listener]);
            ensure!(outcome.is_err(), "what a policy denies was let through");
        }
        ensure!(listener.accept().is_err(), "a connection that a policy denies arrived");
        // Another port is not denied.
        Dialogue::open(&from, &to)?.exchanges(20)?;
        member.node.iptables(&format!("-D {rule}"))?;
        Dialogue::through(&from, 0, to.socket_address(DENIED), &[&listener])?.exchanges(3)?;
    }
    Ok(())
}

#[test]
fn what_is_denied_never_passes_with_flow() -> Result<()> {
    behind(&Xdp::EACH, |lab, xdp| denied_is_denied(lab, FastPath::Flow.with(xdp)))
}

#[test]
fn what_is_denied_never_passes_with_overlay() -> Result<()> {
    in_lab(|lab| denied_is_denied(lab, FastPath::Overlay.into()))
}

#[test]
fn what_is_denied_never_passes_with_off() -> Result<()> {
    in_lab(|lab| denied_is_denied(lab, FastPath::Off.into()))
}

/// Only connections from the one side are allowed; their answers come back, and are fast.
#[test]
fn answers_to_what_is_allowed_pass() -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster(lab, 1, REFRESH)?;
        let [a, b] = [cluster.members[0].pod()?, cluster.members[1].pod()?];
        for member in &cluster.members {
            let node = &member.node;
            node.iptables(&format!("-I FORWARD -s {} -d {} -j REJECT", b.address(), a.address()))?;
            node.iptables("-I FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT")?;
        }
        ensure!(Dialogue::open(&b, &a).is_err(), "a connection was opened the way that is not allowed");
        let mut dialogue = Dialogue::open(&a, &b)?;
        let counted = counted(&cluster, || {
            // Longer than acceptance holds, with the server speaking first after each pause.
            let start = Instant::now();
            while start.elapsed() < REFRESH * 3 {
                dialogue.exchanges(10)?;
                std::thread::sleep(Duration::from_millis(100));
                std::mem::swap(&mut dialogue.client, &mut dialogue.server);
            }
            Ok(())
        })?;
        for counters in &counted {
            ensure!(fast(counters).into_iter().all(|packets| packets > 100), "{counters}");
        }
        ensure!(Dialogue::open(&b, &a).is_err(), "a connection was opened the way that is not allowed");
        Ok(())
    })
}

/// What a policy isolates hears nothing from the first packet on, speaks to whom it likes, and is fast with both
/// whom it spoke to and whom the policy allows.
fn isolated(writer: Writer) -> Result<()> {
    behind(writer.xdps(), |lab, xdp| {
        let cluster = writer.cluster(xdp, lab)?;
        let [a, b] = [cluster.members[0].pod()?, cluster.members[1].pod()?];
        let node = &cluster.members[1].node;
        writer.isolate(node, b.address_v4(), &[])?;
        let (tcp, udp) = (listen(&b, DENIED)?, hearing(&b, DENIED)?);
        let denied = counted(&cluster, || {
            let speaker = hearing(&a, 0)?;
            let stubborn = a.netns().inside(|| {
                let stream = std::net::TcpStream::connect_timeout(
                    &b.socket_address(DENIED),
                    Duration::from_millis(2500),
                );
                Ok(stream.is_ok())
            })?;
            ensure!(!stubborn, "a connection that a policy denies was opened");
            for _ in 0..50 {
                speaker.send_to(b"let me in", b.socket_address(DENIED))?;
            }
            std::thread::sleep(Duration::from_millis(300));
            ensure!(tcp.accept().is_err(), "a connection that a policy denies arrived");
            ensure!(udp.recv(&mut [0; 16]).is_err(), "a datagram that a policy denies arrived");
            Ok(())
        })?;
        for counters in &denied {
            ensure!(fast(counters) == [0, 0], "{counters}");
        }
        ensure!(packets(&denied[1], Reason::FlowLearned) == 0, "learned though denied: {}", denied[1]);

        // The other way round it is open, and the answers are not kept out.
        let mut outwards = Dialogue::open(&b, &a)?;
        let counted_out = counted(&cluster, || {
            let start = Instant::now();
            while start.elapsed() < REFRESH * 2 {
                outwards.exchanges(10)?;
                std::thread::sleep(Duration::from_millis(100));
            }
            Ok(())
        })?;
        for counters in &counted_out {
            ensure!(fast(counters).into_iter().all(|packets| packets > 100), "{counters}");
        }

        writer.isolate(node, b.address_v4(), &[a.address_v4()])?;
        let mut inwards = Dialogue::through(&a, 0, b.socket_address(DENIED), &[&tcp])?;
        let counted_in = counted(&cluster, || inwards.exchanges(100))?;
        for counters in &counted_in {
            ensure!(fast(counters).into_iter().all(|packets| packets >= 90), "{counters}");
        }
        writer.lift(node)
    })
}

#[test]
fn an_isolated_pod_hears_nothing_behind_iptables() -> Result<()> {
    isolated(Writer::Iptables)
}

#[test]
fn an_isolated_pod_hears_nothing_behind_nftables() -> Result<()> {
    isolated(Writer::Nftables)
}

/// A policy for what is established, too, takes hold of running flows when their acceptance ends.
fn a_new_policy_bites(writer: Writer) -> Result<()> {
    behind(writer.xdps(), |lab, xdp| {
        let cluster = writer.cluster(xdp, lab)?;
        let [a, b] = [&cluster.members[0], &cluster.members[1]];
        for member in [a, b] {
            let mut dialogue = Dialogue::open(&a.pod()?, &b.pod()?)?;
            let trickle = Paced::usual(&a.pod()?, &b.pod()?)?;
            dialogue.exchanges(100)?;
            writer.cut(&member.node, a.pod()?.address_v4(), b.pod()?.address_v4())?;
            // Until its time is over a flow goes on, whether or not it is used.
            std::thread::sleep(REFRESH + Duration::from_millis(500));
            ensure!(dialogue.exchange_within(Duration::from_secs(1)).is_err(), "the policy did not bite");
            let before = trickle.received();
            let counted = counted(&cluster, || {
                std::thread::sleep(Duration::from_secs(2));
                Ok(())
            })?;
            ensure!(trickle.received().0 == before.0, "the policy did not bite UDP");
            ensure!(fast(&counted[1])[1] == 0, "{}", counted[1]);
            writer.lift(&member.node)?;
            let resumed = trickle.received().0;
            eventually(CONVERGENCE, "the flow resumes", || {
                ensure!(trickle.received().0 > resumed + 100);
                Ok(())
            })?;
            trickle.stop()?;
        }
        Ok(())
    })
}

#[test]
fn a_new_policy_bites_running_flows() -> Result<()> {
    a_new_policy_bites(Writer::Iptables)
}

#[test]
fn a_new_policy_of_nftables_bites_running_flows() -> Result<()> {
    a_new_policy_bites(Writer::Nftables)
}
