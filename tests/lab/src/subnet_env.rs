//! The subnet file as the CNI plugin reads it, independent of the agent's own code.

use std::{fs, path::Path, str::FromStr};

use anyhow::{Context as _, Result};
use ipnetwork::{Ipv4Network, Ipv6Network};

/// What flannel tells the CNI plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubnetEnv {
    /// Network of all pods.
    pub network: Ipv4Network,
    /// This node's part of it.
    pub subnet: Ipv4Network,
    /// MTU of pods, bytes.
    pub mtu: u32,
    /// Whether flannel masquerades, so that the CNI plugin need not.
    pub ip_masq: bool,
}

impl SubnetEnv {
    /// Reads the file at `path`.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("in {}: {text:?}", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let subnet: Ipv4Network = value(text, "FLANNEL_SUBNET")?;
        Ok(Self {
            network: value(text, "FLANNEL_NETWORK")?,
            subnet: Ipv4Network::new(subnet.network(), subnet.prefix())?,
            mtu: value(text, "FLANNEL_MTU")?,
            ip_masq: value(text, "FLANNEL_IPMASQ")?,
        })
    }

    /// Writes the file at `path` as flannel does: FLANNEL_SUBNET names the subnet's first host.
    pub fn write(&self, path: &Path) -> Result<()> {
        let gateway = self.subnet.nth(1).context("a subnet of one address")?;
        let text = format!(
            "FLANNEL_NETWORK={}\nFLANNEL_SUBNET={gateway}/{}\nFLANNEL_MTU={}\nFLANNEL_IPMASQ={}\n",
            self.network,
            self.subnet.prefix(),
            self.mtu,
            self.ip_masq
        );
        fs::write(path, text).with_context(|| format!("write {}", path.display()))
    }
}

/// The IPv6 part of what flannel tells the CNI plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubnetEnvV6 {
    /// IPv6 network of all pods.
    pub network: Ipv6Network,
    /// This node's part of it.
    pub subnet: Ipv6Network,
}

impl SubnetEnvV6 {
    /// Reads the file at `path`; none where it says nothing about IPv6.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        if !text.contains("FLANNEL_IPV6_NETWORK=") {
            return Ok(None);
        }
        let subnet: Ipv6Network = value(&text, "FLANNEL_IPV6_SUBNET")?;
        let network = value(&text, "FLANNEL_IPV6_NETWORK")?;
        Ok(Some(Self { network, subnet: Ipv6Network::new(subnet.network(), subnet.prefix())? }))
    }
}

/// MTU of pods, bytes, as the file at `path` says.
pub(super) fn mtu(path: &Path) -> Result<u32> {
    value(&fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?, "FLANNEL_MTU")
}

/// Whether the file at `path` says anything about IPv4.
pub(super) fn has_v4(path: &Path) -> Result<bool> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    Ok(text.contains("FLANNEL_NETWORK="))
}

fn value<T: FromStr>(text: &str, key: &str) -> Result<T>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let found = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    found.with_context(|| format!("{key} is missing"))?.parse().with_context(|| key.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        let written = SubnetEnv {
            network: "10.244.0.0/16".parse().unwrap(),
            subnet: "10.244.5.0/24".parse().unwrap(),
            mtu: 1450,
            ip_masq: false,
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("subnet.env");
        written.write(&path).unwrap();
        assert!(fs::read_to_string(&path).unwrap().contains("FLANNEL_SUBNET=10.244.5.1/24\n"));
        assert_eq!(SubnetEnv::read(&path).unwrap(), written);
    }
}
