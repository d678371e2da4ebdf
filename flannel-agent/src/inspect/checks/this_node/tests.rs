use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::{
    bpf::MapFill,
    control::snapshot::{Backend, Device, FastPath, Interface, OwnLease},
    inspect::checks::{Firewall, Nft, Severity},
    netlink::{Link, PeerEnd, Vxlan},
    values::Family,
};

struct Node {
    told: Snapshot,
    kernel: Kernel,
    maps: Maps,
    without_maps: Option<&'static str>,
    around: Surroundings,
}

fn link(index: u32, name: &str, kind: LinkKind) -> Link {
    Link::plain(index, name, kind, 1500)
}

fn healthy() -> Node {
    let told = Snapshot {
        lease: Some(OwnLease {
            subnets: vec!["10.244.1.0/24".parse().unwrap()],
            networks: vec!["10.244.0.0/16".parse().unwrap()],
            ..OwnLease::default()
        }),
        interface: Some(Interface { name: "eth0".to_owned(), index: 2, mtu: 1500, addresses: Vec::new() }),
        backend: Some(Backend {
            kind: "vxlan".to_owned(),
            devices: vec![Device { name: "flannel.1".to_owned(), port: Some(8472), ..Device::default() }],
            pod_mtu: 1450,
            ..Backend::default()
        }),
        fast_path: Some(FastPath {
            asked: "flow".to_owned(),
            granted: "flow".to_owned(),
            xdp: "off".to_owned(),
            ..FastPath::default()
        }),
        ..Snapshot::default()
    };
    let mut pod = link(5, "veth1", LinkKind::Veth);
    (pod.master, pod.peer) = (Some(4), Some(PeerEnd { namespace: 1, index: 2 }));
    let links = vec![
        link(2, "eth0", LinkKind::Other),
        link(3, "flannel.1", LinkKind::Other),
        link(4, "cni0", LinkKind::Bridge),
        pod,
    ];
    let kernel = Kernel { links, ..Kernel::default() };
    let forwards = ["eth0", "flannel.1", "cni0"].map(|name| (name.to_owned(), true));
    let around = Surroundings {
        forwarding: BTreeMap::from([(Family::V4, true)]),
        forwarding_of: BTreeMap::from([(Family::V4, BTreeMap::from(forwards))]),
        pod_links: BTreeSet::from([5]),
        gateways: BTreeSet::from([4]),
        rp_filter: BTreeMap::from([("eth0".to_owned(), 2)]),
        conntrack: Some((100, 1000)),
        bridge: Some((vec!["10.244.1.1/24".parse().unwrap()], 1450)),
        bridge_netfilter: Some(true),
        cni_configs: vec!["10-flannel.conflist".to_owned()],
        firewalls: BTreeMap::from([(Family::V4, Firewall::of("-P FORWARD ACCEPT", ""))]),
        ..Surroundings::default()
    };
    Node { told, kernel, maps: Maps::default(), without_maps: None, around }
}

type Fault = fn(&mut Node);

fn forwards(node: &mut Node, interfaces: &[&str], does: bool) {
    let known = node.around.forwarding_of.entry(Family::V4).or_default();
    known.extend(interfaces.iter().map(|name| ((*name).to_owned(), does)));
}

#[test]
fn each_fault_has_its_line_and_remedy_and_a_healthy_node_none() {
    let faults: [(&str, Fault); 29] = [
        ("", |_| {}),
        ("forwarding: net.ipv4.ip_forward = 0: this node", |node| {
            node.around.forwarding.insert(Family::V4, false);
            forwards(node, &["eth0", "flannel.1", "cni0"], false);
        }),
        ("forwarding: net.ipv4.conf.cni0.forwarding, net.ipv4.conf.flannel/1.forwarding = 0", |node| {
            forwards(node, &["flannel.1", "cni0"], false);
        }),
        ("forwarding: net.ipv4.ip_forward = 0, though cni0, eth0, flannel.1 forward", |node| {
            node.around.forwarding.insert(Family::V4, false);
        }),
        ("pods: bridge cni0 is down: none of the 1 interfaces", |node| node.kernel.links[2].up = false),
        ("pods: 1 of 1 interfaces of pods are down on this node's side: veth1", |node| {
            (node.kernel.links[3].up, node.kernel.links[3].carrier) = (false, false);
        }),
        ("pods: 1 of 1 interfaces of pods have no carrier", |node| node.kernel.links[3].carrier = false),
        ("pods: 1 of 1 ports of pods at the bridge are closed", |node| {
            node.kernel.links[3].closed_port = true;
        }),
        ("pods: cni0 has no address in 10.244.1.0/24", |node| {
            node.around.bridge.as_mut().unwrap().0.clear();
        }),
        (
            "FORWARD: iptables: a rule that FORWARD comes to, `-A FORWARD -s 10.244.0.0/16 -j DROP`, drops packets of",
            |node| {
                let rules = "-P FORWARD ACCEPT\n-A FORWARD -s 10.244.0.0/16 -j DROP";
                node.around.firewalls.insert(Family::V4, Firewall::of(rules, ""));
            },
        ),
        (
            "FORWARD: iptables: a rule that FORWARD comes to, `-A FORWARD -d 10.244.0.0/16 -m statistic --mode random \
             --probability 0.3 -j DROP`, drops some packets of pods from",
            |node| {
                let rule = "-A FORWARD -d 10.244.0.0/16 -m statistic --mode random --probability 0.29999999981 -j DROP";
                let rules = format!("-P FORWARD ACCEPT\n{rule}");
                node.around.firewalls.insert(Family::V4, Firewall::of(&rules, ""));
            },
        ),
        (
            "nftables: the rule with handle 4 of chain c of table bridge bb, hook input drops packets of pods from \
             10.244.1.0/24 to 10.244.0.0/16",
            |node| {
                let to = r#"{"match":{"op":"==","left":{"payload":{"protocol":"ip","field":"daddr"}},
                    "right":{"prefix":{"addr":"10.244.0.0","len":16}}}}"#;
                node.around.nft = Nft::of(&format!(
                    r#"{{"nftables":[{{"chain":{{"family":"bridge","table":"bb","name":"c","hook":"input","type":"filter",
                    "policy":"accept"}}}},{{"rule":{{"family":"bridge","table":"bb","chain":"c","handle":4,
                    "expr":[{to},{{"drop":null}}]}}}}]}}"#
                ));
            },
        ),
        ("rp_filter: rp_filter = 1 (strict) on eth0", |node| {
            node.around.rp_filter.insert("eth0".to_owned(), 1);
        }),
        ("pod MTU: cni0 has MTU 1500", |node| node.around.bridge.as_mut().unwrap().1 = 1500),
        ("bridge filter: ", |node| node.around.bridge_netfilter = Some(false)),
        ("FORWARD: iptables: the policy of FORWARD is DROP", |node| {
            node.around.firewalls.insert(Family::V4, Firewall::of("-P FORWARD DROP", ""));
        }),
        ("masquerade: iptables: a rule in front of flannel's", |node| {
            let rule = "-A POSTROUTING -s 10.0.0.0/8 -j MASQUERADE";
            node.around.firewalls.insert(Family::V4, Firewall::of("", rule));
        }),
        ("conntrack: 950 of 1000 entries", |node| node.around.conntrack = Some((950, 1000))),
        ("map room: map flows_v4 has 1000 of 1024 entries", |node| {
            node.maps.fill = vec![MapFill { map: "flows_v4", entries: 1000, room: 1024, forgets: true }];
        }),
        (
            "checksums: packets came to this node with a wrong checksum while this was checked: TCP 7",
            |node| {
                node.around.bad_checksums = BTreeMap::from([("TCP".to_owned(), 7), ("UDP".to_owned(), 0)]);
            },
        ),
        ("bridge: cni0 has 10.244.9.1/24", |node| {
            node.around.bridge.as_mut().unwrap().0 = vec!["10.244.9.1/24".parse().unwrap()];
        }),
        ("other networks: interfaces of Calico are there: cali123", |node| {
            node.kernel.links.push(link(9, "cali123", LinkKind::Veth));
        }),
        ("CNI: /etc/cni/net.d/05-cilium.conflist comes before flannel's", |node| {
            node.around.cni_configs.insert(0, "05-cilium.conflist".to_owned());
        }),
        ("VXLAN port: device vxlan.calico uses UDP port 8472", |node| {
            let vxlan = Vxlan { vni: 9, port: 8472, ..Vxlan::default() };
            node.kernel.links.push(link(9, "vxlan.calico", LinkKind::Vxlan(vxlan)));
        }),
        ("interface: the external interface eth0 is down", |node| node.kernel.links[0].carrier = false),
        ("interface: the external interface eth0 is gone", |node| node.kernel.links.clear()),
        ("programs: an XDP program of eth0 is somebody else's", |node| {
            node.kernel.links[0].xdp = true;
        }),
        ("programs: tc filter of priority 9 at ingress of eth0 is somebody else's", |node| {
            node.around.first_at_external.push("tc filter of priority 9 at ingress".to_owned());
        }),
        ("bpffs: maps cannot be read: /sys/fs/bpf is not on a BPF file system", |node| {
            node.without_maps = Some("/sys/fs/bpf is not on a BPF file system");
        }),
    ];
    for (line, fault) in faults {
        let mut node = healthy();
        fault(&mut node);
        let found =
            of_node(Some(&node.told), &node.kernel, Some(&node.maps), node.without_maps, &node.around);
        let bad: Vec<_> = found.iter().filter(|finding| finding.severity != Severity::Ok).collect();
        let texts: Vec<_> = bad.iter().map(|bad| format!("{}: {}", bad.check, bad.evidence)).collect();
        if line.is_empty() {
            assert!(texts.is_empty(), "{texts:?}");
        } else {
            assert_eq!(texts.len(), 1, "{texts:?} instead of {line}");
            assert!(texts[0].starts_with(line) && !bad[0].remedy.is_empty(), "{texts:?} instead of {line}");
        }
    }
}
