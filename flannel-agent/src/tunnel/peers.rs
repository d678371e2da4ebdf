//! Which node each packet goes to, and which comes from where it says.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddrV4},
};

use ipnetwork::Ipv4Network;

/// All other nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peers {
    /// For each length of prefix, the longest first, the node of each network.
    by_length: BTreeMap<Reverse<u8>, BTreeMap<u32, Ipv4Addr>>,
    /// Public address and subnet of each.
    by_address: BTreeSet<(Ipv4Addr, Ipv4Network)>,
    /// UDP port at which all of them receive, host order.
    port: u16,
}

impl Peers {
    /// Nobody yet; all will receive at the UDP port `port`.
    pub fn new(port: u16) -> Self {
        Self { port, ..Self::default() }
    }

    /// All receive at `port` from now on.
    pub fn set_port(&mut self, port: u16) {
        self.port = port;
    }

    /// The node at `public_ip` has the pods of `subnet`, whoever had them before.
    pub fn insert(&mut self, subnet: Ipv4Network, public_ip: Ipv4Addr) {
        self.remove(subnet);
        let networks = self.by_length.entry(Reverse(subnet.prefix())).or_default();
        networks.insert(subnet.network().into(), public_ip);
        self.by_address.insert((public_ip, subnet));
    }

    /// Nobody has the pods of `subnet`.
    pub fn remove(&mut self, subnet: Ipv4Network) {
        let length = Reverse(subnet.prefix());
        let Some(networks) = self.by_length.get_mut(&length) else { return };
        if let Some(public_ip) = networks.remove(&subnet.network().into()) {
            self.by_address.remove(&(public_ip, subnet));
        }
        if networks.is_empty() {
            self.by_length.remove(&length);
        }
    }

    /// All of them: subnet and public address.
    pub fn iter(&self) -> impl Iterator<Item = (Ipv4Network, Ipv4Addr)> {
        self.by_address.iter().map(|(public_ip, subnet)| (*subnet, *public_ip))
    }

    /// Where a packet for `destination` is sent: to the node of the longest prefix that holds it.
    pub(super) fn to(&self, destination: [u8; 4]) -> Option<SocketAddrV4> {
        let destination = u32::from_be_bytes(destination);
        self.by_length.iter().find_map(|(Reverse(length), networks)| {
            let mask = u32::MAX.checked_shl(32 - u32::from(*length)).unwrap_or(0);
            let public_ip = networks.get(&(destination & mask))?;
            Some(SocketAddrV4::new(*public_ip, self.port))
        })
    }

    /// Whether anybody is known by `address`.
    pub(super) fn is_known(&self, address: Ipv4Addr) -> bool {
        self.of(address).next().is_some()
    }

    /// Whether `source` is of a pod of the node at `address`, or that node itself.
    pub(super) fn is_of(&self, address: Ipv4Addr, source: [u8; 4]) -> bool {
        let source = Ipv4Addr::from(source);
        source == address || self.of(address).any(|subnet| subnet.contains(source))
    }

    fn of(&self, address: Ipv4Addr) -> impl Iterator<Item = Ipv4Network> {
        let everything = Ipv4Network::from(Ipv4Addr::UNSPECIFIED);
        let from = self.by_address.range((address, everything)..);
        from.take_while(move |(public, _)| *public == address).map(|(_, subnet)| *subnet)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(peers: &[(&str, u8)]) -> Peers {
        let mut table = Peers::new(8285);
        for (subnet, last) in peers {
            table.insert(subnet.parse().unwrap(), Ipv4Addr::new(192, 0, 2, *last));
        }
        table
    }

    fn to(table: &Peers, address: [u8; 4]) -> Option<u8> {
        table.to(address).map(|to| to.ip().octets()[3])
    }

    #[test]
    fn the_longest_prefix_wins_and_the_rest_is_nobodys() {
        let mut peers = table(&[("10.1.0.0/16", 1), ("10.1.2.0/24", 2), ("10.1.3.0/24", 3)]);
        assert_eq!(to(&peers, [10, 1, 2, 9]), Some(2));
        assert_eq!(to(&peers, [10, 1, 3, 9]), Some(3));
        assert_eq!(to(&peers, [10, 1, 4, 9]), Some(1));
        assert_eq!(to(&peers, [10, 2, 0, 1]), None);
        assert_eq!(peers.to([10, 1, 2, 9]).unwrap().port(), 8285);
        peers.remove("10.1.2.0/24".parse().unwrap());
        assert_eq!(to(&peers, [10, 1, 2, 9]), Some(1));
        assert_eq!(to(&table(&[("0.0.0.0/0", 7)]), [8, 8, 8, 8]), Some(7));
        assert_eq!(to(&Peers::default(), [10, 1, 2, 9]), None);
    }

    #[test]
    fn a_node_speaks_for_its_pods_and_for_itself() {
        let mut peers = table(&[("10.1.2.0/24", 2), ("10.1.5.0/24", 2), ("10.1.3.0/24", 3)]);
        let two = Ipv4Addr::new(192, 0, 2, 2);
        assert!(peers.is_known(two) && !peers.is_known(Ipv4Addr::new(192, 0, 2, 4)));
        assert!(peers.is_of(two, [10, 1, 2, 9]) && peers.is_of(two, [10, 1, 5, 9]));
        assert!(peers.is_of(two, two.octets()) && !peers.is_of(two, [10, 1, 3, 9]));
        // A subnet that moves is no longer its old node's.
        peers.insert("10.1.2.0/24".parse().unwrap(), Ipv4Addr::new(192, 0, 2, 3));
        assert!(!peers.is_of(two, [10, 1, 2, 9]) && peers.is_known(two));
        peers.remove("10.1.5.0/24".parse().unwrap());
        assert!(!peers.is_known(two));
    }
}
