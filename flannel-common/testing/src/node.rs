//! Nodes of a small cluster, and the tables each of them would have.

use flannel_common::{
    family::V4,
    layout::{Config, FastPath, Heeded, PodPlace, Route, RouteKind, SubnetV4, Tunnel, UnknownVtep, Vtep},
    mark::FLOW_MARK,
    packet::Arrival,
    path::Hook,
};

use super::MemoryTables;

/// Interface indexes of a node; a test in the kernel makes interfaces with these very numbers.
pub mod interface {
    /// The external interface.
    pub const UNDERLAY: u32 = 21;
    /// The VXLAN device.
    pub const OVERLAY: u32 = 31;
    /// Veth of pod 2.
    pub const POD: u32 = 41;
    /// Veth of pod 3.
    pub const OTHER_POD: u32 = 42;
    /// Veth of pod 4, whose MTU is [`SMALL_MTU`].
    pub const SMALL_POD: u32 = 43;
    /// Veth of pod 5, which is gone: no interface has this index.
    pub const GONE: u32 = 99;
    /// The MTU of [`SMALL_POD`]; the others have 1500.
    pub const SMALL_MTU: u32 = 576;
    /// MAC of [`UNDERLAY`], to which frames go unless a test says otherwise.
    pub const UNDERLAY_MAC: [u8; 6] = [0x02, 0, 0, 0, 0xaa, 0x01];
    /// Those that exist.
    pub const ALL: [u32; 5] = [UNDERLAY, OVERLAY, POD, OTHER_POD, SMALL_POD];
}

/// Bits that something on each node goes by.
pub const HEEDED: Heeded = Heeded { marks: 0x0600_0000, classes: 0xffff_0000 };

/// What the kernel's path to a peer was seen to do a moment ago: it carries more than any interface here.
pub const TUNNEL: Tunnel = Tunnel { egress: NOW, ingress: NOW, differs: 0, mtu: 9000, ttl: 64 };

/// The time of the tables: any, but long enough after the start of the clock.
pub const NOW: u64 = 3_600_000_000_000;

/// A node: its public address, its lease and its VXLAN device.
#[derive(Clone, Copy, Debug)]
pub struct Node {
    /// Public address.
    pub vtep: [u8; 4],
    /// Pod subnet.
    pub subnet: SubnetV4,
    /// MAC of its VXLAN device.
    pub mac: [u8; 6],
}

const fn slash_24(third: u8) -> SubnetV4 {
    SubnetV4 { prefix_len: 24, network: [10, 244, third, 0] }
}

/// The node whose programs are under test.
pub const HERE: Node = Node { vtep: [192, 168, 0, 1], subnet: slash_24(1), mac: [0x0a, 0x58, 0, 0, 0, 0x01] };
/// Its peer.
pub const THERE: Node =
    Node { vtep: [192, 168, 0, 2], subnet: slash_24(2), mac: [0x0a, 0x58, 0, 0, 0, 0x02] };
/// A node of the cluster that only the tests of several leases know.
pub const ELSEWHERE: Node =
    Node { vtep: [192, 168, 0, 3], subnet: slash_24(3), mac: [0x0a, 0x58, 0, 0, 0, 0x03] };

impl Node {
    /// Address of its pod `number`.
    pub const fn pod(&self, number: u8) -> [u8; 4] {
        let [a, b, c, _] = self.subnet.network;
        [a, b, c, number]
    }

    /// MAC of its pod `number`.
    pub const fn pod_mac(&self, number: u8) -> [u8; 6] {
        [0x02, 0, 0, self.subnet.network[2], 0, number]
    }

    /// MAC of the bridge its pods use as gateway.
    pub const fn gateway_mac(&self) -> [u8; 6] {
        [0x02, 0, 0, self.subnet.network[2], 0, 1]
    }

    /// How this node sees `peer`.
    pub const fn peer(&self, peer: &Self) -> Route<V4> {
        Route {
            kind: RouteKind::Vxlan,
            vtep: peer.vtep,
            vni: 1,
            ifindex: interface::UNDERLAY,
            next_hop: peer.vtep,
            mtu: 1500,
            vtep_mac: peer.mac,
            local_mac: self.mac,
            reserved: [0; 4],
        }
    }

    /// How this node sees `peer` where no tunnel is between them.
    pub const fn direct_peer(&self, peer: &Self) -> Route<V4> {
        Route { kind: RouteKind::Direct, ..self.peer(peer) }
    }

    /// What its programs know of themselves.
    pub const fn config(&self) -> Config<V4> {
        Config {
            fast_path: FastPath::All,
            vtep: self.vtep,
            port: 8472,
            vni: 1,
            source_port_min: 32_768,
            source_port_max: 60_999,
            network: SubnetV4 { prefix_len: 16, network: [10, 244, 0, 0] },
            subnet: self.subnet,
            tcp_refresh: 30_000,
            udp_refresh: 15_000,
            overlay_ifindex: interface::OVERLAY,
            prefix_lengths: [24, 0, 0, 0],
            heeded: HEEDED,
            local_mac: self.mac,
            unknown_vtep: UnknownVtep::Off,
            reserved: [0; 2],
        }
    }

    /// Its tables in a cluster with `peers`: pods 2 to 5 run on it.
    pub fn tables(&self, peers: &[Self]) -> MemoryTables {
        let mut tables = MemoryTables { config: Some(self.config()), now: NOW, ..MemoryTables::default() };
        for peer in peers {
            tables.routes.insert(peer.subnet, self.peer(peer));
            tables.vteps.insert(peer.vtep, Vtep { subnet: peer.subnet });
            tables.tunnels.insert(peer.vtep, TUNNEL);
        }
        let veths = [interface::POD, interface::OTHER_POD, interface::SMALL_POD, interface::GONE];
        for (number, ifindex) in (2..).zip(veths) {
            let pod =
                PodPlace { ifindex, mtu: 9000, mac: self.pod_mac(number), gateway_mac: self.gateway_mac() };
            tables.pods.insert(self.pod(number), pod);
        }
        tables
    }
}

/// A plain packet at `hook`, which for a pod's hook is that of pod 2.
pub fn seen_at(hook: Hook) -> Arrival {
    let ifindex = match hook {
        Hook::FromPod | Hook::ToPod => interface::POD,
        Hook::ToOverlay | Hook::FromOverlay => interface::OVERLAY,
        Hook::FromUnderlay | Hook::ToUnderlay | Hook::XdpUnderlay | Hook::XdpGeneric => interface::UNDERLAY,
    };
    // What the kernel's device has decapsulated only matters to a program when another has checked it.
    let mark = if hook == Hook::FromOverlay { FLOW_MARK } else { 0 };
    Arrival { ifindex, mark, from_socket: true, ..Arrival::default() }
}
