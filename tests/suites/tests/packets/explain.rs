//! `explain` agrees with what packets then do: the programs' counters and what is captured are the judges.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use flannel_agent::{
    bpf::Pins,
    explain::{Answer, Imagined, Outcome, Question, Told, explain},
    values::Mac,
};
use flannel_common::{
    mark::Marks,
    packet::headers::{
        ENCAP_LEN, ETHERNET_LEN, IPV4_LEN, PROTOCOL_TCP, PROTOCOL_UDP, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN,
    },
    reason::{Class, Direction, Reason},
};
use flannel_common_testing::Frame;
use flannel_lab::{
    AGENT_BIN, CONVERGENCE, Cluster, FastPath, Lab, Member, Xdp, agent_binary,
    counters::Counters,
    eventually, in_lab,
    traffic::{ping::ping, wire::Wire},
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};

use crate::{
    cluster,
    forged::{flow, mac_of},
    offloads::host_side,
};

/// Random packets each way.
const PACKETS: u16 = 500;
/// A packet is tried again when something else was counted meanwhile: pods speak of their own, too.
const TRIES: usize = 4;
/// For a packet to be counted.
const PATIENCE: Duration = Duration::from_secs(2);
/// Destination port of the first random packet; each has its own.
const FIRST_PORT: u16 = 20_000;

/// How often each reason was counted one way, but for notes.
fn tally(counters: &Counters, direction: Direction) -> BTreeMap<Reason, u64> {
    let counted =
        counters.nonzero().filter(|(way, reason, _)| *way == direction && reason.class() != Class::Note);
    counted.map(|(_, reason, count)| (reason, count.packets)).collect()
}

/// What `answer` says will be counted, alike.
fn foretold(answer: &Answer) -> BTreeMap<Reason, u64> {
    let mut all = BTreeMap::new();
    for (_, reason) in answer.counted().into_iter().filter(|(_, reason)| reason.class() != Class::Note) {
        *all.entry(reason).or_default() += 1;
    }
    all
}

/// Asks about packets on a node, sends them, and compares.
struct Judge<'a> {
    member: &'a Member,
    pins: Pins,
    runtime: Runtime,
    direction: Direction,
    /// How many packets took each way, by the first reason they are counted for.
    seen: BTreeMap<Reason, usize>,
    /// Destination ports of packets that are to leave, and of those for a pod: how often each was sent.
    expected: [BTreeMap<u16, usize>; 2],
}

impl<'a> Judge<'a> {
    fn new(member: &'a Member, direction: Direction) -> Result<Self> {
        Ok(Self {
            member,
            pins: Pins::under(member.agent.bpffs())?,
            runtime: Builder::new_current_thread().enable_all().build()?,
            direction,
            seen: BTreeMap::new(),
            expected: Default::default(),
        })
    }

    /// Call this inside the node.
    fn ask(&self, question: &Question) -> Result<Answer> {
        Ok(self.runtime.block_on(explain(&self.pins, Marks::DEFAULT, Told::default(), question))?)
    }

    fn check(&mut self, question: &Question, send: impl Fn() -> Result<()>) -> Result<()> {
        let mut found = String::new();
        for _ in 0..TRIES {
            let answer = self.ask(question)?;
            let foretold = foretold(&answer);
            let before = self.member.counters()?;
            send()?;
            let at = match answer.outcome {
                Outcome::Leaves { .. } => Some(0),
                Outcome::Pod { .. } => Some(1),
                Outcome::Flooded { .. } | Outcome::Node => None,
                Outcome::Dropped { .. } | Outcome::Unknown { .. } => None,
            };
            // Others have no ports to be known by.
            if let Some(at) = at.filter(|_| [PROTOCOL_TCP, PROTOCOL_UDP].contains(&question.packet.protocol))
            {
                *self.expected[at].entry(question.packet.destination_port).or_default() += 1;
            }
            let counted = self.counted(&before, foretold.values().sum())?;
            if counted == foretold {
                if let Some((_, reason)) = answer.counted().first() {
                    *self.seen.entry(*reason).or_default() += 1;
                }
                return Ok(());
            }
            found = format!("counted {counted:?}, explained: {}", serde_json::to_string_pretty(&answer)?);
        }
        bail!("{:?}: {found}", question.packet)
    }

    /// What is counted since `before`, once that is as much as `total`.
    fn counted(&self, before: &Counters, total: u64) -> Result<BTreeMap<Reason, u64>> {
        let start = Instant::now();
        loop {
            let counted = tally(&self.member.counters()?.since(before), self.direction);
            if counted.values().sum::<u64>() >= total || start.elapsed() > PATIENCE {
                return Ok(counted);
            }
            sleep(Duration::from_micros(200));
        }
    }

    /// Compares what was captured, where packets leave or where pods are, with what was foretold. What is captured of
    /// others has other ports.
    fn check_capture(
        &self,
        at: usize,
        frames: &[Vec<u8>],
        port: impl Fn(&[u8]) -> Option<u16>,
    ) -> Result<()> {
        let ours = FIRST_PORT..FIRST_PORT + PACKETS;
        let mut captured = BTreeMap::<u16, usize>::new();
        for port in frames.iter().filter_map(|frame| port(frame)).filter(|port| ours.contains(port)) {
            *captured.entry(port).or_default() += 1;
        }
        let mut expected = self.expected[at].clone();
        expected.retain(|port, _| ours.contains(port));
        let differ: Vec<_> = expected
            .keys()
            .chain(captured.keys())
            .filter(|port| expected.get(port) != captured.get(port))
            .map(|port| (port, expected.get(port), captured.get(port)))
            .collect();
        ensure!(differ.is_empty(), "ports whose packets were foretold, and captured: {differ:?}");
        ensure!(captured.len() > usize::from(PACKETS) / 10, "only {} packets were captured", captured.len());
        Ok(())
    }
}

/// The destination port of an IPv4 packet of TCP or UDP at `at`, sent by `source`.
fn port_at(frame: &[u8], at: usize, sources: &[Ipv4Addr]) -> Option<u16> {
    let ip = frame.get(at..at + IPV4_LEN)?;
    let is_ip = frame.get(at - 2..at)? == [8, 0] && matches!(ip[9], PROTOCOL_TCP | PROTOCOL_UDP);
    let source: [u8; 4] = ip[12..16].try_into().ok()?;
    if !is_ip || !sources.contains(&source.into()) {
        return None;
    }
    let port = frame.get(at + IPV4_LEN + 2..at + IPV4_LEN + 4)?;
    Some(u16::from_be_bytes(port.try_into().ok()?))
}

fn random_packet(
    random: &mut StdRng,
    source: Ipv4Addr,
    destination: Ipv4Addr,
    number: u16,
    flow: (u16, u16),
) -> Imagined {
    let flags = [TCP_ACK, TCP_ACK, TCP_SYN, TCP_SYN | TCP_ACK, TCP_ACK | TCP_FIN, TCP_RST];
    let mut packet = Imagined {
        source: source.into(),
        destination: destination.into(),
        protocol: *[PROTOCOL_TCP, PROTOCOL_UDP, PROTOCOL_UDP, 1, 132].choose(random).unwrap_or(&PROTOCOL_UDP),
        source_port: 30_000,
        destination_port: FIRST_PORT + number,
        tcp_flags: *flags.choose(random).unwrap_or(&TCP_ACK),
        hops: *[64, 64, 64, 2, 1].choose(random).unwrap_or(&64),
        // Two of DSCP, and one that only ECN tells from none.
        tos: *[0, 0, 0, 0xb8, 0x28, 0x02].choose(random).unwrap_or(&0),
        size: 0,
    };
    if random.random_ratio(1, 4) {
        packet.protocol = PROTOCOL_UDP;
        (packet.source_port, packet.destination_port) = flow;
    }
    packet.size = packet.headers() + random.random_range(4..1400);
    packet
}

#[test]
fn explain_agrees_with_what_packets_then_do() -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster(lab, FastPath::Flow.with(Xdp::Off), 2)?;
        leaving(lab, &cluster)?;
        arriving(lab, &cluster)?;
        the_command(&cluster)
    })
}

/// From a pod of the first node.
fn leaving(lab: &Lab, cluster: &Cluster) -> Result<()> {
    let [a, b] = [&cluster.members[0], &cluster.members[1]];
    let (_a, _b, forger) = flow(lab, cluster)?;
    let wire = Wire::open(&lab.underlay()?, "node1")?;
    let [pod, neighbour] = [&a.pods[0], &a.pods[1]];
    let from = Wire::open(pod.netns(), "eth0")?;
    let gateway = mac_of(a, "cni0")?;
    // Its answers would be counted the same way as what it answers.
    neighbour.netns().run("iptables", &["-P", "INPUT", "DROP"])?;
    let neighbour_mac = Wire::open(neighbour.netns(), "eth0")?.mac()?;
    let [b0, b1, b2, _] = b.pod()?.address_v4().octets();
    let destinations: [Ipv4Addr; 9] = [
        b.pods[0].address(),
        b.pods[0].address(),
        b.pods[0].address(),
        b.pods[1].address(),
        [b0, b1, b2, 250].into(),
        neighbour.address(),
        [10, 244, 250, 7].into(),
        b.node.address(),
        a.node.address(),
    ];
    let mut judge = Judge::new(a, Direction::Egress)?;
    a.node.netns().inside(|| {
        let mut random = StdRng::seed_from_u64(14);
        for number in 0..PACKETS {
            let destination = *destinations.choose(&mut random).context("some")?;
            let packet = random_packet(&mut random, pod.address(), destination, number, forger.ports);
            let to = if destination == neighbour.address() { neighbour_mac } else { gateway };
            let frame = packet.frame(Mac(to), Mac(from.mac()?));
            let question = Question { packet, arrives: false, from_node: None };
            judge.check(&question, || from.send(&frame))?;
        }
        Ok(())
    })?;
    for reason in [Reason::EncapPod, Reason::FlowUnknown, Reason::NoRoute, Reason::Ttl] {
        ensure!(judge.seen.contains_key(&reason), "none was for {}: {:?}", reason.label(), judge.seen);
    }
    // In VXLAN, or as it is.
    let sources = [pod.address(), a.node.address()];
    let port = |frame: &[u8]| {
        let inner = port_at(frame, ENCAP_LEN + ETHERNET_LEN, &sources);
        inner.or_else(|| port_at(frame, ETHERNET_LEN, &sources))
    };
    judge.check_capture(0, &wire.drain()?, port)
}

/// From the first node, or who says to be it, to the second.
fn arriving(lab: &Lab, cluster: &Cluster) -> Result<()> {
    let [a, b] = [&cluster.members[0], &cluster.members[1]];
    let (_a, _b, forger) = flow(lab, cluster)?;
    let wires = b.pods.iter().map(|pod| Wire::open(pod.netns(), "eth0")).collect::<Result<Vec<_>>>()?;
    let [a0, a1, a2, _] = a.pod()?.address_v4().octets();
    let [b0, b1, b2, _] = b.pod()?.address_v4().octets();
    let sources: [Ipv4Addr; 6] = [
        a.pods[0].address(),
        a.pods[0].address(),
        a.pods[0].address(),
        [a0, a1, a2, 99].into(),
        [10, 244, 250, 7].into(),
        a.node.address(),
    ];
    let destinations: [Ipv4Addr; 6] = [
        b.pods[0].address(),
        b.pods[0].address(),
        b.pods[0].address(),
        b.pods[1].address(),
        [b0, b1, b2, 250].into(),
        [10, 244, 250, 8].into(),
    ];
    let nodes: [Ipv4Addr; 4] =
        [a.node.address(), a.node.address(), a.node.address(), [192, 168, 77, 99].into()];
    let mut judge = Judge::new(b, Direction::Ingress)?;
    b.node.netns().inside(|| {
        let mut random = StdRng::seed_from_u64(15);
        for number in 0..PACKETS {
            let source = *sources.choose(&mut random).context("some")?;
            let destination = *destinations.choose(&mut random).context("some")?;
            let node = *nodes.choose(&mut random).context("some")?;
            let packet = random_packet(&mut random, source, destination, number, forger.ports);
            let inner = packet.frame(Mac(forger.overlay), Mac([0x0e, 0, 0, 0, 0, 1]));
            let frame = Frame::vxlan(node.octets(), b.node.address().octets(), &inner);
            let frame = frame.macs(forger.to, [0x0e, 0, 0, 0, 0, 2]).bytes();
            let question = Question { packet, arrives: true, from_node: Some(node.into()) };
            judge.check(&question, || forger.send(&frame))?;
        }
        Ok(())
    })?;
    for reason in [
        Reason::DeliverPod,
        Reason::FlowUnknown,
        Reason::UnknownVtep,
        Reason::InnerSource,
        Reason::UnknownPod,
    ] {
        ensure!(judge.seen.contains_key(&reason), "none was for {}: {:?}", reason.label(), judge.seen);
    }
    let mut frames = Vec::new();
    for wire in &wires {
        frames.extend(wire.drain()?);
    }
    judge.check_capture(1, &frames, |frame| port_at(frame, ETHERNET_LEN, &sources))
}

/// Exit status, standard output and standard error.
type Said = (Option<i32>, String, String);

/// What the command says, and its exit status.
fn the_command(cluster: &Cluster) -> Result<()> {
    let [a, b] = [&cluster.members[0], &cluster.members[1]];
    let bpffs = a.agent.bpffs().display().to_string();
    let run = |words: &[&str]| -> Result<Said> {
        let mut command = a.node.netns().command(&agent_binary()?.display().to_string());
        command.arg("explain").args(words).args(["--bpffs", &bpffs]);
        command.arg(format!("--subnet-file={}", a.node.subnet_file().display()));
        let output = command.output().context(AGENT_BIN)?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok((output.status.code(), text(output.stdout), text(output.stderr)))
    };
    let [from, to] = [a, b].map(|member| member.pods[0].address().to_string());
    let (status, table, _) = run(&[&from, &to, "--tcp-flags", "syn"])?;
    ensure!(status == Some(0) && table.contains("flow_control") && table.contains("flannel.1"), "{table}");
    ensure!(table.contains(&format!("from {from} to {to} leaves by eth0")), "{table}");
    ensure!(table.contains("by the kernel path") && !table.contains("past the host"), "{table}");
    ensure!(table.lines().all(|line| line.chars().count() <= 100), "wider than 100 columns: {table}");
    // The rules of flannel's that it meets.
    ensure!(table.contains("rules") && table.contains("forward: ip saddr 10.244.0.0/16 accept"), "{table}");
    let (status, json, _) = run(&[&from, &to, "--proto", "udp", "-o", "json"])?;
    let json: Value = serde_json::from_str(&json)?;
    ensure!(
        status == Some(0) && json["steps"][0]["at"] == "from_pod" && json["outcome"]["kind"] == "leaves",
        "{json}"
    );
    let (status, table, _) = run(&[&from, &to, "--ttl", "1"])?;
    ensure!(status == Some(1) && table.contains("is dropped: its TTL ends here"), "{table}");
    let netns = a.node.netns();
    let tc = |line: &str| netns.run("sh", &["-ec", line]);
    tc("tc qdisc add dev eth0 clsact 2>/dev/null || true
        tc filter add dev eth0 egress prio 9 protocol ip u32 match ip dport 9 0xffff flowid 1:1")?;
    let (status, table, _) = run(&[&from, &to, "--tcp-flags", "syn"])?;
    let text = table.split_whitespace().collect::<Vec<_>>().join(" ");
    ensure!(
        status == Some(0)
            && text.contains("may be dropped before that: tc filter of priority 9 at egress of eth0"),
        "{status:?}: {table}"
    );
    tc("tc filter del dev eth0 egress prio 9")?;
    netns.run("ip", &["route", "add", "blackhole", &format!("{to}/32"), "tos", "0x10"])?;
    for (tos, is_dropped) in [("0x10", true), ("0x08", false)] {
        let (status, table, _) = run(&[&from, &to, "--proto", "icmp", "--tos", tos])?;
        ensure!(table.contains("blackhole") == is_dropped, "--tos {tos}: {status:?}: {table}");
        ensure!(status == Some(i32::from(is_dropped)), "--tos {tos}: {status:?}: {table}");
    }
    netns.run("ip", &["route", "del", "blackhole", &format!("{to}/32"), "tos", "0x10"])?;
    for (words, says) in [
        (&["192.0.2.1", "192.0.2.2"][..], "ask on the node of one of them"),
        (&[&from, "fd00::1"], "give two of one"),
        (&[&from, &to, "--size", "12"], "the headers alone take 40 bytes"),
    ] {
        let (status, _, error) = run(words)?;
        ensure!(status == Some(2) && error.contains(says), "{words:?}: {status:?}: {error}");
    }
    let (status, _, error) = run(&[&from, &to, "--tos", "0x1b8"])?;
    ensure!(
        status == Some(64) && error.contains("write a byte, 0 to 255"),
        "--tos 0x1b8: {status:?}: {error}"
    );
    by_rules_of_others(a, [&from, &to], &run)?;
    by_the_bridge(a, &run)
}

/// What rules of others do to it: each with the port that is asked for, the exit status, and what is said.
fn by_rules_of_others(
    member: &Member,
    [from, to]: [&str; 2],
    run: &dyn Fn(&[&str]) -> Result<Said>,
) -> Result<()> {
    let netns = member.node.netns();
    let rule = "The packet from .* is dropped: the rule with handle";
    let forward = "chain inet others c { type filter hook forward priority 0; }";
    for (commands, destination, answers) in [
        (
            format!(
                "add map inet others v {{ type inet_service : verdict; elements = {{ 8080 : drop, 22 : accept }}; }}\n\
                 add {forward}\nadd rule inet others c tcp dport vmap @v\n"
            ),
            to,
            &[("8080", 1, rule), ("22", 0, "leaves by eth0")][..],
        ),
        (
            format!(
                "add set inet others bad {{ type ipv4_addr . inet_service; elements = {{ {to} . 8080 }}; }}\n\
                 add {forward}\nadd rule inet others c ip daddr . tcp dport @bad drop\n"
            ),
            to,
            &[("8080", 1, rule), ("22", 0, "leaves by eth0")],
        ),
        (
            "add chain bridge others c { type filter hook input priority 0; }\n\
             add rule bridge others c tcp dport 8080 drop\n"
                .to_owned(),
            to,
            &[("8080", 1, "of chain c of table bridge others, hook input"), ("22", 0, "leaves by eth0")],
        ),
        (
            format!(
                "add chain ip others c {{ type nat hook prerouting priority -100; }}\n\
                 add rule ip others c ip daddr 10.96.0.1 tcp dport 80 dnat to {to}\n"
            ),
            "10.96.0.1",
            &[("80", 2, "may give it another destination")],
        ),
    ] {
        let family = commands.split(' ').nth(2).context("a family")?;
        netns.run("nft", &[&format!("add table {family} others\n{commands}")])?;
        for (port, expected, says) in answers {
            let (status, table, _) = run(&[from, destination, "--tcp-flags", "syn", "--dport", port])?;
            let text = table.split_whitespace().collect::<Vec<_>>().join(" ");
            let is_said = says.split(".*").all(|part| text.contains(part));
            ensure!(status == Some(*expected) && is_said, "{commands}{port}: {status:?}: {table}");
        }
        netns.run("nft", &[&format!("delete table {family} others")])?;
    }
    Ok(())
}

/// What the bridge of the pods does by itself.
fn by_the_bridge(member: &Member, run: &dyn Fn(&[&str]) -> Result<Said>) -> Result<()> {
    let netns = member.node.netns();
    let [pod, other] = [&member.pods[0], &member.pods[1]].map(|pod| pod.address().to_string());
    let all = other.rsplit_once('.').map(|(subnet, _)| format!("{subnet}.255")).context("an address")?;
    for to in ["224.0.0.251", "255.255.255.255", &all] {
        let (status, table, _) = run(&[&pod, to, "--proto", "udp"])?;
        ensure!(status == Some(0) && table.contains("reaches all pods on cni0"), "{to}: {status:?}: {table}");
    }
    let gateway = all.replace(".255", ".1");
    let neighbour = format!("{pod} lladdr 02:00:00:00:de:ad dev cni0");
    for (change, expected, part) in [
        (format!("neigh replace {neighbour} nud permanent"), 1, "cni0 sends it to 02:00:00:00:de:ad, and"),
        (format!("neigh del {neighbour}"), 0, "reaches the pod behind"),
    ] {
        netns.ip(&change)?;
        let (status, table, _) = run(&[&gateway, &pod, "--proto", "udp"])?;
        let text = table.split_whitespace().collect::<Vec<_>>().join(" ");
        ensure!(status == Some(expected) && text.contains(part), "{change}: {status:?}: {table}");
    }
    let ports = netns.ip("-br link show master cni0")?;
    let ports = ports.lines().filter_map(|line| line.split(['@', ' ']).next());
    let ports: Vec<&str> = ports.filter(|port| !port.is_empty()).collect();
    for (switch, is_dropped) in [("on", true), ("off", false)] {
        for port in &ports {
            netns.run("bridge", &["link", "set", "dev", port, "isolated", switch])?;
        }
        let (status, table, _) = run(&[&pod, &other, "--proto", "udp"])?;
        ensure!(status == Some(i32::from(is_dropped)), "isolated {switch}: {status:?}: {table}");
        ensure!(table.contains("are isolated ports") == is_dropped, "isolated {switch}: {table}");
    }
    // What is left to the kernel for others is said where a program would be.
    let limit = "root tbf rate 1gbit burst 1mb latency 50ms";
    let shape = |verb, port| netns.run("sh", &["-ec", &format!("tc qdisc {verb} dev {port} {limit}")]);
    ports.iter().try_for_each(|port| shape("add", port).map(drop))?;
    eventually(CONVERGENCE, "explain says what is in the way", || {
        let (status, table, _) = run(&[&pod, &other, "--proto", "udp"])?;
        ensure!(status == Some(0) && table.contains("for qdisc tbf at egress of"), "{status:?}: {table}");
        Ok(())
    })?;
    ports.iter().try_for_each(|port| shape("del", port).map(drop))?;
    // The other pod's veth on a bridge of its own, which a pair of veths joins to that of the pods.
    let veth = host_side(member, &member.pods[1])?;
    netns.ip_batch(&format!(
        "link add br9 type bridge\nlink set br9 up\nlink add patch9 type veth peer name patch0\n\
         link set patch9 master br9 up\nlink set patch0 master cni0 up\nlink set {veth} master br9\n"
    ))?;
    // Nobody has asked yet who has the address, and it is reached all the same.
    let ways = [[pod.as_str(), &other], [&other, &pod]];
    let says = |ways: &[[&str; 2]], expected: i32, part: &str| {
        for [from, to] in ways {
            let (status, table, _) = run(&[from, to, "--proto", "udp", "--ttl", "1"])?;
            let table = table.split_whitespace().collect::<Vec<_>>().join(" ");
            ensure!(status == Some(expected) && table.contains(part), "{from} to {to}: {status:?}: {table}");
        }
        Ok(())
    };
    netns.ip("neigh flush dev cni0")?;
    says(&ways[..1], 0, &format!("reaches the pod behind {veth}, by the kernel path"))?;
    says(&ways[1..], 0, "reaches the pod behind")?;
    member.pods[1].netns().run("iptables", &["-P", "INPUT", "ACCEPT"])?;
    ping(&member.pods[0].endpoint(), &member.pods[1].endpoint(), 56)?;
    // By what leads elsewhere from both they may be, and may not.
    netns.ip_batch(
        "link del patch9\nlink add away9 type vxlan id 98 dstport 4790 dev eth0\n\
         link add away0 type vxlan id 99 dstport 4790 dev eth0\n\
         link set away9 master br9 up\nlink set away0 master cni0 up\nneigh flush dev cni0\n",
    )?;
    says(&ways, 2, "cannot be followed further")?;
    // Apart from each other they are not joined by anything.
    netns.ip_batch("link del away9\nneigh flush dev cni0\n")?;
    says(&ways, 1, "is dropped")
}
