//! The backend that the configuration names, on this node: what our lease publishes, what the dataplane is to
//! be, and what pods are told.

use std::{collections::BTreeMap, net::IpAddr};

use ipnetwork::IpNetwork;
use tracing::{info, warn};

use super::interface::ExternalInterface;
use crate::{
    config::{BuiltBackend, Pool, VxlanOptions},
    datapath::{Stray, kernel::KernelDatapath},
    lease::{
        LeaseAttrs, ThisNode,
        wire::{NodeAddress, VxlanData},
    },
    netlink::{Netlink, NetlinkError},
    plan::{self, VxlanDevice},
    values::{Family, Mac},
};

/// The smallest MTU a link may have for IPv6, bytes (RFC 8200, 5). The kernel takes IPv6 off any smaller one.
const IPV6_MIN_MTU: u32 = 1280;
/// UDP port of the kernel's VXLAN when none is configured (drivers/net/vxlan, `vxlan_port`).
const KERNEL_PORT: u16 = 8472;

/// A backend on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// A tunnel.
    Vxlan {
        /// Its options.
        options: VxlanOptions,
        /// MACs of our devices: the same as long as we run, whatever becomes of the devices.
        macs: BTreeMap<Family, Mac>,
    },
    /// Routes to nodes on the same link.
    HostGw,
    /// The lease, and nothing else.
    Alloc,
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

impl Backend {
    /// The configured backend. A VXLAN device that is there already, ours or stock flannel's, keeps its
    /// MAC, so that peers need not learn a new one; a new device gets the one our lease said when it was last
    /// written, as does any device where other nodes go by that.
    ///
    /// # Errors
    /// When the device cannot be looked up.
    pub async fn adopt(
        configured: BuiltBackend<'_>,
        external: &ExternalInterface,
        this_node: &ThisNode,
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
        let mut macs = BTreeMap::new();
        for (family, local) in external.addresses() {
            let before = this_node.published.as_ref().and_then(|attrs| attrs.vxlan(family).ok()?.vtep_mac);
            let before = before.filter(Mac::is_of_one_device);
            let wanted = vxlan_device(&options, family, local, before.unwrap_or_else(Mac::random), external);
            let found = adopted_mac(&wanted, netlink).await?;
            macs.insert(family, before.filter(|_| this_node.settled).unwrap_or(found));
        }
        Ok(Self::Vxlan { options, macs })
    }

    /// Whether this backend works on a node that publishes `public`.
    ///
    /// # Errors
    /// With host-gw, when other nodes know this one by an address that its interface does not have. When the
    /// interface is too narrow for IPv6.
    pub fn check(&self, external: &ExternalInterface, public: NodeAddress) -> Result<(), Unusable> {
        for (family, address) in external.addresses() {
            if let Some(public) = public.of(family)
                && *self == Self::HostGw
                && public != address
            {
                let (field, flag) = match family {
                    Family::V4 => ("PublicIP", "public-ip"),
                    Family::V6 => ("PublicIPv6", "public-ipv6"),
                };
                let interface = external.name.clone();
                return Err(Unusable::BehindNat { field, flag, public, interface, address });
            }
            let left = self.mtu(family, external);
            if family == Family::V6 && left < IPV6_MIN_MTU {
                let needed = IPV6_MIN_MTU + external.mtu.saturating_sub(left);
                return Err(Unusable::TooSmall {
                    interface: external.name.clone(),
                    mtu: external.mtu,
                    left,
                    needed,
                });
            }
        }
        Ok(())
    }

    /// What our lease says, at `address` on the underlay.
    pub fn attrs(&self, address: NodeAddress) -> LeaseAttrs {
        match self {
            Self::Vxlan { options, macs } => {
                let data = |family| {
                    macs.get(&family).map(|mac| VxlanData { vni: options.vni, vtep_mac: Some(*mac) })
                };
                LeaseAttrs::vxlan_node(address, data(Family::V4), data(Family::V6))
            }
            Self::HostGw | Self::Alloc => LeaseAttrs::plain(address, self.planned().kind()),
        }
    }

    /// What is planned for.
    pub fn planned(&self) -> plan::Backend {
        match self {
            Self::Vxlan { .. } => plan::Backend::Vxlan,
            Self::HostGw => plan::Backend::HostGw,
            Self::Alloc => plan::Backend::Alloc,
        }
    }

    /// The device for packets of `family` over `external`, where there is to be one.
    pub fn device(&self, family: Family, external: &ExternalInterface) -> Option<VxlanDevice> {
        let Self::Vxlan { options, macs } = self else { return None };
        let local = external.address_of(family)?;
        Some(vxlan_device(options, family, local, *macs.get(&family)?, external))
    }

    /// MTU of pods, bytes. With both families it is that of IPv4, as upstream's: where IPv6 over VXLAN carries
    /// less, the node tells pods so as a router does (ICMPv6, packet too big).
    pub fn pod_mtu(&self, external: &ExternalInterface) -> u32 {
        let of = |family| external.address_of(family).map(|_| self.mtu(family, external));
        of(Family::V4).or_else(|| of(Family::V6)).unwrap_or(external.mtu)
    }

    /// The largest packet of `family` that reaches other nodes' pods whole, bytes.
    fn mtu(&self, family: Family, external: &ExternalInterface) -> u32 {
        match self {
            Self::Vxlan { options, .. } => overlay_mtu(options, family, external),
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
        if *self == Self::Alloc {
            return datapath;
        }
        let datapath = pools
            .iter()
            .map(|(pool, _)| pool.network())
            .chain(earlier.iter().copied())
            .fold(datapath, KernelDatapath::giving_up);
        let pools = pools.iter().copied();
        let datapath = self.with_objects(datapath, external, pools);
        datapath.with_earlier(earlier)
    }

    fn with_objects(
        &self,
        datapath: KernelDatapath,
        external: &ExternalInterface,
        pools: impl Iterator<Item = (Pool, IpNetwork)>,
    ) -> KernelDatapath {
        let stray = |pool, own| Stray { ifindex: external.index, pool, own };
        match self {
            Self::Vxlan { options, .. } => pools.fold(datapath, |datapath, (pool, own)| {
                let network = pool.network();
                let datapath =
                    datapath.with_device(device_name(options, Family::of_network(network)), network);
                match options.direct_routing {
                    true => datapath.with_direct_routes(stray(pool, own)),
                    false => datapath,
                }
            }),
            Self::HostGw => {
                pools.fold(datapath, |datapath, (pool, own)| datapath.with_direct_routes(stray(pool, own)))
            }
            Self::Alloc => datapath,
        }
    }
}

/// The MAC that the device `wanted` is to have: that of the device there is, if there is one.
async fn adopted_mac(wanted: &VxlanDevice, netlink: &mut Netlink) -> Result<Mac, NetlinkError> {
    let found = netlink.link(&wanted.name).await?.and_then(|link| link.as_vxlan_device());
    Ok(match found {
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

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const MAC: Mac = Mac([0x0e, 0, 0, 0, 0, 1]);
    const MAC_V6: Mac = Mac([0x0e, 0, 0, 0, 0, 6]);

    fn vxlan(options: VxlanOptions) -> Backend {
        Backend::Vxlan { options, macs: BTreeMap::from([(Family::V4, MAC)]) }
    }

    fn eth0(mtu: u32) -> ExternalInterface {
        ExternalInterface::eth0(2, mtu, 1)
    }

    fn dual(mtu: u32) -> ExternalInterface {
        ExternalInterface { address_v6: Some("2001:db8::1".parse().unwrap()), ..eth0(mtu) }
    }

    fn six(mtu: u32) -> ExternalInterface {
        ExternalInterface { address: Ipv4Addr::UNSPECIFIED, ..dual(mtu) }
    }

    #[test]
    fn leases_say_what_upstreams_say() {
        let json = |backend: &Backend| backend.attrs(public(&eth0(1500))).to_json();
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
    fn leases_of_ipv6_too() {
        let of = |external: &ExternalInterface, families: &[(Family, Mac)]| {
            let macs = families.iter().copied().collect();
            let backend = Backend::Vxlan { options: VxlanOptions::default(), macs };
            backend.attrs(public(external)).to_json()
        };
        let (v4, v6) = ((Family::V4, MAC), (Family::V6, MAC_V6));
        assert_eq!(
            of(&dual(1500), &[v4, v6]),
            r#"{"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:00:00:00:00:01"},"BackendV6Data":{"VNI":1,"VtepMAC":"0e:00:00:00:00:06"}}"#
        );
        assert_eq!(
            of(&six(1500), &[v6]),
            r#"{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::1","BackendType":"vxlan","BackendV6Data":{"VNI":1,"VtepMAC":"0e:00:00:00:00:06"}}"#
        );
        assert_eq!(
            Backend::HostGw.attrs(public(&dual(1500))).to_json(),
            r#"{"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1","BackendType":"host-gw"}"#
        );
    }

    fn public(external: &ExternalInterface) -> NodeAddress {
        external.addresses().map(|(_, address)| address).collect()
    }

    #[test]
    fn pods_get_the_mtu_of_the_way() {
        let with = |mtu| vxlan(VxlanOptions { mtu, ..VxlanOptions::default() });
        assert_eq!(with(None).pod_mtu(&eth0(1500)), 1450);
        assert_eq!(with(Some(1400)).pod_mtu(&eth0(1500)), 1350);
        assert_eq!(with(Some(9000)).pod_mtu(&eth0(1500)), 1450, "more than the underlay carries");
        assert_eq!(with(None).pod_mtu(&dual(1500)), 1450, "upstream's, which IPv4 can use");
        assert_eq!(with(None).pod_mtu(&six(1500)), 1430);
        assert_eq!(with(Some(1400)).pod_mtu(&six(1500)), 1330);
        assert_eq!(Backend::HostGw.pod_mtu(&dual(1500)), 1500);
        assert_eq!(Backend::Alloc.pod_mtu(&eth0(9000)), 9000);
    }

    #[test]
    fn the_devices_have_the_options() {
        let options =
            VxlanOptions { vni: 7, port: Some(4789), gbp: true, learning: true, ..VxlanOptions::default() };
        let backend = Backend::Vxlan { options, macs: Family::BOTH.map(|family| (family, MAC)).into() };
        let device = backend.device(Family::V4, &dual(1500)).unwrap();
        assert_eq!((device.name.as_str(), device.port, device.mtu), ("flannel.7", 4789, 1450));
        assert!(device.gbp && device.learning);
        assert_eq!((device.underlay_ifindex, device.local), (2, Ipv4Addr::new(192, 0, 2, 1).into()));
        let device = backend.device(Family::V6, &dual(1500)).unwrap();
        assert_eq!((device.name.as_str(), device.port, device.mtu), ("flannel-v6.7", 4789, 1430));
        assert_eq!((device.local.to_string().as_str(), device.family()), ("2001:db8::1", Family::V6));
        assert_eq!(backend.device(Family::V6, &eth0(1500)), None);
        assert_eq!(Backend::HostGw.device(Family::V4, &eth0(1500)), None);
    }

    #[test]
    fn only_host_gw_minds_another_public_address() {
        let other = NodeAddress { v4: Some(Ipv4Addr::new(203, 0, 113, 9)), v6: None };
        let error = Backend::HostGw.check(&eth0(1500), other).unwrap_err().to_string();
        let upstreams = "your PublicIP differs from interface IP, meaning that probably you're on a NAT, which is \
                         not supported by host-gw backend";
        assert!(error.starts_with(upstreams), "{error}");
        assert!(
            error.contains("203.0.113.9")
                && error.contains("192.0.2.1")
                && error.contains("drop --public-ip,")
        );
        let other_v6 = NodeAddress { v6: Some("2001:db8::9".parse().unwrap()), ..public(&dual(1500)) };
        let error = Backend::HostGw.check(&dual(1500), other_v6).unwrap_err().to_string();
        assert!(error.contains("PublicIPv6 2001:db8::9") && error.contains("--public-ipv6"), "{error}");
        assert_eq!(Backend::HostGw.check(&dual(1500), public(&dual(1500))), Ok(()));
        assert_eq!(vxlan(VxlanOptions::default()).check(&eth0(1500), other), Ok(()));
        assert_eq!(Backend::Alloc.check(&eth0(1500), other), Ok(()));
    }

    #[test]
    fn ipv6_needs_1280_bytes() {
        let backend = vxlan(VxlanOptions::default());
        assert_eq!(backend.check(&dual(1350), public(&dual(1350))), Ok(()));
        let error = backend.check(&dual(1349), public(&dual(1349))).unwrap_err().to_string();
        assert!(error.starts_with("the MTU of eth0, 1349, leaves 1279 bytes"), "{error}");
        assert!(error.contains("raise it to 1350"), "{error}");
        assert_eq!(backend.check(&eth0(1349), public(&eth0(1349))), Ok(()), "IPv4 does not");
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
