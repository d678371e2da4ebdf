//! One step from what is observed to what is desired.

use std::{fmt, net::IpAddr};

use flannel_common::path::Hook;
use ipnetwork::IpNetwork;

use super::{AnyEntry, AnyEntryKey, DirectRoute, ObjectId, VxlanDevice};
use crate::{
    backend::AnyObject,
    values::{Family, Mac},
};

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
    /// Make an object of a kind that only the backend knows, or bring the one there is into line.
    PutObject(ObjectId, AnyObject),
    /// Write an entry of a map.
    PutEntry(AnyEntry),
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
    /// Delete an entry of a map. Without `config_v4` the programs touch no packet of its family.
    DeleteEntry(AnyEntryKey),
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
    /// Delete an object of a kind that only the backend knows, as it was observed.
    DeleteObject(ObjectId, AnyObject),
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
pub enum ObjectKey {
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
    /// An object of the backend's own.
    Object(ObjectId),
    /// An entry of a map.
    Entry(AnyEntryKey),
    /// A hook of an interface.
    Hook(u32, Hook),
}

impl Change {
    /// The object this is about.
    pub fn key(&self) -> ObjectKey {
        match *self {
            Self::PutDevice(ref device) => ObjectKey::Device(device.family()),
            Self::DeleteDevice(family) => ObjectKey::Device(family),
            Self::PutAddress(address) | Self::DeleteAddress(address) => ObjectKey::Address(address),
            Self::PutFdb { mac, public_ip } | Self::DeleteFdb { mac, public_ip } => {
                ObjectKey::Fdb(Family::of(public_ip), mac)
            }
            Self::PutNeighbour { address, .. } | Self::DeleteNeighbour(address) => {
                ObjectKey::Neighbour(address)
            }
            Self::PutRoute { subnet, .. } | Self::DeleteRoute { subnet, .. } => ObjectKey::Route(subnet),
            Self::PutDirectRoute { subnet, .. } | Self::DeleteDirectRoute { subnet, .. } => {
                ObjectKey::DirectRoute(subnet)
            }
            Self::PutObject(id, _) | Self::DeleteObject(id, _) => ObjectKey::Object(id),
            Self::PutEntry(entry) => ObjectKey::Entry(entry.key()),
            Self::DeleteEntry(key) => ObjectKey::Entry(key),
            Self::Attach { ifindex, hook } | Self::Detach { ifindex, hook } => ObjectKey::Hook(ifindex, hook),
        }
    }

    /// The family of the device this is about, or about something on.
    pub fn device(&self) -> Option<Family> {
        match self.key() {
            ObjectKey::Device(family) | ObjectKey::Fdb(family, _) => Some(family),
            ObjectKey::Address(network) | ObjectKey::Route(network) => Some(Family::of_network(network)),
            ObjectKey::Neighbour(address) => Some(Family::of(address)),
            _ => None,
        }
    }

    /// Whether this is about maps and programs; else it is about objects of the kernel.
    pub fn is_bpf(&self) -> bool {
        matches!(self.key(), ObjectKey::Entry(_) | ObjectKey::Hook(..))
    }

    /// Whether this takes something of a peer out of the kernel's tables that others may put there, too.
    pub fn takes_a_peers_entry(&self) -> bool {
        matches!(
            self,
            Self::DeleteRoute { .. }
                | Self::DeleteDirectRoute { .. }
                | Self::DeleteNeighbour(_)
                | Self::DeleteFdb { .. }
        )
    }

    /// Whether this takes something away.
    pub fn is_removal(&self) -> bool {
        matches!(
            self,
            Self::Detach { .. }
                | Self::DeleteEntry(_)
                | Self::DeleteRoute { .. }
                | Self::DeleteDirectRoute { .. }
                | Self::DeleteObject(..)
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
            Self::PutObject(_, object) => write!(f, "set up {object}"),
            Self::DeleteObject(_, object) => write!(f, "remove {object}"),
            Self::PutEntry(entry) => entry.fmt(f),
            Self::DeleteEntry(key) => key.fmt(f),
            Self::Attach { ifindex, hook } => write!(f, "attach {} to interface {ifindex}", hook.program()),
            Self::Detach { ifindex, hook } => write!(f, "detach {} from interface {ifindex}", hook.program()),
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
