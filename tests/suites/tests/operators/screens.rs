//! `status`, `peers` and `drift` on nodes where all is well, and where it is not.

use flannel_lab::{AgentOptions, Cluster, FastPath, in_lab, traffic::udp, wait::eventually};

use super::*;

const SOON: Duration = Duration::from_secs(20);

fn options() -> AgentOptions {
    AgentOptions::new(FastPath::Flow, &["--ip-masq"])
}

/// The screen of a node: its parts, not its words, which unit tests hold.
#[test]
fn a_node_says_how_it_stands_with_and_without_its_agent() -> Result<()> {
    in_lab(|lab| {
        let mut cluster = Cluster::pair(lab, 1, options())?;
        cluster.await_dataplane(FastPath::Flow.into())?;
        let seen = look(&cluster.members[0], &["status"])?;
        ensure!(seen.status == 0, "{}{}", seen.text, seen.errors);
        for part in
            ["healthy", "etcd", "10.244.", "flannel.1", "1 in place", "iptables: in place", "from_pod"]
        {
            ensure!(seen.says(part), "no {part} in\n{}", seen.text);
        }
        ensure!(seen.text.lines().all(|line| line.chars().count() <= 100), "{}", seen.text);
        ensure!(!seen.text.contains('\u{1b}'), "colours where there is no terminal");
        let json = look(&cluster.members[0], &["status", "-o", "json"])?.json()?;
        ensure!(json["agent"]["dataplane"]["peers"] == 1, "{json:#}");
        ensure!(json["agent"]["lease"]["expires"].is_u64(), "{json:#}");
        let yaml = look(&cluster.members[0], &["status", "-o", "yaml"])?;
        ensure!(yaml.status == 0 && yaml.says("verdict: healthy"), "{}", yaml.text);

        let peers = look(&cluster.members[0], &["peers"])?;
        ensure!(peers.status == 0, "{}{}", peers.text, peers.errors);
        ensure!(peers.says("in place") && peers.says("vxlan"), "{}", peers.text);
        let address = cluster.members[1].node.address().to_string();
        let pod = cluster.members[1].pods[0].address().to_string();
        for name in [address.as_str(), pod.as_str()] {
            let one = look(&cluster.members[0], &["peers", name, "-o", "json"])?.json()?;
            ensure!(one["peers"].as_array().is_some_and(|peers| peers.len() == 1), "{name}: {one:#}");
        }
        let store = &json["agent"]["store"];
        ensure!(store["revision"].is_string() && store["heard"].is_u64(), "{store}");
        packets_are_counted_while_somebody_looks(&cluster)?;
        let unknown = look(&cluster.members[0], &["peers", "nobody"])?;
        ensure!(unknown.status == 2 && unknown.errors.contains("nobody"), "{}", unknown.errors);
        let drift = look(&cluster.members[0], &["drift"])?;
        ensure!((drift.status, drift.text.as_str()) == (0, ""), "{}{}", drift.text, drift.errors);

        let first = &cluster.members[0];
        ensure!(look(first, &["check"])?.status == 0);
        eventually(SOON, "probes count as packets", || {
            let seen = look(first, &["status"])?;
            ensure!(seen.says("packets; probes of peers are among them"), "{}", seen.text);
            Ok(())
        })?;
        for words in [&["counters", "--all", "--bpffs"][..], &["counters", "--bpffs"], &["features"]] {
            let mut command = first.node.netns().command(&flannel_lab::agent_binary()?.display().to_string());
            command.arg("bpf").args(words);
            command.args(words.contains(&"--bpffs").then(|| first.node.bpffs()));
            let text = String::from_utf8(command.output()?.stdout)?;
            let fits = text.lines().all(|line| line.chars().count() <= 100);
            ensure!(fits && text.lines().count() > 1, "{text}");
        }

        cluster.members[0].agent.terminate()?;
        let seen = look(&cluster.members[0], &["status"])?;
        ensure!(seen.status == 2, "{}", seen.text);
        for part in ["no agent answers", "1 known to kernel and maps, 0 of them differ", "from_pod"] {
            ensure!(seen.says(part), "no {part} in\n{}", seen.text);
        }
        for words in [["peers"], ["drift"]] {
            let seen = look(&cluster.members[0], &words)?;
            ensure!(seen.status == 2 && seen.says("no agent answers"), "{}", seen.text);
        }
        Ok(())
    })
}

#[test]
fn an_agent_that_hangs_is_told_from_none() -> Result<()> {
    in_lab(|lab| {
        let cluster = Cluster::pair(lab, 1, options())?;
        let pid = cluster.members[0].agent.pid()?.to_string();
        let signal = |signal: &str| flannel_lab::command::run(tool("kill").args([signal, &pid])).map(drop);
        signal("-STOP")?;
        let seen = look(&cluster.members[0], &["status"]);
        signal("-CONT")?;
        let seen = seen?;
        ensure!(seen.status == 2 && seen.says("does not answer within"), "{}", seen.text);
        eventually(SOON, "it answers again", || {
            let seen = look(&cluster.members[0], &["status"])?;
            ensure!(seen.status == 0, "{}", seen.text);
            Ok(())
        })
    })
}

/// Nobody repairs while the agent is away, so that what differs stays to be seen.
#[test]
fn what_differs_is_named_while_no_agent_repairs_it() -> Result<()> {
    in_lab(|lab| {
        let mut cluster = Cluster::pair(lab, 1, options())?;
        cluster.await_dataplane(FastPath::Flow.into())?;
        let subnet = cluster.members[1].node.subnet_env()?.subnet;
        let address = cluster.members[1].node.address();
        let base = subnet.network();
        cluster.members[0].agent.terminate()?;
        let member = &cluster.members[0];
        let netns = member.node.netns();
        let neighbour = netns.ip(&format!("neigh show {base} dev flannel.1"))?;
        let mac =
            neighbour.split_whitespace().skip_while(|word| *word != "lladdr").nth(1).context("no MAC")?;
        let route = format!("{base}/24 via {base} dev flannel.1 onlink");
        let fdb = |verb: &str, to: &str| {
            netns.bridge(&format!("fdb {verb} {mac} dev flannel.1 dst {to} self permanent"))
        };
        let expect = |line: &str| -> Result<()> {
            for words in [["peers"], ["drift"]] {
                let seen = look(member, &words)?;
                ensure!(seen.status == 2 && seen.says(line), "no {line} in\n{}", seen.text);
            }
            Ok(())
        };
        netns.ip(&format!("route del {base}/24"))?;
        expect("route: absent")?;
        netns.ip(&format!("route add {base}/24 via {} dev eth0 onlink", address))?;
        expect(&format!("leads via {address} dev eth0"))?;
        netns.ip(&format!("route del {base}/24"))?;
        netns.ip(&format!("route add {route}"))?;
        netns.ip(&format!("neigh del {base} dev flannel.1"))?;
        expect("neighbour: ")?;
        netns.ip(&format!("neigh replace {base} lladdr {mac} dev flannel.1 nud permanent"))?;
        fdb("del", &address.to_string())?;
        expect("FDB: ")?;
        fdb("append", "192.168.77.99")?;
        expect("leads to 192.168.77.99")?;
        fdb("del", "192.168.77.99")?;
        fdb("append", &address.to_string())?;
        let mut tables =
            flannel_agent::bpf::Tables::open(&flannel_agent::bpf::Pins::under(member.agent.bpffs())?)?;
        let entries = tables.v4.routes.entries()?;
        let (key, _) = entries.first_key_value().context("no route in the map")?;
        tables.v4.routes.remove(key)?;
        expect("map routes_v4: ")?;

        // The next agent puts it right, and says nothing differs.
        cluster.members[0].agent.start_again()?;
        let member = &cluster.members[0];
        eventually(SOON, "nothing differs", || {
            let seen = look(member, &["peers"])?;
            ensure!(seen.status == 0 && seen.says("in place"), "{}", seen.text);
            Ok(())
        })?;
        // What it puts back while it runs is counted.
        member.node.netns().ip(&format!("route del {base}/24"))?;
        eventually(SOON, "a repair is counted", || {
            let json = look(member, &["status", "-o", "json"])?.json()?;
            ensure!(json["agent"]["dataplane"]["restored"].as_u64() > Some(0), "{json:#}");
            Ok(())
        })
    })
}

#[test]
fn a_store_that_is_away_is_a_problem_with_a_name() -> Result<()> {
    in_lab(|lab| {
        let mut cluster = Cluster::pair(lab, 1, options())?;
        cluster.etcd.stop()?;
        eventually(SOON, "status says so", || {
            let seen = look(&cluster.members[0], &["status"])?;
            ensure!(seen.status == 1 && seen.says("etcd does not answer"), "{}", seen.text);
            ensure!(seen.says("1 in place"), "{}", seen.text);
            Ok(())
        })?;
        Ok(())
    })
}

/// Both ways, on whichever path they travel.
fn packets_are_counted_while_somebody_looks(cluster: &Cluster) -> Result<()> {
    let quiet = look(&cluster.members[0], &["peers", "-o", "json"])?.json()?;
    ensure!(quiet["peers"][0]["traffic"].is_null(), "{quiet:#}");
    let ends = (cluster.members[0].pod()?, cluster.members[1].pod()?);
    let (stop, enough) = std::sync::mpsc::channel::<()>();
    let talking = std::thread::spawn(move || -> Result<()> {
        while enough.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
            udp::echo(&ends.0, &ends.1, 1000, 20)?;
        }
        Ok(())
    });
    let seen = look(&cluster.members[0], &["peers", "--traffic=1", "-o", "json"]);
    drop(stop);
    talking.join().map_err(|_| anyhow::anyhow!("panicked"))??;
    let json = seen?.json()?;
    let traffic = &json["peers"][0]["traffic"];
    for way in ["sent", "received"] {
        let [packets, bytes] = ["packets", "bytes"].map(|what| traffic[way][what].as_u64().unwrap_or(0));
        ensure!(packets > 0 && bytes > 1000 * packets, "{json:#}");
    }
    Ok(())
}

/// What the kernel drops is not said to leave.
#[test]
fn explain_and_check_name_what_drops_a_packet() -> Result<()> {
    in_lab(|lab| {
        let cluster = Cluster::pair(lab, 1, options())?;
        cluster.await_dataplane(FastPath::Flow.into())?;
        let member = &cluster.members[0];
        let ip = |words: &str| member.node.netns().ip(words).map(drop);
        let [from, to] = [0, 1].map(|number| cluster.members[number].pods[0].address().to_string());
        let own = member.node.subnet_env()?.subnet;
        let theirs = cluster.members[1].node.subnet_env()?.subnet;
        let explain = ["explain", &from, &to, "--proto", "udp", "--dport", "7000"];
        let ends =
            format!("src {}/{} dst {}/{}", own.network(), own.prefix(), theirs.network(), theirs.prefix());
        let policy = format!("xfrm policy add {ends} dir fwd action block");
        for (inject, repair, explained, found) in [
            ("link set cni0 down", "link set cni0 up", "bridge cni0 is down", "bridge cni0 is down"),
            (
                "rule add iif cni0 ipproto udp dport 7000 prohibit pref 9",
                "rule del pref 9",
                "has no route to",
                "",
            ),
            (
                "rule add iif cni0 prohibit pref 9",
                "rule del pref 9",
                "has no route to",
                "the kernel forwards no packet from",
            ),
            (&policy, "xfrm policy flush", "an IPsec policy", "an IPsec policy blocks packets between pods"),
        ] {
            ip(inject)?;
            let (answer, checked) = (look(member, &explain), look(member, &["check"]));
            ip(repair)?;
            let (answer, checked) = (answer?, checked?);
            ensure!(
                answer.status == 1 && answer.says(explained),
                "{inject}:\n{}{}",
                answer.text,
                answer.errors
            );
            ensure!(
                checked.status == i32::from(!found.is_empty()) && checked.says(found),
                "{inject}:\n{}{}",
                checked.text,
                checked.errors
            );
            eventually(SOON, "it leaves again", || {
                let answer = look(member, &explain)?;
                ensure!(answer.status == 0 && answer.says("leaves by"), "{}{}", answer.text, answer.errors);
                Ok(())
            })?;
        }
        explain_leads_a_packet_through_chains_of_others(member, &explain)
    })
}

/// By what each rule asks of this very packet, UDP to port 7000.
fn explain_leads_a_packet_through_chains_of_others(member: &Member, explain: &[&str]) -> Result<()> {
    let to = explain[2];
    let nft = |rule: &str| {
        format!(
            "add table inet guard; add set inet guard bad {{ type ipv4_addr; elements = {{ {to} }}; }}; \
             add chain inet guard more; add chain inet guard base {{ type filter hook forward priority 10; }}; \
             add rule inet guard base iifname cni0 jump more; add rule inet guard more {rule}"
        )
    };
    let iptables = |rule: &str| format!("-I FORWARD 1 {rule}");
    let rules = [
        (
            "iptables",
            iptables("-p udp --dport 7000 -j DROP"),
            Some(true),
            "`-A FORWARD -p udp -m udp --dport 7000 -j DROP`",
        ),
        ("iptables", iptables("-p udp --dport 7001 -j DROP"), None, ""),
        (
            "iptables",
            iptables("-p udp -m multiport ! --dports 53,6000:6999 -j DROP"),
            Some(true),
            "rule 1 of FORWARD",
        ),
        ("iptables", iptables("-p tcp -j DROP"), None, ""),
        ("iptables", iptables("-i cni0 -m limit --limit 1/s -j DROP"), Some(false), "rule 1 of FORWARD"),
        ("iptables", iptables("-m mark --mark 0x8/0x8 -j DROP"), None, ""),
        ("iptables-legacy", iptables("-j DROP"), Some(true), "rule 1 of FORWARD (iptables-legacy)"),
        ("nft", nft("ip daddr @bad udp dport { 53, 7000-7010 } drop"), Some(true), "the rule with handle"),
        ("nft", nft("ip daddr @bad tcp dport 7000 drop"), None, ""),
        (
            "nft",
            nft("ip daddr @bad ct state new drop"),
            Some(false),
            "of chain more, which chain base of table inet guard",
        ),
    ];
    let netns = member.node.netns();
    for (program, rule, dropped, says) in rules {
        let run = |text: &str| match program {
            "nft" => netns.run("nft", &[text]),
            _ => netns.run(program, &text.split(' ').collect::<Vec<_>>()),
        };
        run(&rule)?;
        let answer = look(member, explain);
        run(if program == "nft" { "delete table inet guard" } else { "-D FORWARD 1" })?;
        let answer = answer?;
        let perhaps = answer.says("It may be dropped before that: ");
        ensure!(
            answer.status == i32::from(dropped == Some(true)),
            "{rule}:\n{}{}",
            answer.text,
            answer.errors
        );
        ensure!(perhaps == (dropped == Some(false)), "{rule}:\n{}", answer.text);
        ensure!(
            answer.says("| netfilter") == dropped.is_some() && answer.says(says),
            "{rule}:\n{}",
            answer.text
        );
        ensure!(answer.says("is dropped: ") == (dropped == Some(true)), "{rule}:\n{}", answer.text);
    }
    Ok(())
}

/// Routing does not tell: IPv6 packets are dropped after it.
#[test]
fn explain_says_that_ipv6_is_not_forwarded() -> Result<()> {
    in_lab(|lab| {
        let cluster = Cluster::dual_pair(lab, 1, options())?;
        cluster.await_dataplane(FastPath::Flow.into())?;
        let member = &cluster.members[0];
        let address = |number: usize| {
            cluster.members[number].pods[0]
                .address_v6()
                .map(|address| address.to_string())
                .context("an IPv6 pod")
        };
        let (from, to) = (address(0)?, address(1)?);
        let explain = || look(member, &["explain", &from, &to, "--proto", "udp", "--dport", "7000"]);
        eventually(SOON, "it leaves", || {
            let answer = explain()?;
            ensure!(
                answer.status == 0 && answer.says("by the kernel path"),
                "{}{}",
                answer.text,
                answer.errors
            );
            Ok(())
        })?;
        member.node.netns().sysctl("net/ipv6/conf/all/forwarding", "0")?;
        let answer = explain()?;
        let says = answer.says("is dropped: net.ipv6.conf.all.forwarding = 0");
        ensure!(answer.status == 1 && says, "{}{}", answer.text, answer.errors);
        Ok(())
    })
}

/// A node that is told to drop echoes is no node that is down.
#[test]
fn a_peer_that_answers_no_echoes_is_no_error() -> Result<()> {
    in_lab(|lab| {
        let cluster = Cluster::pair(lab, 1, options())?;
        let rule = ["-p", "icmp", "-j", "DROP"];
        cluster.members[1].node.netns().run("iptables", &[&["-I", "INPUT"][..], &rule].concat())?;
        let seen = look(&cluster.members[0], &["check"])?;
        ensure!(seen.status == 0 && seen.says("0 errors, 1 warnings"), "{}", seen.text);
        ensure!(seen.says("answers TCP in") && seen.says("and no echoes"), "{}", seen.text);
        Ok(())
    })
}
