//! What the delegate is told. A pure function, whose output is the same JSON as upstream's.

use serde_json::{Map, Value, json};

use super::{
    SubnetEnv,
    error::{CniError, Code},
    netconf::NetConf,
    netkit,
    route::Route,
};

/// The delegate's configuration: what `conf` says for it, completed by what the daemon says about this node.
///
/// # Errors
/// What of `conf` cannot be; the field is named.
pub fn config(conf: &NetConf, env: &SubnetEnv) -> Result<Map<String, Value>, CniError> {
    let mut delegate = conf.delegate.clone();
    if let Some(runtime) = &conf.runtime_config {
        delegate.insert("runtimeConfig".to_owned(), Value::Object(runtime.clone()));
    }
    delegate.insert("name".to_owned(), conf.name.clone().into());
    let mut default = |name: &str, value: Value| {
        delegate.entry(name).or_insert(value);
    };
    default("type", "bridge".into());
    default("ipMasq", (!env.ip_masq).into());
    default("mtu", env.mtu.into());
    netkit::become_bridge(&mut delegate)?;
    if delegate.get("type").is_some_and(|kind| kind == "bridge") {
        delegate.entry("isGateway").or_insert(true.into());
    }
    if conf.says_version {
        delegate.insert("cniVersion".to_owned(), conf.cni_version.clone().into());
    }
    delegate.insert("ipam".to_owned(), Value::Object(ipam(conf, env)?));
    Ok(delegate)
}

/// Where the pod's addresses come from, and its routes: those given, then one to each of the cluster's networks.
fn ipam(conf: &NetConf, env: &SubnetEnv) -> Result<Map<String, Value>, CniError> {
    let mut ipam = conf.ipam.clone();
    ipam.entry("type").or_insert("host-local".into());
    let ranges: Vec<Value> =
        env.subnets.iter().map(|subnet| json!([{ "subnet": subnet.to_string() }])).collect();
    let given = ipam.get("routes").cloned().unwrap_or_default();
    let given: Option<Vec<Route>> = serde_json::from_value(given).map_err(|error| {
        CniError::new(Code::NetworkConfig, format!("failed to parse ipam.routes: {error}"))
            .detailed(r#"write a list, as [{"dst": "10.96.0.0/12", "gw": "10.1.17.20"}]"#)
    })?;
    let mut routes: Vec<Value> = given.unwrap_or_default().iter().map(|route| json!(route)).collect();
    routes.extend(env.networks.iter().map(|network| json!({ "dst": network.to_string() })));
    ipam.insert("ranges".to_owned(), ranges.into());
    ipam.insert("routes".to_owned(), routes.into());
    Ok(ipam)
}
