//! What the host does to the outer packet: the fast path does not skip it.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use flannel_common::reason::Reason;
use flannel_lab::{
    CONVERGENCE, Cluster, Etcd, FastPath, Lab, Member, eventually, in_lab,
    traffic::{Dialogue, Paced, ping::ping, wire::Wire},
};
use serde_json::Value;

use crate::{counted, fast, packets, with_rules};

const REFRESH: Duration = Duration::from_secs(2);
/// Longer than what was seen of the tunnel holds, and what was accepted of a flow.
const STALE: Duration = Duration::from_secs(4);
const PORT: u16 = 8472;
const MODES: [FastPath; 3] = [FastPath::Flow, FastPath::Overlay, FastPath::All];

fn cluster(lab: &Lab, mode: FastPath) -> Result<Cluster> {
    let etcd: Etcd = lab.etcd()?;
    let cluster = with_rules(lab, etcd, 1, mode, REFRESH)?;
    cluster.await_dataplane(mode.into())?;
    Ok(cluster)
}

/// Runs `test` in a lab of two nodes for each fast path.
fn in_each_mode(test: impl Fn(&Cluster, FastPath) -> Result<()>) -> Result<()> {
    in_modes(&MODES, test)
}

fn in_modes(modes: &[FastPath], test: impl Fn(&Cluster, FastPath) -> Result<()>) -> Result<()> {
    modes.iter().try_for_each(|&mode| {
        in_lab(|lab| test(&cluster(lab, mode)?, mode)).with_context(|| format!("--fast-path={}", mode.name()))
    })
}

/// The VXLAN frames of `from` among those that were kept of a wire, and that pass it for a moment yet: TOS, length
/// and source port of the outer packet.
fn outer(wire: &Wire, from: Ipv4Addr) -> Result<Vec<(u8, u16, u16)>> {
    let is_vxlan = |frame: &[u8]| {
        frame.len() > 42
            && frame[12..14] == [0x08, 0x00]
            && frame[23] == 17
            && frame[26..30] == from.octets()
            && frame[36..38] == PORT.to_be_bytes()
    };
    let (start, mut found) = (Instant::now(), Vec::new());
    while start.elapsed() < Duration::from_millis(300) {
        if let Some(frame) = wire.next()?.filter(|frame| is_vxlan(frame)) {
            let word = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
            found.push((frame[15], word(16), word(34)));
        }
    }
    Ok(found)
}

/// Whether a running flow goes on, and a new one begins.
fn reaches(cluster: &Cluster, running: &mut Dialogue) -> Result<()> {
    running.exchange_within(Duration::from_secs(1)).map(drop).context("the running flow")?;
    let [a, b] = [cluster.members[0].pod()?, cluster.members[1].pod()?];
    ping(&a, &b, 56).map(drop).context("a new flow")
}

/// After `forbid` nothing goes on, at the latest when what is known is stale; after `allow` everything does, fast.
fn is_obeyed(
    cluster: &Cluster,
    mode: FastPath,
    forbid: impl FnOnce() -> Result<()>,
    allow: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let [a, b] = [cluster.members[0].pod()?, cluster.members[1].pod()?];
    let mut running = Dialogue::open(&a, &b)?;
    running.exchanges(20)?;
    forbid()?;
    eventually(CONVERGENCE, "the running flow has stopped", || {
        ensure!(running.exchange_within(Duration::from_millis(300)).is_err(), "it goes on");
        Ok(())
    })?;
    ensure!(ping(&a, &b, 56).is_err(), "a new flow passed");
    allow()?;
    eventually(CONVERGENCE, "pods reach each other", || ping(&a, &b, 56).map(drop))?;
    cluster.await_dataplane(mode.into())
}

#[test]
fn what_the_host_wants_encrypted_never_leaves_in_clear() -> Result<()> {
    in_each_mode(|cluster, mode| {
        let [a, b] = [&cluster.members[0], &cluster.members[1]];
        let [from, to] = [a.node.address(), b.node.address()];
        for (member, direction) in [(a, "out"), (b, "in")] {
            // Without a state to encrypt with, the kernel stops what the policy is about.
            let policy = format!(
                "xfrm policy add src {from}/32 dst {to}/32 proto udp dport {PORT} dir {direction} \
                 tmpl src {from} dst {to} proto esp mode transport"
            );
            let wire = Wire::open(a.node.netns(), "eth0")?;
            let is_heeded = |member: &Member| {
                let covered = member.agent.log().matches("an IPsec policy covers").count();
                eventually(CONVERGENCE, "the agent has noticed", || {
                    ensure!(member.agent.log().matches("an IPsec policy covers").count() >= covered.max(1));
                    Ok(())
                })
            };
            let mut running = Dialogue::open(&a.pod()?, &b.pod()?)?;
            running.exchanges(20)?;
            member.node.netns().ip(&policy)?;
            is_heeded(member)?;
            outer(&wire, from)?;
            ensure!(running.exchange_within(Duration::from_millis(500)).is_err(), "{direction}: it goes on");
            ensure!(ping(&a.pod()?, &b.pod()?, 56).is_err(), "{direction}: a new flow passed");
            let clear = outer(&wire, from)?;
            ensure!(direction == "in" || clear.is_empty(), "{} frames in clear", clear.len());
            member.node.netns().ip("xfrm policy flush")?;
            eventually(CONVERGENCE, "pods reach each other", || ping(&a.pod()?, &b.pod()?, 56).map(drop))?;
            cluster.await_dataplane(mode.into())?;
        }
        Ok(())
    })
}

#[test]
fn rules_about_the_outer_packet_are_obeyed() -> Result<()> {
    // With `all` they are skipped by design.
    in_modes(&[FastPath::Flow, FastPath::Overlay], |cluster, mode| {
        let [a, b] = [&cluster.members[0].node, &cluster.members[1].node];
        for (node, rule) in [
            (a, format!("OUTPUT -p udp --dport {PORT} -j DROP")),
            (b, format!("INPUT -p udp --dport {PORT} -j DROP")),
        ] {
            let change = |how: &str| node.iptables(&format!("-{how} {rule}"));
            is_obeyed(cluster, mode, || change("I"), || change("D")).with_context(|| rule.clone())?;
        }
        let rule = format!("PREROUTING -p udp --dport {PORT} -j DROP");
        let change = |how: &str| b.iptables(&format!("-t raw -{how} {rule}"));
        is_obeyed(cluster, mode, || change("I"), || change("D")).context(rule)?;
        let table = format!(
            "table inet ours {{\nchain output {{\ntype filter hook output priority 0\nudp dport {PORT} drop\n}}\n}}"
        );
        is_obeyed(cluster, mode, || a.nft(&table), || a.nft("delete table inet ours")).context("nftables")?;
        let way = format!("ipproto udp dport {PORT} table 99");
        let change = |how: &str| a.netns().ip(&format!("rule {how} {way}")).map(drop);
        a.netns().ip("route add unreachable default table 99")?;
        is_obeyed(cluster, mode, || change("add"), || change("del")).context("a rule for the port")?;
        // What marks outer packets marks each of them.
        let rule = format!("OUTPUT -p udp --dport {PORT} -j DSCP --set-dscp 46");
        a.iptables(&format!("-t mangle -A {rule}"))?;
        std::thread::sleep(STALE);
        let wire = Wire::open(a.netns(), "eth0")?;
        let mut running = Dialogue::open(&cluster.members[0].pod()?, &cluster.members[1].pod()?)?;
        running.exchanges(200)?;
        let sent = outer(&wire, a.address())?;
        let marked = sent.iter().filter(|(tos, ..)| tos >> 2 == 46).count();
        ensure!(sent.len() >= 200 && marked == sent.len(), "{marked} of {} are marked", sent.len());
        reaches(cluster, &mut running)?;
        a.iptables(&format!("-t mangle -D {rule}"))?;
        cluster.await_dataplane(mode.into())?;
        a.netns().sysctl("net/ipv4/ip_local_port_range", "10000 20000")?;
        eventually(CONVERGENCE, "source ports are of the range there is now", || {
            outer(&wire, a.address())?;
            let mut running = Dialogue::open(&cluster.members[0].pod()?, &cluster.members[1].pod()?)?;
            running.exchanges(20)?;
            let sent = outer(&wire, a.address())?;
            ensure!(
                !sent.is_empty() && sent.iter().all(|(.., port)| (10_000..20_000).contains(port)),
                "{sent:?}"
            );
            Ok(())
        })
    })
}

/// Whatever is known of a peer, the first packet after its neighbour entry has gone waits for the next one.
#[test]
fn the_first_packet_to_a_cold_neighbour_arrives() -> Result<()> {
    in_each_mode(|cluster, _| {
        let [a, b] = [&cluster.members[0], &cluster.members[1]];
        let netns = a.node.netns();
        let forget = || -> Result<()> {
            // One that is gone already need not be deleted.
            let _ = netns.ip(&format!("neigh del {} dev eth0", b.node.address()));
            let known = netns.ip(&format!("neigh show {} dev eth0", b.node.address()))?;
            ensure!(!known.contains("lladdr"), "{known}");
            Ok(())
        };
        for time in 0..5 {
            eventually(CONVERGENCE, "the neighbour is forgotten", forget)?;
            ping(&a.pod()?, &b.pod()?, 56).with_context(|| format!("ping {time}"))?;
            eventually(CONVERGENCE, "the neighbour is forgotten", forget)?;
            Dialogue::open(&a.pod()?, &b.pod()?)?
                .exchange_within(Duration::from_millis(900))
                .with_context(|| format!("connection {time}"))?;
        }
        Ok(())
    })
}

/// What programs send while the external interface is down asks for neighbours that do not hear it.
#[test]
fn a_flap_of_the_external_interface_is_over_within_a_second() -> Result<()> {
    const FLAPS: u64 = 6;
    /// Packets of a second, both ways.
    const SECOND: u64 = 1000;
    let lost = |mode: FastPath| {
        let lost = std::cell::Cell::new(0);
        in_modes(&[mode], |cluster, mode| {
            let [a, b] = [&cluster.members[0], &cluster.members[1]];
            for _ in 0..FLAPS {
                let flow = Paced::usual(&a.pod()?, &b.pod()?)?;
                eventually(CONVERGENCE, "packets arrive", || {
                    ensure!(flow.received().0 > 50);
                    Ok(())
                })?;
                a.node.netns().ip_batch("link set eth0 down\nlink set eth0 up\n")?;
                let now = flow.received().0;
                eventually(CONVERGENCE, "packets arrive again", || {
                    ensure!(flow.received().0 > now + 50);
                    Ok(())
                })?;
                let report = flow.stop()?;
                println!("{mode:?}: {report}");
                lost.set(lost.get() + report.forward.lost() + report.backward.lost());
                cluster.await_dataplane(mode.into())?;
            }
            Ok(())
        })?;
        anyhow::Ok(lost.get())
    };
    let [off, flow] = [lost(FastPath::Off)?, lost(FastPath::Flow)?];
    // The kernel asks for a neighbour once a second. What a flap costs beyond that would be ours.
    ensure!(flow < off + FLAPS * SECOND, "{flow} packets lost in {FLAPS} flaps, {off} with off");
    Ok(())
}

/// A router on the way says what fits, and from then on nothing larger is sent.
#[test]
fn a_path_mtu_is_heeded_at_once() -> Result<()> {
    const FITS: u16 = 1300;
    in_each_mode(|cluster, mode| {
        let [a, b] = [&cluster.members[0], &cluster.members[1]];
        let paced = Paced::start(&a.pod()?, &b.pod()?, 200, 1400)?;
        eventually(CONVERGENCE, "large packets arrive", || {
            ensure!(paced.received().0 > 100);
            Ok(())
        })?;
        let wire = Wire::open(a.node.netns(), "eth0")?;
        let (from, to) = (a.node.address(), b.node.address());
        let about = wire.find(CONVERGENCE, "an outer packet", |frame| {
            let ours = frame.len() > 78 && frame[26..30] == from.octets() && frame[30..34] == to.octets();
            (ours && frame[36..38] == PORT.to_be_bytes()).then(|| frame[14..14 + 64].to_vec())
        })?;
        let error = fragmentation_needed(to, from, FITS, &about);
        let port = Wire::open(b.node.netns(), "eth0")?;
        let mut frame = a.node.netns().inside(|| Ok(wire.mac()?.to_vec()))?;
        frame.extend(port.mac()?);
        frame.extend([0x08, 0x00]);
        frame.extend(error);
        let counters = counted(cluster, || {
            port.send(&frame)?;
            // Less than the agent takes to ask the kernel for routes again.
            eventually(Duration::from_secs(10), "nothing larger is sent", || {
                let sent = outer(&wire, from)?;
                let large = sent.iter().filter(|(_, len, _)| *len > FITS).count();
                ensure!(
                    !sent.is_empty() && large == 0,
                    "{large} of {} packets: {}",
                    sent.len(),
                    a.node.netns().ip(&format!("route get {to}"))?
                );
                Ok(())
            })
        })?;
        ensure!(packets(&counters[0], Reason::TunnelClosed) > 0, "{}", counters[0]);
        let before = paced.received().0;
        eventually(CONVERGENCE, "large packets arrive", || {
            ensure!(paced.received().0 > before + 50);
            Ok(())
        })?;
        paced.stop()?;
        // What fits is as fast as before.
        cluster.await_dataplane(mode.into())?;
        if mode == FastPath::Flow {
            let mut running = Dialogue::open(&a.pod()?, &b.pod()?)?;
            running.exchanges(20)?;
            let counters = counted(cluster, || running.exchanges(50))?;
            ensure!(fast(&counters[0])[0] >= 40, "{}", counters[0]);
        }
        Ok(())
    })
}

/// An IPv4 packet with "fragmentation needed" (RFC 1191) about the packet that begins with `about`.
fn fragmentation_needed(from: Ipv4Addr, to: Ipv4Addr, mtu: u16, about: &[u8]) -> Vec<u8> {
    let checksum = |bytes: &[u8]| {
        let sum: u32 = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
        !((sum & 0xffff) + (sum >> 16)) as u16
    };
    let mut icmp = vec![3, 4, 0, 0, 0, 0];
    icmp.extend(mtu.to_be_bytes());
    icmp.extend(about);
    let sum = checksum(&icmp).to_be_bytes();
    icmp[2..4].copy_from_slice(&sum);
    let mut ip = vec![0x45, 0];
    ip.extend((20 + icmp.len() as u16).to_be_bytes());
    ip.extend([0, 1, 0, 0, 64, 1, 0, 0]);
    ip.extend(from.octets());
    ip.extend(to.octets());
    let sum = checksum(&ip).to_be_bytes();
    ip[10..12].copy_from_slice(&sum);
    ip.extend(icmp);
    ip
}

/// They skip what the host does to outer packets, as those do that follow, and nothing else.
#[test]
fn netfilter_sees_the_first_packets_of_each_connection_behind_the_tunnels_device() -> Result<()> {
    const CONNECTIONS: u64 = 30;
    in_lab(|lab| {
        let cluster = with_rules(lab, lab.etcd()?, 1, FastPath::Flow, Duration::from_secs(30))?;
        cluster.await_dataplane(FastPath::Flow.into())?;
        let [a, b] = [cluster.members[0].pod()?, cluster.members[1].pod()?];
        let node = &cluster.members[1].node;
        let decapsulated_by_the_kernel = || -> Result<u64> {
            let links: Value = serde_json::from_str(&node.netns().ip("-s -json link show dev flannel.1")?)?;
            links[0]["stats64"]["rx"]["packets"].as_u64().with_context(|| links.to_string())
        };
        let connect = || -> Result<()> {
            let mut dialogue = Dialogue::open(&a, &b)?;
            dialogue.exchanges(1)?;
            dialogue.close_at_the_server()
        };
        node.iptables("-t mangle -A FORWARD -i flannel.1 -p tcp --syn")?;
        connect()?;
        let wire = Wire::open(node.netns(), "flannel.1")?;
        let before = decapsulated_by_the_kernel()?;
        (0..CONNECTIONS).try_for_each(|_| connect())?;
        let by_the_kernel = decapsulated_by_the_kernel()? - before;
        // Two packets of each, at least, are not the fast path's.
        ensure!(by_the_kernel < CONNECTIONS, "the device has decapsulated {by_the_kernel} packets");
        let is_syn = |frame: &Vec<u8>| frame[12..14] == [8, 0] && frame[23] == 6 && frame[47] & 0x12 == 0x02;
        let captured =
            wire.drain()?.iter().filter(|frame| frame.len() > 47).filter(|frame| is_syn(frame)).count();
        ensure!(captured as u64 >= CONNECTIONS, "{captured} SYNs at flannel.1");
        let rules = node.netns().run("iptables", &["-t", "mangle", "-vxnL", "FORWARD"])?;
        let rule = rules.lines().find(|line| line.contains("flannel.1")).context("no rule")?;
        let met: u64 = rule.split_whitespace().next().context("no counter")?.parse()?;
        ensure!(met > CONNECTIONS, "{met} SYNs met the rule: {rules}");
        Ok(())
    })
}
