//! Which peers' packets the host wants encrypted.

use flannel_common::packet::headers::PROTOCOL_UDP;
use ipnetwork::IpNetwork;

use super::IpsecPolicy;

impl IpsecPolicy {
    /// Whether it is about packets between a node and a peer, be they in VXLAN or as pods send them. Each of the two is
    /// given by its public address and its pod subnet.
    pub(super) fn covers(&self, node: [IpNetwork; 2], peer: [IpNetwork; 2]) -> bool {
        let [(address, subnet), (peer_address, peer_subnet)] =
            [node, peer].map(|[address, subnet]| (address, subnet));
        let outer = self.is_between(address, peer_address) && matches!(self.protocol, 0 | PROTOCOL_UDP);
        outer || self.is_between(subnet, peer_subnet)
    }

    fn is_between(&self, one: IpNetwork, other: IpNetwork) -> bool {
        let there = overlap(self.source, one) && overlap(self.destination, other);
        there || overlap(self.source, other) && overlap(self.destination, one)
    }
}

fn overlap(one: IpNetwork, other: IpNetwork) -> bool {
    one.contains(other.network()) || other.contains(one.network())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNetwork {
        text.parse().unwrap()
    }

    #[test]
    fn policies_are_about_outer_packets_or_pods() {
        let node = [net("192.0.2.1/32"), net("10.244.1.0/24")];
        let peer = [net("192.0.2.2/32"), net("10.244.2.0/24")];
        let covers = |source, destination, protocol| {
            IpsecPolicy { source: net(source), destination: net(destination), protocol }.covers(node, peer)
        };
        assert!(covers("192.0.2.1/32", "192.0.2.2/32", 17));
        assert!(covers("192.0.2.2/32", "192.0.2.1/32", 0), "the way back");
        assert!(covers("192.0.2.0/24", "192.0.2.0/24", 0), "all nodes");
        assert!(covers("0.0.0.0/0", "0.0.0.0/0", 0), "everything");
        assert!(covers("10.244.1.0/24", "10.244.0.0/16", 6), "pods");
        assert!(!covers("192.0.2.1/32", "192.0.2.2/32", 6), "the tunnel is not TCP");
        assert!(!covers("192.0.2.1/32", "192.0.2.3/32", 17), "another peer");
        assert!(!covers("10.244.1.0/24", "10.244.3.0/24", 0), "another peer's pods");
        assert!(!covers("::/0", "::/0", 0), "another family");
    }
}
