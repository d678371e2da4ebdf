//! `vxlan`: a tunnel, over a device of each family.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use futures::future::BoxFuture;
use tracing::{info, warn};

use super::{
    AnyBackend, Backend, BackendError, Candidate, ExternalInterface, OptionError, OptionValue, Options,
    PeerRoute, Skip, Start,
    kind::{Kind, Support},
};
use crate::{
    netlink::{Netlink, NetlinkError, VxlanDevice},
    values::{Family, Mac, gojson::Object},
    wire::{LeaseAttrs, NodeAddress, RawJson, VxlanData},
};

/// Its line in the table.
pub(super) const KIND: Kind = Kind {
    name: "vxlan",
    what: "VXLAN, and routes to nodes on the same link if `DirectRouting` says so",
    support: Support::Built(|object| Ok(Arc::new(VxlanOptions::parse(object)?))),
};

/// The largest network identifier: 24 bit of the VXLAN header.
const MAX_VNI: u64 = (1 << 24) - 1;
/// The largest whose device name `flannel.<VNI>` still has the 15 characters a name may have.
const MAX_NAMED_VNI: u64 = 9_999_999;
/// The same for `flannel-v6.<VNI>`.
const MAX_NAMED_VNI_V6: u32 = 9999;
/// What VXLAN over IPv4 adds to a packet, and the smallest MTU of IPv4 (RFC 791).
const MIN_MTU: u64 = 50 + 68;
/// What VXLAN over IPv6 adds, and the smallest MTU of IPv6 (RFC 8200, 5).
const MIN_MTU_V6: u32 = 70 + 1280;

/// Options of the vxlan backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VxlanOptions {
    /// VXLAN network identifier, 0 to 9999999; 1 unless given.
    pub vni: u32,
    /// UDP port, host order; `None` (not given, or 0) is the kernel's default, 8472.
    pub port: Option<u16>,
    /// MTU of the underlay in bytes; `None` (not given, or 0) is that of the external interface.
    pub mtu: Option<u32>,
    /// Group based policy extension.
    pub gbp: bool,
    /// The device learns addresses from packets.
    pub learning: bool,
    /// Peers on the same link are routed to without a tunnel.
    pub direct_routing: bool,
}

impl Default for VxlanOptions {
    fn default() -> Self {
        Self { vni: 1, port: None, mtu: None, gbp: false, learning: false, direct_routing: false }
    }
}

impl VxlanOptions {
    fn parse(object: &Object<'_>) -> Result<Self, OptionError> {
        let number = |name| object.get::<u64>(name, "a whole number, not negative");
        let flag = |name| Ok::<_, OptionError>(object.get(name, "true or false")?.unwrap_or(false));
        let refuse =
            |field, value: u64, problem| OptionError::Value { field, value: value.to_string(), problem };

        let vni = number("VNI")?.unwrap_or(1);
        if vni > MAX_VNI {
            return Err(refuse("Backend.VNI", vni, "does not fit into 24 bit: use 1 to 9999999"));
        }
        if vni > MAX_NAMED_VNI {
            let problem = "makes the device name flannel.<VNI> longer than 15 characters: use 1 to 9999999";
            return Err(refuse("Backend.VNI", vni, problem));
        }
        let port = number("Port")?.unwrap_or(0);
        let port16 = u16::try_from(port)
            .map_err(|_| refuse("Backend.Port", port, "is not a UDP port: use 1 to 65535, or 0 for 8472"))?;
        let mtu = number("MTU")?.unwrap_or(0);
        if mtu != 0 && !(MIN_MTU..=65535).contains(&mtu) {
            let problem =
                "is not an MTU of the underlay: use 118 to 65535, or 0 for that of the external interface";
            return Err(refuse("Backend.MTU", mtu, problem));
        }
        Ok(Self {
            // Both are checked to fit above.
            vni: u32::try_from(vni).unwrap_or(1),
            port: (port16 != 0).then_some(port16),
            mtu: u32::try_from(mtu).ok().filter(|mtu| *mtu != 0),
            gbp: flag("GBP")?,
            learning: flag("Learning")?,
            direct_routing: flag("DirectRouting")?,
        })
    }
}

impl Options for VxlanOptions {
    fn kind(&self) -> &'static str {
        KIND.name
    }

    fn values(&self) -> Vec<OptionValue> {
        vec![
            OptionValue::of("Backend.VNI", self.vni),
            OptionValue::unless_unset("Backend.Port", self.port),
            OptionValue::unless_unset("Backend.MTU", self.mtu),
            OptionValue::of("Backend.GBP", self.gbp),
            OptionValue::of("Backend.Learning", self.learning),
            OptionValue::of("Backend.DirectRouting", self.direct_routing),
        ]
    }

    fn check_over_ipv6(&self) -> Result<(), OptionError> {
        let refuse =
            |field, value: u32, problem| Err(OptionError::Value { field, value: value.to_string(), problem });
        if self.vni > MAX_NAMED_VNI_V6 {
            let problem = "makes the device name flannel-v6.<VNI> longer than 15 characters: use 1 to 9999, or set \
                           EnableIPv6 to false";
            return refuse("Backend.VNI", self.vni, problem);
        }
        match self.mtu {
            Some(mtu) if mtu < MIN_MTU_V6 => {
                let problem = "leaves IPv6 less than 1280 bytes, which it needs: use 1350 to 65535, or 0 for that of \
                               the external interface";
                refuse("Backend.MTU", mtu, problem)
            }
            _ => Ok(()),
        }
    }

    fn data_of(&self, _: Family, mac: Option<Mac>) -> Option<RawJson> {
        match mac {
            Some(mac) => Some(VxlanData { vni: self.vni, vtep_mac: Some(mac) }.to_raw()),
            // Not written as empty, which is no MAC to read.
            None => RawJson::parse(&format!(r#"{{"VNI":{}}}"#, self.vni)).ok(),
        }
    }

    fn adopt<'a>(&'a self, start: Start<'a>) -> BoxFuture<'a, Result<AnyBackend, BackendError>> {
        Box::pin(async move { Ok(AnyBackend::new(Vxlan::adopt(self.clone(), start).await?)) })
    }
}

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
        Start { external, published, settled, netlink, .. }: Start<'_>,
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
            let before = published.and_then(|attrs| attrs.vxlan(family).ok()?.vtep_mac);
            let before = before.filter(Mac::is_of_one_device);
            let wanted = vxlan_device(&options, family, local, before.unwrap_or_else(Mac::random), external);
            let found = adopted_mac(&wanted, netlink).await?;
            macs.insert(family, before.filter(|_| settled).unwrap_or(found));
        }
        Ok(Self { options, macs })
    }
}

impl Backend for Vxlan {
    fn options(&self) -> &dyn Options {
        &self.options
    }

    fn judge(&self, candidate: &Candidate<'_>) -> Result<PeerRoute, Skip> {
        judge(candidate)
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

    fn device_name(&self, family: Family) -> Option<String> {
        Some(device_name(&self.options, family))
    }
}

/// A peer without a MAC is reached only where no tunnel is needed.
fn judge(candidate: &Candidate<'_>) -> Result<PeerRoute, Skip> {
    let Candidate { family, attrs, on_link, .. } = *candidate;
    let data = attrs.vxlan(family).map_err(|error| Skip::Unreadable(error.to_string()))?;
    match data.vtep_mac.filter(Mac::is_of_one_device) {
        Some(mac) => Ok(PeerRoute::Vxlan(mac)),
        None if on_link => Ok(PeerRoute::Direct),
        None => Err(Skip::NoMac(family, data.vtep_mac)),
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
