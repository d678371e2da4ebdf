//! A tunnel without Ethernet, with its addresses: made, seen and brought into line.

use std::{collections::BTreeSet, fmt};

use ipnetwork::IpNetwork;
use nix::errno::Errno;
use tracing::{info, warn};

use super::BackendError;
use crate::{
    netlink::{LinkKind, Netlink, NetlinkError, Tunnel, address, link, tunnel},
    values::{Family, overlap},
};

/// A device of which one is enough for all peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Device {
    /// Its name.
    pub(super) name: String,
    /// What it does with packets.
    pub(super) tunnel: Tunnel,
    /// Largest packet, bytes.
    pub(super) mtu: u32,
    /// Its addresses within the cluster's networks.
    pub(super) addresses: BTreeSet<IpNetwork>,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, tunnel, mtu, addresses } = self;
        write!(f, "device {name} (")?;
        match tunnel {
            Tunnel::Ipip { local } => write!(f, "IP in IP from {local}")?,
            Tunnel::Wireguard => f.write_str("WireGuard")?,
        }
        write!(f, ", MTU {mtu}")?;
        addresses.iter().try_for_each(|address| write!(f, ", {address}"))?;
        f.write_str(")")
    }
}

impl Device {
    /// The device of that name and its index, if it is up: down, it is as good as absent, since nothing on it works.
    /// Of its addresses those within `networks`.
    pub(super) async fn find(
        netlink: &mut Netlink,
        name: &str,
        networks: &[IpNetwork],
    ) -> Result<Option<(u32, Self)>, NetlinkError> {
        let Some(link) = netlink.link(name).await?.filter(|link| link.up) else { return Ok(None) };
        let LinkKind::Tunnel(tunnel) = link.kind else { return Ok(None) };
        let mut addresses = BTreeSet::new();
        for family in Family::BOTH {
            let held = netlink.addresses(family, Some(link.index)).await?;
            addresses.extend(held.into_iter().map(|held| held.network).filter(|held| within(networks, held)));
        }
        Ok(Some((link.index, Self { name: name.to_owned(), tunnel, mtu: link.mtu, addresses })))
    }

    /// Makes it, or brings the one there is into line, and returns its index. One of another kind is not ours.
    pub(super) async fn put(
        &self,
        netlink: &mut Netlink,
        networks: &[IpNetwork],
    ) -> Result<u32, BackendError> {
        let name = &self.name;
        let found = netlink.link(name).await?;
        let index = match found {
            Some(found) if found.kind == LinkKind::Tunnel(self.tunnel) => found.index,
            Some(found) if self.may_replace(&found.kind) => {
                info!(device = %name, found = ?found.kind, "device cannot become the one we need: replacing it");
                netlink.change(link::delete(found.index)).await?;
                self.create(netlink).await?
            }
            Some(_) => {
                return Err(BackendError::Other(format!(
                    "there is an interface {name} of another kind: delete it (ip link delete {name})"
                )));
            }
            None => self.create(netlink).await?,
        };
        netlink.change(link::set_mtu(index, self.mtu)).await?;
        if let Err(error) = link::refuse_router_advertisements(name) {
            warn!(device = %name, %error, "cannot set accept_ra=0");
        }
        for family in Family::BOTH {
            for held in netlink.addresses(family, Some(index)).await? {
                if within(networks, &held.network) && !self.addresses.contains(&held.network) {
                    netlink.change(address::delete(index, held.network)).await?;
                }
            }
        }
        for address in &self.addresses {
            netlink.change(address::put(index, *address)).await?;
        }
        netlink.change(link::set_up(index)).await?;
        Ok(index)
    }

    /// Deletes it, if it is there.
    pub(super) async fn delete(&self, netlink: &mut Netlink) -> Result<(), BackendError> {
        match netlink.link(&self.name).await? {
            Some(found) if self.may_replace(&found.kind) => {
                Ok(netlink.change(link::delete(found.index)).await?)
            }
            _ => Ok(()),
        }
    }

    /// Whether a device of this kind, of that name, is flannel's.
    fn may_replace(&self, kind: &LinkKind) -> bool {
        matches!(
            (kind, self.tunnel),
            (LinkKind::Tunnel(Tunnel::Ipip { .. }), Tunnel::Ipip { .. })
                | (LinkKind::Tunnel(Tunnel::Wireguard), Tunnel::Wireguard)
        )
    }

    async fn create(&self, netlink: &mut Netlink) -> Result<u32, BackendError> {
        let module = match self.tunnel {
            Tunnel::Ipip { .. } => "ipip",
            Tunnel::Wireguard => "wireguard",
        };
        if let Err(error) = netlink.change(tunnel::create(&self.name, self.tunnel)).await {
            return Err(match error.errno() {
                Some(Errno::EOPNOTSUPP) => BackendError::Other(format!(
                    "this kernel makes no {module} device ({error}): load the module (modprobe {module}), or use the \
                     vxlan backend"
                )),
                _ => error.into(),
            });
        }
        let made = netlink.link(&self.name).await?.map(|link| link.index);
        Ok(made.ok_or_else(|| {
            NetlinkError::Conflict(format!(
                "device {} went away as soon as it was created: another process manages it; stop that process",
                self.name
            ))
        })?)
    }
}

fn within(networks: &[IpNetwork], address: &IpNetwork) -> bool {
    networks.iter().any(|network| overlap(*network, address.ip().into()))
}
