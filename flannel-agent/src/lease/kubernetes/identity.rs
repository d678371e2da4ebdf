//! Which node this is, and which subnet it has.

use ipnetwork::{Ipv4Network, Ipv6Network};

use super::{KubeError, node_lease::Families, record::NodeRecord};
use crate::{config::NetworkConfig, lease::LeaseSubnet};

/// How this process is to find its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// `NODE_NAME`.
    Node(String),
    /// `POD_NAMESPACE` and `POD_NAME`: the node that pod runs on.
    Pod {
        /// The pod's namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
}

impl Identity {
    /// From the environment.
    ///
    /// # Errors
    /// [`KubeError::Nameless`] where neither is set, [`KubeError::BadName`] for what can be no name.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self, KubeError> {
        let given = |name: &'static str| -> Result<Option<String>, KubeError> {
            match variable(name).filter(|value| !value.is_empty()) {
                Some(value) if !is_name(&value) => Err(KubeError::BadName { variable: name, value }),
                value => Ok(value),
            }
        };
        match (given("NODE_NAME")?, given("POD_NAMESPACE")?, given("POD_NAME")?) {
            (Some(node), _, _) => Ok(Self::Node(node)),
            (None, Some(namespace), Some(name)) => Ok(Self::Pod { namespace, name }),
            _ => Err(KubeError::Nameless),
        }
    }
}

/// A name of Kubernetes objects (a subdomain of RFC 1123), which may stand in a path as it is.
pub(super) fn is_name(text: &str) -> bool {
    let usual = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-".contains(&byte);
    (1..=253).contains(&text.len()) && text.bytes().all(usual) && !text.starts_with(['.', '-'])
}

/// The cluster's networks, by family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Networks {
    v4: Option<Ipv4Network>,
    v6: Option<Ipv6Network>,
}

impl Networks {
    pub(super) fn of(config: &NetworkConfig) -> Self {
        Self { v4: config.network_v4(), v6: config.network_v6() }
    }

    /// The subnet of our node in these networks; `None` while a family has none.
    ///
    /// # Errors
    /// Upstream's, where the pod CIDRs are none or outside of the networks.
    pub(super) fn subnet_of(&self, node: &NodeRecord) -> Result<Option<LeaseSubnet>, KubeError> {
        let cidrs = node.pod_cidrs().map_err(|error| KubeError::PodCidr(error.to_string()))?;
        let subnet = Families { v4: self.v4.is_some(), v6: self.v6.is_some() }.of_these(cidrs);
        let outside = |network: String, cidr: String| KubeError::OutsideNetwork {
            network,
            cidr,
            node: node.name().to_owned(),
        };
        if let (Some(network), Some(cidr)) = (self.v4, subnet.v4)
            && !cidr.is_subnet_of(network)
        {
            return Err(outside(network.to_string(), cidr.to_string()));
        }
        if let (Some(network), Some(cidr)) = (self.v6, subnet.v6)
            && !cidr.is_subnet_of(network)
        {
            return Err(outside(network.to_string(), cidr.to_string()));
        }
        let whole = subnet.v4.is_some() == self.v4.is_some() && subnet.v6.is_some() == self.v6.is_some();
        Ok(whole.then_some(subnet))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn identity(environment: &[(&str, &str)]) -> Result<Identity, String> {
        let find = |name: &str| {
            environment.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        };
        Identity::read(find).map_err(|error| error.to_string())
    }

    #[test]
    fn the_nodes_name_wins_and_the_pod_finds_it() {
        let pod = [("POD_NAMESPACE", "kube-flannel"), ("POD_NAME", "kube-flannel-ds-x1")];
        let of_pod = Identity::Pod { namespace: "kube-flannel".into(), name: "kube-flannel-ds-x1".into() };
        assert_eq!(identity(&pod).unwrap(), of_pod);
        assert_eq!(identity(&[pod[0], pod[1], ("NODE_NAME", "a.b")]).unwrap(), Identity::Node("a.b".into()));
        assert_eq!(identity(&[pod[0], pod[1], ("NODE_NAME", "")]).unwrap(), of_pod);
        for incomplete in [&pod[..1], &pod[1..], &[]] {
            let error = identity(incomplete).unwrap_err();
            assert!(error.starts_with("env variables POD_NAME and POD_NAMESPACE must be set"), "{error}");
        }
        for bad in ["a/b", "A", "..", "a b", "-a"] {
            let error = identity(&[("NODE_NAME", bad)]).unwrap_err();
            assert!(error.contains("NODE_NAME") && error.contains(bad), "{error}");
        }
    }

    fn subnet(config: &str, cidrs: &[&str]) -> Result<Option<LeaseSubnet>, String> {
        let config = NetworkConfig::parse(config.as_bytes()).unwrap();
        let node = NodeRecord::from_json(&json!({"metadata": {"name": "a"}, "spec": {"podCIDRs": cidrs}}));
        Networks::of(&config).subnet_of(&node).map_err(|error| error.to_string())
    }

    /// Upstream's TestContainsCIDR: five pairs of each family.
    #[test]
    fn contains_cidr() {
        for (network, cidr, inside) in [
            ("10.244.0.0/16", "10.244.0.0/16", true),
            ("10.244.0.0/16", "10.244.0.0/24", true),
            ("10.244.0.0/16", "10.244.255.0/24", true),
            ("10.244.0.0/16", "10.245.0.0/24", false),
            ("10.244.0.0/16", "10.0.0.0/8", false),
            ("fd00:10::/32", "fd00:10::/32", true),
            ("fd00:10::/32", "fd00:10:0:1::/64", true),
            ("fd00:10::/32", "fd00:10:ffff:ffff::/64", true),
            ("fd00:10::/32", "fd00:11::/64", false),
            ("fd00:10::/32", "fd00::/16", false),
        ] {
            let v6 = network.contains(':');
            let (off, field) = if v6 {
                (r#""EnableIPv4":false,"EnableIPv6":true,"#, "IPv6Network")
            } else {
                ("", "Network")
            };
            let config = format!(r#"{{{off}"{field}":"{network}","Backend":{{"Type":"vxlan"}}}}"#);
            match subnet(&config, &[cidr]) {
                Ok(found) => assert!(inside && found.is_some(), "{network} {cidr}"),
                Err(error) => {
                    let text = format!(
                        "subnet \"{network}\" specified in the flannel net config doesn't contain \"{cidr}\" PodCIDR of the \"a\" node"
                    );
                    assert!(!inside && error.starts_with(&text), "{error}");
                }
            }
        }
    }

    #[test]
    fn a_family_without_subnet_is_waited_for() {
        let both = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10::/48"}"#;
        assert_eq!(subnet(both, &[]), Ok(None));
        assert_eq!(subnet(both, &["10.244.1.0/24"]), Ok(None));
        let found = subnet(both, &["fd00:10:0:1::/64", "10.244.1.0/24"]).unwrap().unwrap();
        assert_eq!(found.to_string(), "10.244.1.0/24&fd00:10:0:1::/64");
        let v4 = r#"{"Network":"10.244.0.0/16"}"#;
        let found = subnet(v4, &["fd00:10:0:1::/64", "10.244.1.0/24"]).unwrap().unwrap();
        assert_eq!(found.to_string(), "10.244.1.0/24", "a family that is off does not matter");
    }
}
