//! Routes and rules that do more to packets of pods than flannel's own.

use flannel_agent::netlink::{Netfilter, Netlink, PodRoutes, Special};
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

#[test]
fn rules_of_nft_for_which_each_packet_counts_are_found_and_no_others() {
    with_namespace(|| async {
        let mut netfilter = Netfilter::open().unwrap();
        assert_eq!(netfilter.counting_rules().unwrap(), Vec::<String>::new());
        let nft = |text: &str| run("nft", text);
        nft("add table inet admin");
        nft("add chain inet admin forward { type filter hook forward priority 0 ; }");
        nft("add chain inet admin input { type filter hook input priority 0 ; }");
        nft("add quota inet admin month { over 500 mbytes ; }");
        nft("add set inet admin seen { type ipv4_addr ; flags dynamic,timeout ; }");
        for rule in [
            "input limit rate 10/second accept",
            "forward ct state new limit rate 10/second accept",
            "forward icmp type echo-request limit rate 10/second accept",
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
        assert_eq!(netfilter.counting_rules().unwrap(), Vec::<String>::new());
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
            let found = netfilter.counting_rules().unwrap();
            let last = found.last().cloned().unwrap_or_default();
            assert!(last.starts_with(&format!("{what} in inet admin forward, handle ")), "{rule}: {found:?}");
        }
        assert_eq!(netfilter.counting_rules().unwrap().len(), 14);
    });
}
