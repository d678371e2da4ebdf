//! Backends: how packets reach other nodes' pods.
//!
//! A backend is one file here, and one line in [`table::KINDS`]. The file has
//!
//! - its `KIND`: its name, and what reads its options;
//! - its options, which implement [`Options`]: flanneld's keys and messages, the values in force, of which changes are
//!   made (secrets stay hidden), and [`Options::adopt`], which makes of them the backend on this node before the lease
//!   is had: keys are read or made here, devices looked up;
//! - the backend on this node, which implements [`Backend`]: what our lease says, how a peer's lease is judged, the MTU
//!   of pods, and what there is to be in the kernel.
//!
//! What there is to be in the kernel may be of kinds that all know: a VXLAN device with what is on it
//! ([`Backend::device`], [`PeerRoute::Vxlan`]), and routes to nodes on the link ([`PeerRoute::Direct`]). All else are
//! objects that only this backend knows, be they in the kernel or not: [`Backend::objects`] plans those of the node,
//! [`Backend::peer_objects`] those of a peer whose lease was judged [`PeerRoute::Objects`], both purely, and
//! [`Backend::driver`] brings what observes, makes and removes them ([`ObjectDriver`]). The reconciler treats them as its
//! own: they are put in order of their [`Stage`], repaired when they go (looked at each second), tried again when they
//! fail, kept when the agent ends, and found again when it starts. A device the agent serves itself is such an object:
//! its driver owns what serves it, and shows it as gone when that has died.
//!
//! A backend that asks somebody else to move packets, as the clouds' do, follows no peers ([`Backend::follows_peers`]) and
//! has no objects. It does its work in [`Backend::register`], which is called when the lease is had, and then again every
//! [`Backend::register_again`]. The first failure ends the start, as upstream's does; later ones are logged.
//!
//! The programs carry nothing of a backend that names a reason in [`Backend::kernel_only`].

use std::{collections::BTreeMap, fmt, net::IpAddr, ops::Deref, sync::Arc, time::Duration};

use flannel_common::path::Carrier;
use futures::future::{BoxFuture, ready};
use ipnetwork::IpNetwork;

use crate::{
    netlink::{NetlinkError, VxlanDevice},
    values::Family,
    wire::{LeaseAttrs, NodeAddress},
};

mod alloc;
mod aws_vpc;
mod device;
mod extension;
mod external;
mod gce;
mod host_gw;
mod ipip;
mod ipsec;
pub mod kind;
mod object;
mod options;
mod peer;
pub mod table;
mod udp;
mod vxlan;
mod wireguard;

pub use alloc::Alloc;
pub use aws_vpc::{AwsVpc, AwsVpcOptions};
pub use external::ExternalInterface;
pub use gce::{Gce, GceOptions};
pub use host_gw::HostGw;
pub use ipip::Ipip;
pub use object::{AnyObject, Object, ObjectDriver, ObjectId, Objects, Stage};
pub use options::{Configured, OptionError, OptionValue, Options, Start};
pub use peer::{Candidate, LocalStack, PeerRoute, Skip};
pub use udp::{Udp, UdpOptions};
pub use vxlan::{Vxlan, VxlanOptions};

/// The smallest MTU a link may have for IPv6, bytes (RFC 8200, 5). The kernel takes IPv6 off any smaller one.
const IPV6_MIN_MTU: u32 = 1280;

/// This node in each family of the cluster's.
pub type Stacks = BTreeMap<Family, LocalStack>;

/// A peer that is reached by objects of the backend's own.
pub struct FollowedPeer<'a> {
    /// What its lease says.
    pub attrs: &'a LeaseAttrs,
    /// Its pod subnets, of the families in which its lease is followed.
    pub subnets: Vec<IpNetwork>,
}

/// This node with a lease.
#[derive(Clone, Debug)]
pub struct Registered {
    /// Its external interface.
    pub external: ExternalInterface,
    /// What others know it by.
    pub public: NodeAddress,
    /// The network of pods, and our subnet of it, of each family.
    pub subnets: Vec<(IpNetwork, IpNetwork)>,
}

/// A device of a backend's own that pods' packets to other nodes go through, as people are told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CarryingDevice {
    /// Its name.
    pub name: String,
    /// The UDP port it receives at, host order, where it has one.
    pub port: Option<u16>,
    /// Largest packet, bytes.
    pub mtu: u32,
    /// The networks whose packets it carries.
    pub networks: Vec<IpNetwork>,
}

/// How packets reach other nodes, on this node.
pub trait Backend: fmt::Debug + Send + Sync {
    /// Its options.
    fn options(&self) -> &dyn Options;

    /// `BackendType` of our lease, and unless [`Self::follows`] says otherwise of those that are followed.
    fn published(&self) -> &'static str {
        self.options().kind()
    }

    /// Whether leases whose `BackendType` is `kind` are followed.
    fn follows(&self, kind: &str) -> bool {
        kind == self.published()
    }

    /// What our lease says, at `address` on the underlay.
    fn attrs(&self, address: NodeAddress) -> LeaseAttrs {
        LeaseAttrs::plain(address, self.published())
    }

    /// How the peer of a lease is reached. Whoever follows no peers is not asked.
    ///
    /// # Errors
    /// Why it is not.
    fn judge(&self, candidate: &Candidate<'_>) -> Result<PeerRoute, Skip> {
        Err(Skip::OtherBackend { theirs: candidate.attrs.backend_type.clone(), ours: self.published() })
    }

    /// The largest packet of `family` that reaches other nodes' pods whole, bytes.
    fn mtu(&self, family: Family, external: &ExternalInterface) -> u32 {
        let _ = family;
        external.mtu
    }

    /// The VXLAN device for packets of `family` over `external`, where there is to be one.
    fn device(&self, family: Family, external: &ExternalInterface) -> Option<VxlanDevice> {
        let _ = (family, external);
        None
    }

    /// The name of the VXLAN device of a family, where this backend has one.
    fn device_name(&self, family: Family) -> Option<String> {
        let _ = family;
        None
    }

    /// Whether it works where other nodes know this one as `public`, and `address` is ours on the interface.
    ///
    /// # Errors
    /// Why not.
    fn check_address(
        &self,
        external: &ExternalInterface,
        address: IpAddr,
        public: IpAddr,
    ) -> Result<(), Unusable> {
        let _ = (external, address, public);
        Ok(())
    }

    /// Whether it works over that interface.
    ///
    /// # Errors
    /// Why not.
    fn check_interface(&self, external: &ExternalInterface) -> Result<(), Unusable> {
        let _ = external;
        Ok(())
    }

    /// Whether peers on our link are reached without the tunnel there is.
    fn direct_routing(&self) -> bool {
        false
    }

    /// Whether there is no tunnel at all, and routes to peers are all [`PeerRoute::Direct`].
    fn is_without_tunnel(&self) -> bool {
        false
    }

    /// Whether anything is done about peers.
    fn follows_peers(&self) -> bool {
        true
    }

    /// Whether routes to other nodes past any tunnel, as host-gw leaves them, are to go, lest packets take them. Not where
    /// routes that look the same are the operator's.
    fn replaces_routes(&self) -> bool {
        true
    }

    /// Why the programs cannot carry this backend's packets; `None` where they can.
    fn kernel_only(&self) -> Option<&'static str> {
        None
    }

    /// What the programs may put packets into in place of the device of [`Self::tunnel_device`]; `None` without one, or where
    /// it carries all.
    fn own_carrier(&self) -> Option<Carrier> {
        None
    }

    /// The UDP port at which nodes get packets as they are, where the programs may put them into UDP so; host order.
    fn udp_port(&self) -> Option<u16> {
        None
    }

    /// The name of the interface that pods' IPv4 packets to other nodes go through, where that is an object of this
    /// backend's own.
    fn tunnel_device(&self) -> Option<String> {
        None
    }

    /// The devices among its own objects that carry packets to other nodes: as they should be, or once they are there
    /// where their names are not known before.
    fn carrying_devices(&self, external: &ExternalInterface, stacks: &Stacks) -> Vec<CarryingDevice> {
        let _ = (external, stacks);
        Vec::new()
    }

    /// Whether there are objects that only this backend knows. Then it has a [`Self::driver`].
    fn has_objects(&self) -> bool {
        false
    }

    /// Those of them that do not depend on peers.
    fn objects(&self, external: &ExternalInterface, stacks: &Stacks) -> Objects {
        let _ = (external, stacks);
        Objects::new()
    }

    /// Those that a peer needs which was judged [`PeerRoute::Objects`] in some family.
    fn peer_objects(&self, stacks: &Stacks, peer: &FollowedPeer<'_>) -> Objects {
        let _ = (stacks, peer);
        Objects::new()
    }

    /// What makes these objects, of the network namespace of this thread.
    ///
    /// # Errors
    /// When what it needs cannot be had.
    fn driver(&self, node: &Registered) -> Result<Option<Box<dyn ObjectDriver>>, BackendError> {
        let _ = node;
        Ok(None)
    }

    /// Does what this node needs outside of its kernel once it has a lease, or does it again.
    ///
    /// # Errors
    /// What was refused, and what to do.
    fn register<'a>(&'a self, node: &'a Registered) -> BoxFuture<'a, Result<(), BackendError>> {
        let _ = node;
        Box::pin(ready(Ok(())))
    }

    /// How long after it was done that is done again, for whatever has undone it; `None` for never.
    fn register_again(&self) -> Option<Duration> {
        None
    }
}

/// The backend of this node. Equal if it is the same one.
#[derive(Clone, Debug)]
pub struct AnyBackend(Arc<dyn Backend>);

impl AnyBackend {
    /// Some backend.
    pub fn new(backend: impl Backend + 'static) -> Self {
        Self(Arc::new(backend))
    }
}

impl Deref for AnyBackend {
    type Target = dyn Backend;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

impl PartialEq for AnyBackend {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for AnyBackend {}

/// A backend could not do something.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BackendError {
    /// By the kernel's verdict on a netlink request.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// For whatever else: what, why, and what to do.
    #[error("{0}")]
    Other(String),
}

impl dyn Backend {
    /// What the programs put packets into.
    pub fn carrier(&self) -> Carrier {
        self.own_carrier().unwrap_or_default()
    }

    /// Whether this backend works on a node that publishes `public`.
    ///
    /// # Errors
    /// As [`Backend::check_address`]; or the interface is too narrow for IPv6.
    pub fn check(&self, external: &ExternalInterface, public: NodeAddress) -> Result<(), Unusable> {
        self.check_interface(external)?;
        for (family, address) in external.addresses() {
            if let Some(public) = public.of(family) {
                self.check_address(external, address, public)?;
            }
            let left = self.mtu(family, external);
            if family == Family::V6 && left < IPV6_MIN_MTU {
                let needed = IPV6_MIN_MTU + external.mtu.saturating_sub(left);
                let (interface, mtu) = (external.name.clone(), external.mtu);
                return Err(Unusable::TooSmall { interface, mtu, left, needed });
            }
        }
        Ok(())
    }

    /// MTU of pods, bytes. With both families it is that of IPv4, as upstream's: where IPv6 over VXLAN carries
    /// less, the node tells pods so as a router does (ICMPv6, packet too big).
    pub fn pod_mtu(&self, external: &ExternalInterface) -> u32 {
        let of = |family| external.address_of(family).map(|_| self.mtu(family, external));
        of(Family::V4).or_else(|| of(Family::V6)).unwrap_or(external.mtu)
    }
}

/// The backend cannot be used with this node's addresses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// Other nodes know this one by an address that its interface does not have.
    #[error(
        "your {field} differs from interface IP, meaning that probably you're on a NAT, which is not supported by \
         host-gw backend: {field} {public}, interface {interface} {address}; drop --{flag}, or use the vxlan \
         backend"
    )]
    BehindNat {
        /// `PublicIP` or `PublicIPv6`.
        field: &'static str,
        /// The flag that sets it.
        flag: &'static str,
        /// What we would publish.
        public: IpAddr,
        /// The external interface.
        interface: String,
        /// Our address on it.
        address: IpAddr,
    },
    /// The outer headers leave nothing.
    #[error("MTU {mtu} of iface {interface} is too small for {backend} mode to work: raise it")]
    NoRoom {
        /// The external interface.
        interface: String,
        /// Its MTU.
        mtu: u32,
        /// The backend.
        backend: &'static str,
    },
    /// What is left for pods is less than IPv6 needs.
    #[error(
        "the MTU of {interface}, {mtu}, leaves {left} bytes for packets of pods, and IPv6 needs {IPV6_MIN_MTU}: raise it \
         to {needed} at least, or set EnableIPv6 to false"
    )]
    TooSmall {
        /// The external interface.
        interface: String,
        /// Its MTU.
        mtu: u32,
        /// That of pods.
        left: u32,
        /// What it would have to be.
        needed: u32,
    },
}

#[cfg(test)]
mod tests;
