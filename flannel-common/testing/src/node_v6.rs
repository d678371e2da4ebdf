//! The same nodes in a cluster that has an IPv6 network, too.

use flannel_common::{
    family::V6,
    layout::{AddressV6, Config, FastPath, PodPlace, Route, RouteKind, SubnetV6, UnknownVtep, Vtep},
};

use super::{HEEDED, MemoryTables, Node, TUNNEL, interface};

/// `fd00:<high>::<low>`.
const fn address(high: [u8; 4], low: u8) -> AddressV6 {
    let [a, b, c, d] = high;
    AddressV6::new([0xfd, 0, a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, low])
}

impl Node {
    /// Its public IPv6 address: `fd00:77::<n>` of the node 192.168.0.<n>.
    pub const fn vtep_v6(&self) -> AddressV6 {
        address([0, 0x77, 0, 0], self.vtep[3])
    }

    /// Its IPv6 pod subnet, a /64: `fd00:10:<n>::`.
    pub const fn subnet_v6(&self) -> SubnetV6 {
        SubnetV6 { prefix_len: 64, network: address([0, 0x10, 0, self.subnet.network[2]], 0) }
    }

    /// IPv6 address of its pod `number`.
    pub const fn pod_v6(&self, number: u8) -> AddressV6 {
        address([0, 0x10, 0, self.subnet.network[2]], number)
    }

    /// MAC of its VXLAN device for IPv6.
    pub const fn mac_v6(&self) -> [u8; 6] {
        [0x0a, 0x58, 0, 0, 6, self.subnet.network[2]]
    }

    /// How this node sees `peer`.
    pub const fn peer_v6(&self, peer: &Self) -> Route<V6> {
        Route {
            kind: RouteKind::Vxlan,
            vni: 1,
            vtep: peer.vtep_v6(),
            next_hop: peer.vtep_v6(),
            ifindex: interface::UNDERLAY,
            mtu: 1500,
            vtep_mac: peer.mac_v6(),
            local_mac: self.mac_v6(),
            reserved: [0; 4],
        }
    }

    /// What its programs know of themselves.
    pub const fn config_v6(&self) -> Config<V6> {
        Config {
            fast_path: FastPath::All,
            port: 8472,
            vtep: self.vtep_v6(),
            network: SubnetV6 { prefix_len: 32, network: address([0, 0x10, 0, 0], 0) },
            subnet: self.subnet_v6(),
            vni: 1,
            tcp_refresh: 30_000,
            udp_refresh: 15_000,
            source_port_min: 32_768,
            source_port_max: 60_999,
            overlay_ifindex: interface::OVERLAY,
            prefix_lengths: [64, 0, 0, 0],
            heeded: HEEDED,
            local_mac: self.mac_v6(),
            unknown_vtep: UnknownVtep::Off,
            reserved: [0; 2],
        }
    }

    /// Its tables for both families in a cluster with `peers`: pods 2 to 5 run on it.
    pub fn dual_tables(&self, peers: &[Self]) -> MemoryTables {
        let mut tables = self.tables(peers);
        tables.v6.config = Some(self.config_v6());
        for peer in peers {
            tables.v6.routes.insert(peer.subnet_v6(), self.peer_v6(peer));
            tables.v6.vteps.insert(peer.vtep_v6(), Vtep { subnet: peer.subnet_v6() });
            tables.v6.tunnels.insert(peer.vtep_v6(), TUNNEL);
        }
        let veths = [interface::POD, interface::OTHER_POD, interface::SMALL_POD, interface::GONE];
        for (number, ifindex) in (2..).zip(veths) {
            let pod =
                PodPlace { ifindex, mtu: 9000, mac: self.pod_mac(number), gateway_mac: self.gateway_mac() };
            tables.v6.pods.insert(self.pod_v6(number), pod);
        }
        tables
    }
}
