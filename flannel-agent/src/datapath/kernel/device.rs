//! The VXLAN devices: made, brought into line, and deleted.

use tracing::{info, warn};

use super::{KernelDatapath, Overlay, port};
use crate::{
    netlink::{Link, NetlinkError, link, vxlan},
    plan::VxlanDevice,
    values::Family,
};

impl KernelDatapath {
    /// Index of the device of a family, if there is one that we would make.
    pub(super) async fn device_index(&mut self, family: Family) -> Result<Option<u32>, NetlinkError> {
        let Some(Overlay { name, .. }) = self.overlays.get(&family) else { return Ok(None) };
        let link = self.netlink.link(name).await?;
        Ok(link.filter(|link| link.as_vxlan_device().is_some()).map(|link| link.index))
    }

    /// Brings the device into line and returns its index.
    pub(super) async fn put_device(&mut self, wanted: &VxlanDevice) -> Result<u32, NetlinkError> {
        let name = &wanted.name;
        let index = match self.netlink.link(name).await? {
            Some(link) if is_compatible(&link, wanted) => {
                self.adopt(&link, wanted).await?;
                link.index
            }
            Some(link) => {
                info!(
                    device = %name, found = ?link.kind, ?wanted,
                    "device cannot become the one we need: replacing it"
                );
                self.netlink.change(link::delete(link.index)).await?;
                self.create(wanted).await?
            }
            None => self.create(wanted).await?,
        };
        if let Err(error) = link::refuse_router_advertisements(name) {
            warn!(device = %name, %error, "cannot set accept_ra=0");
        }
        match self.netlink.change(link::set_up(index)).await {
            Ok(()) => Ok(index),
            Err(error) => Err(port::explained(&mut self.netlink, wanted, error).await?),
        }
    }

    async fn adopt(&mut self, link: &Link, wanted: &VxlanDevice) -> Result<(), NetlinkError> {
        if link.mtu != wanted.mtu {
            info!(device = %link.name, from = link.mtu, to = wanted.mtu, "changing the MTU of the device");
            self.netlink.change(link::set_mtu(link.index, wanted.mtu)).await?;
        }
        if link.mac != Some(wanted.mac) {
            let from = link.mac.map(|mac| mac.to_string());
            info!(device = %link.name, from, to = %wanted.mac, "changing the MAC of the device");
            self.netlink.change(link::set_mac(link.index, wanted.mac)).await?;
        }
        if link.as_vxlan_device().is_some_and(|found| found.learning != wanted.learning) {
            info!(device = %link.name, to = wanted.learning, "changing whether the device learns");
            self.netlink.change(vxlan::set_learning(link.index, wanted.learning)).await?;
        }
        Ok(())
    }

    async fn create(&mut self, wanted: &VxlanDevice) -> Result<u32, NetlinkError> {
        if let Err(error) = self.netlink.change(vxlan::create(wanted)).await {
            return Err(port::explained(&mut self.netlink, wanted, error).await?);
        }
        let link = self.netlink.link(&wanted.name).await?;
        link.map(|link| link.index).ok_or(NetlinkError::Conflict(format!(
            "device {} went away as soon as it was created: another process manages it; stop that process",
            wanted.name
        )))
    }

    /// Deletes the device of a family; one that is absent is gone already.
    pub(super) async fn delete_device(&mut self, family: Family) -> Result<(), NetlinkError> {
        let Some(Overlay { name, .. }) = self.overlays.get(&family) else { return Ok(()) };
        match self.netlink.link(name).await? {
            Some(link) => self.netlink.change(link::delete(link.index)).await,
            None => Ok(()),
        }
    }
}

fn is_compatible(link: &Link, wanted: &VxlanDevice) -> bool {
    link.as_vxlan_device().is_some_and(|found| wanted.is_compatible(&found))
}
