//! Rules that change the packets of flows, or read along in them: of such flows each packet meets them.

use std::time::Duration;

use anyhow::{Result, ensure};
use flannel_agent::bpf::{Pins, Tables};
use flannel_common::reason::Reason;
use flannel_lab::{
    CONVERGENCE, Cluster, NetfilterProgram, eventually, in_lab,
    traffic::{Dialogue, Endpoint, dialogue::listen, udp},
};

use crate::{cluster, counted, fast, nftables_cluster, packets};

const REFRESH: Duration = Duration::from_secs(30);
const DATAGRAMS: u64 = 200;
const FTP: u16 = 21;

/// Makes `pod` deaf to UDP that has not been given DSCP CS1.
fn deafen(pod: &Endpoint) -> Result<()> {
    let rules = "add table ip judge; \
         add chain ip judge in { type filter hook input priority 0; }; \
         add rule ip judge in meta l4proto udp ip dscp != cs1 drop";
    pod.netns().run("nft", &[rules]).map(drop)
}

/// Rules of an administrator, with iptables and with nft, on the node that packets leave and on the one they come to:
/// every packet has what they write, and flows are fast again without them.
#[test]
fn what_rules_write_into_packets_is_in_all_of_them() -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster(lab, 1, REFRESH)?;
        let [a, b] = [cluster.members[0].pod()?, cluster.members[1].pod()?];
        deafen(&b)?;
        let forward = format!("-d {} -p udp -j DSCP --set-dscp-class cs1", b.address());
        let nft = format!(
            "add table ip admin; add chain ip admin forward {{ type filter hook forward priority -150; }}; \
             add rule ip admin forward ip daddr {} meta l4proto udp ip dscp set cs1",
            b.address()
        );
        for (member, chain) in [(0, Some("FORWARD")), (0, None), (1, Some("POSTROUTING")), (1, None)] {
            let node = &cluster.members[member].node;
            match chain {
                Some(chain) => node.iptables(&format!("-t mangle -A {chain} {forward}"))?,
                None => drop(node.netns().run("nft", &[&nft])?),
            }
            let counted = counted(&cluster, || udp::echo(&a, &b, 200, DATAGRAMS))?;
            let counters = &counted[member];
            ensure!(fast(counters)[member] == 0, "{chain:?} on {}: {counters}", node.name());
            ensure!(packets(counters, Reason::FlowChanged) > DATAGRAMS / 2, "{counters}");
            match chain {
                Some(chain) => node.iptables(&format!("-t mangle -D {chain} {forward}"))?,
                None => drop(node.netns().run("nft", &["delete table ip admin"])?),
            }
        }
        b.netns().run("nft", &["delete table ip judge"])?;
        let counted = counted(&cluster, || udp::echo(&a, &b, 200, DATAGRAMS))?;
        ensure!(counted.iter().all(|counters| fast(counters).into_iter().all(|some| some > DATAGRAMS / 2)));
        Ok(())
    })
}

/// A connection to the FTP server `b`, and how many packets of it skip the stack on the client's node.
fn control_connection(cluster: &Cluster, a: &Endpoint, b: &Endpoint) -> Result<[u64; 2]> {
    let listener = listen(b, FTP)?;
    let mut dialogue = Dialogue::through(a, 0, b.socket_address(FTP), &[&listener])?;
    Ok(fast(&counted(cluster, || dialogue.exchanges(50))?[0]))
}

/// A helper of connection tracking reads along for the connections that are announced: it sees each packet.
#[test]
fn a_helper_sees_each_packet_of_its_flows() -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster(lab, 1, REFRESH)?;
        let [a, b] = [cluster.members[0].pod()?, cluster.members[1].pod()?];
        let node = &cluster.members[0].node;
        let listener = listen(&b, FTP)?;
        let mut running = Dialogue::through(&a, 0, b.socket_address(FTP), &[&listener])?;
        let mut control =
            || -> Result<[u64; 2]> { Ok(fast(&counted(&cluster, || running.exchanges(50))?[0])) };
        ensure!(control()?.into_iter().all(|packets| packets > 40));
        node.iptables("-t raw -A PREROUTING -p tcp --dport 21 -j CT --helper ftp")?;
        eventually(CONVERGENCE, "the helper is known to the agent", || {
            let rules = node.netns().run("iptables-save", &["-t", "mangle"])?;
            ensure!(rules.contains("--dport 21 -m comment --comment \"flanneld flow\" -j RETURN"), "{rules}");
            Ok(())
        })?;
        // Long before its acceptance would have ended by itself.
        eventually(CONVERGENCE, "the running connection is seen whole", || {
            let found = control()?;
            ensure!(found == [0, 0], "{found:?}");
            Ok(())
        })?;
        drop(listener);
        let found = control_connection(&cluster, &a, &b)?;
        ensure!(found == [0, 0], "{found:?}");
        Ok(())
    })
}

/// What limits, cuts and copies flows: how it is added, and removed, and a word of it.
const FOR_EACH_PACKET: [[&str; 3]; 5] = [
    [
        "iptables -w -I FORWARD -p udp -m hashlimit --hashlimit-above 5000/sec --hashlimit-burst 5000 \
         --hashlimit-name lab -j DROP",
        "iptables -w -D FORWARD 1",
        "hashlimit",
    ],
    // The back end that the agent's own rules are not in.
    [
        "iptables-legacy -w -I FORWARD -p udp -m length --length 1200:1400 -j DROP",
        "iptables-legacy -w -D FORWARD 1",
        "iptables-legacy -t filter -A FORWARD -p udp -m length",
    ],
    [
        "iptables -w -t security -I FORWARD -p udp -j NFQUEUE --queue-num 77 --queue-bypass",
        "iptables -w -t security -D FORWARD 1",
        "-t security",
    ],
    [
        "iptables -w -t mangle -I PREROUTING -p udp -m connbytes --connbytes 900000000: --connbytes-dir both \
         --connbytes-mode bytes -j DROP",
        "iptables -w -t mangle -D PREROUTING 1",
        "connbytes",
    ],
    [
        "nft 'add table inet admin; add chain inet admin c { type filter hook forward priority 5; }; \
         add rule inet admin c meta l4proto udp meta length > 1200 drop'",
        "nft delete table inet admin",
        "length or payload in inet admin c",
    ],
];

/// How many packets of a flow of UDP skip the stack on the node of `a`, out and in.
fn echoed(cluster: &Cluster, a: &Endpoint, b: &Endpoint) -> Result<[u64; 2]> {
    Ok(fast(&counted(cluster, || udp::echo(a, b, 200, 100))?[0]))
}

/// As long as there is what `add` adds on the first node, each packet of UDP meets it, and of TCP none needs to.
fn each_of_udp_meets(cluster: &Cluster, [add, remove, named]: [&str; 3]) -> Result<()> {
    let [a, b] = [cluster.members[0].pod()?, cluster.members[1].pod()?];
    let node = cluster.members[0].node.netns();
    node.run("sh", &["-ec", add])?;
    eventually(CONVERGENCE, add, || {
        let found = echoed(cluster, &a, &b)?;
        ensure!(found == [0, 0], "{found:?} skipped it");
        Ok(())
    })?;
    // The change of rules has stopped all flows, for as long as it takes to see them accepted again.
    let mut other = Dialogue::open(&a, &b)?;
    eventually(CONVERGENCE, "a flow that it cannot see is fast", || {
        let found = fast(&counted(cluster, || other.exchanges(50))?[0]);
        ensure!(found.into_iter().all(|packets| packets > 40), "{add}: {found:?} of TCP");
        Ok(())
    })?;
    let log = cluster.members[0].agent.log();
    ensure!(log.contains("flows that it can see do not skip the stack") && log.contains(named), "{log}");
    node.run("sh", &["-ec", remove])?;
    eventually(CONVERGENCE, "fast again", || {
        let found = echoed(cluster, &a, &b)?;
        ensure!(found.into_iter().all(|packets| packets > 50), "{found:?}");
        Ok(())
    })?;
    let said = cluster.members[0].agent.log();
    let mut of_it = said.lines().filter(|line| line.contains("had to see each packet is gone"));
    ensure!(of_it.next_back().is_some_and(|line| line.contains(named)), "{said}");
    Ok(())
}

/// Rules about rates, volumes, lengths and queues meet each packet of the flows they can see, and only of those.
#[test]
fn rules_for_which_each_packet_counts_meet_each_packet() -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster(lab, 1, REFRESH)?;
        FOR_EACH_PACKET.into_iter().try_for_each(|rule| each_of_udp_meets(&cluster, rule))
    })
}

/// A program of eBPF that netfilter calls for what the node forwards.
#[test]
fn a_program_at_netfilters_hooks_meets_each_packet() -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster(lab, 1, REFRESH)?;
        let [a, b] = [cluster.members[0].pod()?, cluster.members[1].pod()?];
        let program = NetfilterProgram::attach(cluster.members[0].node.netns())?;
        eventually(CONVERGENCE, "it meets each packet", || {
            let found = echoed(&cluster, &a, &b)?;
            ensure!(found == [0, 0], "{found:?} skipped it");
            Ok(())
        })?;
        let log = cluster.members[0].agent.log();
        ensure!(log.contains("at netfilter's hook forward of IPv4"), "{log}");
        drop(program);
        eventually(CONVERGENCE, "fast again", || {
            let found = echoed(&cluster, &a, &b)?;
            ensure!(found.into_iter().all(|packets| packets > 50), "{found:?}");
            Ok(())
        })
    })
}

/// A helper of nft's, whose own rules can tell a flow with one by itself; and rules for which each packet counts.
#[test]
fn a_helper_of_nftables_sees_each_packet_of_its_flows() -> Result<()> {
    in_lab(|lab| {
        let cluster = nftables_cluster(lab, 1, REFRESH)?;
        let [a, b] = [cluster.members[0].pod()?, cluster.members[1].pod()?];
        let rules = "add table ip admin; \
             add ct helper ip admin ftp { type \"ftp\" protocol tcp; }; \
             add chain ip admin in { type filter hook prerouting priority -150; }; \
             add rule ip admin in tcp dport 21 ct helper set \"ftp\"";
        cluster.members[0].node.netns().run("nft", &[rules])?;
        let found = control_connection(&cluster, &a, &b)?;
        ensure!(found == [0, 0], "{found:?}");
        for rule in [FOR_EACH_PACKET[0], FOR_EACH_PACKET[4]] {
            each_of_udp_meets(&cluster, rule)?;
        }
        let log = cluster.members[0].agent.log();
        ensure!(!log.contains("restored rules"), "the rules do not read as they were written:\n{log}");
        Ok(())
    })
}

/// An operator lets connection tracking forget UDP sooner: flows show themselves before it does.
#[test]
fn acceptance_follows_the_timeouts_of_connection_tracking() -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster(lab, 1, REFRESH)?;
        let [a, b] = [cluster.members[0].pod()?, cluster.members[1].pod()?];
        for member in &cluster.members {
            for name in ["udp_timeout", "udp_timeout_stream"] {
                member.node.netns().sysctl(&format!("net/netfilter/nf_conntrack_{name}"), "2")?;
            }
            let tables = Tables::open(&Pins::under(member.agent.bpffs())?)?;
            eventually(CONVERGENCE, "acceptance holds for a tenth of that", || {
                let refresh = tables.v4.config.get()?.map(|config| (config.tcp_refresh, config.udp_refresh));
                ensure!(refresh == Some((30_000, 200)), "{refresh:?}");
                Ok(())
            })?;
        }
        let counted = counted(&cluster, || udp::echo(&a, &b, 200, 2_000))?;
        ensure!(counted.iter().all(|counters| fast(counters).into_iter().all(|packets| packets > 1_000)));
        Ok(())
    })
}

/// SYNPROXY answers in the pod's place, and connection tracking translates the sequence numbers of every later packet.
#[test]
fn connections_through_synproxy_stay_on_the_kernel_path() -> Result<()> {
    const PORT: u16 = 7200;
    in_lab(|lab| {
        let cluster = cluster(lab, 1, REFRESH)?;
        let [a, b] = [cluster.members[0].pod()?, cluster.members[1].pod()?];
        let node = &cluster.members[1].node;
        node.netns().sysctl("net/netfilter/nf_conntrack_tcp_loose", "0")?;
        let server = format!("-p tcp -d {} --dport {PORT}", b.address());
        node.iptables(&format!("-t raw -I PREROUTING {server} --syn -j CT --notrack"))?;
        node.iptables(&format!(
            "-I FORWARD {server} -m conntrack --ctstate INVALID,UNTRACKED \
             -j SYNPROXY --sack-perm --timestamp --wscale 7 --mss 1398"
        ))?;
        let listener = listen(&b, PORT)?;
        let mut through = Dialogue::through(&a, 0, b.socket_address(PORT), &[&listener])?;
        let [_, counters] = counted(&cluster, || through.exchanges(300))?;
        ensure!(packets(&counters, Reason::FlowChanged) > 0 && fast(&counters) == [0, 0], "{counters}");
        // The others' are as fast as ever.
        let mut other = Dialogue::open(&a, &b)?;
        other.exchanges(20)?;
        let [_, counters] = counted(&cluster, || other.exchanges(50))?;
        ensure!(fast(&counters)[1] >= 40, "{counters}");
        Ok(())
    })
}
