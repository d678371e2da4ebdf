//! The network configuration: the JSON under `<prefix>/config`.

use std::{collections::BTreeMap, fmt};

use ipnetwork::{Ipv4Network, Ipv6Network};

pub use crate::values::gojson::FieldError;
use crate::{
    backend::{
        Configured,
        table::{self, ParseError, UnbuiltBackend},
    },
    values::{Family, gojson::Object},
};
pub use pool::{Pool, PoolError, PoolV4, PoolV6};
pub(crate) use pool::{cidr_v4, cidr_v6};

mod changes;
mod pool;

/// A validated network configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkConfig {
    /// Where IPv4 pod subnets come from; `None` when `EnableIPv4` is false.
    pub ipv4: Option<PoolV4>,
    /// Where IPv6 pod subnets come from; `None` unless `EnableIPv6` is true.
    pub ipv6: Option<PoolV6>,
    /// `EnableNFTables`: masquerade and forward rules by nftables instead of iptables.
    pub enable_nftables: bool,
    /// How packets travel, or why this version cannot do what is asked.
    pub backend: Result<Configured, UnbuiltBackend>,
}

/// A network configuration that cannot be used. Where upstream has a message for the case, this has the same.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// Not UTF-8, not JSON, or not an object.
    #[error(
        "the network config is not a JSON object: {0}; write one as {{\"Network\":\"10.244.0.0/16\",\"Backend\":{{\"Type\":\"vxlan\"}}}}"
    )]
    NotJson(String),
    /// A field of the wrong type.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// A family's network and the subnets cut from it do not go together.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// The backend, or an option of it.
    #[error(transparent)]
    Backend(#[from] ParseError),
    /// `EnableIPv4` is false and `EnableIPv6` not true.
    #[error("none defined stack: set EnableIPv4 or EnableIPv6 to true")]
    NoStack,
}

impl ConfigError {
    /// Whether upstream, which asks again for anything else that is wrong, exits over this.
    pub fn ends_the_start(&self) -> bool {
        matches!(self, Self::NoStack | Self::Backend(ParseError::UnknownType { .. }))
    }
}

impl NetworkConfig {
    /// Reads and validates the value of `<prefix>/config` by upstream's rules.
    pub fn parse(json: &[u8]) -> Result<Self, ConfigError> {
        let text = std::str::from_utf8(json).map_err(|e| ConfigError::NotJson(e.to_string()))?;
        let object = Object::parse("", text).map_err(|e| ConfigError::NotJson(e.to_string()))?;

        // All is decoded before anything is judged: a wrong type is an error even where its family is off.
        let length = "a prefix length, as 24";
        let bool = "true or false";
        let network4 = object.get_with("Network", "an IPv4 network, as \"10.244.0.0/16\"", cidr_v4)?;
        let network6 = object.get_with("IPv6Network", "an IPv6 network, as \"fd00:10::/48\"", cidr_v6)?;
        let address4 =
            |name| object.get_with(name, "an IPv4 address, as \"10.244.1.0\"", |text| text.parse().ok());
        let address6 = |name| match object.raw(name).map(|raw| raw.get()) {
            Some("null") => Ok(None),
            _ => object.get_with(name, "an IPv6 address, as \"fd00:10:0:1::\"", |text| text.parse().ok()),
        };
        let limits4 = (object.get("SubnetLen", length)?, address4("SubnetMin")?, address4("SubnetMax")?);
        let limits6 =
            (object.get("IPv6SubnetLen", length)?, address6("IPv6SubnetMin")?, address6("IPv6SubnetMax")?);
        let enable4 = object.get("EnableIPv4", bool)?.unwrap_or(true);
        let enable6 = object.get("EnableIPv6", bool)?.unwrap_or(false);
        let enable_nftables = object.get("EnableNFTables", bool)?.unwrap_or(false);
        let backend = table::parse(object.raw("Backend"))?;

        if !enable4 && !enable6 {
            return Err(ConfigError::NoStack);
        }
        let ipv4 = match enable4 {
            true => Some(PoolV4::new(network4, limits4)?),
            false => None,
        };
        let ipv6 = match enable6 {
            true => Some(PoolV6::new(network6, limits6)?),
            false => None,
        };
        if let (Some(_), Ok(Configured(options))) = (&ipv6, &backend) {
            options.check_over_ipv6().map_err(ParseError::from)?;
        }
        Ok(Self { ipv4, ipv6, enable_nftables, backend })
    }

    /// The backend. One that this version does not build, or an option of one, is an error that names the field,
    /// its value and what to do.
    pub fn built(&self) -> Result<&Configured, UnbuiltBackend> {
        self.backend.as_ref().map_err(Clone::clone)
    }

    /// The backend's name in the configuration, whether it is built or not.
    pub fn backend_kind(&self) -> &'static str {
        match &self.backend {
            Ok(Configured(options)) => options.kind(),
            Err(unbuilt) => unbuilt.kind(),
        }
    }

    /// The pools of the families that are on.
    pub fn pools(&self) -> BTreeMap<Family, Pool> {
        let v4 = self.ipv4.map(|pool| (Family::V4, Pool::V4(pool)));
        let v6 = self.ipv6.map(|pool| (Family::V6, Pool::V6(pool)));
        v4.into_iter().chain(v6).collect()
    }
}

/// In short, for the log.
impl fmt::Display for NetworkConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.backend_kind())?;
        if let Some(pool) = &self.ipv4 {
            write!(f, " over {} in /{}", pool.network, pool.subnet_len)?;
        }
        if let Some(pool) = &self.ipv6 {
            write!(f, " over {} in /{}", pool.network, pool.subnet_len)?;
        }
        Ok(())
    }
}

/// The networks of a configuration, for what is written into subnet.env.
impl NetworkConfig {
    /// `Network`, when IPv4 is on.
    pub fn network_v4(&self) -> Option<Ipv4Network> {
        self.ipv4.as_ref().map(|pool| pool.network)
    }

    /// `IPv6Network`, when IPv6 is on.
    pub fn network_v6(&self) -> Option<Ipv6Network> {
        self.ipv6.as_ref().map(|pool| pool.network)
    }
}

#[cfg(test)]
mod tests;
