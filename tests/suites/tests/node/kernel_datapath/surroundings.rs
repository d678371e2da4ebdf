//! What is found on the node: pods, next hops, notices of change.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, Instant},
};

use flannel_agent::{
    datapath::Datapath,
    netlink::{Changed, Monitor, Netlink, NoNextHop, Watched},
    node::interface::{ExternalInterface, InterfaceChoice},
    plan::{State, delta},
    values::Mac,
};
use tokio::time::timeout;

use super::namespace::*;

#[test]
fn pods_are_behind_ports_of_the_bridge_of_our_subnet_or_host_routes_into_it() {
    with_namespace(|| async {
        let elsewhere = Elsewhere::new();
        let veth = |name: &str| {
            ip(&format!("link add {name} type veth peer name x-{name} netns {}", elsewhere.id));
            index_of(name)
        };
        ip("link add anything type bridge");
        ip("link add docker0 type bridge");
        ip("address add 10.1.0.1/24 dev anything");
        ip("address add 172.17.0.1/16 dev docker0");

        let on_bridge = veth("port");
        ip("link set port master anything");
        ip("link set anything up");
        ip("link set port up");
        let routed = veth("routed");
        ip("link set routed up");
        ip("route add 10.1.0.9/32 dev routed");

        veth("docker");
        ip("link set docker master docker0");
        let loose = veth("loose");
        ip("link set loose up");
        ip("route add 10.2.0.9/32 dev loose");
        ip("route add 10.1.0.128/25 dev loose");
        ip("link add near type veth peer name near-peer");
        ip("link set near master anything");
        ip("link set near-peer up");
        link("odd", "");
        ip("route add 10.1.0.10/32 dev odd");

        let mut netlink = Netlink::open().unwrap();
        let subnets = ["10.1.0.0/24".parse().unwrap()];
        let links = netlink.links().await.unwrap();
        let found = netlink.pod_links(&subnets, &links).await.unwrap();
        assert_eq!(found, BTreeSet::from([on_bridge, routed]), "loose is {loose}");

        // A pod is where its namespace says it is, as long as no other says so too.
        for (pod, address) in
            [("port", "10.1.0.5/24"), ("routed", "10.1.0.9/32"), ("routed", "172.16.0.9/32")]
        {
            elsewhere.ip(&format!("address add {address} dev x-{pod}"));
            elsewhere.ip(&format!("link set x-{pod} up"));
        }
        // The bridge opens a port some time after the other end is up.
        let open = async {
            loop {
                let links = netlink.links().await.unwrap();
                let mut ours = links.iter().filter(|link| [on_bridge, routed].contains(&link.index));
                if ours.all(|link| link.carrier && !link.closed_port) {
                    break links;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let links = timeout(Duration::from_secs(10), open).await.unwrap();
        let pods = netlink.pods(&subnets, &links).await.unwrap();
        let places: Vec<_> = pods.places.iter().map(|(ip, place)| (ip.to_string(), place.ifindex)).collect();
        assert_eq!(places, [("10.1.0.5".to_owned(), on_bridge), ("10.1.0.9".to_owned(), routed)]);
        let mac_of = |name: &str| links.iter().find(|link| link.name == name).unwrap().mac.unwrap().0;
        let gateways: Vec<_> = pods.places.values().map(|place| place.gateway_mac).collect();
        assert_eq!(gateways, [mac_of("anything"), mac_of("routed")]);
        let mac = elsewhere.ip("-o link show x-port");
        let shown = Mac(pods.places.values().next().unwrap().mac).to_string();
        assert!(mac.contains(&shown), "{shown} is missing in {mac}");
        elsewhere.ip("address add 10.1.0.5/32 dev x-routed");
        let pods = netlink.pods(&subnets, &links).await.unwrap();
        assert_eq!(pods.places.len(), 1, "two pods claim 10.1.0.5: {pods:?}");
        assert!(pods.crowded.is_empty());

        // What a pod makes up takes no other's room.
        let lines: String =
            (0..200).map(|n| format!("address add fd00:1::{n:x}/64 dev x-port nodad\n")).collect();
        let batch = std::env::temp_dir().join(format!("flannel-addresses-{}", std::process::id()));
        fs::write(&batch, lines).unwrap();
        elsewhere.ip(&format!("-batch {}", batch.display()));
        fs::remove_file(&batch).unwrap();
        let both = ["10.1.0.0/24".parse().unwrap(), "fd00:1::/64".parse().unwrap()];
        let pods = netlink.pods(&both, &links).await.unwrap();
        assert_eq!(pods.places.len(), 1 + 128);
        assert!(pods.crowded.into_values().eq(["port"]));

        ip("address delete 10.1.0.1/24 dev anything");
        assert_eq!(netlink.pod_links(&subnets, &links).await.unwrap(), BTreeSet::from([routed]));
    });
}

#[test]
fn next_hops_are_gateways_or_the_peer_itself_with_the_mtu_of_the_way() {
    with_namespace(|| async {
        ip("route add 203.0.113.0/24 via 192.0.2.253 mtu 1400");
        ip("route add blackhole 198.51.100.0/24");
        ip("route add 203.0.114.0/24 nexthop via 192.0.2.253 nexthop via 192.0.2.252");
        ip("nexthop add id 1 via 192.0.2.253 dev eth0");
        ip("nexthop add id 2 via 192.0.2.252 dev eth0");
        ip("nexthop add id 3 group 1/2");
        ip("route add 203.0.115.0/24 nhid 3");
        ip("route add 203.0.116.0/24 nhid 2");
        ip("route add 203.0.117.0/24 encap ip id 9 dst 192.0.2.253 dev eth0");
        let wanted = [
            "192.0.2.7",
            "198.18.0.1",
            "203.0.113.9",
            "203.0.114.9",
            "203.0.115.9",
            "203.0.116.9",
            "203.0.117.9",
            "198.51.100.1",
            "192.0.2.1",
            "127.0.0.1",
        ];
        let wanted: BTreeSet<_> = wanted.iter().map(|text| text.parse().unwrap()).collect();
        let mut netlink = Netlink::open().unwrap();
        let hops = netlink.next_hops("192.0.2.1".parse().unwrap(), &wanted).await.unwrap();
        let hops_of_few = hops.clone();
        let hops: Vec<_> = hops
            .iter()
            .map(|(to, hop)| match hop {
                Ok(hop) => format!("{to} by {} to {} of {}", hop.ifindex, hop.address, hop.mtu),
                Err(why) => format!("{to}: {why:?}"),
            })
            .collect();
        assert_eq!(
            hops,
            [
                "127.0.0.1: Special",
                "192.0.2.1: Special",
                "192.0.2.7 by 42 to 192.0.2.7 of 1500",
                "198.18.0.1 by 42 to 192.0.2.254 of 1500",
                "198.51.100.1: NoRoute",
                "203.0.113.9 by 42 to 192.0.2.253 of 1400",
                "203.0.114.9: Multipath",
                "203.0.115.9: Multipath",
                "203.0.116.9 by 42 to 192.0.2.252 of 1500",
                "203.0.117.9: Special",
            ]
        );

        // And the same among so many that all routes are looked at first.
        let mut many = wanted.clone();
        many.extend((0..1000).map(|n| IpAddr::from(Ipv4Addr::from(0xc612_0100u32 + n))));
        let mut found = netlink.next_hops("192.0.2.1".parse().unwrap(), &many).await.unwrap();
        assert_eq!(found.len(), many.len());
        found.retain(|address, _| wanted.contains(address));
        assert_eq!(found, hops_of_few);
    });
}

#[test]
fn next_hops_of_ipv6_are_the_kernels() {
    with_namespace(|| async {
        for command in [
            "address add 2001:db8::1/64 dev eth0 nodad",
            "route add 2001:db8:1::/64 via fe80::fe dev eth0",
            "route add 2001:db8:2::/64 via 2001:db8::fd mtu 1400",
            "route add blackhole 2001:db8:3::/64",
            "route add 2001:db8:4::/64 nexthop via 2001:db8::fc nexthop via 2001:db8::fb",
        ] {
            ip(&format!("-6 {command}"));
        }
        let wanted = ["2001:db8::7", "2001:db8:1::9", "2001:db8:2::9", "2001:db8:3::9", "2001:db8:4::9"];
        let wanted: BTreeSet<IpAddr> = wanted.iter().map(|text| text.parse().unwrap()).collect();
        let mut netlink = Netlink::open().unwrap();
        let hops = netlink.next_hops("2001:db8::1".parse().unwrap(), &wanted).await.unwrap();
        let told: Vec<_> =
            hops.values().map(|hop| hop.map(|hop| (hop.address.to_string(), hop.mtu))).collect();
        let by = |address: &str, mtu| Ok((address.to_owned(), mtu));
        let expected = [
            by("2001:db8::7", 1500),
            by("fe80::fe", 1500),
            by("2001:db8::fd", 1400),
            Err(NoNextHop::NoRoute),
            Err(NoNextHop::Multipath),
        ];
        assert_eq!(told, expected);

        // And the same among so many that they are asked about together, one of which a rule tells from the others.
        ip("-6 rule add to 2001:db8::8 lookup 99");
        ip("-6 route add blackhole default table 99");
        let mut many = wanted.clone();
        many.extend(
            (0..1000u128).map(|n| IpAddr::from(Ipv6Addr::from((0x2001_0db8_u128 << 96) + 0x100 + n))),
        );
        let [ruled, free] = ["2001:db8::8", "2001:db8::9"].map(|text| text.parse::<IpAddr>().unwrap());
        many.extend([ruled, free]);
        let mut found = netlink.next_hops("2001:db8::1".parse().unwrap(), &many).await.unwrap();
        assert_eq!(found.len(), many.len());
        assert_eq!((found[&ruled], found[&free].map(|hop| hop.address)), (Err(NoNextHop::NoRoute), Ok(free)));
        found.retain(|address, _| wanted.contains(address));
        assert_eq!(found, hops);
    });
}

#[test]
fn the_next_hops_of_ten_thousand_peers_are_asked_at_once() {
    with_namespace(|| async {
        let peers: BTreeSet<_> = (0..10_000u32).map(|n| Ipv4Addr::from(0xc612_0000 + n).into()).collect();
        let mut netlink = Netlink::open().unwrap();
        let start = Instant::now();
        let hops = netlink.next_hops("192.0.2.1".parse().unwrap(), &peers).await.unwrap();
        println!("{} next hops in {:?}", hops.len(), start.elapsed());
        assert_eq!(hops.len(), peers.len());
        let router = IpAddr::from([192, 0, 2, 254]);
        assert!(hops.values().all(|hop| hop.is_ok_and(|hop| hop.address == router)));
    });
}

#[test]
fn notices_tell_the_kind_of_what_changed_and_nothing_of_strange_neighbours() {
    with_namespace(|| async {
        ip("link add flannel.1 type vxlan id 1 dev eth0 local 192.0.2.1 dstport 8472");
        ip("link set flannel.1 up");
        let overlay = index_of("flannel.1");
        let networks = Some(vec!["10.1.0.0/16".parse().unwrap(), "fd00:1::/48".parse().unwrap()]);
        let watched = Watched {
            overlays: BTreeSet::from([overlay]),
            external: index_of("eth0"),
            networks,
            ..Watched::default()
        };
        let mut monitor = Monitor::open().unwrap();
        let none = Changed::default();
        let on_overlay = Changed { overlay: true, ..none };
        for (command, expected) in [
            ("neighbour add 10.1.2.0 lladdr 0e:00:00:00:00:02 nud permanent dev flannel.1", on_overlay),
            (
                "route add 10.1.2.0/24 via 10.1.2.0 dev flannel.1 onlink",
                Changed { hooks: true, forwarding: true, ..on_overlay },
            ),
            (
                "route add blackhole 10.1.2.7/32",
                Changed { routes: true, hooks: true, forwarding: true, ..none },
            ),
            (
                "route add 10.1.2.8/32 via 192.0.2.9",
                Changed { routes: true, hooks: true, forwarding: true, ..none },
            ),
            ("route add blackhole 10.0.0.0/8", Changed { routes: true, ..none }),
            (
                "route add blackhole default table 99",
                Changed { routes: true, hooks: true, forwarding: true, ..none },
            ),
            (
                "route add blackhole fd00:1::7/128",
                Changed { routes: true, hooks: true, forwarding: true, ..none },
            ),
            (
                "rule add from 10.1.2.7 blackhole",
                Changed { routes: true, hooks: true, forwarding: true, ..none },
            ),
            ("nexthop add id 7 blackhole", Changed { routes: true, forwarding: true, ..none }),
            ("route add 172.16.0.0/24 via 192.0.2.254", Changed { routes: true, ..none }),
            ("link add other type bridge", Changed { links: true, ..none }),
        ] {
            ip("neighbour replace 192.0.2.9 lladdr 0e:00:00:00:00:09 nud permanent dev eth0");
            ip(command);
            let changed = monitor.changed(&watched).await.unwrap();
            assert_eq!(changed, expected, "{command}");
        }
        let hooks = Changed { hooks: true, ..none };
        // A place for filters is nothing yet, and filters of our priority are ours.
        run("tc", "qdisc add dev eth0 clsact");
        run("tc", "filter add dev eth0 ingress prio 8472 protocol all u32 match u32 0 0 classid 1:1");
        for command in [
            "qdisc add dev eth0 root pfifo",
            "qdisc del dev eth0 root",
            "filter add dev eth0 ingress prio 8473 protocol all u32 match u32 0 0 classid 1:1",
            "qdisc del dev eth0 clsact",
        ] {
            run("tc", command);
            assert_eq!(monitor.changed(&watched).await.unwrap(), hooks, "{command}");
        }
        run("bridge", "fdb add 0e:00:00:00:00:03 dev flannel.1 dst 198.18.0.3 self permanent");
        assert_eq!(monitor.changed(&watched).await.unwrap(), on_overlay);
        ip("neighbour replace 192.0.2.9 lladdr 0e:00:00:00:00:0a nud permanent dev eth0");
        let quiet = timeout(Duration::from_millis(200), monitor.changed(&watched)).await;
        assert!(quiet.is_err(), "{quiet:?}");
        ip("link set eth0 down");
        let down = monitor.changed(&watched).await.unwrap();
        assert!(down.links && !down.external_up, "{down:?}");
        while timeout(Duration::from_millis(100), monitor.changed(&watched)).await.is_ok() {}
        ip("link set eth0 up");
        let up = monitor.changed(&watched).await.unwrap();
        assert!(up.links && up.external_up, "{up:?}");
        while timeout(Duration::from_millis(100), monitor.changed(&watched)).await.is_ok() {}
        ip("link delete flannel.1");
        let changed = monitor.changed(&watched).await.unwrap();
        assert!(changed.overlay && changed.links, "{changed:?}");
    });
}

/// The kernel has no main table there, and says of a table without a name that it does not exist.
#[test]
fn a_namespace_without_routes_says_what_its_interface_lacks() {
    with_bare_namespace(|| async {
        link("eth0", "");
        // Only the kernel's own address for IPv6, without lo.
        let choice = InterfaceChoice { iface: vec!["eth0".to_owned()], ..InterfaceChoice::default() };
        let mut netlink = Netlink::open().unwrap();
        let error = ExternalInterface::choose(&mut netlink, &choice).await.unwrap_err().to_string();
        assert!(error.contains("failed to find IPv4 address for interface eth0"), "{error}");
        ip("address add 192.0.2.1/24 dev eth0 noprefixroute");
        let chosen = ExternalInterface::choose(&mut netlink, &choice).await.unwrap();
        assert_eq!((chosen.name.as_str(), chosen.address), ("eth0", Ipv4Addr::new(192, 0, 2, 1)));
    });
}

#[test]
fn settings_of_forwarding_are_heard_and_new_interfaces_are_none() {
    with_namespace(|| async {
        let mut monitor = Monitor::open().unwrap();
        let watched = of_nobody();
        for setting in [
            "ipv4/ip_forward",
            "ipv4/conf/eth0/forwarding",
            "ipv4/conf/eth0/rp_filter",
            "ipv6/conf/all/forwarding",
            "ipv6/conf/eth0/forwarding",
        ] {
            let file = format!("/proc/sys/net/{setting}");
            let before = fs::read_to_string(&file).unwrap();
            for value in [if before.trim() == "0" { "1" } else { "0" }, before.trim()] {
                fs::write(&file, value).unwrap();
                let changed = monitor.changed(&watched).await.unwrap();
                assert!(changed.forwarding, "{setting} = {value}: {changed:?}");
                while timeout(Duration::from_millis(100), monitor.changed(&watched)).await.is_ok() {}
            }
        }
        ip("link add one type bridge");
        ip("link set one up");
        let changed = monitor.changed(&watched).await.unwrap();
        assert!(changed.links && !changed.forwarding, "{changed:?}");
    });
}

/// Where there are neither tunnels nor pods.
fn of_nobody() -> Watched {
    Watched { networks: Some(Vec::new()), ..Watched::default() }
}

#[test]
fn lost_notices_are_reported_and_then_listening_goes_on() {
    with_namespace(|| async {
        let mut monitor = Monitor::open().unwrap();
        let mut datapath = datapath();
        let mut before = State::default();
        // Nobody listens while tens of thousands of objects come and go.
        for peers in [10_000, 2, 10_000, 2] {
            let desired = planned(2..peers).state;
            for result in datapath.apply(&delta(&desired, &before)).await {
                result.unwrap();
            }
            before = desired;
        }
        assert_eq!(monitor.changed(&of_nobody()).await.unwrap(), Changed::EVERYTHING);
        // What was in the buffer when notices were lost is still to come.
        while timeout(Duration::from_millis(200), monitor.changed(&of_nobody())).await.is_ok() {}
        ip("route add 172.16.0.0/24 via 192.0.2.254");
        assert_eq!(
            monitor.changed(&of_nobody()).await.unwrap(),
            Changed { routes: true, ..Changed::default() }
        );
    });
}

#[test]
fn a_pause_is_told_and_what_is_not_listened_to_is_not_heard() {
    with_namespace(|| async {
        let none = Changed::default();
        let mut monitor = Monitor::of_interfaces().unwrap();
        let watched = of_nobody();
        ip("route add 172.16.0.0/24 via 192.0.2.254");
        ip("link add one type bridge");
        assert_eq!(monitor.changed(&watched).await.unwrap(), Changed { links: true, ..none });
        monitor.hear_routes(true);
        monitor.hear_routes(true);
        assert_eq!(monitor.changed(&watched).await.unwrap(), Changed { overrun: true, ..none });
        ip("route add 172.16.1.0/24 via 192.0.2.254");
        assert_eq!(monitor.changed(&watched).await.unwrap(), Changed { routes: true, ..none });

        monitor.pause();
        ip("link add two type bridge");
        assert!(monitor.resume().unwrap() && !monitor.resume().unwrap());
        ip("link add three type bridge");
        assert_eq!(monitor.changed(&watched).await.unwrap(), Changed { links: true, ..none });
    });
}
