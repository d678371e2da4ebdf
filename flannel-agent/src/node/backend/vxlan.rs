//! `vxlan`: a tunnel, over a device of each family.

use std::{collections::BTreeMap, net::IpAddr};

use tracing::{info, warn};

use super::Backend;
use crate::{
    config::VxlanOptions,
    datapath::{Stray, kernel::KernelDatapath},
    lease::{
        LeaseAttrs, ThisNode,
        wire::{NodeAddress, VxlanData},
    },
    netlink::{Netlink, NetlinkError},
    node::interface::ExternalInterface,
    plan::{self, VxlanDevice},
    values::{Family, Mac},
};

/// UDP port of the kernel's VXLAN when none is configured (drivers/net/vxlan, `vxlan_port`).
const KERNEL_PORT: u16 = 8472;

/// A tunnel.
#[derive(Clone, Debug)]
pub struct Vxlan {
    /// Its options.
    pub options: VxlanOptions,
    /// MACs of our devices: the same as long as we run, whatever becomes of the devices.
    pub macs: BTreeMap<Family, Mac>,
}

impl Vxlan {
    /// A VXLAN device that is there already, ours or stock flannel's, keeps its MAC, so that peers need not learn a new
    /// one; a new device gets the one our lease said when it was last written, as does any device where other nodes go
    /// by that.
    ///
    /// # Errors
    /// When the device cannot be looked up.
    pub async fn adopt(
        options: VxlanOptions,
        external: &ExternalInterface,
        this_node: &ThisNode,
        netlink: &mut Netlink,
    ) -> Result<Self, NetlinkError> {
        if let Some(mtu) = options.mtu.filter(|mtu| *mtu > external.mtu) {
            warn!(
                configured = mtu,
                interface = external.name,
                mtu = external.mtu,
                "Backend.MTU is larger than the external interface allows: using the MTU of the interface"
            );
        }
        let mut macs = BTreeMap::new();
        for (family, local) in external.addresses() {
            let before = this_node.published.as_ref().and_then(|attrs| attrs.vxlan(family).ok()?.vtep_mac);
            let before = before.filter(Mac::is_of_one_device);
            let wanted = vxlan_device(&options, family, local, before.unwrap_or_else(Mac::random), external);
            let found = adopted_mac(&wanted, netlink).await?;
            macs.insert(family, before.filter(|_| this_node.settled).unwrap_or(found));
        }
        Ok(Self { options, macs })
    }
}

impl Backend for Vxlan {
    fn planned(&self) -> plan::Backend {
        plan::Backend::Vxlan
    }

    fn attrs(&self, address: NodeAddress) -> LeaseAttrs {
        let data = |family| {
            let mac = self.macs.get(&family)?;
            Some(VxlanData { vni: self.options.vni, vtep_mac: Some(*mac) })
        };
        LeaseAttrs::vxlan_node(address, data(Family::V4), data(Family::V6))
    }

    fn mtu(&self, family: Family, external: &ExternalInterface) -> u32 {
        overlay_mtu(&self.options, family, external)
    }

    fn device(&self, family: Family, external: &ExternalInterface) -> Option<VxlanDevice> {
        let local = external.address_of(family)?;
        Some(vxlan_device(&self.options, family, local, *self.macs.get(&family)?, external))
    }

    fn direct_routing(&self) -> bool {
        self.options.direct_routing
    }

    fn kernel_only(&self) -> Option<&'static str> {
        if self.options.gbp {
            return Some("Backend.GBP: the programs do not write a packet's mark into its VXLAN header");
        }
        let learning = "Backend.Learning: the kernel must see every packet to learn from it";
        self.options.learning.then_some(learning)
    }

    fn with_objects(&self, datapath: KernelDatapath, stray: Stray) -> KernelDatapath {
        let network = stray.pool.network();
        let datapath = datapath.with_device(device_name(&self.options, Family::of_network(network)), network);
        match self.options.direct_routing {
            true => datapath.with_direct_routes(stray),
            false => datapath,
        }
    }
}

/// The MAC that the device `wanted` is to have: that of the device there is, if there is one.
async fn adopted_mac(wanted: &VxlanDevice, netlink: &mut Netlink) -> Result<Mac, NetlinkError> {
    let found = netlink.link(&wanted.name).await?.and_then(|link| link.as_vxlan_device());
    Ok(match found {
        Some(found) if wanted.is_compatible(&found) => {
            info!(device = found.name, mac = %found.mac, "using the existing VXLAN device");
            found.mac
        }
        Some(found) => {
            // By its MAC a node whose address changed finds its lease again, and peers keep what they know.
            info!(device = found.name, mac = %found.mac, "the VXLAN device will be created again, with the same MAC");
            found.mac
        }
        None => {
            info!(device = wanted.name, mac = %wanted.mac, "a VXLAN device will be created");
            wanted.mac
        }
    })
}

fn device_name(options: &VxlanOptions, family: Family) -> String {
    match family {
        Family::V4 => format!("flannel.{}", options.vni),
        Family::V6 => format!("flannel-v6.{}", options.vni),
    }
}

fn vxlan_device(
    options: &VxlanOptions,
    family: Family,
    local: IpAddr,
    mac: Mac,
    external: &ExternalInterface,
) -> VxlanDevice {
    VxlanDevice {
        name: device_name(options, family),
        vni: options.vni,
        port: options.port.unwrap_or(KERNEL_PORT),
        underlay_ifindex: external.index,
        local,
        mac,
        mtu: overlay_mtu(options, family, external),
        learning: options.learning,
        gbp: options.gbp,
    }
}

/// The kernel refuses a device that takes more than its underlay carries. The outer headers of IPv6 are longer by 20
/// bytes, and `Backend.MTU` is about the underlay.
fn overlay_mtu(options: &VxlanOptions, family: Family, external: &ExternalInterface) -> u32 {
    let overhead = match family {
        Family::V4 => 50,
        Family::V6 => 70,
    };
    options.mtu.map_or(external.mtu, |mtu| mtu.min(external.mtu)).saturating_sub(overhead)
}
