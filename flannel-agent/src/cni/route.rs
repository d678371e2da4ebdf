//! A route as the CNI specification has it.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::config::{cidr_v4, cidr_v6};

/// A route of a pod, with the fields of the specification; upstream drops others, and so do we. Zero is none, but for
/// table and scope.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Route {
    pub(super) dst: Destination,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) gw: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "is_none_or_zero")]
    pub(super) mtu: Option<i64>,
    #[serde(default, skip_serializing_if = "is_none_or_zero")]
    pub(super) advmss: Option<i64>,
    #[serde(default, skip_serializing_if = "is_none_or_zero")]
    pub(super) priority: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) table: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) scope: Option<i64>,
}

impl Route {
    /// One to a network, by `gateway` if there is one; `None` if `network` is none.
    pub(super) fn to(network: &str, gateway: Option<IpAddr>) -> Option<Self> {
        let dst = Destination::try_from(network.to_owned()).ok()?;
        Some(Self { dst, gw: gateway, mtu: None, advmss: None, priority: None, table: None, scope: None })
    }
}

fn is_none_or_zero(number: &Option<i64>) -> bool {
    number.is_none_or(|number| number == 0)
}

/// A network as it was written, host bits and all.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(super) struct Destination(String);

impl Destination {
    pub(super) fn text(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Destination {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if cidr_v4(&text).is_some() || cidr_v6(&text).is_some() {
            Ok(Self(text))
        } else {
            Err(format!("dst: {text:?} is not a network, as 10.96.0.0/12"))
        }
    }
}

impl From<Destination> for String {
    fn from(destination: Destination) -> Self {
        destination.0
    }
}
