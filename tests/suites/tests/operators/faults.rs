//! Faults, and the line that names each: what a person reads who looks for the cause. A cluster without a fault has none.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
};

use flannel_agent::bpf::{Pins, Tables};
use flannel_common::{
    family::V4,
    layout::{Flow, FlowProtocol, Permit},
};
use flannel_lab::{AgentOptions, Cluster, FastPath, Lab, in_lab, wait::eventually};
use ipnetwork::Ipv4Network;

use super::*;

const SOON: Duration = Duration::from_secs(20);
const PORT: u16 = 8471;
/// Room for flows, where it is to be filled.
const FLOWS: u32 = 16_384;
/// No pod's address.
const FORGED: [u8; 4] = [10, 244, 255, 9];

fn options() -> AgentOptions {
    AgentOptions::new(FastPath::Flow, &["--ip-masq"])
}

fn host_gw(lab: &Lab) -> Result<Cluster> {
    let config = r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "host-gw"}}"#;
    Cluster::pair_configured(lab, 1, config, options())
}

/// Upstream's default, which the agent serves itself: over a pair of veths it carries all packets.
fn udp(lab: &Lab) -> Result<Cluster> {
    let config = r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "udp"}}"#;
    Cluster::pair_configured(lab, 1, config, options())
}

/// Whoever gets a false alarm once believes none.
#[test]
fn a_healthy_cluster_has_no_findings() -> Result<()> {
    let clusters: [fn(&Lab) -> Result<Cluster>; 4] = [
        |lab| Cluster::start(lab, 3, 1, options()),
        host_gw,
        udp,
        |lab| Cluster::dual_pair(lab, 1, options()),
    ];
    for start in clusters {
        in_lab(|lab| {
            let cluster = start(lab)?;
            for member in &cluster.members {
                let seen = look(member, &["check", "--all"])?;
                ensure!(
                    seen.status == 0 && seen.says(": 0 errors, 0 warnings"),
                    "{}{}",
                    seen.text,
                    seen.errors
                );
                ensure!(seen.says("bytes pass whole") && seen.says("answers in"), "{}", seen.text);
                ensure!(seen.says("TCP and UDP come whole to it, and TCP from it"), "{}", seen.text);
                ensure!(seen.text.lines().all(|line| line.chars().count() <= 100), "{}", seen.text);
                let quiet = look(member, &["check"])?;
                ensure!(quiet.text.lines().count() == 1, "{}", quiet.text);
                for words in [["status"], ["peers"]] {
                    let seen = look(member, &words)?;
                    ensure!(seen.status == 0, "{words:?}: {}", seen.text);
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// A fault: how it comes, how it goes, and what `check` says of it on the first node.
struct Fault<'a> {
    line: String,
    /// What it says besides.
    also: &'static str,
    error: bool,
    /// Of the node itself, so that `status` tells it, too.
    of_node: bool,
    inject: Box<dyn Fn() -> Result<()> + 'a>,
    repair: Box<dyn Fn() -> Result<()> + 'a>,
}

fn fault<'a>(
    line: impl Into<String>,
    error: bool,
    inject: impl Fn() -> Result<()> + 'a,
    repair: impl Fn() -> Result<()> + 'a,
) -> Fault<'a> {
    Fault {
        line: line.into(),
        also: "",
        error,
        of_node: false,
        inject: Box::new(inject),
        repair: Box::new(repair),
    }
}

impl Fault<'_> {
    fn of_node(self) -> Self {
        Self { of_node: true, ..self }
    }

    fn also(self, also: &'static str) -> Self {
        Self { also, ..self }
    }
}

#[test]
fn check_names_each_fault_of_the_way_and_of_the_node() -> Result<()> {
    in_lab(|lab| {
        let few = format!("--flow-table-size={FLOWS}");
        let cluster = Cluster::pair(lab, 1, AgentOptions::new(FastPath::Flow, &["--ip-masq", &few]))?;
        let [first, second] = &cluster.members[..] else { anyhow::bail!("two nodes") };
        let (here, there) = (first.node.netns(), second.node.netns());
        let address = second.node.address();
        let nft = |commands: String| there.run("nft", &[&commands]).map(drop);
        let here_nft = |rule: &str| {
            let chain = "add table ip fault; add chain ip fault in { type filter hook input priority -300; }";
            here.run("nft", &[&format!("{chain}; add rule ip fault {rule}")]).map(drop)
        };
        let theirs = second.node.subnet_env()?.subnet;
        let theirs = format!("{}/{}", theirs.network(), theirs.prefix());
        let here_out = |rule: &str| {
            let chain = "add table ip fault; add chain ip fault out { type filter hook output priority 0; }";
            here.run("nft", &[&format!("{chain}; add rule ip fault {rule}")]).map(drop)
        };
        let here_passes = || here.run("nft", &["delete table ip fault"]).map(drop);
        let ip = |words: &str| here.ip(words).map(drop);
        let iptables = |words: &str| here.run("iptables", &words.split(' ').collect::<Vec<_>>()).map(drop);
        let drops = |rule: &str| {
            nft(format!(
                "add table ip fault; add chain ip fault in {{ type filter hook input priority -300; }}; \
                 add chain ip fault out {{ type filter hook output priority 0; }}; add rule ip fault {rule}"
            ))
        };
        let passes = || nft("delete table ip fault".to_owned());
        let tables = || -> Result<Tables> { Ok(Tables::open(&Pins::under(first.agent.bpffs())?)?) };
        let fill_flows = || -> Result<()> {
            let flow = |number: u32| Flow::<V4> {
                local: FORGED,
                remote: second.node.address().octets(),
                local_port: number as u16,
                remote_port: (number >> 16) as u16,
                protocol: FlowProtocol::Udp,
            };
            let entries: Vec<_> = (0..2 * FLOWS).map(|number| (flow(number), Permit::default())).collect();
            for put in tables()?.v4.flows.put_all(&entries) {
                put?;
            }
            Ok(())
        };
        let sysctl = |name: &'static str, value: &'static str| move || here.sysctl(name, value);
        let was = here.read_sysctl("net/ipv4/conf/eth0/rp_filter")?;
        let tunnel_down = format!("{address} answers, but nothing comes back through the tunnel");
        let faults = [
            fault(tunnel_down.clone(), true, || drops("in udp dport 8472 drop"), passes)
                .also("let UDP port 8472 pass between the nodes, in both directions"),
            // Of what comes from one peer alone.
            fault(
                tunnel_down.clone(),
                true,
                || here_nft(&format!("in ip saddr {address} udp dport 8472 drop")),
                here_passes,
            )
            .also("is dropped by the rule with handle 2 of chain in of table ip fault, hook input"),
            fault(
                format!("{address} does not answer, neither echoes nor TCP"),
                true,
                || {
                    let peer = first.node.address();
                    drops(&format!("in ip saddr {peer} drop; add rule ip fault out ip daddr {peer} drop"))
                },
                passes,
            ),
            fault(
                "packets of 1390 bytes pass, those of 1450 do not",
                true,
                || drops("in udp dport 8472 meta length > 1440 drop"),
                passes,
            )
            .also("set the MTU of eth0 to 1440 here and on 192.168.77.2"),
            fault(
                "answers came broken on the way from it: with a wrong checksum",
                true,
                || drops("out icmp type echo-reply @th,128,8 set 0xff"),
                passes,
            ),
            // Of the checksums of TCP and UDP, those of ICMP tell nothing.
            fault(
                "packets of TCP come broken to it, with a wrong checksum, and ICMP comes whole",
                true,
                || here_out(&format!("out ip daddr {theirs} meta l4proto tcp @th,128,16 set 0x1234")),
                here_passes,
            ),
            fault(
                "packets of UDP come broken to it",
                true,
                || here_out(&format!("out ip daddr {theirs} meta l4proto udp @th,48,16 set 0x1234")),
                here_passes,
            ),
            fault(
                "its answer of TCP came broken, with a wrong checksum, and ICMP comes whole",
                true,
                || drops("out tcp sport 10250 @th,128,16 set 0x1234"),
                passes,
            ),
            // As with a card whose checksums are wrong: what is lost is what the kernel itself has made.
            fault(
                "never TCP that leaves it to device and card",
                true,
                || drops("in tcp dport 10250 tcp option maxseg exists drop"),
                passes,
            ),
            fault(
                "net.ipv4.ip_forward = 0",
                true,
                sysctl("net/ipv4/ip_forward", "0"),
                sysctl("net/ipv4/ip_forward", "1"),
            )
            .of_node(),
            fault(
                "rp_filter = 1 (strict) on eth0",
                false,
                sysctl("net/ipv4/conf/eth0/rp_filter", "1"),
                || here.sysctl("net/ipv4/conf/eth0/rp_filter", &was),
            ),
            // A program of others in front of ours, whatever it drops.
            fault(
                tunnel_down,
                true,
                || {
                    ip("link add sink type bridge")?;
                    here.run("tc", &["qdisc", "add", "dev", "eth0", "clsact"])?;
                    let filter = "filter add dev eth0 ingress protocol ip u32 match ip protocol 17 0xff \
                                  action mirred egress redirect dev sink";
                    here.run("tc", &filter.split_whitespace().collect::<Vec<_>>()).map(drop)
                },
                || {
                    here.run("tc", &["qdisc", "del", "dev", "eth0", "clsact"])?;
                    ip("link del sink")
                },
            )
            .also("see what may take the packets first (programs: tc filter of priority 49152 at ingress of eth0"),
            fault(
                "a rule in chain in of table ip fault, hook input drops UDP port 8472",
                true,
                || here_nft("in udp dport 8472 drop"),
                || here.run("nft", &["delete table ip fault"]).map(drop),
            )
            .also("follows overlay"),
            fault(
                "the policy of chain pods of table inet fault, hook forward is drop",
                true,
                || {
                    let chain = "add table inet fault; add chain inet fault pods \
                                 { type filter hook forward priority 0; policy drop; }";
                    here.run("nft", &[chain]).map(drop)
                },
                || here.run("nft", &["delete table inet fault"]).map(drop),
            )
            .of_node(),
            fault(
                "a rule that FORWARD comes to, `-A FORWARD -s 10.244.0.0/16 -j DROP`, drops packets of pods",
                true,
                || iptables("-I FORWARD -s 10.244.0.0/16 -j DROP"),
                || iptables("-D FORWARD -s 10.244.0.0/16 -j DROP"),
            )
            .of_node(),
            fault(
                "--probability 0.5 -j DROP`, drops some packets of pods from",
                false,
                || iptables("-I FORWARD -d 10.244.0.0/16 -m statistic --mode random --probability 0.5 -j DROP"),
                || iptables("-D FORWARD 1"),
            ),
            fault(
                "of chain in of table bridge fault, hook input drops packets of pods",
                true,
                || {
                    let chain = "add table bridge fault; add chain bridge fault in { type filter hook input priority 0; }";
                    let rule = "add rule bridge fault in ip daddr 10.244.0.0/16 drop";
                    here.run("nft", &[&format!("{chain}; {rule}")]).map(drop)
                },
                || here.run("nft", &["delete table bridge fault"]).map(drop),
            )
            .of_node(),
            // Beside those of nftables, which iptables is for, the kernel has older tables.
            fault(
                "the policy of FORWARD (iptables-legacy) is DROP",
                true,
                || here.run("iptables-legacy", &["-P", "FORWARD", "DROP"]).map(drop),
                || here.run("iptables-legacy", &["-P", "FORWARD", "ACCEPT"]).map(drop),
            )
            .of_node(),
            fault(
                "net.ipv4.conf.cni0.forwarding = 0",
                true,
                sysctl("net/ipv4/conf/cni0/forwarding", "0"),
                sysctl("net/ipv4/conf/cni0/forwarding", "1"),
            )
            .of_node(),
            fault("map flows_v4 has", false, fill_flows, || {
                tables()?.v4.flows.remove_all(|flow| flow.local == FORGED)?;
                Ok(())
            }),
            fault(
                "interfaces of Calico are there: cali0",
                false,
                || ip("link add cali0 type bridge"),
                || ip("link del cali0"),
            ),
            fault(
                "cni0 has 10.99.0.1/24, which is not in this node's subnet",
                true,
                || ip("addr add 10.99.0.1/24 dev cni0"),
                || ip("addr del 10.99.0.1/24 dev cni0"),
            ),
            fault(
                "bridge cni0 is down: none of the 1 interfaces of pods",
                true,
                || ip("link set cni0 down"),
                || ip("link set cni0 up"),
            )
            .of_node(),
            fault(
                "cni0 has MTU 9000",
                false,
                || ip("link set cni0 mtu 9000"),
                || ip("link set cni0 mtu 1450"),
            ),
            fault(
                "device other uses UDP port 8472 as well",
                false,
                || ip("link add other type vxlan id 99 dstport 8472 dev eth0"),
                || ip("link del other"),
            ),
        ];
        for fault in &faults {
            (fault.inject)()?;
            let seen = look(first, &["check"]);
            let status = look(first, &["status"]);
            (fault.repair)()?;
            let seen = seen?;
            ensure!(seen.says(&fault.line), "no {} in\n{}{}", fault.line, seen.text, seen.errors);
            ensure!(seen.says(fault.also), "no {} in\n{}", fault.also, seen.text);
            // What only another node can see is looked for there.
            let (silent, there) =
                (seen.says("nothing comes back through the tunnel; "), seen.says("`flannel-agent check` on"));
            ensure!(!silent || there, "{}", seen.text);
            ensure!(seen.status == i32::from(fault.error), "{} ends with {}", fault.line, seen.status);
            // What is wrong with the node itself is not left to whoever asks for it.
            if fault.of_node {
                let seen = status?;
                ensure!(seen.status == 1 && seen.says(&fault.line), "no {} in\n{}", fault.line, seen.text);
            }
        }
        let seen = look(first, &["check", &address.to_string()])?;
        ensure!(seen.status == 0 && seen.says("1 peers: 0 errors, 0 warnings"), "{}", seen.text);
        let seen = look(first, &["check", "10.9.9.9"])?;
        ensure!(seen.status == 2 && seen.errors.contains("no peer is called 10.9.9.9"), "{}", seen.errors);
        what_takes_the_kernel_path_and_what_is_put_back(first)
    })
}

/// Nothing is lost by either, and it is said all the same.
fn what_takes_the_kernel_path_and_what_is_put_back(member: &Member) -> Result<()> {
    let netns = member.node.netns();
    let warned = |line: &str| {
        eventually(SOON, line, || {
            let seen = look(member, &["check"])?;
            ensure!(seen.status == 0 && seen.says(line), "no {line} in\n{}", seen.text);
            Ok(())
        })
    };
    let ports = netns.ip("-br link show master cni0 type veth")?;
    let veth = ports.split(['@', ' ']).next().context("a pod's veth")?;
    netns.run(
        "tc",
        &["qdisc", "add", "dev", veth, "root", "tbf", "rate", "1gbit", "burst", "1mb", "latency", "50ms"],
    )?;
    warned(&format!(
        "qdisc tbf at egress of {veth}: packets of the pod behind this interface take the kernel path"
    ))?;
    netns.run("tc", &["qdisc", "del", "dev", veth, "root"])?;
    netns.run("iptables", &["-F", "FLANNEL-FWD"])?;
    warned("rules of iptables were put back 1 times since the agent started")
}

/// What is wrong with leases stands in `status` and `peers`; what its node does not answer, in `check`.
#[test]
fn leases_that_cannot_be_right_are_named() -> Result<()> {
    in_lab(|lab| {
        let mut cluster = Cluster::pair(lab, 1, options())?;
        let first = &cluster.members[0];
        let theirs = cluster.members[1].node.subnet_env()?.subnet;
        let leases = cluster.etcd.leases()?;
        let mac = leases[&theirs]["BackendData"]["VtepMAC"].as_str().context("a MAC")?.to_owned();
        let attrs = |ip: &str, mac: &str| {
            format!(
                r#"{{"PublicIP": "{ip}", "BackendType": "vxlan", "BackendData": {{"VNI": 1, "VtepMAC": "{mac}"}}}}"#
            )
        };
        let other: Ipv4Network = "10.244.250.0/24".parse()?;
        // Below every subnet that a node takes: it is for its age that the other one is followed.
        let lowest: Ipv4Network = "10.244.0.0/24".parse()?;
        let all: Ipv4Network = "10.244.0.0/16".parse()?;
        for (subnet, attrs, line) in [
            (
                lowest,
                attrs("192.168.77.90", &mac),
                format!("its VtepMAC {mac} is also that of {theirs}, which is followed"),
            ),
            (other, attrs(&first.node.address().to_string(), "0e:00:00:00:00:09"), "is our own".to_owned()),
            (other, attrs("192.168.77.90", "01:00:00:00:00:09"), "instead of the MAC of a device".to_owned()),
            (all, attrs("192.168.77.90", "0e:00:00:00:00:09"), "which is ours".to_owned()),
            (other, r#"{"PublicIP":"bogus""#.to_owned(), "it cannot be used".to_owned()),
        ] {
            cluster.etcd.put_lease(subnet, &attrs)?;
            eventually(SOON, &line, || {
                for words in [["status"], ["peers"]] {
                    let seen = look(first, &words)?;
                    ensure!(seen.says(&line), "no {line} in\n{}", seen.text);
                    ensure!(words != ["status"] || seen.status == 1, "status ends with {}", seen.status);
                }
                Ok(())
            })?;
            cluster.etcd.delete_lease(subnet)?;
        }
        let second = &cluster.members[1];
        let address = second.node.address().to_string();
        // Who has nothing to do with it names both, too.
        let on_both = |attrs: &str, line: &str, own: &str| -> Result<()> {
            cluster.etcd.put_lease(other, attrs)?;
            for (member, line) in [(first, line), (second, own)] {
                eventually(SOON, line, || {
                    for words in [["peers"], ["check"]] {
                        let seen = look(member, &words)?;
                        ensure!(seen.says(line), "no {line} in\n{}", seen.text);
                    }
                    let seen = look(member, &["check"])?;
                    ensure!(seen.says("delete the lease that nobody renews"), "{}", seen.text);
                    Ok(())
                })?;
            }
            cluster.etcd.delete_lease(other)
        };
        let line = format!("its PublicIP {address} is also that of lease {other}");
        let own = format!("is our own, that of lease {theirs}");
        on_both(&attrs(&address, "0e:00:00:00:00:09"), &line, &own)?;
        let line = format!("its VtepMAC {mac} is also that of");
        on_both(&attrs("192.168.77.90", &mac), &line, &format!("{line} this node's own flannel.1"))?;
        // Its node is no more, or has another address now.
        cluster.etcd.put_lease(other, &attrs("192.168.77.90", "0e:00:00:00:00:09"))?;
        eventually(SOON, "the peer that nobody is does not answer", || {
            let seen = look(first, &["check", "192.168.77.90"])?;
            ensure!(seen.status == 1 && seen.says("192.168.77.90 does not answer"), "{}", seen.text);
            Ok(())
        })?;
        cluster.etcd.delete_lease(other)?;
        the_end_of_an_agent_is_named_first(&mut cluster, &attrs("192.168.77.90", "0e:00:00:00:00:09"))
    })
}

/// Its lease becomes that of `another` node: the peers send the answers of its pods elsewhere.
fn the_end_of_an_agent_is_named_first(cluster: &mut Cluster, another: &str) -> Result<()> {
    let own = cluster.members[0].node.subnet_env()?.subnet;
    cluster.etcd.put_lease(own, another)?;
    let first = &mut cluster.members[0];
    let ended = first.agent.wait_for_end(SOON)?;
    ensure!(!ended.success(), "{ended}");
    let why = "node 192.168.77.90 holds it now";
    eventually(SOON, why, || {
        let seen = look(&cluster.members[0], &["check", "-o", "json"])?;
        let json = seen.json()?;
        let findings = json["findings"].as_array().context("findings")?;
        let (first, then) = findings.split_first().context("a finding")?;
        let text = first["evidence"].as_str().unwrap_or_default();
        ensure!(seen.status == 2 && first["check"] == "agent's end" && text.contains(why), "{first}");
        let tunnel = then.iter().find(|finding| finding["check"] == "overlay").context("the tunnel")?;
        ensure!(tunnel["follows_from"].as_str().is_some_and(|cause| cause.contains(why)), "{tunnel}");
        Ok(())
    })?;
    let seen = look(&cluster.members[0], &["status"])?;
    ensure!(seen.status == 2 && seen.says(why), "{}", seen.text);
    // Another agent is asked, not the file.
    cluster.members[0].agent.start_again()?;
    cluster.members[0].agent.terminate()?;
    let seen = look(&cluster.members[0], &["status"])?;
    ensure!(!seen.says(why) && seen.says("no agent answers"), "{}", seen.text);
    Ok(())
}

/// Background probes see what is lost on the way before somebody asks.
#[test]
fn probes_tell_of_a_peer_that_does_not_answer() -> Result<()> {
    in_lab(|lab| {
        let mut cluster = Cluster::pair(lab, 1, AgentOptions::new(FastPath::Flow, &["--peer-probes=3"]))?;
        let probed = |first: &Member, answered: bool| {
            eventually(Duration::from_secs(120), "a probe", || {
                let seen = look(first, &["peers", "-o", "json"])?;
                let probe = &seen.json()?["peers"][0]["probe"];
                ensure!(probe["at"].is_u64(), "{probe}");
                ensure!(probe["overlay_rtt_seconds"].is_f64() == answered, "{probe}");
                Ok(())
            })
        };
        probed(&cluster.members[0], true)?;
        let seen = look(&cluster.members[0], &["peers"])?;
        ensure!(seen.status == 0 && seen.says("1450"), "{}", seen.text);
        let drops = "add table ip fault; add chain ip fault in { type filter hook input priority -300; }; \
                     add rule ip fault in udp dport 8472 drop";
        cluster.members[1].node.netns().run("nft", &[drops])?;
        // The first round is not long after a start.
        cluster.members[0].agent.terminate()?;
        cluster.members[0].agent.start_again()?;
        probed(&cluster.members[0], false)?;
        let first = &cluster.members[0];
        let seen = look(first, &["peers"])?;
        ensure!(seen.status == 1 && seen.says("no answer"), "{}", seen.text);
        let seen = look(first, &["status"])?;
        ensure!(
            seen.status == 1 && seen.says("1 of 1 peers that were asked gave no answer"),
            "{}",
            seen.text
        );
        // What was found before it was mended is none of what is found now.
        cluster.members[1].node.netns().run("nft", &["delete table ip fault"])?;
        let seen = look(first, &["check"])?;
        ensure!(seen.status == 0 && seen.says("0 errors, 0 warnings"), "{}", seen.text);
        // The agent is told, so that nobody says otherwise until it asks again.
        let agrees = |fault: Option<&str>| -> Result<()> {
            for words in [["peers"], ["status"]] {
                let seen = look(first, &words)?;
                ensure!(seen.status == i32::from(fault.is_some()), "{}", seen.text);
                ensure!(words != ["peers"] || fault.is_none_or(|fault| seen.says(fault)), "{}", seen.text);
                ensure!(words != ["status"] || seen.says("that were asked answered, "), "{}", seen.text);
            }
            Ok(())
        };
        agrees(None)?;
        let large = drops.replace("drop", "meta length > 1440 drop");
        cluster.members[1].node.netns().run("nft", &[&large])?;
        let seen = look(first, &["check"])?;
        ensure!(seen.status == 1, "{}", seen.text);
        agrees(Some("path MTU: packets of 1390 bytes pass, those of 1450 do not"))
    })
}

fn readyz(member: &Member) -> Result<String> {
    member.node.netns().inside(|| {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, PORT))?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })
}

/// The store has no say in it, the external interface has.
#[test]
fn readiness_ends_with_the_dataplane_and_not_with_the_store() -> Result<()> {
    in_lab(|lab| {
        let port = format!("--healthz-port={PORT}");
        let options = AgentOptions::new(FastPath::Flow, &["--healthz-ip=127.0.0.1", &port]);
        let mut cluster = Cluster::start(lab, 2, 1, options)?;
        cluster.etcd.stop()?;
        eventually(SOON, "the store is away", || {
            let seen = look(&cluster.members[0], &["status"])?;
            ensure!(seen.status == 1 && seen.says("etcd does not answer"), "{}", seen.text);
            Ok(())
        })?;
        let ready = readyz(&cluster.members[0])?;
        ensure!(ready.starts_with("HTTP/1.1 200"), "{ready}");
        cluster.members[0].node.netns().ip("link set eth0 down")?;
        eventually(SOON, "it is not ready", || {
            let ready = readyz(&cluster.members[0])?;
            ensure!(ready.starts_with("HTTP/1.1 503") && ready.contains("external interface"), "{ready}");
            let seen = look(&cluster.members[0], &["status"])?;
            ensure!(
                seen.status == 1 && seen.says("not ready for pods: the external interface"),
                "{}",
                seen.text
            );
            let seen = look(&cluster.members[0], &["check"])?;
            ensure!(seen.says("the external interface eth0 is down"), "{}", seen.text);
            Ok(())
        })?;
        cluster.members[0].node.netns().ip("link set eth0 up")?;
        eventually(SOON, "it is ready again", || {
            let ready = readyz(&cluster.members[0])?;
            ensure!(ready.starts_with("HTTP/1.1 200"), "{ready}");
            Ok(())
        })
    })
}

/// Without a file system for maps everything goes by the kernel path, and is said to.
#[test]
fn an_absent_file_system_for_maps_is_named() -> Result<()> {
    in_lab(|lab| {
        let cluster = Cluster::pair(lab, 1, options())?;
        let node = &cluster.members[0].node;
        let program = flannel_lab::agent_binary()?.display().to_string();
        let mut command = node.netns().command(&program);
        command.args(["check", "--bpffs=/tmp", &format!("--subnet-file={}", node.subnet_file().display())]);
        let output = command.output().context("flannel-agent")?;
        let text = String::from_utf8(output.stdout)?.split_whitespace().collect::<Vec<_>>().join(" ");
        ensure!(output.status.code() == Some(1) && text.contains("--bpffs=/sys/fs/bpf"), "{text}");
        // Which holds what is others'.
        ensure!(!text.contains("mount -t bpf bpf /tmp"), "{text}");
        Ok(())
    })
}

/// Without an agent nobody puts anything right, and what is wrong can still be seen.
#[test]
fn check_sees_what_is_wrong_while_no_agent_runs() -> Result<()> {
    in_lab(|lab| {
        let mut cluster = Cluster::pair(lab, 1, options())?;
        cluster.members[0].agent.terminate()?;
        let member = &cluster.members[0];
        let netns = member.node.netns();
        let subnet = cluster.members[1].node.subnet_env()?.subnet;
        let expect = |line: &str| -> Result<()> {
            let seen = look(member, &["check"])?;
            ensure!(seen.status == 2 && seen.says(line), "no {line} in\n{}", seen.text);
            Ok(())
        };
        expect("no agent answers")?;
        netns.ip(&format!("route del {subnet}"))?;
        expect("route: absent")?;
        let mut tables = Tables::open(&Pins::under(member.agent.bpffs())?)?;
        let vteps = tables.v4.vteps.entries()?;
        tables.v4.vteps.remove(vteps.first_key_value().context("no VTEP in the map")?.0)?;
        expect("map vteps: ")?;
        netns.run("iptables", &["-F", "FORWARD"])?;
        netns.run("iptables", &["-P", "FORWARD", "DROP"])?;
        expect("the policy of FORWARD is DROP")?;
        let rule = "-t nat -I POSTROUTING -s 10.244.0.0/16 -j MASQUERADE";
        netns.run("iptables", &rule.split(' ').collect::<Vec<_>>())?;
        expect("a rule in front of flannel's gives packets between pods another source")?;
        let chain = "add table ip guard; add chain ip guard post { type nat hook postrouting priority 90; }; \
                     add rule ip guard post ip saddr 10.244.0.0/16 oifname != \"cni0\" masquerade";
        netns.run("nft", &[chain])?;
        expect("chain post of table ip guard, hook postrouting comes to gives packets of pods")
    })?;
    in_lab(|lab| {
        let mut cluster = host_gw(lab)?;
        let subnet = cluster.members[1].node.subnet_env()?.subnet;
        cluster.members[0].agent.terminate()?;
        let member = &cluster.members[0];
        member
            .node
            .netns()
            .ip(&format!("route replace {subnet} via {}", member.node.address()))
            .or_else(|_| member.node.netns().ip(&format!("route del {subnet}")))?;
        let seen = look(member, &["peers"])?;
        ensure!(seen.status == 2 && seen.says("route: "), "{}", seen.text);
        Ok(())
    })
}
