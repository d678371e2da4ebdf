use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::{
    control::snapshot::Device,
    inspect::{MapRoute, Tunnel},
    netlink::{Link, LinkKind, Tunnel as PlainTunnel, VxlanDevice, wireguard::Exchanged},
};

const MAC: Mac = Mac([2, 0, 0, 0, 0, 2]);

fn subnet() -> IpNetwork {
    "10.244.2.0/24".parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A node with one peer over VXLAN, all of whose objects are in place.
fn healthy() -> (snapshot::Peers, Kernel, Maps) {
    let peer = snapshot::Peer {
        subnet: subnet(),
        node: None,
        public_ip: ip("192.0.2.2"),
        way: "vxlan".to_owned(),
        mac: Some(MAC.to_string()),
        on_kernel: None,
        next_hop: None,
        pending: Vec::new(),
        probe: None,
    };
    let device = VxlanDevice {
        name: "flannel.1".to_owned(),
        vni: 1,
        port: 8472,
        underlay_ifindex: 2,
        local: ip("192.0.2.1"),
        mac: Mac([2, 0, 0, 0, 0, 1]),
        mtu: 1450,
        learning: false,
        gbp: false,
    };
    let tunnel = Tunnel {
        index: 3,
        up: true,
        device,
        neighbours: BTreeMap::from([(ip("10.244.2.0"), MAC)]),
        fdb: BTreeMap::from([(MAC, ip("192.0.2.2"))]),
    };
    let kernel = Kernel {
        tunnels: BTreeMap::from([(Family::V4, tunnel)]),
        routes: BTreeMap::from([(subnet(), vec![(ip("10.244.2.0"), 3)])]),
        ..Kernel::default()
    };
    let route = MapRoute {
        kind: RouteKind::Vxlan,
        public_ip: ip("192.0.2.2"),
        mac: MAC,
        ifindex: 2,
        next_hop: ip("192.0.2.2"),
        mtu: 1500,
    };
    let maps = Maps {
        configured: BTreeSet::from([Family::V4]),
        routes: BTreeMap::from([(subnet(), route)]),
        vteps: BTreeMap::from([(ip("192.0.2.2"), subnet())]),
        ..Maps::default()
    };
    (snapshot::Peers { peers: vec![peer], skipped: Vec::new() }, kernel, maps)
}

type Damage = fn(&mut Kernel, &mut Maps);

#[test]
fn each_object_that_differs_is_named_with_and_without_an_agent() {
    let damages: [(&str, &str, Damage); 9] = [
        ("", "", |_, _| {}),
        ("route: absent, instead of 10.244.2.0/24 via 10.244.2.0 dev flannel.1", "same", |kernel, _| {
            kernel.routes.clear();
        }),
        ("route: 10.244.2.0/24 leads via 192.0.2.9 dev interface 2", "same", |kernel, _| {
            kernel.routes.insert(subnet(), vec![(ip("192.0.2.9"), 2)]);
        }),
        ("neighbour: 10.244.2.0 is absent on flannel.1", "same", |kernel, _| {
            kernel.tunnels.get_mut(&Family::V4).unwrap().neighbours.clear();
        }),
        ("FDB: 02:00:00:00:00:02 is absent on flannel.1", "same", |kernel, _| {
            kernel.tunnels.get_mut(&Family::V4).unwrap().fdb.clear();
        }),
        ("FDB: 02:00:00:00:00:02 leads to 192.0.2.9, instead of 192.0.2.2", "same", |kernel, _| {
            kernel.tunnels.get_mut(&Family::V4).unwrap().fdb.insert(MAC, ip("192.0.2.9"));
        }),
        ("map routes_v4: 10.244.2.0/24 is absent", "same", |_, maps| maps.routes.clear()),
        (
            "map routes_v4: 10.244.2.0/24 leads to 192.0.2.9, instead of 192.0.2.2",
            // Without an agent the map is what names the node, and the FDB is what differs from it.
            "FDB: 02:00:00:00:00:02 leads to 192.0.2.2, instead of 192.0.2.9",
            |_, maps| maps.routes.get_mut(&subnet()).unwrap().public_ip = ip("192.0.2.9"),
        ),
        ("map vteps: 192.0.2.2 is absent", "same", |_, maps| maps.vteps.clear()),
    ];
    for (with, without, damage) in damages {
        let (agent, mut kernel, mut maps) = healthy();
        damage(&mut kernel, &mut maps);
        for (agent, line) in [(Some(&agent), with), (None, if without == "same" { with } else { without })] {
            let rows = join(agent, None, &kernel, Some(&maps));
            let [row] = &rows[..] else { panic!("{rows:#?}") };
            let (state, found) = (row.state, row.differences.join("; "));
            if line.is_empty() {
                assert_eq!((state, found.as_str()), (State::InPlace, ""), "{}", agent.is_some());
            } else {
                assert_eq!(state, State::Differs);
                assert!(found.contains(line), "{found} instead of {line}");
            }
        }
    }
}

#[test]
fn a_node_with_subnets_of_both_families_is_one_peer() {
    let (mut agent, kernel, maps) = healthy();
    let v6 = snapshot::Peer {
        subnet: "fd00:10:244:2::/64".parse().unwrap(),
        public_ip: ip("fd00::2"),
        ..agent.peers[0].clone()
    };
    agent.peers.push(v6);
    let rows = join(Some(&agent), None, &kernel, Some(&maps));
    assert_eq!((rows.len(), nodes(&rows)), (2, 1));
}

#[test]
fn without_programs_only_the_kernel_is_compared() {
    let (agent, kernel, _) = healthy();
    for maps in [None, Some(&Maps::default())] {
        assert_eq!(join(Some(&agent), None, &kernel, maps)[0].state, State::InPlace);
        assert_eq!(join(None, None, &kernel, maps)[0].state, State::InPlace);
    }
}

#[test]
fn leases_that_are_not_followed_and_changes_that_failed_are_rows_of_their_own_kind() {
    let (mut agent, kernel, maps) = healthy();
    agent.peers[0].pending.push("cannot do it: no room".to_owned());
    agent.skipped.push(snapshot::Skipped {
        lease: "10.244.9.0/24&fd00:9::/64".to_owned(),
        family: "IPv6".to_owned(),
        reason: "its PublicIPv6 is our own".to_owned(),
        fault: true,
        remedy: String::new(),
    });
    let rows = join(Some(&agent), None, &kernel, Some(&maps));
    assert_eq!((rows[0].state, rows[0].differences.len()), (State::Pending, 1));
    assert_eq!((rows[1].state, rows[1].subnet), (State::Skipped, "fd00:9::/64".parse().unwrap()));
}

/// A node of another backend with the same peer.
fn of_backend(way: &str, device: &str, kind: LinkKind) -> (snapshot::Peers, Backend, Kernel) {
    let (mut peers, mut kernel, _) = healthy();
    peers.peers[0].way = way.to_owned();
    peers.peers[0].mac = None;
    let network: IpNetwork = "10.244.0.0/16".parse().unwrap();
    let told = Device { name: device.to_owned(), mtu: 1480, networks: vec![network], ..Device::default() };
    let backend = Backend { kind: way.to_owned(), devices: vec![told], ..Backend::default() };
    kernel.tunnels.clear();
    kernel.routes.clear();
    kernel.links.push(Link::plain(7, device, kind, 1480));
    (peers, backend, kernel)
}

/// The only line that says what differs; empty where nothing does.
fn differs(agent: Option<&snapshot::Peers>, backend: &Backend, kernel: &Kernel) -> String {
    let rows = join(agent, Some(backend), kernel, None);
    let [row] = &rows[..] else { panic!("{rows:#?}") };
    row.differences.join("; ")
}

#[test]
fn each_backend_has_its_own_objects_to_be_in_place() {
    let network: IpNetwork = "10.244.0.0/16".parse().unwrap();
    let (agent, backend, mut kernel) = of_backend("udp", "flannel0", LinkKind::Other);
    assert_eq!(
        differs(Some(&agent), &backend, &kernel),
        "route: absent, instead of 10.244.2.0/24 dev flannel0"
    );
    kernel.connected.push((network, 7));
    assert_eq!(differs(Some(&agent), &backend, &kernel), "");
    kernel.connected.push((subnet(), 2));
    assert!(
        differs(Some(&agent), &backend, &kernel).contains("leads dev interface 2, instead of dev flannel0")
    );
    kernel.links.clear();
    assert_eq!(differs(Some(&agent), &backend, &kernel), "the device flannel0 is absent");

    let kind = LinkKind::Tunnel(PlainTunnel::Ipip { local: "192.0.2.1".parse().unwrap() });
    let (agent, backend, mut kernel) = of_backend("ipip", "flannel.ipip", kind);
    kernel.ipip.insert(7);
    kernel.routes.insert(subnet(), vec![(ip("192.0.2.2"), 7)]);
    assert_eq!(differs(Some(&agent), &backend, &kernel), "");
    assert_eq!(differs(None, &backend, &kernel), "", "the route names the peer");
    // What the programs know of the peer is of the same way.
    let (_, _, mut maps) = healthy();
    maps.routes.values_mut().for_each(|route| (route.kind, route.mac) = (RouteKind::Ipip, Mac([0; 6])));
    for agent in [Some(&agent), None] {
        let rows = join(agent, Some(&backend), &kernel, Some(&maps));
        assert_eq!((rows[0].way.as_str(), rows[0].differences.join("; ")), ("ipip", String::new()));
    }
    kernel.routes.insert(subnet(), vec![(ip("192.0.2.9"), 7)]);
    assert!(differs(Some(&agent), &backend, &kernel).contains("instead of via 192.0.2.2 dev flannel.ipip"));

    let (agent, backend, mut kernel) =
        of_backend("wireguard", "flannel-wg", LinkKind::Tunnel(PlainTunnel::Wireguard));
    kernel.connected.push((network, 7));
    assert_eq!(
        differs(Some(&agent), &backend, &kernel),
        "WireGuard: no peer of flannel-wg has 10.244.2.0/24"
    );
    let exchanged = Exchanged { received: 5, sent: 7, handshake: Some(Duration::from_secs(1)) };
    let endpoint = Some(ip("192.0.2.2"));
    let peer = WireguardPeer { device: "flannel-wg".to_owned(), endpoint, exchanged };
    kernel.wireguard.insert(subnet(), peer);
    assert_eq!(differs(Some(&agent), &backend, &kernel), "");
    for agent in [Some(&agent), None] {
        let rows = join(agent, Some(&backend), &kernel, None);
        let traffic = rows[0].traffic.unwrap();
        assert_eq!((traffic.sent.bytes, traffic.received.bytes, rows[0].public_ip), (7, 5, endpoint));
        assert!(rows[0].heard_seconds_ago > Some(1_000_000));
    }

    // What leads to these is not ours to know.
    for way in ["extension", "ipsec"] {
        let (agent, mut backend, mut kernel) = of_backend(way, "none", LinkKind::Other);
        backend.devices.clear();
        kernel.routes.insert("0.0.0.0/0".parse().unwrap(), vec![(ip("192.0.2.254"), 2)]);
        assert_eq!(differs(Some(&agent), &backend, &kernel), "");
    }
}
