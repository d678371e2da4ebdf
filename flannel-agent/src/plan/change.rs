//! One step from what is observed to what is desired.

use std::{fmt, net::Ipv4Addr};

use flannel_common::{
    layout::{Config, Exempt, PeerKind, PeerV4, PodV4, SubnetV4, VtepV4},
    path::Hook,
};
use ipnetwork::Ipv4Network;

use super::{DirectRoute, VxlanDevice};
use crate::mac::Mac;

/// One object of [`super::State`] to put or to take away. Putting what is there already, or taking away
/// what is gone, is not an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Create the device, or bring the one there is into line: MTU, MAC and being up are changed in
    /// place, anything else takes a new device.
    PutDevice(VxlanDevice),
    /// Give the device an address.
    PutAddress(Ipv4Network),
    /// Say which public address a VtepMAC is behind.
    PutFdb {
        /// MAC of the peer's VXLAN device.
        mac: Mac,
        /// Public address of the peer.
        public_ip: Ipv4Addr,
    },
    /// Say which VtepMAC a peer's `.0` address has.
    PutNeighbour {
        /// First address of the peer's subnet.
        address: Ipv4Addr,
        /// MAC of the peer's VXLAN device.
        mac: Mac,
    },
    /// Route a pod subnet over the device.
    PutRoute {
        /// The peer's subnet.
        subnet: Ipv4Network,
        /// First address of that subnet.
        via: Ipv4Addr,
    },
    /// Route a pod subnet straight to the node that holds it, in place of any other route to it.
    PutDirectRoute {
        /// The peer's subnet.
        subnet: Ipv4Network,
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
        pod: PodV4,
    },
    /// Write an entry of map `snat_exempt_v4`.
    PutExempt {
        /// Key.
        prefix: SubnetV4,
        /// Value.
        why: Exempt,
    },
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
        subnet: Ipv4Network,
        /// The gateway it was observed with.
        via: Ipv4Addr,
    },
    /// Delete a route past the device.
    DeleteDirectRoute {
        /// The subnet.
        subnet: Ipv4Network,
        /// As it was observed.
        route: DirectRoute,
    },
    /// Delete a permanent neighbour of the device.
    DeleteNeighbour(Ipv4Addr),
    /// Delete a forwarding entry of the device.
    DeleteFdb {
        /// The MAC.
        mac: Mac,
        /// The public address it was observed with.
        public_ip: Ipv4Addr,
    },
    /// Take an address from the device.
    DeleteAddress(Ipv4Network),
    /// Delete the device, and with it all that is on it.
    DeleteDevice,
}

/// The object a [`Change`] is about, whatever becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Slot {
    /// The VXLAN device.
    Device,
    /// An address of it.
    Address(Ipv4Network),
    /// A forwarding entry of it.
    Fdb(Mac),
    /// A neighbour on it.
    Neighbour(Ipv4Addr),
    /// A route over it.
    Route(Ipv4Network),
    /// A route past it.
    DirectRoute(Ipv4Network),
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
    /// A place for a program.
    Hook(u32, Hook),
}

impl Change {
    /// The object this is about.
    pub fn slot(&self) -> Slot {
        match *self {
            Self::PutDevice(_) | Self::DeleteDevice => Slot::Device,
            Self::PutAddress(address) | Self::DeleteAddress(address) => Slot::Address(address),
            Self::PutFdb { mac, .. } | Self::DeleteFdb { mac, .. } => Slot::Fdb(mac),
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
            Self::Attach { ifindex, hook } | Self::Detach { ifindex, hook } => Slot::Hook(ifindex, hook),
        }
    }

    /// Whether this is about maps and programs; else it is about objects of the kernel.
    pub fn is_bpf(&self) -> bool {
        matches!(
            self.slot(),
            Slot::BpfConfig | Slot::Peer(_) | Slot::Vtep(_) | Slot::Pod(_) | Slot::Exempt(_) | Slot::Hook(..)
        )
    }

    /// Whether this takes something away.
    pub fn is_removal(&self) -> bool {
        matches!(
            self,
            Self::Detach { .. }
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
                | Self::DeleteDevice
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
            Self::DeleteDevice => f.write_str("delete the VXLAN device"),
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
