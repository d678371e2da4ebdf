//! The backend that the configuration names, on this node: what our lease publishes, what the dataplane is to
//! be, and what pods are told.

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use tracing::{info, warn};

use crate::{
    config::{BuiltBackend, PoolV4, VxlanOptions},
    datapath::kernel::KernelDatapath,
    lease::{LeaseAttrs, wire::VxlanData},
    mac::Mac,
    netlink::{ExternalInterface, Netlink, NetlinkError, Stray},
    plan::{self, VxlanDevice},
};

/// What VXLAN over IPv4 takes of the underlay's MTU, bytes.
const OVERHEAD: u32 = 50;
/// UDP port of the kernel's VXLAN when none is configured (drivers/net/vxlan, `vxlan_port`).
const KERNEL_PORT: u16 = 8472;

/// A backend on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// A tunnel.
    Vxlan {
        /// Its options.
        options: VxlanOptions,
        /// MAC of our device: the same as long as we run, whatever becomes of the device.
        mac: Mac,
    },
    /// Routes to nodes on the same link.
    HostGw,
    /// The lease, and nothing else.
    Alloc,
}

/// The backend cannot be used with this node's addresses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "your PublicIP differs from interface IP, meaning that probably you're on a NAT, which is not supported by \
     host-gw backend: PublicIP {public_ip}, interface {interface} {address}; drop --public-ip, or use the vxlan \
     backend"
)]
pub struct BehindNat {
    /// What we would publish.
    public_ip: Ipv4Addr,
    /// The external interface.
    interface: String,
    /// Our address on it.
    address: Ipv4Addr,
}

impl Backend {
    /// The configured backend. A VXLAN device that is there already and fits, ours or stock flannel's, keeps its
    /// MAC, so that peers need not learn a new one; a new device gets the one our lease `published`.
    ///
    /// # Errors
    /// When the device cannot be looked up.
    pub async fn adopt(
        configured: BuiltBackend<'_>,
        external: &ExternalInterface,
        published: Option<&LeaseAttrs>,
        netlink: &mut Netlink,
    ) -> Result<Self, NetlinkError> {
        let options = match configured {
            BuiltBackend::Vxlan(options) => options.clone(),
            BuiltBackend::HostGw => return Ok(Self::HostGw),
            BuiltBackend::Alloc => return Ok(Self::Alloc),
        };
        if let Some(mtu) = options.mtu.filter(|mtu| *mtu > external.mtu) {
            warn!(
                configured = mtu,
                interface = external.name,
                mtu = external.mtu,
                "Backend.MTU is more than the external interface carries: using the MTU of the interface"
            );
        }
        let before = published.and_then(|attrs| attrs.vxlan().ok()?.vtep_mac).filter(Mac::is_of_one_device);
        let wanted = vxlan_device(&options, before.unwrap_or_else(Mac::random), external);
        let found = netlink.link(&wanted.name).await?.and_then(|link| link.as_vxlan_device());
        let mac = match found {
            Some(found) if wanted.is_compatible(&found) => {
                info!(device = found.name, mac = %found.mac, "adopting the VXLAN device there is");
                found.mac
            }
            Some(found) => {
                // By its MAC a node whose address changed finds its lease again, and peers keep what they know.
                info!(device = found.name, mac = %found.mac, "the VXLAN device there is will be made anew, with its MAC");
                found.mac
            }
            None => {
                info!(device = wanted.name, mac = %wanted.mac, "a VXLAN device will be created");
                wanted.mac
            }
        };
        Ok(Self::Vxlan { options, mac })
    }

    /// Whether this backend works on a node that publishes `public_ip`.
    ///
    /// # Errors
    /// With host-gw, when other nodes know this one by an address that its interface does not have.
    pub fn check(&self, external: &ExternalInterface, public_ip: Ipv4Addr) -> Result<(), BehindNat> {
        match self {
            Self::HostGw if public_ip != external.address => {
                Err(BehindNat { public_ip, interface: external.name.clone(), address: external.address })
            }
            _ => Ok(()),
        }
    }

    /// What our lease says.
    pub fn attrs(&self, public_ip: Ipv4Addr) -> LeaseAttrs {
        match self {
            Self::Vxlan { options, mac } => {
                LeaseAttrs::vxlan_v4(public_ip, VxlanData { vni: options.vni, vtep_mac: Some(*mac) })
            }
            Self::HostGw => LeaseAttrs::plain_v4(public_ip, plan::Backend::HostGw.kind()),
            Self::Alloc => LeaseAttrs::plain_v4(public_ip, plan::Backend::Alloc.kind()),
        }
    }

    /// What is planned for, over `external`.
    pub fn over(&self, external: &ExternalInterface) -> plan::Backend {
        match self {
            Self::Vxlan { options, mac } => plan::Backend::Vxlan(vxlan_device(options, *mac, external)),
            Self::HostGw => plan::Backend::HostGw,
            Self::Alloc => plan::Backend::Alloc,
        }
    }

    /// MTU of pods, bytes.
    pub fn pod_mtu(&self, external: &ExternalInterface) -> u32 {
        match self {
            Self::Vxlan { options, .. } => overlay_mtu(options, external),
            Self::HostGw | Self::Alloc => external.mtu,
        }
    }

    /// Whether peers on our link are reached without the tunnel there is.
    pub fn direct_routing(&self) -> bool {
        matches!(self, Self::Vxlan { options: VxlanOptions { direct_routing: true, .. }, .. })
    }

    /// Whether anything is done about peers.
    pub fn follows_peers(&self) -> bool {
        *self != Self::Alloc
    }

    /// Why the programs cannot carry this backend's packets; `None` where they can.
    pub fn kernel_only(&self) -> Option<&'static str> {
        match self {
            Self::Vxlan { options: VxlanOptions { gbp: true, .. }, .. } => {
                Some("Backend.GBP: the programs do not write a packet's mark into its VXLAN header")
            }
            Self::Vxlan { options: VxlanOptions { learning: true, .. }, .. } => {
                Some("Backend.Learning: the kernel must see every packet to learn from it")
            }
            Self::Vxlan { .. } => None,
            Self::HostGw => None,
            Self::Alloc => Some("the alloc backend moves no packets"),
        }
    }

    /// The kernel's objects of this backend. `own` is our subnet of `pool`.
    pub fn kernel_datapath(
        &self,
        netlink: Netlink,
        external: &ExternalInterface,
        pool: PoolV4,
        own: Ipv4Network,
    ) -> KernelDatapath {
        let stray = Stray { ifindex: external.index, pool, own };
        match self {
            Self::Vxlan { options, .. } => {
                let kernel = KernelDatapath::new(netlink, device_name(options), pool.network);
                if options.direct_routing { kernel.with_direct_routes(stray) } else { kernel }
            }
            Self::HostGw => KernelDatapath::without_device(netlink).with_direct_routes(stray),
            Self::Alloc => KernelDatapath::without_device(netlink),
        }
    }
}

fn device_name(options: &VxlanOptions) -> String {
    format!("flannel.{}", options.vni)
}

fn vxlan_device(options: &VxlanOptions, mac: Mac, external: &ExternalInterface) -> VxlanDevice {
    VxlanDevice {
        name: device_name(options),
        vni: options.vni,
        port: options.port.unwrap_or(KERNEL_PORT),
        underlay_ifindex: external.index,
        local: external.address,
        mac,
        mtu: overlay_mtu(options, external),
        learning: options.learning,
        gbp: options.gbp,
    }
}

/// The kernel refuses a device that takes more than its underlay carries.
fn overlay_mtu(options: &VxlanOptions, external: &ExternalInterface) -> u32 {
    options.mtu.map_or(external.mtu, |mtu| mtu.min(external.mtu)).saturating_sub(OVERHEAD)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vxlan(options: VxlanOptions) -> Backend {
        Backend::Vxlan { options, mac: Mac([0x0e, 0, 0, 0, 0, 1]) }
    }

    #[test]
    fn leases_say_what_upstreams_say() {
        let json = |backend: &Backend| backend.attrs(Ipv4Addr::new(192, 0, 2, 1)).to_json();
        assert_eq!(
            json(&Backend::HostGw),
            r#"{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"host-gw"}"#
        );
        assert_eq!(json(&Backend::Alloc), r#"{"PublicIP":"192.0.2.1","PublicIPv6":null}"#);
        assert_eq!(
            json(&vxlan(VxlanOptions { vni: 7, ..VxlanOptions::default() })),
            r#"{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":7,"VtepMAC":"0e:00:00:00:00:01"}}"#
        );
    }

    #[test]
    fn pods_get_the_mtu_of_the_way() {
        let with = |mtu| vxlan(VxlanOptions { mtu, ..VxlanOptions::default() });
        assert_eq!(with(None).pod_mtu(&ExternalInterface::eth0(2, 1500, 1)), 1450);
        assert_eq!(with(Some(1400)).pod_mtu(&ExternalInterface::eth0(2, 1500, 1)), 1350);
        assert_eq!(
            with(Some(9000)).pod_mtu(&ExternalInterface::eth0(2, 1500, 1)),
            1450,
            "more than the underlay carries"
        );
        assert_eq!(Backend::HostGw.pod_mtu(&ExternalInterface::eth0(2, 1500, 1)), 1500);
        assert_eq!(Backend::Alloc.pod_mtu(&ExternalInterface::eth0(2, 9000, 1)), 9000);
    }

    #[test]
    fn the_device_has_the_options() {
        let options =
            VxlanOptions { vni: 7, port: Some(4789), gbp: true, learning: true, ..VxlanOptions::default() };
        let plan::Backend::Vxlan(device) = vxlan(options).over(&ExternalInterface::eth0(2, 1500, 1)) else {
            panic!("no device")
        };
        assert_eq!((device.name.as_str(), device.port, device.mtu), ("flannel.7", 4789, 1450));
        assert!(device.gbp && device.learning);
        assert_eq!((device.underlay_ifindex, device.local), (2, Ipv4Addr::new(192, 0, 2, 1)));
    }

    #[test]
    fn only_host_gw_minds_another_public_address() {
        let other = Ipv4Addr::new(203, 0, 113, 9);
        let error =
            Backend::HostGw.check(&ExternalInterface::eth0(2, 1500, 1), other).unwrap_err().to_string();
        let upstreams = "your PublicIP differs from interface IP, meaning that probably you're on a NAT, which is \
                         not supported by host-gw backend";
        assert!(error.starts_with(upstreams), "{error}");
        assert!(
            error.contains("203.0.113.9") && error.contains("192.0.2.1") && error.contains("--public-ip")
        );
        assert_eq!(
            Backend::HostGw
                .check(&ExternalInterface::eth0(2, 1500, 1), ExternalInterface::eth0(2, 1500, 1).address),
            Ok(())
        );
        assert_eq!(vxlan(VxlanOptions::default()).check(&ExternalInterface::eth0(2, 1500, 1), other), Ok(()));
        assert_eq!(Backend::Alloc.check(&ExternalInterface::eth0(2, 1500, 1), other), Ok(()));
    }

    #[test]
    fn what_the_programs_cannot_carry_says_why() {
        let why = |options| vxlan(options).kernel_only();
        assert_eq!(why(VxlanOptions::default()), None);
        assert!(why(VxlanOptions { gbp: true, ..VxlanOptions::default() }).unwrap().contains("GBP"));
        assert!(
            why(VxlanOptions { learning: true, ..VxlanOptions::default() }).unwrap().contains("Learning")
        );
        assert!(Backend::HostGw.kernel_only().is_none() && Backend::Alloc.kernel_only().is_some());
    }
}
