//! Links, addresses, neighbours and routes, as the kernel has them: one file per kind of object.
//!
//! Names here are the kernel's. Everything is about the network namespace of the thread that opened the
//! connection.

use netlink_packet_route::AddressFamily;

use crate::values::Family;

pub(crate) mod address;
mod connection;
mod echo;
mod error;
mod interface;
mod ipsec;
pub(crate) mod link;
mod monitor;
pub(crate) mod neighbour;
mod netfilter;
mod next_hop;
mod pod_places;
mod pods;
pub(crate) mod protocol;
mod raw;
pub(crate) mod route;
pub(crate) mod tc;

pub use address::Address;
pub use connection::Netlink;
pub use echo::Echoes;
pub use error::{KernelError, NetlinkError};
pub use interface::{
    Chosen, ExternalInterface, HostInterfaces, InterfaceAddress, InterfaceChoice, InterfaceError, Known,
    Reach, Stack,
};
pub use ipsec::IpsecPolicies;
pub use link::{Link, LinkKind, PeerEnd, Reception, Vxlan};
pub use monitor::{Changed, Monitor};
pub use neighbour::FdbEntry;
pub use netfilter::{Chain, Chains, Netfilter};
pub use route::Stray;
pub use tc::{TcDiscipline, TcFilter, TcPlace, TcProgram, TcQdisc, TcSide, TrafficControl};

pub(crate) use connection::Request;

/// The kernel's number of a family.
fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}
