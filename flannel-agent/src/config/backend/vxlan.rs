//! The options of `vxlan`, with flanneld's keys and messages.

use crate::{config::ConfigError, values::gojson::Object};

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
    /// What IPv6 asks of the options, besides what IPv4 does.
    pub(in crate::config) fn check_over_ipv6(&self) -> Result<(), ConfigError> {
        let refuse =
            |field, value: u32, problem| Err(ConfigError::Value { field, value: value.to_string(), problem });
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

    pub(super) fn parse(object: &Object<'_>) -> Result<Self, ConfigError> {
        let number = |name| object.get::<u64>(name, "a whole number, not negative");
        let flag = |name| Ok::<_, ConfigError>(object.get(name, "true or false")?.unwrap_or(false));
        let refuse =
            |field, value: u64, problem| ConfigError::Value { field, value: value.to_string(), problem };

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

    /// Says to `field` each option by its name, as it is and as it is in `new`.
    pub(in crate::config) fn changes(&self, new: &Self, mut field: impl FnMut(&'static str, String, String)) {
        let unset = |value: Option<u32>| value.map_or("unset".to_owned(), |value| value.to_string());
        field("Backend.VNI", self.vni.to_string(), new.vni.to_string());
        field("Backend.Port", unset(self.port.map(u32::from)), unset(new.port.map(u32::from)));
        field("Backend.MTU", unset(self.mtu), unset(new.mtu));
        field("Backend.GBP", self.gbp.to_string(), new.gbp.to_string());
        field("Backend.Learning", self.learning.to_string(), new.learning.to_string());
        field("Backend.DirectRouting", self.direct_routing.to_string(), new.direct_routing.to_string());
    }
}
