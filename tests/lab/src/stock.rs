//! A node as stock flannel makes one, by plain `ip` and `bridge`: the judge of interoperation.

use std::{collections::BTreeMap, net::Ipv4Addr};

use anyhow::{Context as _, Result};
use flannel_agent::values::Mac;
use ipnetwork::Ipv4Network;
use serde_json::Value;

use super::{Etcd, Netns, Node, SubnetEnv, store::vxlan_lease};

/// Network identifier and, in its name, device of flannel's VXLAN.
const VNI: u32 = 1;
const DEVICE: &str = "flannel.1";

/// UDP port of the kernel's VXLAN, which flannel uses unless told otherwise.
const PORT: u16 = 8472;

/// The other end of the overlay, as its lease describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Pods behind it.
    pub subnet: Ipv4Network,
    /// Its address on the underlay.
    pub public_ip: Ipv4Addr,
    /// MAC of its VXLAN device.
    pub mac: Mac,
}

impl Peer {
    /// Reads a lease of type vxlan; `None` for other types, which flannel's vxlan ignores.
    pub fn from_lease(subnet: Ipv4Network, lease: &Value) -> Result<Option<Self>> {
        if lease["BackendType"] != "vxlan" {
            return Ok(None);
        }
        let text =
            |value: &Value| value.as_str().map(str::to_owned).with_context(|| format!("lease {lease}"));
        let public_ip = text(&lease["PublicIP"])?.parse().context("PublicIP")?;
        let mac = text(&lease["BackendData"]["VtepMAC"])?.parse().context("VtepMAC")?;
        Ok(Some(Self { subnet, public_ip, mac }))
    }
}

/// The kernel-only overlay of one node. It stays when this is dropped, as stock flannel's does.
#[derive(Debug)]
pub struct Stock {
    netns: Netns,
    own: Peer,
    peers: BTreeMap<Ipv4Network, Peer>,
}

impl Stock {
    pub(super) fn create(node: &Node) -> Result<Self> {
        // Beyond the first hundred subnets, of which agents take theirs at random.
        let third = node.number().checked_add(200).context("a lab has room for 55 stock nodes")?;
        let subnet = Ipv4Network::new(Ipv4Addr::new(10, 244, third, 0), 24)?;
        let network = Ipv4Network::new(Ipv4Addr::new(10, 244, 0, 0), 16)?;
        let own = Peer { subnet, public_ip: node.address(), mac: Mac::random() };
        let stock = Self { netns: node.netns().clone(), own, peers: BTreeMap::new() };
        stock.create_device()?;
        SubnetEnv { network, subnet, mtu: 1450, ip_masq: false }.write(&node.subnet_file())?;
        Ok(stock)
    }

    /// What stock flannel does when it starts on a node that has run before, whichever flannel it was: it looks
    /// for its own lease by its address, takes the node over, and programs every peer.
    pub(super) fn adopt_by_etcd(node: &Node, etcd: &Etcd) -> Result<Self> {
        let mut own = None;
        for (subnet, lease) in etcd.leases()? {
            let peer = Peer::from_lease(subnet, &lease)?;
            own = own.or(peer.filter(|peer| peer.public_ip == node.address()));
        }
        let own = own.with_context(|| format!("etcd has no lease of {}", node.address()))?;
        let mut stock = Self::adopt(node, own)?;
        stock.publish(etcd)?;
        stock.sync(etcd)?;
        Ok(stock)
    }

    /// Takes over a node that has the lease `own`: keeps a device that fits and makes another of one that does not,
    /// with another MAC. Nothing that it finds is removed.
    pub(super) fn adopt(node: &Node, own: Peer) -> Result<Self> {
        let mut stock = Self { netns: node.netns().clone(), own, peers: BTreeMap::new() };
        match stock.fitting_device()? {
            Some(mac) => stock.own.mac = mac,
            None => {
                // Gone already, perhaps.
                let _ = stock.netns.ip(&format!("link del {DEVICE}"));
                stock.own.mac = Mac::random();
                stock.create_device()?;
            }
        }
        let base = own.subnet.network();
        stock.netns.ip_batch(&format!("addr replace {base}/32 dev {DEVICE}\nlink set {DEVICE} up\n"))?;
        let env = node.subnet_env()?;
        SubnetEnv { subnet: own.subnet, mtu: 1450, ..env }.write(&node.subnet_file())?;
        Ok(stock)
    }

    /// MAC of the device there is, unless stock flannel would delete it: it compares these and no other
    /// attributes (pkg/backend/vxlan, `vxlanLinksIncompat`).
    fn fitting_device(&self) -> Result<Option<Mac>> {
        let Ok(listing) = self.netns.ip(&format!("-json -details link show dev {DEVICE}")) else {
            return Ok(None);
        };
        let links: Value = serde_json::from_str(&listing).context("ip -json link")?;
        let link = &links[0];
        let info = &link["linkinfo"];
        let data = &info["info_data"];
        let fits = info["info_kind"] == "vxlan"
            && data["id"] == VNI
            && data["port"] == PORT
            && data["local"] == self.own.public_ip.to_string()
            && data["link"] == "eth0"
            && data["group"].is_null()
            && data["l2miss"] != true
            && data["gbp"] != true;
        let mac = link["address"].as_str().context("a device without a MAC")?.parse()?;
        Ok(fits.then_some(mac))
    }

    fn create_device(&self) -> Result<()> {
        let Peer { subnet, public_ip, mac } = self.own;
        self.netns.ip_batch(&format!(
            "link add {DEVICE} address {mac} type vxlan id {VNI} local {public_ip} dev eth0 \
             nolearning dstport {PORT}\n\
             addr add {}/32 dev {DEVICE}\n\
             link set {DEVICE} up\n",
            subnet.network()
        ))
    }

    /// How other nodes reach this one.
    pub fn own(&self) -> Peer {
        self.own
    }

    /// Writes its lease.
    pub fn publish(&self, etcd: &Etcd) -> Result<()> {
        etcd.put_lease(self.own.subnet, &vxlan_lease(self.own.public_ip, VNI, self.own.mac))
    }

    /// Writes its lease into etcd's v2 store as flannel 0.11 does, which knows neither IPv6 nor VNI in it.
    pub fn publish_v2(&self, etcd: &Etcd) -> Result<()> {
        let Peer { subnet, public_ip, mac } = self.own;
        let lease = format!(
            r#"{{"PublicIP":"{public_ip}","BackendType":"vxlan","BackendData":{{"VtepMAC":"{mac}"}}}}"#
        );
        etcd.put_lease_v2(subnet, &lease)
    }

    /// Deletes its lease, as when it expires.
    pub fn withdraw(&self, etcd: &Etcd) -> Result<()> {
        etcd.delete_lease(self.own.subnet)
    }

    /// Programs a peer, or its new MAC or address.
    pub fn add_peer(&mut self, peer: Peer) -> Result<()> {
        if let Some(old) = self.peers.get(&peer.subnet)
            && old.mac != peer.mac
        {
            self.netns.bridge(&format!("fdb del {} dev {DEVICE} self", old.mac))?;
        }
        let Peer { subnet, public_ip, mac } = peer;
        let base = subnet.network();
        self.netns.ip(&format!("neigh replace {base} lladdr {mac} dev {DEVICE} nud permanent"))?;
        self.netns.bridge(&format!("fdb replace {mac} dev {DEVICE} dst {public_ip} self permanent"))?;
        self.netns.ip(&format!("route replace {subnet} via {base} dev {DEVICE} onlink"))?;
        self.peers.insert(subnet, peer);
        Ok(())
    }

    /// Takes a peer out again; nothing happens if it is not there.
    pub fn remove_peer(&mut self, subnet: Ipv4Network) -> Result<()> {
        let Some(peer) = self.peers.remove(&subnet) else { return Ok(()) };
        let base = subnet.network();
        self.netns.ip(&format!("route del {subnet} via {base} dev {DEVICE} onlink"))?;
        self.netns.bridge(&format!("fdb del {} dev {DEVICE} self", peer.mac))?;
        self.netns.ip(&format!("neigh del {base} lladdr {} dev {DEVICE}", peer.mac)).map(drop)
    }

    /// Does once what stock flannel's watch does: brings the peers to what is leased now.
    pub fn sync(&mut self, etcd: &Etcd) -> Result<()> {
        self.sync_to(etcd.leases()?)
    }

    /// The same by etcd's v2 store.
    pub fn sync_v2(&mut self, etcd: &Etcd) -> Result<()> {
        self.sync_to(etcd.leases_v2()?)
    }

    fn sync_to(&mut self, leases: BTreeMap<Ipv4Network, Value>) -> Result<()> {
        let mut leased = BTreeMap::new();
        for (subnet, lease) in leases {
            if let Some(peer) = Peer::from_lease(subnet, &lease)? {
                leased.insert(subnet, peer);
            }
        }
        leased.remove(&self.own.subnet);
        let gone: Vec<Ipv4Network> =
            self.peers.keys().filter(|subnet| !leased.contains_key(subnet)).copied().collect();
        for subnet in gone {
            self.remove_peer(subnet)?;
        }
        for (subnet, peer) in leased {
            if self.peers.get(&subnet) != Some(&peer) {
                self.add_peer(peer)?;
            }
        }
        Ok(())
    }

    /// Peers programmed now.
    pub fn peers(&self) -> impl Iterator<Item = &Peer> {
        self.peers.values()
    }

    /// Makes the VXLAN device anew, as flannel does after it was deleted or its configuration changed: with
    /// another MAC. Not yet published.
    pub fn change_mac(&mut self) -> Result<()> {
        self.netns.ip(&format!("link del {DEVICE}"))?;
        self.own.mac = Mac::random();
        self.create_again()
    }

    /// Moves the node to another address of the underlay, as a new DHCP lease would; not yet published.
    pub fn change_public_ip(&mut self, address: Ipv4Addr) -> Result<()> {
        self.netns.ip(&format!("link del {DEVICE}"))?;
        // The old address takes the default route with it, and a second one beside it would go too.
        self.netns.ip_batch(&format!(
            "addr del {}/24 dev eth0\n\
             addr add {address}/24 dev eth0\n\
             route replace default via {} dev eth0\n",
            self.own.public_ip,
            super::UNDERLAY_ADDRESS
        ))?;
        self.own.public_ip = address;
        self.create_again()
    }

    fn create_again(&mut self) -> Result<()> {
        self.create_device()?;
        for peer in std::mem::take(&mut self.peers).into_values() {
            self.add_peer(peer)?;
        }
        Ok(())
    }
}

/// Makes every node a peer of every other, without etcd.
pub fn join(nodes: &mut [&mut Stock]) -> Result<()> {
    let all: Vec<Peer> = nodes.iter().map(|node| node.own).collect();
    for node in nodes {
        let own = node.own;
        for peer in all.iter().filter(|peer| **peer != own) {
            node.add_peer(*peer)?;
        }
    }
    Ok(())
}
