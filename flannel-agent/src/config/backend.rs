//! `Backend`: how packets travel between nodes.

use serde_json::value::RawValue;

use super::ConfigError;
use crate::values::gojson::Object;

/// The backends of upstream; the first is what a configuration without `Backend` means.
const KNOWN: [&str; 9] =
    ["udp", "vxlan", "host-gw", "ipip", "wireguard", "ipsec", "extension", "alloc", "tencent-vpc"];

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

/// The backend and its options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// `vxlan`.
    Vxlan(VxlanOptions),
    /// `host-gw`: routes to nodes on the same link. It has no options.
    HostGw,
    /// `alloc`: the lease and nothing else. It has no options.
    Alloc,
    /// Any other that upstream has.
    Other {
        /// Its type, in lower case.
        kind: &'static str,
        /// `Backend` as it stands in the configuration; `None` when it is absent.
        options: Option<String>,
    },
}

/// A backend that this version can do, with its options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BuiltBackend<'a> {
    /// `vxlan`.
    Vxlan(&'a VxlanOptions),
    /// `host-gw`.
    HostGw,
    /// `alloc`.
    Alloc,
}

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

/// A backend, or an option of one, that this version cannot do yet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnbuiltBackend {
    /// No `Backend.Type` at all.
    #[error(
        "Backend: absent, which means the udp backend, and that is not built yet: write \"Backend\":{{\"Type\":\"vxlan\"}}"
    )]
    Absent,
    /// A backend of upstream.
    #[error("Backend.Type: \"{kind}\" is not built yet: {}, or run stock flanneld", instead(.kind))]
    Type {
        /// Its type, in lower case.
        kind: &'static str,
    },
}

/// What to use in place of a backend that is not built.
fn instead(kind: &str) -> &'static str {
    match kind {
        "ipip" => "use \"vxlan\", or \"host-gw\" where all nodes are on one link",
        "wireguard" | "ipsec" => "use \"vxlan\" if packets need not be encrypted",
        "extension" | "tencent-vpc" => "use \"vxlan\", or \"alloc\" and make the routes yourself",
        _ => "use \"vxlan\"",
    }
}

impl Backend {
    /// Reads the configuration's `Backend`.
    pub(super) fn parse(raw: Option<&RawValue>) -> Result<Self, ConfigError> {
        let Some(raw) = raw else {
            return Ok(Self::Other { kind: KNOWN[0], options: None });
        };
        let object = Object::parse("Backend.", raw.get()).map_err(|_| {
            Object::default().refuse("Backend", "an object, as {\"Type\":\"vxlan\"}", raw.get())
        })?;
        let kind: String = object.get("Type", "a string, as \"vxlan\"")?.unwrap_or_default();
        match KNOWN.into_iter().find(|known| known.eq_ignore_ascii_case(&kind)) {
            None => Err(ConfigError::UnknownBackend(kind)),
            Some("host-gw") => Ok(Self::HostGw),
            Some("alloc") => Ok(Self::Alloc),
            Some("vxlan") => Ok(Self::Vxlan(VxlanOptions::parse(&object)?)),
            Some(kind) => Ok(Self::Other { kind, options: Some(raw.get().to_owned()) }),
        }
    }

    /// The backend's name in the configuration.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Vxlan(_) => "vxlan",
            Self::HostGw => "host-gw",
            Self::Alloc => "alloc",
            Self::Other { kind, .. } => kind,
        }
    }

    /// The backend, if it is built and asks for nothing unbuilt.
    pub(super) fn built(&self) -> Result<BuiltBackend<'_>, UnbuiltBackend> {
        match self {
            Self::Other { options: None, .. } => Err(UnbuiltBackend::Absent),
            Self::Other { kind, .. } => Err(UnbuiltBackend::Type { kind }),
            Self::Vxlan(options) => Ok(BuiltBackend::Vxlan(options)),
            Self::HostGw => Ok(BuiltBackend::HostGw),
            Self::Alloc => Ok(BuiltBackend::Alloc),
        }
    }
}

impl VxlanOptions {
    /// What IPv6 asks of the options, besides what IPv4 does.
    pub(super) fn check_over_ipv6(&self) -> Result<(), ConfigError> {
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

    fn parse(object: &Object<'_>) -> Result<Self, ConfigError> {
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
}
