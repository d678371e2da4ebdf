//! Links, addresses, neighbours and routes, as the kernel has them: one file per kind of object.
//!
//! Names here are the kernel's. Everything is about the network namespace of the thread that opened the
//! connection.

use netlink_packet_route::AddressFamily;

use crate::values::Family;

pub(crate) mod address;
pub(crate) mod bridge;
mod connection;
mod conntrack;
mod error;
mod forwarding;
mod interface_address;
mod ipsec;
pub(crate) mod ipsec_table;
pub(crate) mod link;
mod lookup;
mod monitor;
pub(crate) mod neighbour;
mod netfilter;
mod netfilter_hooks;
pub(crate) mod netkit;
mod next_hop;
pub(crate) mod nft_rules;
mod notice;
mod offloads;
mod pod_places;
mod pod_routes;
mod pods;
pub(crate) mod protocol;
mod raw;
mod reach;
pub(crate) mod route;
mod rule;
pub(crate) mod tc;
pub(crate) mod tunnel;
pub(crate) mod vxlan;
pub mod wireguard;
pub mod xfrm;

pub use address::Address;
pub use connection::Netlink;
pub use conntrack::{
    Conntrack, ConntrackEnds, ConntrackEntry, ConntrackStatus, ConntrackTuple, EndedEntry, TcpState,
};
pub use error::{KernelError, NetlinkError};
pub use interface_address::InterfaceAddress;
pub use ipsec::{IpsecPolicies, IpsecPolicy};
pub use ipsec_table::{DecidedPacket, DecidingPolicy, IpsecTable, IpsecVerdict};
pub use link::{AggregateLimits, Link, LinkKind, PeerEnd};
pub use lookup::{Neighbour, RouteQuery, TakenRoute, forwards_ipv6, refusal_means};
pub use monitor::{Changed, Monitor, Watched};
pub use neighbour::FdbEntry;
pub use netfilter::{Chain, Chains, FLOW_CHAIN, FLOW_CHAIN_OF_NFT, Netfilter};
pub use netfilter_hooks::NetfilterProgram;
pub use netkit::{Netkit, NetkitMode};
pub use next_hop::{NextHop, NoNextHop};
pub use nft_rules::{CountingRule, Seen};
pub use notice::Notice;
pub use offloads::Offloads;
pub use pod_places::{CutOff, Pods, obstacle};
pub use pod_routes::{PodRoute, PodRoutes, Special};
pub use reach::Reach;
pub use route::DirectRoute;
pub use rule::RuleMark;
pub use tc::{TcDiscipline, TcFilter, TcPlace, TcProgram, TcQdisc, TcSide, TrafficControl};
pub use tunnel::Tunnel;
pub use vxlan::{Reception, Vxlan, VxlanDevice};

pub(crate) use connection::Request;
pub(crate) use interface_address::is_link_local;

/// The kernel's number of a family.
fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}
