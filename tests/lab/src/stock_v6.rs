//! The IPv6 part of a node as stock flannel makes one, beside [`Stock`].

use std::net::Ipv6Addr;

use anyhow::{Context as _, Result};
use flannel_agent::values::Mac;
use ipnetwork::Ipv6Network;

use super::{Etcd, Netns, Node, PREFIX, Stock};

const VNI: u32 = 1;
const DEVICE: &str = "flannel-v6.1";
const PORT: u16 = 8472;

/// The kernel-only IPv6 overlay of one node. It stays when this is dropped, as stock flannel's does.
#[derive(Debug)]
pub struct StockV6 {
    netns: Netns,
    subnet: Ipv6Network,
    address: Ipv6Addr,
    mac: Mac,
}

impl StockV6 {
    /// On a node that [`Stock`] has made one of IPv4.
    pub(super) fn create(node: &Node) -> Result<Self> {
        let subnet = Ipv6Network::new(
            Ipv6Addr::new(0xfd00, 0x10, 0x244, 0xf000 + u16::from(node.number()), 0, 0, 0, 0),
            64,
        )?;
        let stock =
            Self { netns: node.netns().clone(), subnet, address: node.address_v6(), mac: Mac::random() };
        stock.netns.ip_batch(&format!(
            "link add {DEVICE} address {} type vxlan id {VNI} local {} dev eth0 nolearning dstport {PORT}\n\
             addr add {}/128 dev {DEVICE}\n\
             link set {DEVICE} up\n",
            stock.mac,
            stock.address,
            subnet.network()
        ))?;
        // Upstream writes both families in one file.
        let (file, host) = (node.subnet_file(), Ipv6Addr::from(u128::from(subnet.network()) + 1));
        let text = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        let both = text.replace(
            "FLANNEL_MTU",
            &format!(
                "FLANNEL_IPV6_NETWORK={}\nFLANNEL_IPV6_SUBNET={host}/64\nFLANNEL_MTU",
                super::NETWORK_V6
            ),
        );
        std::fs::write(&file, both).with_context(|| format!("write {}", file.display()))?;
        Ok(stock)
    }

    /// Writes the lease of a node with both families, `v4` being the other.
    pub fn publish(&self, v4: &Stock, etcd: &Etcd) -> Result<()> {
        let own = v4.own();
        let key = format!(
            "{PREFIX}/subnets/{}-{}&{}-{}",
            own.subnet.network(),
            own.subnet.prefix(),
            self.subnet.network(),
            self.subnet.prefix()
        );
        let attrs = format!(
            r#"{{"PublicIP":"{}","PublicIPv6":"{}","BackendType":"vxlan","BackendData":{{"VNI":{VNI},"VtepMAC":"{}"}},"BackendV6Data":{{"VNI":{VNI},"VtepMAC":"{}"}}}}"#,
            own.public_ip, self.address, own.mac, self.mac
        );
        etcd.put_lease_at(&key, &attrs)
    }

    /// Programs every peer with IPv6 that is leased now.
    pub fn sync(&self, etcd: &Etcd) -> Result<()> {
        for (subnet, lease) in etcd.leases_v6()? {
            if subnet == self.subnet {
                continue;
            }
            let text = |value: &serde_json::Value| {
                value.as_str().map(str::to_owned).with_context(|| format!("lease {lease}"))
            };
            self.add_peer(subnet, &text(&lease["PublicIPv6"])?, &text(&lease["BackendV6Data"]["VtepMAC"])?)?;
        }
        Ok(())
    }

    /// Programs `peer`, without etcd.
    pub fn join(&self, peer: &Self) -> Result<()> {
        self.add_peer(peer.subnet, &peer.address.to_string(), &peer.mac.to_string())
    }

    fn add_peer(&self, subnet: Ipv6Network, address: &str, mac: &str) -> Result<()> {
        let base = subnet.network();
        self.netns.ip(&format!("-6 neigh replace {base} lladdr {mac} dev {DEVICE} nud permanent"))?;
        self.netns.bridge(&format!("fdb replace {mac} dev {DEVICE} dst {address} self permanent"))?;
        self.netns.ip(&format!("-6 route replace {subnet} via {base} dev {DEVICE} onlink")).map(drop)
    }
}
