//! Nodes that exist as leases only.

use std::{collections::BTreeMap, net::Ipv4Addr};

use flannel_agent::values::Mac;
use flannel_lab::PREFIX;
use ipnetwork::Ipv4Network;
use rand::{Rng as _, rngs::StdRng};

/// Their leases: number of the node to the MAC of its VXLAN device.
#[derive(Debug)]
pub(super) struct Peers {
    macs: BTreeMap<u32, Mac>,
    next: u32,
}

/// One lease, written or deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    /// Whose: it decides subnet and address.
    pub(crate) number: u32,
    /// MAC the lease now names; `None` deletes it.
    pub(crate) mac: Option<Mac>,
}

impl Peers {
    /// As many as 10.0.0.0/8 has room for, less some for those that join later and the agent's own.
    pub(super) const MOST: u32 = 50_000;

    pub(super) fn new(count: u32) -> Self {
        Self { macs: (0..count).map(|number| (number, Mac::random())).collect(), next: count }
    }

    pub(super) fn len(&self) -> usize {
        self.macs.len()
    }

    /// Every lease, as a change that writes it.
    pub(super) fn all(&self) -> impl Iterator<Item = Change> {
        self.macs.iter().map(|(&number, &mac)| Change { number, mac: Some(mac) })
    }

    /// The next change: nodes join, get another device, and leave, in turn.
    pub(super) fn change(&mut self, turn: u32, random: &mut StdRng) -> Change {
        if turn.is_multiple_of(3) || self.macs.is_empty() {
            let number = self.next;
            // Numbers come round, so that a long run does not leave the network.
            self.next = (self.next + 1) % (Self::MOST + 5_000);
            return self.put(number);
        }
        let from = random.random_range(0..Self::MOST);
        let later = self.macs.range(from..).next().or_else(|| self.macs.iter().next());
        let number = later.map_or(0, |(number, _)| *number);
        if turn % 3 == 1 {
            return self.put(number);
        }
        self.macs.remove(&number);
        Change { number, mac: None }
    }

    fn put(&mut self, number: u32) -> Change {
        let mac = Mac::random();
        self.macs.insert(number, mac);
        Change { number, mac: Some(mac) }
    }
}

impl Change {
    /// Pod subnet: from 10.16.0.0 on; the agent takes one of the first.
    pub(super) fn subnet(self) -> Ipv4Network {
        let base = u32::from(Ipv4Addr::new(10, 16, 0, 0)) + (self.number << 8);
        Ipv4Network::new(base.into(), 24).unwrap_or(Ipv4Network::from(Ipv4Addr::from(base)))
    }

    /// Address of the node, which the underlay would send to over its default route.
    pub(super) fn public_ip(self) -> Ipv4Addr {
        (u32::from(Ipv4Addr::new(172, 16, 0, 1)) + self.number).into()
    }

    pub(crate) fn key(self) -> String {
        format!("{PREFIX}/subnets/{}-24", self.subnet().network())
    }

    /// JSON of the lease, as flannel writes it.
    pub(crate) fn value(self) -> Option<String> {
        let (mac, public_ip) = (self.mac?, self.public_ip());
        Some(format!(
            r#"{{"PublicIP":"{public_ip}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
        ))
    }
}
