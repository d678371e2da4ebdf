//! What the delegate `netkit` is told: those options of the plugin `bridge` that it knows, under their names.

use serde_json::{Map, Value};

use super::super::error::{CniError, Code};
use crate::{netlink::bridge::PortOptions, values::Mac, values::gojson::Object};

/// Fields that are the delegate's own.
const KNOWN: [&str; 8] = [
    "bridge",
    "mtu",
    "isGateway",
    "isDefaultGateway",
    "forceAddress",
    "ipMasq",
    "hairpinMode",
    "portIsolation",
];
/// Fields that every plugin gets.
const COMMON: [&str; 8] =
    ["name", "cniVersion", "type", "ipam", "dns", "runtimeConfig", "args", "capabilities"];

/// How pods are connected.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Options {
    /// The bridge they are ports of.
    pub(super) bridge: String,
    /// Largest packet, bytes.
    pub(super) mtu: u32,
    /// The bridge has the pods' gateway's addresses.
    pub(super) is_gateway: bool,
    /// Pods have default routes to it.
    pub(super) is_default_gateway: bool,
    /// Other addresses of the bridge make room for those.
    pub(super) force_address: bool,
    /// Of each port.
    pub(super) port: PortOptions,
    /// What the runtime wants the pod's MAC to be.
    pub(super) mac: Option<Mac>,
    /// What the runtime is to tell pods of name servers, in place of what the IPAM plugin says.
    pub(super) dns: Option<Map<String, Value>>,
}

impl Options {
    /// Reads the delegate's configuration, completed by what the daemon says.
    ///
    /// # Errors
    /// What of it cannot be; the field is named.
    pub(super) fn of(config: &Map<String, Value>) -> Result<Self, CniError> {
        let is_one =
            |name: &&String| !KNOWN.iter().chain(&COMMON).any(|known| known.eq_ignore_ascii_case(name));
        if let Some(name) = config.keys().find(is_one) {
            return Err(refused(format!("delegate.{name}: the delegate netkit has no such option"))
                .detailed(format!(
                    r#"it has {}; write "type": "bridge" for those of bridge"#,
                    KNOWN.join(", ")
                )));
        }
        let text = Value::Object(config.clone()).to_string();
        let object = Object::parse("delegate.", &text)
            .map_err(|error| refused(format!("delegate: not a JSON object: {error}")))?;
        let switch = |name: &str| -> Result<bool, CniError> {
            let value =
                object.get::<bool>(name, "true or false").map_err(|error| refused(error.to_string()))?;
            Ok(value.unwrap_or(false))
        };
        if switch("ipMasq")? {
            return Err(refused("delegate.ipMasq: the delegate netkit does not masquerade".to_owned()).detailed(
                r#"start flanneld with --ip-masq, which does it for all pods; or write "ipMasq": false, or "type": "bridge""#,
            ));
        }
        let field = |name: &str, expected: &'static str| {
            object.get::<Value>(name, expected).map_err(|error| refused(error.to_string()))
        };
        let bridge = object.get::<String>("bridge", "a name").map_err(|error| refused(error.to_string()))?;
        let bridge = bridge.unwrap_or_else(|| "cni0".to_owned());
        if bridge.is_empty() || bridge.len() > 15 {
            return Err(refused(format!("delegate.bridge: {bridge:?} is no name of an interface, as cni0")));
        }
        let mtu =
            object.get::<u32>("mtu", "a number of bytes").map_err(|error| refused(error.to_string()))?;
        let runtime = field("runtimeConfig", "an object")?;
        let mac = runtime.as_ref().and_then(|runtime| runtime.get("mac")).and_then(Value::as_str);
        let mac = mac.filter(|mac| !mac.is_empty()).map(str::parse::<Mac>).transpose();
        let is_default_gateway = switch("isDefaultGateway")?;
        let dns = match field("dns", "an object")? {
            None => None,
            Some(Value::Object(dns)) => Some(dns).filter(|dns| !dns.is_empty()),
            Some(other) => return Err(refused(format!("delegate.dns: expected an object, found {other}"))),
        };
        Ok(Self {
            bridge,
            mtu: mtu.unwrap_or(1500),
            is_gateway: switch("isGateway")? || is_default_gateway,
            is_default_gateway,
            force_address: switch("forceAddress")?,
            port: PortOptions { hairpin: switch("hairpinMode")?, isolated: switch("portIsolation")? },
            mac: mac.map_err(|error| refused(format!("runtimeConfig.mac: {error}")))?,
            dns,
        })
    }
}

fn refused(message: String) -> CniError {
    CniError::new(Code::NetworkConfig, message)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(config: Value) -> Result<Options, String> {
        let Value::Object(config) = config else { panic!("no object") };
        Options::of(&config).map_err(|error| error.to_string())
    }

    #[test]
    fn options_are_those_of_bridge() {
        let plain = of(json!({ "name": "n", "type": "netkit", "ipam": {}, "mtu": 1450 })).unwrap();
        assert_eq!((plain.bridge.as_str(), plain.mtu, plain.is_gateway), ("cni0", 1450, false));
        assert_eq!((plain.port, plain.mac, &plain.dns), (PortOptions::default(), None, &None));
        let all = of(json!({
            "bridge": "br1", "MTU": 1400, "isDefaultGateway": true, "hairpinMode": true, "portIsolation": true,
            "forceAddress": true, "ipMasq": false, "dns": { "nameservers": ["10.96.0.10"] },
            "runtimeConfig": { "mac": "02:00:00:00:00:07" },
        }))
        .unwrap();
        assert_eq!((all.bridge.as_str(), all.mtu), ("br1", 1400));
        assert!(all.is_gateway && all.is_default_gateway && all.force_address);
        assert_eq!(all.port, PortOptions { hairpin: true, isolated: true });
        assert_eq!(all.mac, Some(Mac([2, 0, 0, 0, 0, 7])));
        assert!(all.dns.is_some());
    }

    #[test]
    fn what_it_cannot_do_is_refused_by_name() {
        for (config, part) in [
            (json!({ "vlan": 5 }), "delegate.vlan"),
            (json!({ "mode": "l3" }), "delegate.mode"),
            (json!({ "ipMasq": true }), "--ip-masq"),
            (json!({ "mtu": "big" }), "delegate.mtu"),
            (json!({ "hairpinMode": 1 }), "delegate.hairpinMode"),
            (json!({ "bridge": "" }), "delegate.bridge"),
            (json!({ "bridge": "a-name-that-is-too-long" }), "delegate.bridge"),
            (json!({ "dns": [] }), "delegate.dns"),
            (json!({ "runtimeConfig": { "mac": "x" } }), "runtimeConfig.mac"),
        ] {
            let error = of(config.clone()).unwrap_err();
            assert!(error.contains(part), "{config}: {error}");
        }
    }
}
