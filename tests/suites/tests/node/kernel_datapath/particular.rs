//! Routes and rules that do more to packets of pods than flannel's own.

use flannel_agent::netlink::{Netfilter, Netlink, PodRoutes, Seen, Special};
use flannel_agent::values::Family;
use ipnetwork::IpNetwork;

use super::namespace::*;

fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

#[test]
fn routes_to_pods_with_an_mtu_or_encapsulation_are_found_where_packets_are_led_to_them() {
    with_namespace(|| async {
        ip("link add flannel.1 type vxlan id 1 dev eth0 local 192.0.2.1 dstport 8472");
        ip("link set flannel.1 up");
        for route in [
            "10.1.2.0/24 via 10.1.2.0 dev flannel.1 onlink",
            "10.1.3.0/24 via 10.1.3.0 dev flannel.1 onlink mtu 1300",
            "10.1.4.0/24 via 10.1.4.0 dev flannel.1 onlink mtu lock 1200",
            "10.1.5.7/32 encap ip id 7 dst 192.0.2.9 dev flannel.1",
            "172.16.0.0/24 via 192.0.2.254 mtu 1000",
            "default via 192.0.2.254 mtu 900 table 10",
            "default via 192.0.2.254 mtu 800 table 11",
        ] {
            ip(&format!("route add {route}"));
        }
        ip("rule add from 10.1.6.0/24 lookup 10");
        ip("rule add from 172.16.0.0/24 lookup 11");
        let mut netlink = Netlink::open().unwrap();
        let routes = netlink.pod_routes(Family::V4, &[net("10.1.0.0/16")]).await.unwrap();
        let towards = |routes: &PodRoutes, subnet: &str| {
            let found = routes.towards(net(subnet), net(subnet));
            (found.mtu, found.special)
        };
        assert_eq!(towards(&routes, "10.1.2.0/24"), (Some(900), None));
        ip("rule del from 10.1.6.0/24 lookup 10");
        let routes = netlink.pod_routes(Family::V4, &[net("10.1.0.0/16")]).await.unwrap();
        let special = |to: &str| Some((net(to), Special::Encap));
        for (subnet, expected) in [
            ("10.1.2.0/24", (None, None)),
            ("10.1.3.0/24", (Some(1300), None)),
            ("10.1.4.0/24", (Some(1200), None)),
            ("10.1.5.0/24", (None, special("10.1.5.7/32"))),
            ("10.1.6.0/24", (None, None)),
        ] {
            assert_eq!(towards(&routes, subnet), expected, "{subnet}");
        }
        ip("-6 route add fd00:1:0:2::/64 dev flannel.1 mtu 1300");
        let routes = netlink.pod_routes(Family::V6, &[net("fd00:1::/48")]).await.unwrap();
        assert_eq!(towards(&routes, "fd00:1:0:2::/64"), (Some(1300), None));
    });
}

/// What is found of packets between addresses of 10.1.0.0/16: each rule, and which packets it sees.
fn counting(netfilter: &mut Netfilter) -> Vec<(String, Seen)> {
    let found = netfilter.counting_rules(net("10.1.0.0/16"), false).unwrap();
    found.into_iter().map(|rule| (rule.text, rule.seen)).collect()
}

#[test]
fn rules_of_nft_for_which_each_packet_counts_are_found_and_no_others() {
    with_namespace(|| async {
        let mut netfilter = Netfilter::open().unwrap();
        assert_eq!(counting(&mut netfilter), []);
        let nft = |text: &str| run("nft", text);
        nft("add table inet admin");
        nft("add chain inet admin forward { type filter hook forward priority 0 ; }");
        nft("add chain inet admin input { type filter hook input priority 0 ; }");
        nft("add chain inet admin first { type nat hook postrouting priority 100 ; }");
        nft("add chain inet admin unused");
        nft("add quota inet admin month { over 500 mbytes ; }");
        nft("add set inet admin seen { type ipv4_addr ; flags dynamic,timeout ; }");
        let before = netfilter.generation().unwrap();
        for rule in [
            "input limit rate 10/second accept",
            "unused limit rate 10/second accept",
            "first numgen random mod 2 == 1 accept",
            "forward ct state new limit rate 10/second accept",
            "forward ct state { new, related } limit rate 10/second accept",
            "forward icmp type echo-request limit rate 10/second accept",
            "forward ip6 saddr fd00::/8 limit rate 10/second accept",
            "forward ip saddr 10.2.0.0/16 limit rate 10/second accept",
            "forward ip saddr 10.1.1.7 ip daddr 192.0.2.7 limit rate 10/second accept",
            "forward limit rate 3/minute log",
            "forward tcp dport 22 counter accept",
            "forward tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu",
            "forward tcp flags & (fin | syn) == (fin | syn) drop",
            "forward tcp flags & (fin | psh | urg) == (fin | psh | urg) drop",
            "forward tcp flags & (fin | syn | rst | psh | ack | urg) == 0x0 drop",
            "forward ip dscp 46 ip ttl 64 accept",
            "forward ct state new update @seen { ip saddr timeout 2s }",
        ] {
            nft(&format!("add rule inet admin {rule}"));
        }
        assert_eq!(counting(&mut netfilter), []);
        assert_ne!(netfilter.generation().unwrap(), before);
        for (rule, what) in [
            ("udp dport 53 limit rate over 10/second drop", "limit"),
            ("ct state established quota over 10 mbytes drop", "quota"),
            ("quota name month drop", "quota"),
            ("meter each { ip saddr limit rate over 10/second } drop", "limit"),
            ("numgen random mod 10 == 1 drop", "numgen"),
            ("ct bytes > 1000000 drop", "ct packets or bytes"),
            ("ct original packets > 10 drop", "ct packets or bytes"),
            ("update @seen { ip saddr timeout 2s }", "update"),
            ("meta length > 1000 drop", "length or payload"),
            ("ip length > 1000 drop", "length or payload"),
            ("meta l4proto udp @th,160,16 0x1234 drop", "length or payload"),
            ("tcp flags & (psh | urg) == psh drop", "tcp flags"),
            ("tcp flags psh drop", "tcp flags"),
            ("tcp option timestamp exists drop", "tcp option"),
        ] {
            nft(&format!("add rule inet admin forward {rule}"));
            let found = counting(&mut netfilter);
            let last = found.last().map(|(text, _)| text.clone()).unwrap_or_default();
            assert!(last.starts_with(&format!("{what} in inet admin forward, handle ")), "{rule}: {found:?}");
        }
        assert_eq!(counting(&mut netfilter).len(), 14);
    });
}

#[test]
fn which_packets_a_rule_of_nft_can_see_is_told_by_its_conditions_and_the_way_to_it() {
    with_namespace(|| async {
        let mut netfilter = Netfilter::open().unwrap();
        let all = Seen::default();
        let udp = Seen { protocol: Some(17), ..all.clone() };
        let to_port = |low, high| Seen { destination_ports: Some((low, high)), ..udp.clone() };
        let limit = "limit rate over 10/second drop";
        for (hook, rules, seen) in [
            ("forward", &["add rule ip t c LIMIT"][..], vec![all.clone()]),
            ("forward", &["add rule ip t c udp dport 53 LIMIT"], vec![to_port(53, 53)]),
            ("forward", &["add rule ip t c udp dport 1000-2000 LIMIT"], vec![to_port(1000, 2000)]),
            ("forward", &["add rule ip t c udp dport { 53, 80 } LIMIT"], vec![udp.clone()]),
            (
                "postrouting",
                &["add rule ip t c ip saddr 10.1.1.0/24 ip daddr 10.1.2.7 ip protocol tcp LIMIT"],
                vec![Seen {
                    source: Some(net("10.1.1.0/24")),
                    destination: Some(net("10.1.2.7/32")),
                    protocol: Some(6),
                    ..all.clone()
                }],
            ),
            (
                "forward",
                &["add rule ip t c ip saddr 10.1.16.0/20 LIMIT"],
                vec![Seen { source: Some(net("10.1.16.0/20")), ..all.clone() }],
            ),
            // What is compared is what was loaded last.
            (
                "forward",
                &["add rule ip t c ct state established fib daddr type unicast LIMIT"],
                vec![all.clone()],
            ),
            // A Service's address and port are others behind translation.
            (
                "prerouting",
                &["add rule ip t c ip daddr 10.96.0.0/12 udp dport 53 LIMIT"],
                vec![Seen { service: Some(net("10.96.0.0/12")), ..udp.clone() }],
            ),
            // What accepts established flows before it, by a condition, a set or a map, in a chain of its own.
            (
                "forward",
                &["add rule ip t c ct state established,related accept", "add rule ip t c LIMIT"],
                vec![],
            ),
            (
                "forward",
                &["add rule ip t c ct state { established, related } accept", "add rule ip t c LIMIT"],
                vec![],
            ),
            (
                "forward",
                &[
                    "add rule ip t c ct state vmap { established : accept, invalid : drop }",
                    "add rule ip t c LIMIT",
                ],
                vec![],
            ),
            (
                "forward",
                &[
                    "add rule ip t c jump d",
                    "add rule ip t d ip saddr 10.0.0.0/8 accept",
                    "add rule ip t c LIMIT",
                ],
                vec![],
            ),
            (
                "forward",
                &["add rule ip t c iifname eth0 ct state established accept", "add rule ip t c LIMIT"],
                vec![all.clone()],
            ),
            (
                "forward",
                &["add rule ip t c ct state vmap { invalid : drop, new : jump d }", "add rule ip t d LIMIT"],
                vec![],
            ),
            (
                "forward",
                &[
                    "add rule ip t c udp dport 53 goto d",
                    "add rule ip t d ip saddr vmap { 10.1.0.1 : jump e }",
                    "add rule ip t e LIMIT",
                ],
                vec![to_port(53, 53)],
            ),
            // Chains may lead to each other, but not in circles; a port of TCP's is none of UDP's.
            (
                "forward",
                &["add rule ip t c tcp dport 53 jump d", "add rule ip t d meta l4proto udp LIMIT"],
                vec![],
            ),
        ] {
            run("nft", "add table ip t");
            run("nft", &format!("add chain ip t c {{ type filter hook {hook} priority 0 ; }}"));
            run("nft", "add chain ip t d");
            run("nft", "add chain ip t e");
            for rule in rules {
                run("nft", &rule.replace("LIMIT", limit));
            }
            let found: Vec<Seen> = counting(&mut netfilter).into_iter().map(|(_, seen)| seen).collect();
            assert_eq!(found, seen, "{rules:?}");
            run("nft", "delete table ip t");
        }
        // What iptables has in nft is read by iptables, where there is one.
        run(
            "iptables-nft",
            "-A FORWARD -p udp -m hashlimit --hashlimit-above 5/sec --hashlimit-name x -j DROP",
        );
        assert_eq!(counting(&mut netfilter), []);
        let found = netfilter.counting_rules(net("10.1.0.0/16"), true).unwrap();
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found[0].text.starts_with("hashlimit in ip filter FORWARD") && found[0].seen == udp,
            "{found:?}"
        );
    });
}
