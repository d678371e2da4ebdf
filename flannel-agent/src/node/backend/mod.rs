//! The backend that the configuration names, on this node: what our lease publishes, what the dataplane is to
//! be, and what pods are told. Each kind has a file here, and a line in [`adopt`].

use std::{fmt, net::IpAddr};

use ipnetwork::IpNetwork;

use super::interface::ExternalInterface;
use crate::{
    config::{self, Pool},
    datapath::{Stray, kernel::KernelDatapath},
    lease::{LeaseAttrs, ThisNode, wire::NodeAddress},
    netlink::{Netlink, NetlinkError},
    plan::{self, VxlanDevice},
    values::Family,
};

mod alloc;
mod host_gw;
mod vxlan;

pub use alloc::Alloc;
pub use host_gw::HostGw;
pub use vxlan::Vxlan;

/// The smallest MTU a link may have for IPv6, bytes (RFC 8200, 5). The kernel takes IPv6 off any smaller one.
const IPV6_MIN_MTU: u32 = 1280;

/// The configured backend on this node. What an earlier process left of it stays in use.
///
/// # Errors
/// When that cannot be looked up.
pub async fn adopt(
    configured: &config::Backend,
    external: &ExternalInterface,
    this_node: &ThisNode,
    netlink: &mut Netlink,
) -> Result<Box<dyn Backend>, NetlinkError> {
    Ok(match configured {
        config::Backend::Vxlan(options) => {
            Box::new(Vxlan::adopt(options.clone(), external, this_node, netlink).await?)
        }
        config::Backend::HostGw => Box::new(HostGw),
        config::Backend::Alloc => Box::new(Alloc),
    })
}

/// How packets reach other nodes.
pub trait Backend: fmt::Debug + Send + Sync {
    /// What is planned for.
    fn planned(&self) -> plan::Backend;

    /// What our lease says, at `address` on the underlay.
    fn attrs(&self, address: NodeAddress) -> LeaseAttrs {
        LeaseAttrs::plain(address, self.planned().kind())
    }

    /// The largest packet of `family` that reaches other nodes' pods whole, bytes.
    fn mtu(&self, family: Family, external: &ExternalInterface) -> u32 {
        let _ = family;
        external.mtu
    }

    /// The device for packets of `family` over `external`, where there is to be one.
    fn device(&self, family: Family, external: &ExternalInterface) -> Option<VxlanDevice> {
        let _ = (family, external);
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

    /// Whether peers on our link are reached without the tunnel there is.
    fn direct_routing(&self) -> bool {
        false
    }

    /// Whether anything is done about peers.
    fn follows_peers(&self) -> bool {
        true
    }

    /// Why the programs cannot carry this backend's packets; `None` where they can.
    fn kernel_only(&self) -> Option<&'static str> {
        None
    }

    /// `datapath` with the kernel's objects of this backend for one pool. `stray` names that, our subnet of it, and the
    /// interface.
    fn with_objects(&self, datapath: KernelDatapath, stray: Stray) -> KernelDatapath;
}

impl dyn Backend {
    /// Whether this backend works on a node that publishes `public`.
    ///
    /// # Errors
    /// As [`Backend::check_address`]; or the interface is too narrow for IPv6.
    pub fn check(&self, external: &ExternalInterface, public: NodeAddress) -> Result<(), Unusable> {
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

    /// The kernel's objects of this backend. With each pool comes our subnet of it; what is left of `earlier` networks
    /// is ours, too.
    pub fn kernel_datapath(
        &self,
        netlink: Netlink,
        external: &ExternalInterface,
        pools: &[(Pool, IpNetwork)],
        earlier: &[IpNetwork],
    ) -> KernelDatapath {
        let datapath = KernelDatapath::new(netlink);
        if !self.follows_peers() {
            return datapath;
        }
        let networks = pools.iter().map(|(pool, _)| pool.network()).chain(earlier.iter().copied());
        let datapath = networks.fold(datapath, KernelDatapath::giving_up);
        let strays =
            pools.iter().map(|(pool, own)| Stray { ifindex: external.index, pool: *pool, own: *own });
        let datapath = strays.fold(datapath, |datapath, stray| self.with_objects(datapath, stray));
        datapath.with_earlier(earlier)
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
