//! Masquerade and forward rules, by iptables in both its back ends and by nftables: the rules there are, whom
//! the receiver of a packet sees, and how rules come back.

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use flannel_tests::{
    eventually,
    lab::{AgentOptions, Cluster, Etcd, FastPath, Lab, Member, Node, PREFIX, in_lab},
    traffic::Endpoint,
};

/// How long rules may take to come back; a second or so on a machine that is not busy.
const REPAIR: Duration = Duration::from_secs(20);

/// What docker makes of its bridge, which flannel knows nothing of.
const DOCKER: &str = "-s 172.17.0.0/16 ! -o docker0 -j MASQUERADE";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    IptablesNft,
    IptablesLegacy,
    Nftables,
}

impl Mode {
    /// The iptables that the host's other programs use.
    fn iptables(self) -> &'static str {
        match self {
            Self::IptablesNft | Self::Nftables => "iptables-nft",
            Self::IptablesLegacy => "iptables-legacy",
        }
    }
}

/// Nodes whose host already has rules of docker's, so that the agent can see where they belong.
fn cluster(lab: &Lab, mode: Mode, nodes: usize, flags: &[&str]) -> Result<Cluster> {
    let etcd = lab.etcd()?;
    configure(&etcd, mode)?;
    let mut members = Vec::new();
    for _ in 0..nodes {
        let node = lab.node()?;
        iptables(&node, mode, &format!("-t nat -A POSTROUTING {DOCKER}"))?;
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let agent = node.agent(&etcd, AgentOptions { fast_path: FastPath::Overlay, flags })?;
        let pods = vec![node.pod("pod1")?];
        members.push(Member { pods, agent, node });
    }
    let cluster = Cluster { members, etcd };
    cluster.await_reachable(&[])?;
    Ok(cluster)
}

fn configure(etcd: &Etcd, mode: Mode) -> Result<()> {
    let nftables = mode == Mode::Nftables;
    let config =
        format!(r#"{{"Network":"10.244.0.0/16","EnableNFTables":{nftables},"Backend":{{"Type":"vxlan"}}}}"#);
    etcd.put(&format!("{PREFIX}/config"), &config)
}

fn iptables(node: &Node, mode: Mode, words: &str) -> Result<String> {
    run(node, mode.iptables(), words)
}

fn run(node: &Node, program: &str, words: &str) -> Result<String> {
    node.netns().run(program, &words.split_whitespace().collect::<Vec<_>>())
}

/// The rules of a table, as `iptables-save` writes them.
fn saved(node: &Node, mode: Mode, table: &str) -> Result<Vec<String>> {
    let text = run(node, &format!("{}-save", mode.iptables()), &format!("-t {table}"))?;
    Ok(text.lines().filter(|line| line.starts_with("-A ")).map(str::to_owned).collect())
}

/// What the table nat holds with `--ip-masq`; `others` stand after the exemptions.
fn nat(node: &Node, others: &[&str]) -> Result<Vec<String>> {
    let env = node.subnet_env()?;
    let (p, c) = (env.subnet, env.network);
    let exempt = "-m comment --comment \"flanneld exempt\" -j RETURN";
    let range = format!("{}-{}", p.network(), p.broadcast());
    let mut rules = vec![
        format!("POSTROUTING -m mark --mark 0x2000/0x6000 {exempt}"),
        format!(
            "POSTROUTING -s {p} -d {c} -m iprange ! --dst-range {range} -m mark ! --mark 0x4000/0x4000 {exempt}"
        ),
    ];
    rules.extend(others.iter().map(|rule| format!("POSTROUTING {rule}")));
    let masq = "-m comment --comment \"flanneld masq\" -j";
    rules.push(format!("POSTROUTING {masq} FLANNEL-POSTRTG"));
    for rule in [
        format!("-m mark --mark 0x4000/0x4000 {masq} RETURN"),
        format!("-s {p} -d {c} {masq} RETURN"),
        format!("-s {c} -d {p} {masq} RETURN"),
        format!("! -s {c} -d {p} {masq} RETURN"),
        format!("-s {c} ! -d 224.0.0.0/4 {masq} MASQUERADE --random-fully"),
        format!("! -s {c} -d {c} {masq} MASQUERADE --random-fully"),
    ] {
        rules.push(format!("FLANNEL-POSTRTG {rule}"));
    }
    Ok(rules.into_iter().map(|rule| format!("-A {rule}")).collect())
}

/// What the table filter holds.
fn filter(node: &Node) -> Result<Vec<String>> {
    let c = node.subnet_env()?.network;
    let forward = "-m comment --comment \"flanneld forward\" -j";
    Ok(vec![
        format!("-A FORWARD {forward} FLANNEL-FWD"),
        format!("-A FLANNEL-FWD -s {c} {forward} ACCEPT"),
        format!("-A FLANNEL-FWD -d {c} {forward} ACCEPT"),
    ])
}

/// What nft lists of our table, without what it says in words of its version.
fn nft_rules(node: &Node) -> Result<Vec<String>> {
    let text = run(node, "nft", "-s list table ip flannel-ipv4")?;
    let lines = text.lines().map(str::trim).filter(|line| line.starts_with("chain ") || is_rule(line));
    Ok(lines.map(|line| line.replace("0x0000", "0x")).collect())
}

fn is_rule(line: &str) -> bool {
    line.starts_with("ip ") || line.starts_with("meta ")
}

fn nft_golden(node: &Node) -> Result<Vec<String>> {
    let env = node.subnet_env()?;
    let (p, c) = (env.subnet, env.network);
    let text = format!(
        "chain exempt {{
        meta mark & 0x6000 == 0x2000 snat to ip saddr
        meta mark & 0x4000 != 0x4000 ip saddr {p} ip daddr {c} ip daddr != {p} snat to ip saddr
        chain postrtg {{
        meta mark & 0x4000 == 0x4000 return
        ip saddr {p} ip daddr {c} return
        ip saddr {c} ip daddr {p} return
        ip saddr != {c} ip daddr {p} return
        ip saddr {c} ip daddr != 224.0.0.0/4 masquerade fully-random
        ip saddr != {c} ip daddr {c} masquerade fully-random
        chain forward {{
        ip saddr {c} accept
        ip daddr {c} accept"
    );
    Ok(text.lines().map(|line| line.trim().to_owned()).collect())
}

/// All rules are there, in order, and nothing else of flannel's. `others` are in nat's POSTROUTING.
fn check_rules(node: &Node, mode: Mode, others: &[&str]) -> Result<()> {
    if mode == Mode::Nftables {
        let (rules, golden) = (nft_rules(node)?, nft_golden(node)?);
        ensure!(rules == golden, "nft has\n{}\nwanted\n{}", rules.join("\n"), golden.join("\n"));
        run(node, "nft", "list table ip6 flannel-ipv6").context("the other family's table")?;
        return Ok(());
    }
    for (rules, golden) in
        [(saved(node, mode, "nat")?, nat(node, others)?), (saved(node, mode, "filter")?, filter(node)?)]
    {
        ensure!(rules == golden, "there is\n{}\nwanted\n{}", rules.join("\n"), golden.join("\n"));
    }
    Ok(())
}

fn await_rules(node: &Node, mode: Mode, others: &[&str], what: &str) -> Result<()> {
    eventually(REPAIR, what, || check_rules(node, mode, others))
}

/// The source address that `to` sees of a datagram `from` sends; with `answer`, one must come back.
fn source_seen(from: &Endpoint, to: &Endpoint, answer: bool) -> Result<Ipv4Addr> {
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

fn expect_source(from: &Endpoint, to: &Endpoint, expected: Ipv4Addr) -> Result<()> {
    let seen = source_seen(from, to, true)?;
    ensure!(seen == expected, "{} sees {} as {seen}, not {expected}", to.name(), from.name());
    Ok(())
}

/// Who sees whom, as flannel promises it; `a`'s host masquerades its own subnet as docker does, too.
fn check_sources(a: &Member, b: &Member, outside: &Node) -> Result<()> {
    let (pod_a, pod_b) = (a.pod()?, b.pod()?);
    let (host_a, outside_end) = (a.node.underlay_endpoint(), outside.underlay_endpoint());
    expect_source(&pod_a, &pod_b, pod_a.address())?;
    expect_source(&pod_b, &pod_a, pod_b.address())?;
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
    mark("A", "0x2000/0x2000")?;
    // No answer: outside there is no route to pods.
    let seen = source_seen(&pod, &end, false)?;
    ensure!(seen == pod.address(), "marked exempt, and seen as {seen}");
    mark("D", "0x2000/0x2000")?;
    mark("A", "0x6000/0x6000")?;
    let seen = source_seen(&pod, &end, true)?;
    ensure!(seen == a.node.address(), "marked for masquerade by kube-proxy, and seen as {seen}");
    mark("D", "0x6000/0x6000")?;
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

fn repairs(lab: &Lab, mode: Mode) -> Result<()> {
    let mut cluster = cluster(lab, mode, 1, &["--ip-masq", "--iptables-resync=1"])?;
    let member = &mut cluster.members[0];
    let node = &member.node;
    let env = node.subnet_env()?;
    let masq = "-m comment --comment flanneld\u{a0}masq";
    // The words of a command are split at spaces, and the comment has one.
    let ours = |words: &str| {
        let words: Vec<String> = words.split_whitespace().map(|word| word.replace('\u{a0}', " ")).collect();
        node.netns().run(mode.iptables(), &words.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let (p, c) = (env.subnet, env.network);
    ours("-t nat -F POSTROUTING")?;
    await_rules(node, mode, &[], "POSTROUTING was flushed")?;
    ours(&format!("-t nat -D FLANNEL-POSTRTG -s {p} -d {c} {masq} -j RETURN"))?;
    await_rules(node, mode, &[], "a rule was deleted")?;
    ours(&format!("-t nat -D FLANNEL-POSTRTG -s {p} -d {c} {masq} -j RETURN"))?;
    ours(&format!("-t nat -A FLANNEL-POSTRTG -s {p} -d {c} {masq} -j RETURN"))?;
    await_rules(node, mode, &[], "a rule was moved")?;
    ours("-F FLANNEL-FWD")?;
    await_rules(node, mode, &[], "the forward rules were flushed")?;
    ours(&format!("-t nat -D POSTROUTING {masq} -j FLANNEL-POSTRTG"))?;
    ours("-t nat -F FLANNEL-POSTRTG")?;
    ours("-t nat -X FLANNEL-POSTRTG")?;
    await_rules(node, mode, &[], "the chain was deleted")?;
    member.agent.check_running()?;
    let log = member.agent.log();
    ensure!(log.contains("repaired rules"), "nothing in the log tells of a repair");
    Ok(())
}

#[test]
fn rules_of_iptables_nft_come_back_whole_and_in_order() -> Result<()> {
    in_lab(|lab| repairs(lab, Mode::IptablesNft))
}

#[test]
fn rules_of_iptables_legacy_come_back_whole_and_in_order() -> Result<()> {
    in_lab(|lab| repairs(lab, Mode::IptablesLegacy))
}

#[test]
fn rules_of_nftables_come_back_whole_and_in_order() -> Result<()> {
    in_lab(|lab| {
        let mode = Mode::Nftables;
        let cluster = cluster(lab, mode, 1, &["--ip-masq", "--iptables-resync=1"])?;
        let node = &cluster.members[0].node;
        let c = node.subnet_env()?.network;
        run(node, "nft", "delete table ip flannel-ipv4")?;
        await_rules(node, mode, &[], "the table was deleted")?;
        run(node, "nft", "flush chain ip flannel-ipv4 postrtg")?;
        await_rules(node, mode, &[], "a chain was flushed")?;
        run(node, "nft", "flush chain ip flannel-ipv4 forward")?;
        run(node, "nft", &format!("add rule ip flannel-ipv4 forward ip daddr {c} accept"))?;
        run(node, "nft", &format!("add rule ip flannel-ipv4 forward ip saddr {c} accept"))?;
        await_rules(node, mode, &[], "rules were swapped")?;
        run(node, "nft", "flush ruleset")?;
        await_rules(node, mode, &[], "everything was flushed")
    })
}

/// Everything of flannel's in either iptables, of either family.
fn iptables_left(node: &Node) -> Result<Vec<String>> {
    let mut left = Vec::new();
    for program in ["iptables-nft", "iptables-legacy", "ip6tables-nft", "ip6tables-legacy"] {
        let text = run(node, &format!("{program}-save"), "")?;
        let flannels = |line: &&str| line.contains("FLANNEL") || line.contains("flanneld");
        left.extend(text.lines().filter(flannels).map(|line| format!("{program}: {line}")));
    }
    Ok(left)
}

#[test]
fn each_manager_removes_the_rules_of_the_other() -> Result<()> {
    in_lab(|lab| {
        let mut cluster = cluster(lab, Mode::IptablesLegacy, 1, &["--ip-masq"])?;
        let (etcd, member) = (&cluster.etcd, &mut cluster.members[0]);
        for program in ["ip6tables-nft", "iptables-nft"] {
            run(&member.node, program, "-t nat -N FLANNEL-POSTRTG")?;
            run(&member.node, program, "-t nat -A POSTROUTING -j FLANNEL-POSTRTG")?;
            run(&member.node, program, "-N FLANNEL-FWD")?;
        }
        ensure!(iptables_left(&member.node)?.iter().any(|line| line.starts_with("iptables-legacy")));
        configure(etcd, Mode::Nftables)?;
        member.agent.terminate()?;
        member.agent.start_again()?;
        check_rules(&member.node, Mode::Nftables, &[])?;
        eventually(REPAIR, "the rules of iptables are removed", || {
            let left = iptables_left(&member.node)?;
            ensure!(left.is_empty(), "left: {left:#?}");
            Ok(())
        })?;
        let docker = format!("-A POSTROUTING {DOCKER}");
        ensure!(saved(&member.node, Mode::IptablesLegacy, "nat")? == [docker], "docker's rule is to stay");

        configure(etcd, Mode::IptablesLegacy)?;
        member.agent.terminate()?;
        member.agent.start_again()?;
        check_rules(&member.node, Mode::IptablesLegacy, &[DOCKER])?;
        eventually(REPAIR, "the tables of nft are removed", || {
            let tables = run(&member.node, "nft", "list tables")?;
            ensure!(!tables.contains("flannel"), "{tables}");
            Ok(())
        })
    })
}

#[test]
fn without_ip_masq_only_exemption_and_forward_rules_are_left() -> Result<()> {
    in_lab(|lab| {
        let mode = Mode::IptablesNft;
        let mut cluster = cluster(lab, mode, 1, &["--ip-masq=true"])?;
        let member = &mut cluster.members[0];
        check_rules(&member.node, mode, &[DOCKER])?;
        member.agent.terminate()?;
        member.agent.set_flag("ip-masq", "false");
        member.agent.start_again()?;
        let golden = nat(&member.node, &[DOCKER])?;
        let rules = saved(&member.node, mode, "nat")?;
        ensure!(rules == golden[..3], "there is {rules:#?}");
        ensure!(saved(&member.node, mode, "filter")? == filter(&member.node)?);
        ensure!(!member.node.subnet_env()?.ip_masq, "FLANNEL_IPMASQ is to be false");

        // Forward rules go, too, and with eBPF off there is nobody to set the mark.
        member.agent.terminate()?;
        member.agent.set_flag("iptables-forward-rules", "false");
        member.agent.set_flag("fast-path", "off");
        member.agent.start_again()?;
        let rules = saved(&member.node, mode, "nat")?;
        ensure!(rules == golden[1..3], "there is {rules:#?}");
        ensure!(saved(&member.node, mode, "filter")?.is_empty());
        Ok(())
    })
}

/// The rules a stock flannel has loaded become ours; the chains are its own, and stay.
#[test]
fn rules_of_a_stock_node_are_taken_over() -> Result<()> {
    in_lab(|lab| {
        let etcd = lab.etcd()?;
        let node = lab.node()?;
        node.stock()?.publish(&etcd)?;
        node.load_flannel_rules()?;
        let flags = vec!["--ip-masq".to_owned()];
        let mut agent = node.agent(&etcd, AgentOptions { fast_path: FastPath::Overlay, flags })?;
        check_rules(&node, Mode::IptablesNft, &[])?;
        // And so are our own, after an agent that was killed.
        agent.kill()?;
        agent.start_again()?;
        check_rules(&node, Mode::IptablesNft, &[])
    })
}

#[test]
fn blackhole_route_is_added_and_comes_back() -> Result<()> {
    in_lab(|lab| {
        let etcd = lab.etcd()?;
        let node = lab.node()?;
        let flags = vec!["--ip-blackhole-route".to_owned(), "--iptables-resync=1".to_owned()];
        let _agent = node.agent(&etcd, AgentOptions { fast_path: FastPath::Off, flags })?;
        let subnet = node.subnet_env()?.subnet;
        let there = || {
            let routes = node.netns().ip("route show type blackhole")?;
            ensure!(routes.trim() == format!("blackhole {subnet}"), "there is {routes:?}");
            Ok(())
        };
        eventually(REPAIR, "the route is added", there)?;
        node.netns().ip(&format!("route del blackhole {subnet}"))?;
        eventually(REPAIR, "the route is added again", there)
    })
}
