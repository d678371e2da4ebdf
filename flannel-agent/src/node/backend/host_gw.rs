//! `host-gw`: routes to nodes on the same link.

use std::net::IpAddr;

use super::{Backend, Unusable};
use crate::{
    datapath::{Stray, kernel::KernelDatapath},
    node::interface::ExternalInterface,
    plan,
};

/// Routes to nodes on the same link.
#[derive(Clone, Copy, Debug)]
pub struct HostGw;

impl Backend for HostGw {
    fn planned(&self) -> plan::Backend {
        plan::Backend::HostGw
    }

    /// Others route to the address they know, so that it has to be the interface's.
    fn check_address(
        &self,
        external: &ExternalInterface,
        address: IpAddr,
        public: IpAddr,
    ) -> Result<(), Unusable> {
        if public == address {
            return Ok(());
        }
        let (field, flag) = match public {
            IpAddr::V4(_) => ("PublicIP", "public-ip"),
            IpAddr::V6(_) => ("PublicIPv6", "public-ipv6"),
        };
        Err(Unusable::BehindNat { field, flag, public, interface: external.name.clone(), address })
    }

    fn with_objects(&self, datapath: KernelDatapath, stray: Stray) -> KernelDatapath {
        datapath.with_direct_routes(stray)
    }
}
