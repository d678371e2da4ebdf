//! How another node is reached, or why not.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::{
    netlink::VxlanDevice,
    values::{Family, Mac, shorten},
    wire::LeaseAttrs,
};

/// This node in one family. All addresses are of that family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalStack {
    /// The network all pod subnets are cut from.
    pub network: IpNetwork,
    /// Our pod subnet, host bits zero.
    pub subnet: IpNetwork,
    /// The address our lease publishes; peers send to it.
    pub public_ip: IpAddr,
    /// Our address on the external interface.
    pub address: IpAddr,
    /// The VXLAN device that carries this family's packets, with that backend. It is bound to the external
    /// interface, and its outer headers are of this family, too.
    pub device: Option<VxlanDevice>,
}

/// A lease in one family, as far as it is no backend's business: its address can be a node's and is not ours.
pub struct Candidate<'a> {
    /// The family.
    pub family: Family,
    /// What the lease says; its `BackendType` is ours.
    pub attrs: &'a LeaseAttrs,
    /// Its address of that family.
    pub public_ip: IpAddr,
    /// That address is on our link, and with direct routing reached without a tunnel.
    pub on_link: bool,
}

/// How the route to a peer's pods leads there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerRoute {
    /// Through the tunnel, to the VXLAN device of this MAC.
    Vxlan(Mac),
    /// By a route to its address, which is on our link.
    Direct,
    /// By objects that only the backend knows: [`super::Backend::peer_objects`].
    Objects,
}

impl PeerRoute {
    /// MAC of the peer's VXLAN device, where one is used.
    pub fn vtep_mac(self) -> Option<Mac> {
        match self {
            Self::Vxlan(mac) => Some(mac),
            Self::Direct | Self::Objects => None,
        }
    }
}

/// Why a lease is not followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Skip {
    /// It has no subnet of this family.
    #[error("it has no {0} subnet")]
    NoSubnet(Family),
    /// Another kind of network.
    #[error("its backend is \"{}\", ours is \"{ours}\"", shorten(theirs, 40))]
    OtherBackend {
        /// `BackendType` of the lease.
        theirs: String,
        /// That of ours.
        ours: &'static str,
    },
    /// The backend carries no packets of this family.
    #[error("the backend carries no {0}")]
    NotCarried(Family),
    /// Its `BackendData`, or for IPv6 `BackendV6Data`, cannot be read.
    #[error("{0}")]
    Unreadable(String),
    /// That names no MAC that one device could have.
    #[error("{}.VtepMAC: {} instead of the MAC of a device", data_field(*.0), .1.map_or("absent".to_owned(), |mac| mac.to_string()))]
    NoMac(Family, Option<Mac>),
    /// It has a subnet of this family, and no address.
    #[error("{}: absent; the subnet needs one", address_field(*.0))]
    NoAddress(Family),
    /// Its `PublicIP` or `PublicIPv6` can be no node's.
    #[error("{field}: expected the address of a node, found {0}", field = address_field(Family::of(*.0)))]
    NoNode(IpAddr),
    /// It publishes our address.
    #[error("its {field} {public_ip} is our own, that of lease {ours}", field = address_field(Family::of(*.public_ip)))]
    OurAddress {
        /// The address.
        public_ip: IpAddr,
        /// Our subnet.
        ours: IpNetwork,
    },
    /// Its subnet takes in ours, part of it, or the addresses the tunnel itself needs.
    #[error("its subnet covers {0}, which is ours")]
    CoversUs(IpNetwork),
    /// Its subnet begins where that of another does, which is the smaller one, or the same with another subnet
    /// of the other family: the tunnel has one neighbour of that address.
    #[error("its subnet begins with the same address as {0}, which is followed")]
    SameBase(IpNetwork),
    /// Another node publishes the same MAC.
    #[error("its VtepMAC {mac} is also that of {other}, which is followed: that of node {owner}")]
    SameMac {
        /// The MAC.
        mac: Mac,
        /// The lease that is followed.
        other: IpNetwork,
        /// The address in it.
        owner: IpAddr,
    },
}

/// The lease's field with a node's address.
fn address_field(family: Family) -> &'static str {
    match family {
        Family::V4 => "PublicIP",
        Family::V6 => "PublicIPv6",
    }
}

/// The lease's field with the backend's data.
fn data_field(family: Family) -> &'static str {
    match family {
        Family::V4 => "BackendData",
        Family::V6 => "BackendV6Data",
    }
}

impl Skip {
    /// What to do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::SameMac { .. } => {
                "two nodes are clones, or one has two leases: of a clone delete the lease and the VXLAN device (ip link \
                 delete), and restart its agent, which makes another MAC; else delete the lease that nobody renews"
            }
            Self::OurAddress { .. } => {
                "two nodes publish that address, or one has an old lease: where a node, perhaps this one, has it on no \
                 interface, give that node its own (--public-ip, --iface); else delete the lease that nobody renews"
            }
            Self::NoSubnet(_) | Self::NotCarried(_) | Self::OtherBackend { .. } => {
                "nothing, where that is meant"
            }
            _ => "correct or delete that lease",
        }
    }

    /// Whether someone should look into it. Nodes of other kinds are nobody's fault.
    pub fn is_fault(&self) -> bool {
        !matches!(self, Self::NoSubnet(_) | Self::NotCarried(_) | Self::OtherBackend { .. })
    }
}
