//! One step from what is observed to what is desired.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
};

use flannel_common::{
    layout::{Config, Exempt, PeerKind, PeerV4, PodPlace, SubnetV4, VtepV4},
    path::Hook,
};
use ipnetwork::IpNetwork;

use super::{DirectRoute, EntryV6, KeyV6, VxlanDevice};
use crate::values::{Family, Mac};

/// One object of [`super::State`] to put or to take away. Putting what is there already, or taking away
/// what is gone, is not an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Create the device, or bring the one there is into line: MTU, MAC and being up are changed in
    /// place, anything else takes a new device.
    PutDevice(VxlanDevice),
    /// Give the device an address.
    PutAddress(IpNetwork),
    /// Say which public address a VtepMAC is behind.
    PutFdb {
        /// MAC of the peer's VXLAN device.
        mac: Mac,
        /// Public address of the peer.
        public_ip: IpAddr,
    },
    /// Say which VtepMAC the first address of a peer's subnet has.
    PutNeighbour {
        /// First address of the peer's subnet.
        address: IpAddr,
        /// MAC of the peer's VXLAN device.
        mac: Mac,
    },
    /// Route a pod subnet over the device.
    PutRoute {
        /// The peer's subnet.
        subnet: IpNetwork,
        /// First address of that subnet.
        via: IpAddr,
    },
    /// Route a pod subnet straight to the node that holds it, in place of any other route to it.
    PutDirectRoute {
        /// The peer's subnet.
        subnet: IpNetwork,
        /// Where to.
        route: DirectRoute,
    },
    /// Write map `config`.
    PutBpfConfig(Config),
    /// Write an entry of map `routes_v4`.
    PutPeer {
        /// Key.
        subnet: SubnetV4,
        /// Value.
        peer: PeerV4,
    },
    /// Write an entry of map `vteps`.
    PutVtep {
        /// Key: public address, network order.
        address: [u8; 4],
        /// Value.
        vtep: VtepV4,
    },
    /// Write an entry of map `pods_v4`.
    PutPod {
        /// Key: the pod's address, network order.
        address: [u8; 4],
        /// Value.
        pod: PodPlace,
    },
    /// Write an entry of map `snat_exempt_v4`.
    PutExempt {
        /// Key.
        prefix: SubnetV4,
        /// Value.
        why: Exempt,
    },
    /// Write an entry of a map for IPv6.
    PutV6(EntryV6),
    /// Attach a program.
    Attach {
        /// Interface.
        ifindex: u32,
        /// Where on it.
        hook: Hook,
    },
    /// Detach a program.
    Detach {
        /// Interface.
        ifindex: u32,
        /// Where on it.
        hook: Hook,
    },
    /// Delete an entry of a map for IPv6.
    DeleteV6(KeyV6),
    /// Delete an entry of map `snat_exempt_v4`.
    DeleteExempt(SubnetV4),
    /// Delete an entry of map `pods_v4`.
    DeletePod([u8; 4]),
    /// Delete an entry of map `vteps`.
    DeleteVtep([u8; 4]),
    /// Delete an entry of map `routes_v4`.
    DeletePeer(SubnetV4),
    /// Empty map `config`: the programs then touch no packet.
    DeleteBpfConfig,
    /// Delete the route of a pod subnet.
    DeleteRoute {
        /// The subnet.
        subnet: IpNetwork,
        /// The gateway it was observed with.
        via: IpAddr,
    },
    /// Delete a route past the device.
    DeleteDirectRoute {
        /// The subnet.
        subnet: IpNetwork,
        /// As it was observed.
        route: DirectRoute,
    },
    /// Delete a permanent neighbour of the device.
    DeleteNeighbour(IpAddr),
    /// Delete a forwarding entry of the device.
    DeleteFdb {
        /// The MAC.
        mac: Mac,
        /// The public address it was observed with.
        public_ip: IpAddr,
    },
    /// Take an address from the device.
    DeleteAddress(IpNetwork),
    /// Delete the device of a family, and with it all that is on it.
    DeleteDevice(Family),
}

/// The object a [`Change`] is about, whatever becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Slot {
    /// The VXLAN device of a family.
    Device(Family),
    /// An address of it.
    Address(IpNetwork),
    /// A forwarding entry of it.
    Fdb(Family, Mac),
    /// A neighbour on it.
    Neighbour(IpAddr),
    /// A route over it.
    Route(IpNetwork),
    /// A route past it.
    DirectRoute(IpNetwork),
    /// Map `config`.
    BpfConfig,
    /// An entry of map `routes_v4`.
    Peer(SubnetV4),
    /// An entry of map `vteps`.
    Vtep([u8; 4]),
    /// An entry of map `pods_v4`.
    Pod([u8; 4]),
    /// An entry of map `snat_exempt_v4`.
    Exempt(SubnetV4),
    /// An entry of a map for IPv6.
    MapV6(KeyV6),
    /// A place for a program.
    Hook(u32, Hook),
}

impl Change {
    /// The object this is about.
    pub fn slot(&self) -> Slot {
        match *self {
            Self::PutDevice(ref device) => Slot::Device(device.family()),
            Self::DeleteDevice(family) => Slot::Device(family),
            Self::PutAddress(address) | Self::DeleteAddress(address) => Slot::Address(address),
            Self::PutFdb { mac, public_ip } | Self::DeleteFdb { mac, public_ip } => {
                Slot::Fdb(Family::of(public_ip), mac)
            }
            Self::PutNeighbour { address, .. } | Self::DeleteNeighbour(address) => Slot::Neighbour(address),
            Self::PutRoute { subnet, .. } | Self::DeleteRoute { subnet, .. } => Slot::Route(subnet),
            Self::PutDirectRoute { subnet, .. } | Self::DeleteDirectRoute { subnet, .. } => {
                Slot::DirectRoute(subnet)
            }
            Self::PutBpfConfig(_) | Self::DeleteBpfConfig => Slot::BpfConfig,
            Self::PutPeer { subnet, .. } | Self::DeletePeer(subnet) => Slot::Peer(subnet),
            Self::PutVtep { address, .. } | Self::DeleteVtep(address) => Slot::Vtep(address),
            Self::PutPod { address, .. } | Self::DeletePod(address) => Slot::Pod(address),
            Self::PutExempt { prefix, .. } | Self::DeleteExempt(prefix) => Slot::Exempt(prefix),
            Self::PutV6(entry) => Slot::MapV6(entry.key()),
            Self::DeleteV6(key) => Slot::MapV6(key),
            Self::Attach { ifindex, hook } | Self::Detach { ifindex, hook } => Slot::Hook(ifindex, hook),
        }
    }

    /// The family of the device this is about, or about something on.
    pub fn device(&self) -> Option<Family> {
        match self.slot() {
            Slot::Device(family) | Slot::Fdb(family, _) => Some(family),
            Slot::Address(network) | Slot::Route(network) => Some(Family::of_network(network)),
            Slot::Neighbour(address) => Some(Family::of(address)),
            _ => None,
        }
    }

    /// Whether this is about maps and programs; else it is about objects of the kernel.
    pub fn is_bpf(&self) -> bool {
        matches!(
            self.slot(),
            Slot::BpfConfig
                | Slot::Peer(_)
                | Slot::Vtep(_)
                | Slot::Pod(_)
                | Slot::Exempt(_)
                | Slot::MapV6(_)
                | Slot::Hook(..)
        )
    }

    /// Whether this takes something away.
    pub fn is_removal(&self) -> bool {
        matches!(
            self,
            Self::Detach { .. }
                | Self::DeleteV6(_)
                | Self::DeleteExempt(_)
                | Self::DeletePod(_)
                | Self::DeleteVtep(_)
                | Self::DeletePeer(_)
                | Self::DeleteBpfConfig
                | Self::DeleteRoute { .. }
                | Self::DeleteDirectRoute { .. }
                | Self::DeleteNeighbour(_)
                | Self::DeleteFdb { .. }
                | Self::DeleteAddress(_)
                | Self::DeleteDevice(_)
        )
    }
}

/// One sentence without subject or full stop, to follow "could not" or "repaired:".
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PutDevice(device) => write!(f, "set up device {device}"),
            Self::PutAddress(address) => write!(f, "give the VXLAN device address {address}"),
            Self::PutFdb { mac, public_ip } => write!(f, "forward frames for {mac} to {public_ip}"),
            Self::PutNeighbour { address, mac } => write!(f, "resolve neighbour {address} to {mac}"),
            Self::PutRoute { subnet, via } => write!(f, "route {subnet} via {via}"),
            Self::PutDirectRoute { subnet, route: DirectRoute { ifindex, via } } => {
                write!(f, "route {subnet} via {via} on interface {ifindex}")
            }
            Self::PutBpfConfig(config) => {
                write!(f, "configure the programs for fast path {}", config.fast_path.label())
            }
            Self::PutPeer { subnet, peer } => {
                let vtep = Ipv4Addr::from(peer.vtep);
                match peer.kind {
                    PeerKind::Kernel => write!(f, "leave packets for {} to the kernel", Cidr(subnet)),
                    PeerKind::Vxlan => write!(
                        f,
                        "send packets for {} to {vtep} by interface {}, next hop {}, MTU {}",
                        Cidr(subnet),
                        peer.ifindex,
                        Ipv4Addr::from(peer.next_hop),
                        peer.mtu
                    ),
                    PeerKind::Direct => write!(
                        f,
                        "send packets for {} straight to {vtep} by interface {}, MTU {}",
                        Cidr(subnet),
                        peer.ifindex,
                        peer.mtu
                    ),
                }
            }
            Self::PutVtep { address, vtep } => {
                write!(f, "accept packets of {} from {}", Cidr(&vtep.subnet), Ipv4Addr::from(*address))
            }
            Self::PutPod { address, pod } => {
                write!(f, "hand packets for pod {} to interface {}", Ipv4Addr::from(*address), pod.ifindex)
            }
            Self::PutExempt { prefix, why } => {
                write!(f, "let pods keep their address towards {}, {}", Cidr(prefix), why.sentence())
            }
            Self::DeleteExempt(prefix) => {
                write!(f, "no longer let pods keep their address towards {}", Cidr(prefix))
            }
            Self::PutV6(entry) => entry.fmt(f),
            Self::DeleteV6(key) => key.fmt(f),
            Self::DeletePod(address) => write!(f, "forget pod {}", Ipv4Addr::from(*address)),
            Self::Attach { ifindex, hook } => write!(f, "attach {} to interface {ifindex}", hook.program()),
            Self::Detach { ifindex, hook } => write!(f, "detach {} from interface {ifindex}", hook.program()),
            Self::DeleteVtep(address) => write!(f, "accept no packets from {}", Ipv4Addr::from(*address)),
            Self::DeletePeer(subnet) => write!(f, "forget where {} is", Cidr(subnet)),
            Self::DeleteBpfConfig => f.write_str("let the programs touch no packet"),
            Self::DeleteRoute { subnet, via } => write!(f, "delete the route to {subnet} via {via}"),
            Self::DeleteDirectRoute { subnet, route: DirectRoute { ifindex, via } } => {
                write!(f, "delete the route to {subnet} via {via} on interface {ifindex}")
            }
            Self::DeleteNeighbour(address) => write!(f, "delete neighbour {address}"),
            Self::DeleteFdb { mac, public_ip } => {
                write!(f, "stop forwarding frames for {mac} to {public_ip}")
            }
            Self::DeleteAddress(address) => write!(f, "take address {address} from the VXLAN device"),
            Self::DeleteDevice(family) => write!(f, "delete the VXLAN device for {family}"),
        }
    }
}

/// Its name and, in brackets, what it is.
impl fmt::Display for VxlanDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, vni, port, underlay_ifindex, local, mac, mtu, learning, gbp } = self;
        write!(
            f,
            "{name} (VNI {vni}, port {port}, local address {local} on interface {underlay_ifindex}, MAC {mac}, \
             MTU {mtu}{}{})",
            if *learning { ", learning" } else { "" },
            if *gbp { ", GBP" } else { "" }
        )
    }
}

struct Cidr<'a>(&'a SubnetV4);

impl fmt::Display for Cidr<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.0.network), self.0.prefix_len)
    }
}
