//! What a lease says of its node: the JSON of its value in etcd.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use serde::Serialize;
use serde_json::value::RawValue;

use crate::values::{
    Family, Mac,
    gojson::{FieldError, Object},
};

/// JSON text, kept as it came. Copies share it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawJson(Arc<str>);

impl RawJson {
    /// Checks that `text` is one JSON value.
    pub fn parse(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str::<&RawValue>(text).map(|raw| Self(raw.get().into()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Attributes of a lease: who holds it and how packets reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseAttrs {
    /// `PublicIP`: the node's address on the underlay; 0.0.0.0 on an IPv6-only node.
    pub public_ip: Ipv4Addr,
    /// `PublicIPv6`: the same in IPv6.
    pub public_ipv6: Option<Ipv6Addr>,
    /// `BackendType`; empty with the udp backend, which publishes none.
    pub backend_type: String,
    /// `BackendData`, whose form the backend type decides.
    pub backend_data: Option<RawJson>,
    /// `BackendV6Data`, the same for the IPv6 underlay.
    pub backend_v6_data: Option<RawJson>,
}

/// Where a node is on the underlay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeAddress {
    /// In IPv4; `None` in an IPv6-only cluster.
    pub v4: Option<Ipv4Addr>,
    /// In IPv6; `None` in an IPv4-only cluster.
    pub v6: Option<Ipv6Addr>,
}

impl NodeAddress {
    /// The address of one family.
    pub fn of(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.v4.map(IpAddr::V4),
            Family::V6 => self.v6.map(IpAddr::V6),
        }
    }
}

/// Of several addresses of one family the last.
impl FromIterator<IpAddr> for NodeAddress {
    fn from_iter<T: IntoIterator<Item = IpAddr>>(addresses: T) -> Self {
        let mut of = Self::default();
        for address in addresses {
            match address {
                IpAddr::V4(v4) => of.v4 = Some(v4),
                IpAddr::V6(v6) => of.v6 = Some(v6),
            }
        }
        of
    }
}

/// A lease's value that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum AttrsError {
    /// Not UTF-8, not JSON, or not an object.
    #[error("the lease is not a JSON object: {0}")]
    NotJson(String),
    /// A field of the wrong type.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// There is no `PublicIP`.
    #[error("PublicIP: absent; a lease needs one, as \"192.0.2.1\"")]
    NoPublicIp,
    /// The data of one backend asked of a lease of another.
    #[error("BackendType: \"{found}\" instead of \"{wanted}\"; the nodes of a cluster must use one backend")]
    OtherBackend {
        /// What the lease says.
        found: String,
        /// What was asked.
        wanted: &'static str,
    },
    /// There is no `BackendData`, or `BackendV6Data`, and the backend needs some.
    #[error("{field}: absent; the {backend} backend needs it")]
    NoBackendData {
        /// The field.
        field: &'static str,
        /// The backend.
        backend: &'static str,
    },
}

/// The value's fields in the order and under the rules of Go's encoder.
#[derive(Serialize)]
struct Wire<'a> {
    #[serde(rename = "PublicIP")]
    public_ip: Ipv4Addr,
    #[serde(rename = "PublicIPv6")]
    public_ipv6: Option<Ipv6Addr>,
    #[serde(rename = "BackendType", skip_serializing_if = "str::is_empty")]
    backend_type: &'a str,
    #[serde(rename = "BackendData", skip_serializing_if = "Option::is_none")]
    backend_data: Option<&'a RawValue>,
    #[serde(rename = "BackendV6Data", skip_serializing_if = "Option::is_none")]
    backend_v6_data: Option<&'a RawValue>,
}

impl LeaseAttrs {
    /// Attributes of a node at `address`, of a backend with no more to know of it.
    pub fn plain(address: NodeAddress, backend_type: &str) -> Self {
        Self {
            public_ip: address.v4.unwrap_or(Ipv4Addr::UNSPECIFIED),
            public_ipv6: address.v6,
            backend_type: backend_type.to_owned(),
            backend_data: None,
            backend_v6_data: None,
        }
    }

    /// Attributes of a node of the vxlan backend at `address`. `data` and `v6_data` are of its devices of IPv4
    /// and IPv6.
    pub fn vxlan_node(address: NodeAddress, data: Option<VxlanData>, v6_data: Option<VxlanData>) -> Self {
        let json = |data: Option<VxlanData>| data.map(VxlanData::to_raw);
        Self { backend_data: json(data), backend_v6_data: json(v6_data), ..Self::plain(address, VXLAN) }
    }

    /// Attributes of a node of the vxlan backend over IPv4.
    pub fn vxlan_v4(public_ip: Ipv4Addr, data: VxlanData) -> Self {
        Self::vxlan_node(NodeAddress { v4: Some(public_ip), v6: None }, Some(data), None)
    }

    /// Attributes of a node that is reached over IPv4 at its address, with no more to know of it.
    pub fn plain_v4(public_ip: Ipv4Addr, backend_type: &str) -> Self {
        Self::plain(NodeAddress { v4: Some(public_ip), v6: None }, backend_type)
    }

    /// The node's address of one family: what other nodes send packets of that family to.
    pub fn address(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => Some(self.public_ip.into()),
            Family::V6 => self.public_ipv6.map(IpAddr::V6),
        }
    }

    /// The node's address on the underlay, by which nodes are told apart: `PublicIP`, and on an IPv6-only node,
    /// whose `PublicIP` is 0.0.0.0, `PublicIPv6`.
    pub fn node_address(&self) -> Option<IpAddr> {
        match self.public_ip.is_unspecified() {
            true => self.public_ipv6.map(IpAddr::V6),
            false => Some(self.public_ip.into()),
        }
    }

    /// Whether two leases are of one node.
    pub fn same_node(&self, other: &Self) -> bool {
        self.node_address().is_some() && self.node_address() == other.node_address()
    }

    /// Reads a lease's value. Unknown fields are ignored, `PublicIP` must be there.
    pub fn from_json(json: &[u8]) -> Result<Self, AttrsError> {
        let text = std::str::from_utf8(json).map_err(|e| AttrsError::NotJson(e.to_string()))?;
        let object = Object::parse("", text).map_err(|e| AttrsError::NotJson(e.to_string()))?;
        let address = |text: &str| text.parse().ok();
        let data = |name| {
            let present = object.raw(name).map(RawValue::get).filter(|text| *text != "null");
            present.map(|text| RawJson(text.into()))
        };
        Ok(Self {
            public_ip: object
                .get_with("PublicIP", "an IPv4 address, as \"192.0.2.1\"", address)?
                .ok_or(AttrsError::NoPublicIp)?,
            public_ipv6: object.get("PublicIPv6", "an IPv6 address, as \"2001:db8::1\", or null")?,
            backend_type: object.get("BackendType", "a string, as \"vxlan\"")?.unwrap_or_default(),
            backend_data: data("BackendData"),
            backend_v6_data: data("BackendV6Data"),
        })
    }

    /// The lease's value: compact JSON, byte for byte what flannel writes.
    pub fn to_json(&self) -> String {
        let raw = |data: &'_ Option<RawJson>| -> Option<Box<RawValue>> {
            data.as_ref().and_then(|RawJson(text)| RawValue::from_string(text.to_string()).ok())
        };
        let (backend_data, backend_v6_data) = (raw(&self.backend_data), raw(&self.backend_v6_data));
        let wire = Wire {
            public_ip: self.public_ip,
            public_ipv6: self.public_ipv6,
            backend_type: &self.backend_type,
            backend_data: backend_data.as_deref(),
            backend_v6_data: backend_v6_data.as_deref(),
        };
        // Writing to a string only fails for keys that are not strings, and there are none.
        serde_json::to_string(&wire).unwrap_or_default()
    }

    /// `BackendData` of a lease of the vxlan backend, or for IPv6 its `BackendV6Data`.
    pub fn vxlan(&self, family: Family) -> Result<VxlanData, AttrsError> {
        if self.backend_type != VXLAN {
            return Err(AttrsError::OtherBackend { found: self.backend_type.clone(), wanted: VXLAN });
        }
        let (field, data) = match family {
            Family::V4 => ("BackendData", &self.backend_data),
            Family::V6 => ("BackendV6Data", &self.backend_v6_data),
        };
        let RawJson(text) = data.as_ref().ok_or(AttrsError::NoBackendData { field, backend: VXLAN })?;
        VxlanData::from_json(field, text)
    }
}

const VXLAN: &str = "vxlan";

/// `BackendData` of the vxlan backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VxlanData {
    /// VXLAN network identifier; 0 when absent, as it was before flannel 0.12. Receivers do not check it.
    pub vni: u32,
    /// MAC of the node's VXLAN device, which must be the inner destination of packets to it.
    pub vtep_mac: Option<Mac>,
}

impl VxlanData {
    fn from_json(field: &'static str, text: &str) -> Result<Self, AttrsError> {
        let wrong = || Object::default().refuse(field, "an object", text);
        let path = if field == "BackendData" { "BackendData." } else { "BackendV6Data." };
        let object = Object::parse(path, text).map_err(|_| wrong())?;
        Ok(Self {
            vni: object.get("VNI", "a number of at most 32 bit")?.unwrap_or(0),
            vtep_mac: object
                .get_with("VtepMAC", "a MAC address, as \"0e:00:00:00:00:01\"", |text| text.parse().ok())?,
        })
    }

    /// As a lease has it.
    pub fn to_raw(self) -> RawJson {
        RawJson(self.to_json().into())
    }

    /// Written by hand because upstream omits neither field: an unset MAC is the empty string there.
    fn to_json(self) -> String {
        let mac = self.vtep_mac.map(|mac| mac.to_string()).unwrap_or_default();
        format!("{{\"VNI\":{},\"VtepMAC\":\"{mac}\"}}", self.vni)
    }
}
