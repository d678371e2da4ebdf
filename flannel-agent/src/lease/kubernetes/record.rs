//! What is read of a Node, and no more: a node's object is some ten kilobytes, of which these are a few hundred
//! bytes.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use ipnetwork::{Ipv4Network, Ipv6Network};
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};

use super::annotations::{self, AnnotationPrefix};
use crate::{
    config::{cidr_v4, cidr_v6},
    lease::LeaseSubnet,
};

/// A Node as far as it is our business.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct NodeRecord {
    metadata: Metadata,
    spec: Spec,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Metadata {
    name: String,
    uid: String,
    resource_version: String,
    #[serde(rename = "creationTimestamp", deserialize_with = "in_digits")]
    made: Option<u64>,
    annotations: Annotations,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Spec {
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Option<Vec<String>>,
}

/// Those that could be flannel's, by whichever prefix.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Annotations(BTreeMap<String, String>);

/// The subnets of a node that are none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PodCidrError {
    #[error("spec.podCIDRs: \"{0}\" is not a network, as 10.244.1.0/24")]
    NoNetwork(String),
    /// Upstream's message.
    #[error("node \"{node}\" pod cidrs should be IPv4/IPv6 only or dualstack; spec.podCIDRs: {found}")]
    TooMany { node: String, found: String },
}

impl NodeRecord {
    pub(super) fn name(&self) -> &str {
        &self.metadata.name
    }

    /// Of this object; another of the same name has another.
    pub(super) fn uid(&self) -> &str {
        &self.metadata.uid
    }

    /// When it was made: the digits of its date and time, one after the other.
    pub(super) fn made(&self) -> Option<u64> {
        self.metadata.made
    }

    /// Where a watch goes on after this object.
    pub(super) fn version(&self) -> &str {
        &self.metadata.resource_version
    }

    /// An annotation's value, if it has one.
    pub(super) fn annotation(&self, prefix: &AnnotationPrefix, name: &str) -> Option<&str> {
        self.metadata.annotations.0.get(&prefix.of(name)).map(String::as_str)
    }

    /// The value of the annotation of this whole name, if it has one.
    pub(super) fn annotated(&self, name: &str) -> Option<&str> {
        self.metadata.annotations.0.get(name).map(String::as_str)
    }

    /// An annotation's address.
    ///
    /// # Errors
    /// The name and the value of one that holds no address of the family of `T`.
    pub(super) fn address<T: std::str::FromStr>(
        &self,
        prefix: &AnnotationPrefix,
        name: &str,
    ) -> Result<Option<T>, String> {
        match self.annotation(prefix, name).unwrap_or_default() {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| {
                let other = text.parse::<IpAddr>().map_or("no address", |_| "of the other family");
                format!("annotation {}: \"{text}\" is {other}", prefix.of(name))
            }),
        }
    }

    /// The node's subnets, host bits dropped; none of either family while none are assigned.
    pub(super) fn pod_cidrs(&self) -> Result<LeaseSubnet, PodCidrError> {
        let single = self.spec.pod_cidr.as_ref().filter(|text| !text.is_empty());
        let several = self.spec.pod_cidrs.as_deref().unwrap_or_default();
        let all: Vec<&String> = match several.is_empty() {
            true => single.into_iter().collect(),
            false => several.iter().collect(),
        };
        let mut subnet = LeaseSubnet { v4: None, v6: None };
        for text in &all {
            let room = match network(text) {
                Some(Network::V4(v4)) => subnet.v4.replace(v4).is_none(),
                Some(Network::V6(v6)) => subnet.v6.replace(v6).is_none(),
                None => return Err(PodCidrError::NoNetwork((*text).clone())),
            };
            if !room {
                return Err(PodCidrError::TooMany {
                    node: self.name().to_owned(),
                    found: format!("{all:?}"),
                });
            }
        }
        Ok(subnet)
    }
}

enum Network {
    V4(Ipv4Network),
    V6(Ipv6Network),
}

fn network(text: &str) -> Option<Network> {
    cidr_v4(text).map(Network::V4).or_else(|| cidr_v6(text).map(Network::V6))
}

/// The digits of `2026-12-01T02:03:04Z`, which are in the order of time: 20261201020304.
fn in_digits<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?.unwrap_or_default();
    let digits: String = text.chars().filter(char::is_ascii_digit).collect();
    Ok(digits.parse().ok())
}

impl<'de> Deserialize<'de> for Annotations {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Flannels;
        impl<'de> Visitor<'de> for Flannels {
            type Value = Annotations;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("annotations")
            }

            fn visit_unit<E>(self) -> Result<Annotations, E> {
                Ok(Annotations::default())
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Annotations, A::Error> {
                let mut kept = BTreeMap::new();
                while let Some(key) = map.next_key::<String>()? {
                    if annotations::ALL.iter().any(|name| key.ends_with(name)) {
                        kept.insert(key, map.next_value()?);
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(Annotations(kept))
            }
        }
        deserializer.deserialize_any(Flannels)
    }
}

#[cfg(test)]
impl NodeRecord {
    /// From JSON as the API server writes it.
    pub(super) fn from_json(json: &serde_json::Value) -> Self {
        serde_json::from_value(json.clone()).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn cidrs(spec: Value) -> Result<String, String> {
        let record = NodeRecord::from_json(&json!({"metadata": {"name": "a"}, "spec": spec}));
        record.pod_cidrs().map(|subnet| subnet.to_string()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_node_is_read_without_what_is_not_ours() {
        let record = NodeRecord::from_json(&json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {
                "name": "a", "uid": "u", "resourceVersion": "7", "labels": {"x": "y"},
                "annotations": {"flannel.alpha.coreos.com/public-ip": "192.0.2.1", "node.alpha.kubernetes.io/ttl": "0"},
                "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:metadata": {}}}],
            },
            "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"], "taints": [{"key": "x"}]},
            "status": {"images": [{"names": ["x"], "sizeBytes": 1}]},
        }));
        let prefix = AnnotationPrefix::new("flannel.alpha.coreos.com").unwrap();
        assert_eq!((record.name(), record.uid(), record.version()), ("a", "u", "7"));
        assert_eq!(record.annotation(&prefix, annotations::PUBLIC_IP), Some("192.0.2.1"));
        assert_eq!(record.metadata.annotations.0.len(), 1);
    }

    #[test]
    fn absent_and_null_are_nothing() {
        let empty =
            NodeRecord::from_json(&json!({"metadata": {"annotations": null}, "spec": {"podCIDRs": null}}));
        assert_eq!(empty, NodeRecord::default());
        assert_eq!(NodeRecord::from_json(&json!({})), NodeRecord::default());
    }

    #[test]
    fn pod_cidrs_in_any_order_two_at_most() {
        assert_eq!(cidrs(json!({})).unwrap(), "none");
        assert_eq!(cidrs(json!({"podCIDR": ""})).unwrap(), "none");
        assert_eq!(cidrs(json!({"podCIDR": "10.244.1.0/24"})).unwrap(), "10.244.1.0/24");
        assert_eq!(cidrs(json!({"podCIDR": "fd00:1::/64"})).unwrap(), "fd00:1::/64");
        let both = "10.244.1.0/24&fd00:1::/64";
        assert_eq!(cidrs(json!({"podCIDRs": ["10.244.1.0/24", "fd00:1::/64"]})).unwrap(), both);
        assert_eq!(cidrs(json!({"podCIDRs": ["fd00:1::/64", "10.244.1.7/24"]})).unwrap(), both);
        let three =
            cidrs(json!({"podCIDRs": ["10.244.1.0/24", "fd00:1::/64", "10.244.2.0/24"]})).unwrap_err();
        assert!(three.starts_with("node \"a\" pod cidrs should be IPv4/IPv6 only or dualstack"), "{three}");
        assert!(cidrs(json!({"podCIDRs": ["10.244.1.0/24", "10.244.2.0/24"]})).is_err());
        let garbage = cidrs(json!({"podCIDRs": ["10.244.1.0"]})).unwrap_err();
        assert!(garbage.contains("\"10.244.1.0\" is not a network"), "{garbage}");
    }
}
