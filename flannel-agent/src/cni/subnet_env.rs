//! `subnet.env` as the plugin needs it: all of it, or an error.

use std::{fs, io, path::Path};

use ipnetwork::IpNetwork;

use super::error::{CniError, Code};
use crate::{
    config::{cidr_v4, cidr_v6},
    subnet_file::assignment,
};

/// What the daemon says about this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubnetEnv {
    /// `FLANNEL_NETWORK`, then `FLANNEL_IPV6_NETWORK`; each may be a list.
    pub networks: Vec<IpNetwork>,
    /// `FLANNEL_SUBNET`, then `FLANNEL_IPV6_SUBNET`, host bits zero.
    pub subnets: Vec<IpNetwork>,
    /// `FLANNEL_MTU`, bytes.
    pub mtu: u32,
    /// `FLANNEL_IPMASQ`: whether the daemon masquerades, so that nobody else need.
    pub ip_masq: bool,
}

impl SubnetEnv {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// That it is absent, which passes with the daemon's start, or what in it cannot be.
    pub fn read(path: &Path) -> Result<Self, CniError> {
        let text = fs::read(path).map_err(|error| {
            let code = if error.kind() == io::ErrorKind::NotFound { Code::TryAgainLater } else { Code::Io };
            failed(code, path, &error.to_string())
        })?;
        Self::parse(&String::from_utf8_lossy(&text)).map_err(|reason| failed(Code::Internal, path, &reason))
    }

    /// Reads the file's text.
    ///
    /// # Errors
    /// What is missing or wrong, in one sentence.
    pub fn parse(text: &str) -> Result<Self, String> {
        let value = |name: &str| text.lines().filter_map(assignment).rfind(|(key, _)| *key == name);
        let of_family = |name: &str, parse: fn(&str) -> Option<IpNetwork>| {
            let entries = value(name).into_iter().flat_map(|(_, value)| value.split(',').map(str::trim));
            entries
                .map(|entry| {
                    parse(entry).ok_or_else(|| format!("{name}={entry} is not a network, as 10.244.1.1/24"))
                })
                .collect::<Result<Vec<_>, _>>()
        };
        let v4 = |text: &str| cidr_v4(text).map(IpNetwork::V4);
        let v6 = |text: &str| cidr_v6(text).map(IpNetwork::V6);
        let one = |name: &str, found: Vec<IpNetwork>| match found.len() {
            0 | 1 => Ok(found),
            _ => Err(format!("{name} is more than one network")),
        };
        // One that is listed twice is one route of a pod: the kernel takes no second one.
        let both = |a: Vec<IpNetwork>, b: Vec<IpNetwork>| {
            let mut all = Vec::with_capacity(a.len() + b.len());
            for network in a.into_iter().chain(b) {
                if !all.contains(&network) {
                    all.push(network);
                }
            }
            all
        };
        let networks = both(of_family("FLANNEL_NETWORK", v4)?, of_family("FLANNEL_IPV6_NETWORK", v6)?);
        let subnets = both(
            one("FLANNEL_SUBNET", of_family("FLANNEL_SUBNET", v4)?)?,
            one("FLANNEL_IPV6_SUBNET", of_family("FLANNEL_IPV6_SUBNET", v6)?)?,
        );
        let (mtu, ip_masq) = (value("FLANNEL_MTU"), value("FLANNEL_IPMASQ"));
        let mut missing = Vec::new();
        if networks.is_empty() {
            missing.extend(["FLANNEL_NETWORK", "FLANNEL_IPV6_NETWORK"]);
        }
        if subnets.is_empty() {
            missing.extend(["FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"]);
        }
        missing.extend(mtu.is_none().then_some("FLANNEL_MTU"));
        missing.extend(ip_masq.is_none().then_some("FLANNEL_IPMASQ"));
        let (Some((_, mtu)), Some((_, ip_masq)), []) = (mtu, ip_masq, missing.as_slice()) else {
            return Err(format!("it is missing {}", missing.join(", ")));
        };
        let mtu = mtu.parse().map_err(|_| format!("FLANNEL_MTU={mtu} is not a number of bytes"))?;
        Ok(Self { networks, subnets, mtu, ip_masq: ip_masq == "true" })
    }
}

fn failed(code: Code, path: &Path, reason: &str) -> CniError {
    CniError::new(code, format!("failed to load flannel 'subnet.env' file: {}: {reason}", path.display()))
        .detailed("flanneld writes it when it is ready: look at its log on this node")
}
