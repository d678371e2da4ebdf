//! A Service's address, by the rules that kube-proxy writes in iptables mode, and in nftables mode.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::Result;
use flannel_lab::{
    Node,
    command::run_with,
    kubernetes::{Backend, Service, TrafficPolicy},
};

/// Address of the Service, outside of the pods' network.
pub(super) const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);

/// Makes `ports` of [`ADDRESS`], over TCP and UDP, those of `backend`, on `node`.
pub(super) fn load(node: &Node, backend: Ipv4Addr, ports: &[u16]) -> Result<()> {
    let mut restore = node.netns().command("iptables-restore");
    run_with(restore.args(["--noflush", "--wait"]), &rules(backend, ports), Duration::from_secs(20))?;
    node.drop_invalid()
}

/// The same in nftables mode.
pub(super) fn load_nftables(node: &Node, backend: Ipv4Addr, ports: &[u16]) -> Result<()> {
    let service = |port: &u16| Service {
        name: format!("bench-{port}"),
        address: ADDRESS.into(),
        port: *port,
        target: *port,
        node_port: None,
        policy: TrafficPolicy::Cluster,
        affinity: false,
        backends: vec![Backend { address: backend.into(), node: "elsewhere".to_owned() }],
    };
    node.load_nftables_services(&ports.iter().map(service).collect::<Vec<_>>())
}

/// Chains, comments and order are kube-proxy's (pkg/proxy/iptables, `syncProxyRules`); the names of chains, which it
/// makes by hashing, say what they are for.
fn rules(backend: Ipv4Addr, ports: &[u16]) -> String {
    let mut chains = vec![
        ":KUBE-SERVICES - [0:0]".to_owned(),
        ":KUBE-POSTROUTING - [0:0]".to_owned(),
        ":KUBE-MARK-MASQ - [0:0]".to_owned(),
    ];
    let mut rules = vec![
        "-I PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES".to_owned(),
        "-I OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES".to_owned(),
        "-I POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING".to_owned(),
        "-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000".to_owned(),
        "-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN".to_owned(),
        "-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000".to_owned(),
        "-A KUBE-POSTROUTING -j MASQUERADE --random-fully".to_owned(),
    ];
    for (protocol, port) in ports.iter().flat_map(|port| [("tcp", port), ("udp", port)]) {
        let (service, end) = (format!("KUBE-SVC-{protocol}{port}"), format!("KUBE-SEP-{protocol}{port}"));
        let name = format!("-m comment --comment \"bench/{protocol}-{port}\"");
        chains.extend([format!(":{service} - [0:0]"), format!(":{end} - [0:0]")]);
        rules.extend([
            format!("-A KUBE-SERVICES -d {ADDRESS}/32 -p {protocol} {name} -m {protocol} --dport {port} -j {service}"),
            format!("-A {service} ! -s 10.244.0.0/16 -d {ADDRESS}/32 -p {protocol} {name} -m {protocol} --dport {port} -j KUBE-MARK-MASQ"),
            format!("-A {service} {name} -j {end}"),
            format!("-A {end} -s {backend}/32 {name} -j KUBE-MARK-MASQ"),
            format!("-A {end} -p {protocol} {name} -m {protocol} -j DNAT --to-destination {backend}:{port}"),
        ]);
    }
    ["*nat".to_owned()]
        .into_iter()
        .chain(chains)
        .chain(rules)
        .chain(["COMMIT\n".to_owned()])
        .collect::<Vec<_>>()
        .join("\n")
}
