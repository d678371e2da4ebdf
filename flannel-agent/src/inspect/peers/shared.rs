//! Leases that have in common what no two nodes can have: whoever sends to one reaches the other.

use std::{collections::BTreeMap, fmt};

use ipnetwork::IpNetwork;
use serde::Serialize;

use crate::{
    control::snapshot::{Backend, Peer},
    values::Family,
};

/// What a lease has in common with others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Shared {
    /// The field of the lease: `PublicIP`, `PublicIPv6`, `VtepMAC`.
    pub field: &'static str,
    /// What stands there.
    pub value: String,
    /// The pod subnets of the others.
    pub with: Vec<IpNetwork>,
    /// It is this node's own, too: that of this device.
    pub own: Option<String>,
}

impl Shared {
    /// What to do about it.
    pub fn remedy(&self) -> &'static str {
        match self.field {
            "VtepMAC" => {
                "two nodes are clones, or one has two leases: of a clone delete the lease and the VXLAN device (ip link \
                 delete), and restart its agent, which makes another MAC; else delete the lease that nobody renews"
            }
            _ => {
                "two nodes publish one address, or one has an old lease: where a node has it on no interface, give that node \
                 its own (--public-ip, --iface); else delete the lease that nobody renews"
            }
        }
    }
}

impl fmt::Display for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { field, value, with, own } = self;
        let others = with.iter().map(|subnet| format!("lease {subnet}"));
        let own = own.iter().map(|device| format!("this node's own {device}"));
        let all = others.chain(own).collect::<Vec<_>>().join(", ");
        write!(f, "its {field} {value} is also that of {all}")
    }
}

/// What the lease of each peer has in common with others, by its pod subnet.
pub(super) fn shared(peers: &[Peer], backend: Option<&Backend>) -> BTreeMap<IpNetwork, Vec<Shared>> {
    let mut holders = BTreeMap::<(&'static str, Family, String), Vec<IpNetwork>>::new();
    for peer in peers {
        let family = Family::of_network(peer.subnet);
        let address = if peer.subnet.is_ipv4() { "PublicIP" } else { "PublicIPv6" };
        let fields = [(address, Some(peer.public_ip.to_string())), ("VtepMAC", peer.mac.clone())];
        for (field, value) in fields {
            if let Some(value) = value {
                holders.entry((field, family, value)).or_default().push(peer.subnet);
            }
        }
    }
    let mut found = BTreeMap::<IpNetwork, Vec<Shared>>::new();
    for ((field, _, value), subnets) in holders {
        let devices = backend.into_iter().flat_map(|backend| &backend.devices);
        let own = devices
            .filter(|_| field == "VtepMAC")
            .find(|device| device.mac.as_ref() == Some(&value))
            .map(|device| device.name.clone());
        if subnets.len() < 2 && own.is_none() {
            continue;
        }
        for subnet in &subnets {
            let with = subnets.iter().copied().filter(|other| other != subnet).collect();
            let shared = Shared { field, value: value.clone(), with, own: own.clone() };
            found.entry(*subnet).or_default().push(shared);
        }
    }
    found
}
