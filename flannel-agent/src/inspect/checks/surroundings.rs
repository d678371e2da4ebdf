//! What is read of the node besides what flannel makes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use ipnetwork::IpNetwork;

use super::{Firewall, Nft};
use crate::{
    host::{
        clock::{Clock, clock},
        sysctl,
    },
    inspect::Kernel,
    netlink::{IpsecTable, Netlink, NetlinkError},
    values::Family,
};

/// Of the node, what may be in the way.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// `net.ipv4.ip_forward`, `net.ipv6.conf.all.forwarding`: by family.
    pub forwarding: BTreeMap<Family, bool>,
    /// The same of each interface that is no port of a bridge: `net.ipv4.conf.<interface>.forwarding`, and
    /// `net.ipv6.conf.<interface>.force_forwarding`, where the kernel has it.
    pub forwarding_of: BTreeMap<Family, BTreeMap<String, bool>>,
    /// The host sides of pods' veths, by index.
    pub pod_links: BTreeSet<u32>,
    /// Where pods' packets come in, by index: bridges with addresses of this node's subnets, and pods' veths that are no
    /// ports of one.
    pub gateways: BTreeSet<u32>,
    /// `rp_filter` in force, by interface: the larger of the interface's and that of all.
    pub rp_filter: BTreeMap<String, u8>,
    /// Entries of connection tracking and the most there may be; absent where it is not loaded.
    pub conntrack: Option<(u64, u64)>,
    /// Packets that came with a wrong checksum, by protocol: since the node started, or since [`Surroundings::read`].
    pub bad_checksums: BTreeMap<String, u64>,
    /// Bridged packets go through iptables; absent where the module is not loaded.
    pub bridge_netfilter: Option<bool>,
    /// Bridge `cni0`: its addresses and MTU.
    pub bridge: Option<(Vec<IpNetwork>, u32)>,
    /// CNI configurations, in the order of their names, which decides.
    pub cni_configs: Vec<String>,
    /// What iptables holds, by family.
    pub firewalls: BTreeMap<Family, Firewall>,
    /// What nftables holds.
    pub nft: Option<Nft>,
    /// The kernel's IPsec policies; absent where they cannot be read.
    pub ipsec: Option<IpsecTable>,
    /// The clock.
    pub clock: Option<Clock>,
    /// Filters, programs and chains of others at the external interface.
    pub first_at_external: Vec<String>,
}

/// Where container runtimes look for CNI configurations.
const CNI_CONFIGS: &str = "/etc/cni/net.d";

impl Surroundings {
    /// Reads them, in this network namespace, for a node of these families, whose pods are in `subnets` and whose external
    /// interface is `external`.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub async fn read(
        netlink: &mut Netlink,
        kernel: &Kernel,
        families: &[Family],
        subnets: &[IpNetwork],
        external: Option<u32>,
    ) -> Result<Self, NetlinkError> {
        let number = |name: &str| sysctl::NET.read(name).ok().and_then(|text| text.parse::<u64>().ok());
        let mut found = Self::default();
        for family in families {
            let switch = match family {
                Family::V4 => "ipv4/ip_forward",
                Family::V6 => "ipv6/conf/all/forwarding",
            };
            if let Some(value) = number(switch) {
                found.forwarding.insert(*family, value != 0);
            }
            if let Some(firewall) = Firewall::read(*family) {
                found.firewalls.insert(*family, firewall);
            }
        }
        for link in kernel.links.iter().filter(|link| link.master.is_none()) {
            for family in families {
                let setting = match family {
                    Family::V4 => format!("ipv4/conf/{}/forwarding", link.name),
                    Family::V6 => format!("ipv6/conf/{}/force_forwarding", link.name),
                };
                if let Some(value) = number(&setting) {
                    let of_family = found.forwarding_of.entry(*family).or_default();
                    of_family.insert(link.name.clone(), value != 0);
                }
            }
        }
        found.pod_links = netlink.pod_links(subnets, &kernel.links).await?;
        found.gateways = netlink.pod_bridges(subnets, &kernel.links).await?;
        let pods = kernel.links.iter().filter(|link| found.pod_links.contains(&link.index));
        found.gateways.extend(pods.filter(|link| link.master.is_none()).map(|link| link.index));
        let all = number("ipv4/conf/all/rp_filter").unwrap_or_default();
        for link in kernel.links.iter().filter(|link| link.master.is_none()) {
            let own = number(&format!("ipv4/conf/{}/rp_filter", link.name)).unwrap_or_default();
            found.rp_filter.insert(link.name.clone(), u8::try_from(all.max(own)).unwrap_or(u8::MAX));
        }
        let tracked = number("netfilter/nf_conntrack_count").zip(number("netfilter/nf_conntrack_max"));
        found.conntrack = tracked;
        found.bridge_netfilter = number("bridge/bridge-nf-call-iptables").map(|value| value != 0);
        found.bad_checksums = bad_checksums(&fs::read_to_string("/proc/net/snmp").unwrap_or_default());
        if let Some(bridge) = kernel.links.iter().find(|link| link.name == "cni0") {
            let mut addresses = Vec::new();
            for family in families {
                let held = netlink.addresses(*family, Some(bridge.index)).await?;
                addresses.extend(held.into_iter().map(|address| address.network));
            }
            found.bridge = Some((addresses, bridge.mtu));
        }
        if let Some(link) = kernel.links.iter().find(|link| Some(link.index) == external) {
            found.first_at_external = Self::first_at(link)?;
        }
        found.cni_configs = cni_configs(Path::new(CNI_CONFIGS));
        found.nft = Nft::read();
        found.ipsec = IpsecTable::read().await.ok();
        found.clock = clock();
        Ok(found)
    }
}

impl Surroundings {
    /// Lets [`Self::bad_checksums`] be those since it was read.
    pub fn count_bad_checksums(&mut self) {
        let now = bad_checksums(&fs::read_to_string("/proc/net/snmp").unwrap_or_default());
        let before = std::mem::take(&mut self.bad_checksums);
        let grown = |(protocol, count): (String, u64)| {
            let count = count.saturating_sub(before.get(&protocol).copied().unwrap_or_default());
            (protocol, count)
        };
        self.bad_checksums = now.into_iter().map(grown).collect();
    }
}

/// `InCsumErrors` of each protocol in the text of /proc/net/snmp.
fn bad_checksums(text: &str) -> BTreeMap<String, u64> {
    let mut found = BTreeMap::new();
    let lines: Vec<&str> = text.lines().collect();
    for pair in lines.chunks(2) {
        let [names, values] = pair else { continue };
        let at = names.split_whitespace().position(|name| name == "InCsumErrors");
        let value = at.and_then(|at| values.split_whitespace().nth(at)?.parse().ok());
        if let Some(value) = value {
            let protocol = names.split(':').next().unwrap_or_default();
            found.insert(protocol.to_uppercase(), value);
        }
    }
    found
}

fn cni_configs(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| [".conf", ".conflist", ".json"].iter().any(|end| name.ends_with(end)))
        .collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_checksums_are_read_by_protocol() {
        let text = "Icmp: InMsgs InErrors InCsumErrors\nIcmp: 5 4 3\nTcp: InSegs InErrs InCsumErrors\nTcp: 1 2 9\nUdp: X\n";
        let found = bad_checksums(text);
        assert_eq!(found, BTreeMap::from([("ICMP".to_owned(), 3), ("TCP".to_owned(), 9)]));
        assert!(bad_checksums("garbage").is_empty());
    }
}
