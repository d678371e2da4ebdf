//! `Backend`: how packets travel between nodes.

use serde_json::value::RawValue;

use super::ConfigError;
use crate::values::gojson::Object;

mod vxlan;

pub use vxlan::VxlanOptions;

/// The backends of upstream; the first is what a configuration without `Backend` means.
const KNOWN: [&str; 9] =
    ["udp", "vxlan", "host-gw", "ipip", "wireguard", "ipsec", "extension", "alloc", "tencent-vpc"];

/// A backend that this version can do, and its options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// `vxlan`.
    Vxlan(VxlanOptions),
    /// `host-gw`: routes to nodes on the same link. It has no options.
    HostGw,
    /// `alloc`: the lease and nothing else. It has no options.
    Alloc,
}

/// A backend, or an option of one, that this version cannot do yet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnbuiltBackend {
    /// No `Backend.Type` at all.
    #[error(
        "Backend: absent, which means the udp backend, and that is not supported: write \
        \"Backend\":{{\"Type\":\"vxlan\"}}"
    )]
    Absent,
    /// A backend of upstream.
    #[error("Backend.Type: \"{kind}\" is not supported: {}, or run stock flanneld", instead(.kind))]
    Type {
        /// Its type, in lower case.
        kind: &'static str,
        /// `Backend` as it stands in the configuration: its options may hold secrets.
        options: String,
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
    pub(super) fn parse(raw: Option<&RawValue>) -> Result<Result<Self, UnbuiltBackend>, ConfigError> {
        let Some(raw) = raw else { return Ok(Err(UnbuiltBackend::Absent)) };
        let object = Object::parse("Backend.", raw.get()).map_err(|_| {
            Object::default().refuse("Backend", "an object, as {\"Type\":\"vxlan\"}", raw.get())
        })?;
        let kind: String = object.get("Type", "a string, as \"vxlan\"")?.unwrap_or_default();
        match KNOWN.into_iter().find(|known| known.eq_ignore_ascii_case(&kind)) {
            None => Err(ConfigError::UnknownBackend(kind)),
            Some("host-gw") => Ok(Ok(Self::HostGw)),
            Some("alloc") => Ok(Ok(Self::Alloc)),
            Some("vxlan") => Ok(Ok(Self::Vxlan(VxlanOptions::parse(&object)?))),
            Some(kind) => Ok(Err(UnbuiltBackend::Type { kind, options: raw.get().to_owned() })),
        }
    }

    /// The backend's name in the configuration.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Vxlan(_) => "vxlan",
            Self::HostGw => "host-gw",
            Self::Alloc => "alloc",
        }
    }
}

impl UnbuiltBackend {
    /// Its name in the configuration, or what its absence means.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Absent => KNOWN[0],
            Self::Type { kind, .. } => kind,
        }
    }
}
