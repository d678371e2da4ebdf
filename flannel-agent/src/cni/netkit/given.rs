//! What the IPAM plugin gives a pod, and what the runtime is told of it: both in the version of the specification that the
//! configuration speaks.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    super::{
        error::{CniError, Code},
        route::Route,
    },
    options::Options,
};
use crate::{
    netlink::route::RouteInPod,
    values::{Family, Mac, shorten},
};

/// An address of a pod.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct GivenAddress {
    /// With the length of its network.
    pub(super) network: IpNetwork,
    /// Whom the pod sends to.
    pub(super) gateway: Option<IpAddr>,
}

/// All that a pod is given.
#[derive(Debug)]
pub(super) struct Given {
    pub(super) addresses: Vec<GivenAddress>,
    pub(super) routes: Vec<Route>,
    dns: Map<String, Value>,
}

/// An interface that ADD has made or used.
#[derive(Clone, Debug)]
pub(super) struct Interface {
    pub(super) name: String,
    pub(super) mac: Option<Mac>,
    /// The pod's network namespace, if it is there.
    pub(super) sandbox: Option<String>,
}

/// A result of whichever version.
#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    ips: Option<Vec<NewAddress>>,
    #[serde(default)]
    routes: Option<Vec<Route>>,
    #[serde(default)]
    ip4: Option<OldAddress>,
    #[serde(default)]
    ip6: Option<OldAddress>,
    #[serde(default)]
    dns: Option<Map<String, Value>>,
}

/// From version 0.3.0.
#[derive(Deserialize)]
struct NewAddress {
    address: String,
    #[serde(default)]
    gateway: Option<IpAddr>,
}

/// Up to version 0.2.0, one of each family.
#[derive(Deserialize)]
struct OldAddress {
    ip: String,
    #[serde(default)]
    gateway: Option<IpAddr>,
    #[serde(default)]
    routes: Option<Vec<Route>>,
}

impl Given {
    /// Reads what the IPAM plugin has said, and completes it as `options` say: gateways, and default routes to them.
    ///
    /// # Errors
    /// It is no result, or gives no address.
    pub(super) fn read(said: &[u8], options: &Options) -> Result<Self, CniError> {
        let refused = |because: String| {
            let text = String::from_utf8_lossy(said);
            let text = shorten(text.trim(), 200);
            CniError::new(Code::Decoding, format!("the IPAM plugin's result {because}: {text:?}"))
        };
        let answer: Answer =
            serde_json::from_slice(said).map_err(|error| refused(format!("cannot be read: {error}")))?;
        let (mut addresses, mut routes) = (Vec::new(), answer.routes.unwrap_or_default());
        let mut add = |text: &str, gateway: Option<IpAddr>| -> Result<(), CniError> {
            let network = text.contains('/').then(|| text.parse().ok()).flatten();
            let network =
                network.ok_or_else(|| refused(format!("has {text}, which is no address of a network")))?;
            addresses.push(GivenAddress { network, gateway });
            Ok(())
        };
        for new in answer.ips.unwrap_or_default() {
            add(&new.address, new.gateway)?;
        }
        for old in [answer.ip4, answer.ip6].into_iter().flatten() {
            add(&old.ip, old.gateway)?;
            routes.extend(old.routes.unwrap_or_default());
        }
        if addresses.is_empty() {
            return Err(refused("gives no address".to_owned()));
        }
        let dns = options.dns.clone().or(answer.dns).unwrap_or_default();
        let mut given = Self { addresses, routes, dns };
        if options.is_gateway {
            given.complete_gateways();
        }
        if options.is_default_gateway {
            given.add_default_routes();
        }
        Ok(given)
    }

    /// The first address of its network is the gateway where the IPAM plugin names none.
    fn complete_gateways(&mut self) {
        for address in &mut self.addresses {
            let first = match address.network {
                IpNetwork::V4(network) => IpAddr::V4(u32::from(network.network()).wrapping_add(1).into()),
                IpNetwork::V6(network) => IpAddr::V6(u128::from(network.network()).wrapping_add(1).into()),
            };
            address.gateway.get_or_insert(first);
        }
    }

    fn add_default_routes(&mut self) {
        for address in &self.addresses {
            let everywhere = match address.network {
                IpNetwork::V4(_) => "0.0.0.0/0",
                IpNetwork::V6(_) => "::/0",
            };
            if !self.routes.iter().any(|route| route.gw.is_some() && route.dst.text() == everywhere) {
                self.routes.extend(Route::to(everywhere, address.gateway));
            }
        }
    }

    /// The pod's routes over its interface `ifindex`, each by a gateway: its own, or that of the pod.
    ///
    /// # Errors
    /// A number that is none of the kernel's.
    pub(super) fn routes_over(&self, ifindex: u32) -> Result<Vec<RouteInPod>, CniError> {
        let of_pod = |family: Family| {
            self.addresses.iter().filter_map(|address| address.gateway).find(|ip| Family::of(*ip) == family)
        };
        self.routes
            .iter()
            .map(|route| {
                let refused =
                    || CniError::new(Code::Decoding, format!("the IPAM plugin's result: route {route:?}"));
                let destination: IpNetwork = route.dst.text().parse().map_err(|_| refused())?;
                // Zero is none, but for table and scope.
                let number = |value: Option<i64>| value.map(u32::try_from).transpose().map_err(|_| refused());
                let counted = |value: Option<i64>| number(value.filter(|number| *number != 0));
                Ok(RouteInPod {
                    destination,
                    ifindex,
                    gateway: route.gw.or_else(|| of_pod(Family::of_network(destination))),
                    mtu: counted(route.mtu)?,
                    advmss: counted(route.advmss)?,
                    priority: counted(route.priority)?,
                    table: number(route.table)?,
                    scope: route.scope.map(u8::try_from).transpose().map_err(|_| refused())?,
                })
            })
            .collect()
    }

    /// The result of ADD in `version`: the bridge, the host's end and the pod's, in this order.
    pub(super) fn render(&self, version: &str, interfaces: &[Interface]) -> Vec<u8> {
        let old = ["0.1.0", "0.2.0"].contains(&version);
        let mut result = json!({ "cniVersion": version, "dns": self.dns });
        let family = |network: IpNetwork| if network.is_ipv4() { "4" } else { "6" };
        if old {
            for address in &self.addresses {
                let is_of = |route: &&Route| {
                    let to = route.dst.text().parse::<IpNetwork>();
                    to.is_ok_and(|to| to.is_ipv4() == address.network.is_ipv4())
                };
                let routes: Vec<Value> = self
                    .routes
                    .iter()
                    .filter(is_of)
                    .map(|route| json!({ "dst": route.dst, "gw": route.gw }))
                    .collect();
                result[format!("ip{}", family(address.network))] = json!({ "ip": address.network.to_string(), "gateway": address.gateway, "routes": routes });
            }
        } else {
            // The pod's end is the last.
            let index = interfaces.len().saturating_sub(1);
            let says_family = ["0.3.0", "0.3.1", "0.4.0"].contains(&version);
            let ips = self.addresses.iter().map(|address| {
                let mut ip = json!({ "interface": index, "address": address.network.to_string() });
                if let Some(gateway) = address.gateway {
                    ip["gateway"] = json!(gateway);
                }
                if says_family {
                    ip["version"] = family(address.network).into();
                }
                ip
            });
            result["ips"] = ips.collect();
            result["routes"] = json!(self.routes);
            let interfaces = interfaces.iter().map(|interface| {
                let mut value = json!({ "name": interface.name });
                if let Some(mac) = interface.mac {
                    value["mac"] = json!(mac);
                }
                if let Some(sandbox) = &interface.sandbox {
                    value["sandbox"] = json!(sandbox);
                }
                value
            });
            result["interfaces"] = interfaces.collect();
        }
        format!("{result:#}\n").into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(further: Value) -> Options {
        let Value::Object(config) = further else { panic!("no object") };
        Options::of(&config).unwrap()
    }

    fn read(said: Value, further: Value) -> Given {
        Given::read(said.to_string().as_bytes(), &options(further)).unwrap()
    }

    /// Of both families, as host-local says it.
    fn both() -> Value {
        json!({
            "cniVersion": "1.0.0", "dns": {},
            "ips": [
                { "address": "10.244.1.2/24", "gateway": "10.244.1.1" },
                { "address": "fd00:1::2/64" },
            ],
            "routes": [{ "dst": "10.244.0.0/16" }, { "dst": "10.96.0.0/12", "gw": "10.244.1.7", "mtu": 1400, "advmss": 0 }],
        })
    }

    #[test]
    fn pods_get_gateways_and_default_routes_as_bridge_gives_them() {
        let routes = |further: Value| -> Vec<(String, Option<String>, Option<u32>)> {
            let routes = read(both(), further).routes_over(7).unwrap();
            let shown = |route: &RouteInPod| {
                (route.destination.to_string(), route.gateway.map(|gateway| gateway.to_string()), route.mtu)
            };
            routes.iter().map(shown).collect()
        };
        let row = |to: &str, gateway: &str, mtu| (to.to_owned(), Some(gateway.to_owned()), mtu);
        let own = [row("10.244.0.0/16", "10.244.1.1", None), row("10.96.0.0/12", "10.244.1.7", Some(1400))];
        assert_eq!(routes(json!({})), own);
        assert_eq!(routes(json!({ "isGateway": true })), own);
        let default = [row("0.0.0.0/0", "10.244.1.1", None), row("::/0", "fd00:1::1", None)];
        assert_eq!(routes(json!({ "isDefaultGateway": true })), [own.to_vec(), default.to_vec()].concat());
        let mut known = both();
        known["routes"] =
            json!([{ "dst": "0.0.0.0/0", "gw": "10.244.1.9" }, { "dst": "::/0", "gw": "fd00:1::9" }]);
        let given = read(known, json!({ "isDefaultGateway": true }));
        assert_eq!(given.routes_over(7).unwrap().len(), 2, "it has default routes");
        assert!(given.routes_over(7).unwrap().iter().all(|route| route.ifindex == 7));
    }

    #[test]
    fn each_version_of_the_specification_is_read_and_written() {
        let interfaces = ["cni0", "nk1", "eth0"].map(|name| Interface {
            name: name.to_owned(),
            mac: Some(Mac([2, 0, 0, 0, 0, 1])),
            sandbox: (name == "eth0").then(|| "/run/netns/pod".to_owned()),
        });
        let mut written = Vec::new();
        for version in ["0.2.0", "0.4.0", "1.1.0"] {
            let given = read(both(), json!({ "isGateway": true, "dns": { "domain": "d" } }));
            let text = given.render(version, &interfaces);
            let value: Value = serde_json::from_slice(&text).unwrap();
            assert_eq!((&value["cniVersion"], &value["dns"]["domain"]), (&json!(version), &json!("d")));
            // What one version says is read as what the other says.
            let again = Given::read(&text, &options(json!({}))).unwrap();
            assert_eq!(again.addresses, given.addresses, "{version}");
            let destinations = |given: &Given| {
                given.routes.iter().map(|route| route.dst.text().to_owned()).collect::<Vec<_>>()
            };
            assert_eq!(destinations(&again), destinations(&given), "{version}");
            written.push(value);
        }
        let [old, middle, new] = written.try_into().unwrap();
        assert_eq!(old["ip4"]["ip"], "10.244.1.2/24");
        assert_eq!(old["ip6"], json!({ "ip": "fd00:1::2/64", "gateway": "fd00:1::1", "routes": [] }));
        assert_eq!((&middle["ips"][0]["version"], &middle["ips"][1]["version"]), (&json!("4"), &json!("6")));
        assert_eq!(
            new["ips"][0],
            json!({ "interface": 2, "address": "10.244.1.2/24", "gateway": "10.244.1.1" })
        );
        assert_eq!(
            new["interfaces"][2],
            json!({ "name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "/run/netns/pod" })
        );
        assert_eq!(new["interfaces"][0].get("sandbox"), None);
    }

    #[test]
    fn what_gives_no_address_is_refused() {
        for (said, part) in [
            ("", "cannot be read"),
            ("{}", "gives no address"),
            (r#"{"ips":[]}"#, "gives no address"),
            (r#"{"ips":[{"address":"10.0.0.1"}]}"#, "10.0.0.1"),
            (r#"{"ip4":{"ip":"x/24"}}"#, "x/24"),
            (r#"{"ips":[{"address":"10.0.0.1/8"}],"routes":[{"dst":"y"}]}"#, "cannot be read"),
        ] {
            let error = Given::read(said.as_bytes(), &options(json!({}))).unwrap_err();
            assert!(error.code() == 6 && error.to_string().contains(part), "{said}: {error}");
        }
        let said = br#"{"ips":[{"address":"10.0.0.1/8"}],"routes":[{"dst":"10.0.0.0/8","table":-1}]}"#;
        assert!(Given::read(said, &options(json!({}))).unwrap().routes_over(1).is_err());
    }
}
