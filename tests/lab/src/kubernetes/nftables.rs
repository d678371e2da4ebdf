//! The rules of Services in the form of kube-proxy's nftables mode, for the kube-proxy at hand is older than that.
//!
//! One table; maps lead from a packet's destination to the chain of a Service, and that to the chain of a backend,
//! which translates.

use std::{collections::BTreeSet, fmt::Write as _};

use anyhow::{Context as _, Result};

use super::{Backend, Service, TrafficPolicy};
use crate::Node;

const PROTOCOLS: [&str; 2] = ["tcp", "udp"];
const PODS: &str = "10.244.0.0/16";

/// Everything but what is said of single Services.
const FRAME: &str = r#"
    chain filter-input {
        type filter hook input priority filter;
        ct state new ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports
        ct state new ip daddr . meta l4proto . th dport vmap @no-endpoint-services
    }
    chain filter-forward {
        type filter hook forward priority filter;
        ct state invalid counter drop
        ct state new ip daddr . meta l4proto . th dport vmap @no-endpoint-services
        ct state new ip daddr @cluster-ips reject
    }
    chain filter-output {
        type filter hook output priority filter;
        ct state new ip daddr . meta l4proto . th dport vmap @no-endpoint-services
    }
    chain nat-prerouting {
        type nat hook prerouting priority dstnat;
        jump services
    }
    chain nat-output {
        type nat hook output priority -100;
        jump services
    }
    chain nat-postrouting {
        type nat hook postrouting priority srcnat;
        meta mark and 0x4000 == 0 return
        meta mark set meta mark xor 0x4000
        masquerade fully-random
    }
    chain services {
        ip daddr . meta l4proto . th dport vmap @service-ips
        ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
    }
    chain mark-for-masquerade {
        meta mark set meta mark or 0x4000
    }
    chain reject-chain {
        reject
    }
"#;

impl Node {
    /// Makes the rules those of `services` and no others.
    pub fn load_nftables_services(&self, services: &[Service]) -> Result<()> {
        let rules = rule_set(services, &self.name(), &self.address().to_string())?;
        self.nft(&rules).with_context(|| rules.clone())
    }

    /// Ends the flows over UDP from `service` to a backend that it has no more, as kube-proxy does: nothing
    /// else would, as long as they are used.
    pub fn forget_backend(&self, service: &Service, backend: &Backend) -> Result<()> {
        let (address, backend) = (service.address.to_string(), backend.address.to_string());
        self.forget_udp(&["--orig-dst", &address, "--reply-src", &backend])?;
        match service.node_port {
            Some(port) => self.forget_udp(&["--orig-port-dst", &port.to_string(), "--reply-src", &backend]),
            None => Ok(()),
        }
    }

    fn forget_udp(&self, which: &[&str]) -> Result<()> {
        loop {
            match self.netns().run("conntrack", &[&["-D", "-p", "udp"], which].concat()) {
                Ok(_) => return Ok(()),
                // It reads all entries before it deletes some: a real kube-proxy may have been faster.
                Err(error) if format!("{error:#}").contains("such conntrack doesn't exist") => {}
                // It calls it a failure to find nothing.
                Err(error) if format!("{error:#}").contains("0 flow entries") => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Packets that these rules have dropped because connection tracking calls them INVALID.
    pub fn nftables_dropped_as_invalid(&self) -> Result<u64> {
        let chain = self.netns().run("nft", &["list", "chain", "ip", "kube-proxy", "filter-forward"])?;
        let rule = chain.lines().find(|rule| rule.contains("ct state invalid counter"));
        let packets = rule.and_then(|rule| rule.split("packets ").nth(1)?.split(' ').next());
        packets.with_context(|| chain.clone())?.parse().with_context(|| chain.clone())
    }
}

/// The whole table; `node` is the one it is for, and `address` that of its ports.
fn rule_set(services: &[Service], node: &str, address: &str) -> Result<String> {
    let mut maps = Maps::default();
    let mut chains = String::new();
    for service in services {
        maps.cluster_ips.insert(service.address.to_string());
        for protocol in PROTOCOLS {
            maps.add(service, protocol, node);
            write_chains(&mut chains, service, protocol, node)?;
        }
    }
    let Maps { cluster_ips, service_ips, service_nodeports, no_endpoint_services, no_endpoint_nodeports } =
        maps;
    let by_address = "ipv4_addr . inet_proto . inet_service : verdict";
    let by_port = "inet_proto . inet_service : verdict";
    let mut rules = "add table ip kube-proxy\ndelete table ip kube-proxy\ntable ip kube-proxy {\n".to_owned();
    for (kind, name, keys, elements) in [
        ("set", "cluster-ips", "ipv4_addr", cluster_ips.into_iter().collect()),
        ("set", "nodeport-ips", "ipv4_addr", vec![address.to_owned()]),
        ("map", "service-ips", by_address, service_ips),
        ("map", "service-nodeports", by_port, service_nodeports),
        ("map", "no-endpoint-services", by_address, no_endpoint_services),
        ("map", "no-endpoint-nodeports", by_port, no_endpoint_nodeports),
    ] {
        let elements = match elements.as_slice() {
            [] => String::new(),
            elements => format!(" elements = {{ {} }};", elements.join(", ")),
        };
        writeln!(rules, "    {kind} {name} {{ type {keys};{elements} }}")?;
    }
    Ok(format!("{rules}{FRAME}{chains}}}\n"))
}

/// The elements of the maps that lead to Services.
#[derive(Default)]
struct Maps {
    cluster_ips: BTreeSet<String>,
    service_ips: Vec<String>,
    service_nodeports: Vec<String>,
    no_endpoint_services: Vec<String>,
    no_endpoint_nodeports: Vec<String>,
}

impl Maps {
    fn add(&mut self, service: &Service, protocol: &str, node: &str) {
        let name = format!("{}-{protocol}", service.name);
        let key = format!("{} . {protocol} . {}", service.address, service.port);
        match service.backends.is_empty() {
            true => self.no_endpoint_services.push(format!("{key} : goto reject-chain")),
            false => self.service_ips.push(format!("{key} : goto service-{name}")),
        }
        let Some(port) = service.node_port else { return };
        let key = format!("{protocol} . {port}");
        if service.backends.is_empty() {
            self.no_endpoint_nodeports.push(format!("{key} : goto reject-chain"));
            return;
        }
        self.service_nodeports.push(format!("{key} : goto external-{name}"));
        let has_local = service.backends.iter().any(|backend| backend.node == node);
        if service.policy == TrafficPolicy::Local && !has_local {
            self.no_endpoint_nodeports.push(format!("{key} : drop"));
        }
    }
}

/// The chains of one protocol of one Service, and those of its backends.
fn write_chains(chains: &mut String, service: &Service, protocol: &str, node: &str) -> Result<()> {
    let name = format!("{}-{protocol}", service.name);
    let choose = |numbers: &[usize]| match numbers {
        [] => String::new(),
        numbers => {
            let goto = numbers
                .iter()
                .enumerate()
                .map(|(place, number)| format!("{place} : goto endpoint-{name}-{number}"));
            let goto: Vec<String> = goto.collect();
            format!("        numgen random mod {} vmap {{ {} }}\n", numbers.len(), goto.join(", "))
        }
    };
    let all: Vec<usize> = (0..service.backends.len()).collect();
    let local: Vec<usize> =
        all.iter().copied().filter(|&number| service.backends[number].node == node).collect();

    writeln!(chains, "    chain service-{name} {{")?;
    let (address, port) = (service.address, service.port);
    writeln!(
        chains,
        "        ip daddr {address} {protocol} dport {port} ip saddr != {PODS} jump mark-for-masquerade"
    )?;
    for number in all.iter().filter(|_| service.affinity) {
        writeln!(chains, "        ip saddr @affinity-{name}-{number} goto endpoint-{name}-{number}")?;
    }
    writeln!(chains, "{}    }}", choose(&all))?;

    writeln!(chains, "    chain external-{name} {{")?;
    match service.policy {
        TrafficPolicy::Cluster => {
            writeln!(chains, "        jump mark-for-masquerade\n        goto service-{name}")?;
        }
        TrafficPolicy::Local => {
            writeln!(chains, "        ip saddr {PODS} goto service-{name}")?;
            write!(chains, "{}", choose(&local))?;
        }
    }
    writeln!(chains, "    }}")?;

    for (number, backend) in service.backends.iter().enumerate() {
        let (pod, target) = (backend.address, service.target);
        let mut remember = String::new();
        if service.affinity {
            writeln!(
                chains,
                "    set affinity-{name}-{number} {{ type ipv4_addr; flags dynamic,timeout; timeout 10800s; }}"
            )?;
            remember = format!("        update @affinity-{name}-{number} {{ ip saddr }}\n");
        }
        writeln!(chains, "    chain endpoint-{name}-{number} {{")?;
        writeln!(chains, "        ip saddr {pod} jump mark-for-masquerade")?;
        writeln!(chains, "{remember}        meta l4proto {protocol} dnat to {pod}:{target}\n    }}")?;
    }
    Ok(())
}
