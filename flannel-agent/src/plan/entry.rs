//! The entries of maps, one at a time.

use std::fmt;

use flannel_common::{
    family::{V4, V6},
    layout::{Config, Exempt, PodPlace, Route, RouteKind, Subnet, Vtep},
};

use crate::values::IpFamily;

/// An entry of a map of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnyEntry {
    /// Of IPv4.
    V4(Entry<V4>),
    /// Of IPv6.
    V6(Entry<V6>),
}

/// The key of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AnyEntryKey {
    /// Of IPv4.
    V4(EntryKey<V4>),
    /// Of IPv6.
    V6(EntryKey<V6>),
}

impl AnyEntry {
    /// Its key.
    pub const fn key(&self) -> AnyEntryKey {
        match self {
            Self::V4(entry) => AnyEntryKey::V4(entry.key()),
            Self::V6(entry) => AnyEntryKey::V6(entry.key()),
        }
    }
}

/// A family whose entries stand among those of either family.
pub trait EntryFamily: IpFamily {
    /// An entry among those of either family.
    fn any(entry: Entry<Self>) -> AnyEntry;
    /// A key among those of either family.
    fn any_key(key: EntryKey<Self>) -> AnyEntryKey;
    /// The entry, if it is of this family.
    fn entry(any: AnyEntry) -> Option<Entry<Self>>;
    /// The key, if it is of this family.
    fn key(any: AnyEntryKey) -> Option<EntryKey<Self>>;
}

macro_rules! entry_family {
    ($family:ident) => {
        impl EntryFamily for $family {
            fn any(entry: Entry<Self>) -> AnyEntry {
                AnyEntry::$family(entry)
            }

            fn any_key(key: EntryKey<Self>) -> AnyEntryKey {
                AnyEntryKey::$family(key)
            }

            fn entry(any: AnyEntry) -> Option<Entry<Self>> {
                if let AnyEntry::$family(entry) = any { Some(entry) } else { None }
            }

            fn key(any: AnyEntryKey) -> Option<EntryKey<Self>> {
                if let AnyEntryKey::$family(key) = any { Some(key) } else { None }
            }
        }
    };
}
entry_family!(V4);
entry_family!(V6);

/// An entry of a map of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry<F: IpFamily> {
    /// The only one of `config_v4`.
    Config(Config<F>),
    /// Of `routes`.
    Route(Subnet<F>, Route<F>),
    /// Of `vteps_v4`.
    Vtep(F::Address, Vtep<F>),
    /// Of `pods`.
    Pod(F::Address, PodPlace),
    /// Of `snat_exempt`.
    Exempt(Subnet<F>, Exempt),
}

/// The key of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EntryKey<F: IpFamily> {
    /// The only one of `config_v4`.
    Config,
    /// Of `routes`.
    Route(Subnet<F>),
    /// Of `vteps_v4`.
    Vtep(F::Address),
    /// Of `pods`.
    Pod(F::Address),
    /// Of `snat_exempt`.
    Exempt(Subnet<F>),
}

impl<F: IpFamily> Entry<F> {
    /// Its key.
    pub const fn key(&self) -> EntryKey<F> {
        match *self {
            Self::Config(_) => EntryKey::Config,
            Self::Route(subnet, _) => EntryKey::Route(subnet),
            Self::Vtep(address, _) => EntryKey::Vtep(address),
            Self::Pod(address, _) => EntryKey::Pod(address),
            Self::Exempt(prefix, _) => EntryKey::Exempt(prefix),
        }
    }
}

/// As the sentence of [`super::Change`], of putting it.
impl<F: IpFamily> fmt::Display for Entry<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(config) => {
                write!(
                    f,
                    "configure the programs for fast path {} of {}",
                    config.fast_path.label(),
                    F::FAMILY
                )
            }
            Self::Route(subnet, Route { kind, vtep, ifindex, next_hop, mtu, .. }) => {
                let (subnet, vtep, next_hop) = (Cidr(subnet), F::address(*vtep), F::address(*next_hop));
                match kind {
                    RouteKind::Kernel => write!(f, "leave packets for {subnet} to the kernel"),
                    RouteKind::Vxlan | RouteKind::Udp | RouteKind::Ipip => write!(
                        f,
                        "send packets for {subnet} to {vtep} by interface {ifindex}, next hop {next_hop}, MTU {mtu}"
                    ),
                    RouteKind::Direct => write!(
                        f,
                        "send packets for {subnet} straight to {vtep} by interface {ifindex}, MTU {mtu}"
                    ),
                }
            }
            Self::Vtep(address, vtep) => {
                write!(f, "accept packets of {} from {}", Cidr(&vtep.subnet), F::address(*address))
            }
            Self::Pod(address, place) => {
                write!(f, "hand packets for pod {} to interface {}", F::address(*address), place.ifindex)
            }
            Self::Exempt(prefix, why) => {
                write!(f, "let pods keep their address towards {}, {}", Cidr(prefix), why.sentence())
            }
        }
    }
}

/// As the sentence of [`super::Change`], of deleting its entry.
impl<F: IpFamily> fmt::Display for EntryKey<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config => write!(f, "let the programs touch no {} packet", F::FAMILY),
            Self::Route(subnet) => write!(f, "forget the route to {}", Cidr(subnet)),
            Self::Vtep(address) => write!(f, "accept no packets from {}", F::address(*address)),
            Self::Pod(address) => write!(f, "forget pod {}", F::address(*address)),
            Self::Exempt(prefix) => {
                write!(f, "no longer let pods keep their address towards {}", Cidr(prefix))
            }
        }
    }
}

struct Cidr<'a, F: IpFamily>(&'a Subnet<F>);

impl<F: IpFamily> fmt::Display for Cidr<'_, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix_len: u64 = self.0.prefix_len.into();
        write!(f, "{}/{prefix_len}", F::address(self.0.network))
    }
}

/// As the entry of its family.
impl fmt::Display for AnyEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V4(entry) => entry.fmt(f),
            Self::V6(entry) => entry.fmt(f),
        }
    }
}

/// As the key of its family.
impl fmt::Display for AnyEntryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V4(key) => key.fmt(f),
            Self::V6(key) => key.fmt(f),
        }
    }
}
