//! The content of a lease file, read and checked as a whole.
//!
//! ```yaml
//! network:                        # what etcd holds under <prefix>/config
//!   Network: 10.244.0.0/16
//!   Backend: { Type: vxlan }
//! nodes:
//! - name: node1
//!   publicIP: 192.0.2.1
//!   subnet: 10.244.1.0/24
//!   mac: 0e:00:00:00:00:01        # of the VXLAN device; by default it follows from the subnet
//! ```
//!
//! With IPv6 a node also has `publicIPv6`, `ipv6Subnet`, and perhaps `macV6`.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnetwork::{Ipv4Network, Ipv6Network};
use serde::Deserialize;
use serde_json::Value;

use crate::{
    backend::Configured,
    config::{ConfigError, NetworkConfig, cidr_v4, cidr_v6},
    lease::{Lease, LeaseAttrs, LeaseSubnet, wire::RawJson},
    values::{Family, Mac},
};

/// A network and its nodes.
#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    /// The network, validated.
    pub config: NetworkConfig,
    /// The same as JSON.
    pub network: String,
    /// The nodes, in the order of the file.
    pub nodes: Vec<ClusterNode>,
}

/// A node.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterNode {
    /// Its name.
    pub name: String,
    /// What it holds.
    pub lease: Lease,
}

/// What is wrong with a lease file.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// Neither YAML nor JSON, or not of this form.
    #[error("{0}")]
    Syntax(String),
    /// The network.
    #[error("network: {0}")]
    Network(#[from] ConfigError),
    /// A field of a node.
    #[error("node {node}: {field}: {problem}")]
    Node {
        /// Its name.
        node: String,
        /// The field.
        field: &'static str,
        /// What is wrong, and what to write.
        problem: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    network: Value,
    nodes: Vec<NodeText>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeText {
    name: String,
    #[serde(rename = "publicIP", default)]
    public_ip: Option<String>,
    #[serde(rename = "publicIPv6", default)]
    public_ipv6: Option<String>,
    #[serde(default)]
    subnet: Option<String>,
    #[serde(rename = "ipv6Subnet", default)]
    ipv6_subnet: Option<String>,
    #[serde(default)]
    mac: Option<Mac>,
    #[serde(rename = "macV6", default)]
    mac_v6: Option<Mac>,
    /// What a lease of the node says, where it is not made of the MAC.
    #[serde(rename = "backendData", default)]
    backend_data: Option<Value>,
    #[serde(rename = "backendV6Data", default)]
    backend_v6_data: Option<Value>,
}

impl Cluster {
    /// Reads YAML, and so JSON. Unknown fields are refused: they are misspelt ones.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn parse(text: &str) -> Result<Self, ClusterError> {
        let Text { network, nodes } =
            serde_saphyr::from_str(text).map_err(|error| ClusterError::Syntax(error.to_string()))?;
        let network = network.to_string();
        let config = NetworkConfig::parse(network.as_bytes())?;
        let nodes = nodes.into_iter().map(|node| node.check(&config)).collect::<Result<Vec<_>, _>>()?;
        let cluster = Self { config, network, nodes };
        cluster.check_distinct()?;
        Ok(cluster)
    }

    /// The node of this name.
    pub fn node(&self, name: &str) -> Option<&ClusterNode> {
        self.nodes.iter().find(|node| node.name == name)
    }

    /// No two nodes share what tells them apart.
    fn check_distinct(&self) -> Result<(), ClusterError> {
        let mut held: BTreeMap<(&'static str, String), &str> = BTreeMap::new();
        for node in &self.nodes {
            let attrs = &node.lease.attrs;
            // Data of other kinds may be the same.
            let by_mac = attrs.backend_type == "vxlan";
            let mac = |data: &Option<RawJson>| data.as_ref().map(|data| data.as_str().to_owned());
            let marks = [
                ("name", Some(node.name.clone())),
                (
                    "publicIP",
                    Some(attrs.public_ip).filter(|ip| !ip.is_unspecified()).map(|ip| ip.to_string()),
                ),
                ("publicIPv6", attrs.public_ipv6.map(|ip| ip.to_string())),
                ("mac", mac(&attrs.backend_data).filter(|_| by_mac)),
                ("macV6", mac(&attrs.backend_v6_data).filter(|_| by_mac)),
            ];
            for (field, value) in marks.into_iter().filter_map(|(field, value)| Some((field, value?))) {
                if let Some(other) = held.insert((field, value), &node.name) {
                    return Err(node.wrong(field, format!("node {other} has the same; each needs its own")));
                }
            }
        }
        let v4 = self.nodes.iter().filter_map(|node| {
            let subnet = node.lease.subnet.v4?;
            Some((u128::from(u32::from(subnet.network())), u128::from(u32::from(subnet.broadcast())), node))
        });
        let v6 = self.nodes.iter().filter_map(|node| {
            let subnet = node.lease.subnet.v6?;
            Some((u128::from(subnet.network()), u128::from(subnet.broadcast()), node))
        });
        check_apart("subnet", v4.collect())?;
        check_apart("ipv6Subnet", v6.collect())
    }
}

/// No two of the ranges (first and last address) overlap.
fn check_apart(field: &'static str, mut ranges: Vec<(u128, u128, &ClusterNode)>) -> Result<(), ClusterError> {
    ranges.sort_by_key(|(first, ..)| *first);
    for pair in ranges.windows(2) {
        if let [(_, last, before), (first, _, node)] = pair
            && first <= last
        {
            return Err(node.wrong(field, format!("overlaps that of node {}", before.name)));
        }
    }
    Ok(())
}

impl ClusterNode {
    /// Its addresses on the underlay.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let attrs = &self.lease.attrs;
        [Some(IpAddr::V4(attrs.public_ip)), attrs.public_ipv6.map(IpAddr::V6)].into_iter().flatten()
    }

    fn wrong(&self, field: &'static str, problem: impl Into<String>) -> ClusterError {
        ClusterError::Node { node: self.name.clone(), field, problem: problem.into() }
    }
}

impl NodeText {
    fn check(self, config: &NetworkConfig) -> Result<ClusterNode, ClusterError> {
        let wrong = |field, problem: String| ClusterError::Node { node: self.name.clone(), field, problem };
        if self.name.is_empty() {
            return Err(wrong("name", "empty; a node needs one".to_owned()));
        }
        let address = |field, text: &Option<String>, example| match text {
            Some(text) => match text.parse::<IpAddr>() {
                Ok(address) if !address.is_unspecified() => Ok(Some(address)),
                _ => Err(wrong(field, format!("{text:?} is no address, as {example}"))),
            },
            None => Ok(None),
        };
        let public_ip = match address("publicIP", &self.public_ip, "192.0.2.1")? {
            Some(IpAddr::V4(address)) => Some(address),
            Some(IpAddr::V6(address)) => {
                return Err(wrong("publicIP", format!("{address} belongs in publicIPv6")));
            }
            None => None,
        };
        let public_ipv6 = match address("publicIPv6", &self.public_ipv6, "2001:db8::1")? {
            Some(IpAddr::V6(address)) => Some(address),
            Some(IpAddr::V4(address)) => {
                return Err(wrong("publicIPv6", format!("{address} belongs in publicIP")));
            }
            None => None,
        };
        let mut subnet = LeaseSubnet { v4: None, v6: None };
        match (&self.subnet, config.network_v4()) {
            (Some(text), Some(network)) => {
                let found = cidr_v4(text).filter(|found| found.to_string() == *text);
                let found = found
                    .ok_or_else(|| wrong("subnet", format!("{text:?} is no subnet, as 10.244.1.0/24")))?;
                if !found.is_subnet_of(network) {
                    return Err(wrong("subnet", format!("{found} is not in Network {network}")));
                }
                if public_ip.is_none() {
                    return Err(wrong("publicIP", "missing; other nodes need it, as 192.0.2.1".to_owned()));
                }
                subnet.v4 = Some(found);
            }
            (None, Some(_)) => {
                return Err(wrong("subnet", "missing; a node needs one, as 10.244.1.0/24".to_owned()));
            }
            (Some(_), None) => return Err(wrong("subnet", "the network has no IPv4".to_owned())),
            (None, None) => {}
        }
        match (&self.ipv6_subnet, config.network_v6()) {
            (Some(text), Some(network)) => {
                let written = text.parse::<Ipv6Network>();
                let found = cidr_v6(text).filter(|found| written.is_ok_and(|written| written == *found));
                let found = found.ok_or_else(|| {
                    wrong("ipv6Subnet", format!("{text:?} is no subnet, as fd00:10:1::/64"))
                })?;
                if !found.is_subnet_of(network) {
                    return Err(wrong("ipv6Subnet", format!("{found} is not in IPv6Network {network}")));
                }
                if public_ipv6.is_none() {
                    return Err(wrong(
                        "publicIPv6",
                        "missing; other nodes need it, as 2001:db8::1".to_owned(),
                    ));
                }
                subnet.v6 = Some(found);
            }
            (None, Some(_)) => {
                return Err(wrong("ipv6Subnet", "missing; a node needs one, as fd00:10:1::/64".to_owned()));
            }
            (Some(_), None) => return Err(wrong("ipv6Subnet", "the network has no IPv6".to_owned())),
            (None, None) => {}
        }
        for (field, mac) in [("mac", self.mac), ("macV6", self.mac_v6)] {
            if let Some(mac) = mac.filter(|mac| !mac.is_of_one_device()) {
                return Err(wrong(field, format!("{mac} is no address of one device, as 0e:00:00:00:00:01")));
            }
        }
        let addresses = (subnet.v4.and(public_ip), subnet.v6.and(public_ipv6));
        let attrs = self.attrs(subnet, addresses, config);
        let node = Some(self.name.as_str().into());
        Ok(ClusterNode {
            name: self.name,
            lease: Lease { subnet, attrs, expiration: None, made: None, node },
        })
    }

    fn attrs(
        &self,
        subnet: LeaseSubnet,
        (public_ip, public_ipv6): (Option<Ipv4Addr>, Option<Ipv6Addr>),
        config: &NetworkConfig,
    ) -> LeaseAttrs {
        let public_ip = public_ip.unwrap_or(Ipv4Addr::UNSPECIFIED);
        let mut attrs = LeaseAttrs::plain_v4(public_ip, config.backend_kind());
        if let Ok(Configured(options)) = &config.backend {
            let mac = |subnet| self.mac.unwrap_or_else(|| mac_of_v4(subnet));
            attrs.backend_data = subnet.v4.and_then(|subnet| options.data_of(Family::V4, Some(mac(subnet))));
            let mac = |subnet| self.mac_v6.unwrap_or_else(|| mac_of_v6(subnet));
            attrs.backend_v6_data =
                subnet.v6.and_then(|subnet| options.data_of(Family::V6, Some(mac(subnet))));
        }
        let given =
            |data: &Option<Value>| data.as_ref().and_then(|data| RawJson::parse(&data.to_string()).ok());
        attrs.backend_data = given(&self.backend_data).or(attrs.backend_data);
        attrs.backend_v6_data = given(&self.backend_v6_data).or(attrs.backend_v6_data);
        attrs.public_ipv6 = public_ipv6;
        attrs
    }
}

/// The MAC of a node's VXLAN device where the file gives none: locally administered, and as distinct as the subnets,
/// whose octets can be read in it: `0e:04:` and those of the IPv4 subnet.
pub fn mac_of_v4(subnet: Ipv4Network) -> Mac {
    let [a, b, c, d] = subnet.network().octets();
    Mac([0x0e, 0x04, a, b, c, d])
}

/// The same for the device of IPv6: `0e:06:` and the last four octets that the prefix reaches into. Subnets of one
/// network with the same four would be found, and need `macV6`.
pub fn mac_of_v6(subnet: Ipv6Network) -> Mac {
    let spare = u32::from(128 - subnet.prefix()) / 8 * 8;
    let last = u128::from(subnet.network()).checked_shr(spare).unwrap_or(0);
    let [.., a, b, c, d] = last.to_be_bytes();
    Mac([0x0e, 0x06, a, b, c, d])
}
