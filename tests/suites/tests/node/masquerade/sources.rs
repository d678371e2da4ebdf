//! Whom the receiver of a packet sees.

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use flannel_lab::{Lab, Member, Node, in_lab, traffic::Endpoint};

use super::{
    golden::{await_rules, check_rules},
    node::{DOCKER, Mode, cluster, iptables},
};

/// The source address that `to` sees of a datagram `from` sends; with `answer`, one must come back.
pub(crate) fn source_seen(from: &Endpoint, to: &Endpoint, answer: bool) -> Result<Ipv4Addr> {
    const PATIENCE: Duration = Duration::from_secs(3);
    let bind = |end: &Endpoint| {
        end.netns().inside(|| {
            let socket = UdpSocket::bind((end.address(), 0))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            Ok(socket)
        })
    };
    let (client, server) = (bind(from)?, bind(to)?);
    let exchange = || -> Result<Ipv4Addr> {
        client.send_to(b"who am I?", server.local_addr()?)?;
        let mut buffer = [0; 64];
        let (_, seen) = server.recv_from(&mut buffer).context("the datagram did not arrive")?;
        if answer {
            server.send_to(b"you", seen)?;
            let (_, answered) = client.recv_from(&mut buffer).context("no answer came")?;
            ensure!(answered == server.local_addr()?, "the answer came from {answered}");
        }
        match seen {
            SocketAddr::V4(seen) => Ok(*seen.ip()),
            SocketAddr::V6(seen) => bail!("IPv6 source {seen}"),
        }
    };
    exchange().with_context(|| format!("from {} to {}", from.name(), to.name()))
}

/// Fails if, while `work` is done, any datagram from `pod` to `outside` leaves with another source than
/// `node`: each is a connection of its own, which the rules of that moment decide about.
pub(crate) fn masqueraded_throughout(
    pod: &Endpoint,
    outside: &Endpoint,
    node: Ipv4Addr,
    work: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let sender = scope.spawn(|| -> Result<u32> {
            let mut sent = 0;
            while !done.load(Ordering::Relaxed) {
                let seen = source_seen(pod, outside, true)?;
                ensure!(seen == node, "datagram {sent} left as {seen}");
                sent += 1;
            }
            Ok(sent)
        });
        let worked = work();
        done.store(true, Ordering::Relaxed);
        let sent = sender.join().map_err(|_| anyhow!("panicked"))?;
        worked?;
        let sent = sent?;
        println!("{sent} datagrams, all masqueraded");
        ensure!(sent >= 20, "only {sent} datagrams were sent");
        Ok(())
    })
}

fn expect_source(from: &Endpoint, to: &Endpoint, expected: Ipv4Addr) -> Result<()> {
    let seen = source_seen(from, to, true)?;
    ensure!(seen == expected, "{} sees {} as {seen}, not {expected}", to.name(), from.name());
    Ok(())
}

/// Who sees whom, as flannel promises it; `a`'s host masquerades its own subnet as docker does, too.
fn check_sources(a: &Member, b: &Member, outside: &Node) -> Result<()> {
    let (pod_a, pod_b) = (a.pod()?, b.pod()?);
    let (host_a, outside_end) = (a.node.underlay_endpoint(), outside.underlay_endpoint());
    expect_source(&pod_a, &pod_b, pod_a.address_v4())?;
    expect_source(&pod_b, &pod_a, pod_b.address_v4())?;
    expect_source(&pod_a, &outside_end, a.node.address())?;
    // Another node's own address is outside of the cluster's network.
    expect_source(&pod_a, &b.node.underlay_endpoint(), a.node.address())?;
    // From outside a pod sees the client itself.
    let (subnet, node) = (a.node.subnet_env()?.subnet, a.node.address());
    outside.netns().ip(&format!("route replace {subnet} via {node}"))?;
    expect_source(&outside_end, &pod_a, outside.address())?;
    outside.netns().ip(&format!("route del {subnet} via {node}"))?;
    // What a node sends to a remote pod leaves from the address that answers find their way back to.
    expect_source(&a.node.overlay_endpoint()?, &pod_b, subnet.network())?;
    expect_source(&host_a, &pod_b, subnet.network())
}

/// The exemption's mark, set here as `from_pod` sets it.
fn check_mark(a: &Member, mode: Mode, outside: &Node) -> Result<()> {
    let (pod, end) = (a.pod()?, outside.underlay_endpoint());
    let destination = end.address();
    let mark = |verb: &str, mark: &str| {
        let rule = format!("-t mangle -{verb} PREROUTING -d {destination} -j MARK --set-xmark {mark}");
        iptables(&a.node, mode, &rule)
    };
    mark("A", "0x40/0x40")?;
    // No answer: outside there is no route to pods.
    let seen = source_seen(&pod, &end, false)?;
    ensure!(seen == pod.address(), "marked exempt, and seen as {seen}");
    mark("D", "0x40/0x40")?;
    mark("A", "0x4040/0x4040")?;
    let seen = source_seen(&pod, &end, true)?;
    ensure!(seen == a.node.address(), "marked for masquerade by kube-proxy, and seen as {seen}");
    mark("D", "0x4040/0x4040")?;
    Ok(())
}

fn rules_and_sources(lab: &Lab, mode: Mode) -> Result<()> {
    let cluster = cluster(lab, mode, 2, &["--ip-masq=true"])?;
    let outside = lab.node()?;
    let [a, b] = [&cluster.members[0], &cluster.members[1]];
    check_rules(&a.node, mode, &[DOCKER])?;
    check_rules(&b.node, mode, &[DOCKER])?;
    ensure!(a.node.subnet_env()?.ip_masq, "FLANNEL_IPMASQ is to be true");
    check_sources(a, b, &outside)?;

    // As `dockerd --ip-masq=true --bip` with flannel's subnet: inserted, before everything else.
    let docker = format!("-s {} ! -o cni0 -j MASQUERADE", a.node.subnet_env()?.subnet);
    iptables(&a.node, mode, &format!("-t nat -I POSTROUTING 1 {docker}"))?;
    await_rules(&a.node, mode, &[&docker, DOCKER], "the exemptions come before docker's new rule")?;
    check_sources(a, b, &outside).context("beside docker's own masquerade rule")?;
    check_mark(a, mode, &outside)
}

#[test]
fn iptables_nft_has_upstreams_rules_and_everybody_sees_the_right_source() -> Result<()> {
    in_lab(|lab| rules_and_sources(lab, Mode::IptablesNft))
}

#[test]
fn iptables_legacy_has_upstreams_rules_and_everybody_sees_the_right_source() -> Result<()> {
    in_lab(|lab| rules_and_sources(lab, Mode::IptablesLegacy))
}

#[test]
fn nftables_has_upstreams_rules_and_everybody_sees_the_right_source() -> Result<()> {
    in_lab(|lab| rules_and_sources(lab, Mode::Nftables))
}

/// As docker publishes a port without its userland proxy: the container that asks for its own port must see
/// an address other than its own.
fn published_to_itself(lab: &Lab, mode: Mode) -> Result<()> {
    const PORT: u16 = 7000;
    let cluster = cluster(lab, mode, 1, &["--ip-masq"])?;
    let member = &cluster.members[0];
    let (pod, node) = (member.pod()?, &member.node);
    let (own, public) = (pod.address(), node.address());
    iptables(
        node,
        mode,
        &format!(
            "-t nat -A PREROUTING -d {public} -p udp --dport {PORT} -j DNAT --to-destination {own}:{PORT}"
        ),
    )?;
    iptables(node, mode, &format!("-t nat -A POSTROUTING -s {own} -d {own} -p udp -j MASQUERADE"))?;
    let bind = |port| {
        pod.netns().inside(|| {
            let socket = UdpSocket::bind((own, port))?;
            socket.set_read_timeout(Some(Duration::from_secs(3)))?;
            Ok(socket)
        })
    };
    let (client, server) = (bind(0)?, bind(PORT)?);
    client.send_to(b"me?", (public, PORT))?;
    let mut buffer = [0; 16];
    let (_, seen) = server.recv_from(&mut buffer).context("the datagram did not come back in")?;
    ensure!(seen.ip() != own, "the container sees itself");
    server.send_to(b"you", seen)?;
    let (_, answered) = client.recv_from(&mut buffer).context("no answer came")?;
    ensure!(answered == SocketAddr::from((public, PORT)), "the answer came from {answered}");
    Ok(())
}

#[test]
fn container_reaches_itself_through_its_published_port_beside_iptables() -> Result<()> {
    in_lab(|lab| published_to_itself(lab, Mode::IptablesNft))
}

#[test]
fn container_reaches_itself_through_its_published_port_beside_nftables() -> Result<()> {
    in_lab(|lab| published_to_itself(lab, Mode::Nftables))
}
