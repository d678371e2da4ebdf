//! Pods, made by the real CNI plugins.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use ipnetwork::IpNetwork;
use serde_json::{Value, json};

use super::{Names, Netns, Node, SubnetEnv, SubnetEnvV6, subnet_env};
use crate::{command::run_with, requirements::cni_directory, traffic::Endpoint};

/// How long one call of a CNI plugin may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A pod with one interface `eth0` on its node's `cni0`.
#[derive(Debug)]
pub struct Pod {
    name: String,
    netns: Netns,
    node: Netns,
    names: Arc<Names>,
    v4: Option<Ipv4Addr>,
    v6: Option<Ipv6Addr>,
    plugins: PathBuf,
    netconf: String,
}

impl Pod {
    pub(super) fn add(node: &Node, netns: Netns, name: &str) -> Result<Self> {
        let mut pod = Self {
            name: format!("{}/{name}", node.name()),
            netns,
            node: node.netns().clone(),
            names: Arc::clone(node.names()),
            v4: None,
            v6: None,
            plugins: cni_directory()?,
            netconf: netconf(node)?.to_string(),
        };
        let result: Value = serde_json::from_str(&pod.call("ADD")?).context("result of CNI ADD")?;
        for ip in result["ips"].as_array().with_context(|| format!("no addresses in {result}"))? {
            let address = ip["address"].as_str().with_context(|| format!("no address in {result}"))?;
            match address.parse::<IpNetwork>().with_context(|| address.to_owned())?.ip() {
                IpAddr::V4(v4) => pod.v4 = Some(v4),
                IpAddr::V6(v6) => pod.v6 = Some(v6),
            }
        }
        pod.addresses().next().with_context(|| format!("no address in {result}"))?;
        Ok(pod)
    }

    /// `<node>/<name>`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its IPv4 address, as host-local gave it; 0.0.0.0 in a cluster of IPv6 only.
    pub fn address(&self) -> Ipv4Addr {
        self.v4.unwrap_or(Ipv4Addr::UNSPECIFIED)
    }

    /// Its IPv6 address, in a cluster that has IPv6.
    pub fn address_v6(&self) -> Option<Ipv6Addr> {
        self.v6
    }

    /// All its addresses, IPv4 first.
    fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.v4.map(IpAddr::V4).into_iter().chain(self.v6.map(IpAddr::V6))
    }

    /// Its namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Where its traffic starts and ends: by IPv4, if it has that.
    pub fn endpoint(&self) -> Endpoint {
        let address = self.addresses().next().unwrap_or(Ipv4Addr::UNSPECIFIED.into());
        Endpoint::new(self.name.clone(), self.netns.clone(), address)
    }

    /// Where its IPv6 traffic starts and ends.
    pub fn endpoint_v6(&self) -> Result<Endpoint> {
        let address = self.v6.with_context(|| format!("{} has no IPv6 address", self.name))?;
        Ok(Endpoint::new(format!("{} (IPv6)", self.name), self.netns.clone(), address))
    }

    /// Takes it away again, as kubelet does: CNI DEL, then the namespace.
    pub fn remove(self) -> Result<()> {
        self.call("DEL")?;
        self.names.remove(&self.netns)
    }

    fn call(&self, verb: &str) -> Result<String> {
        let plugin = self.plugins.join("bridge").to_string_lossy().into_owned();
        let mut command = self.node.command(&plugin);
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", self.netns.name())
            .env("CNI_NETNS", self.netns.path())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", &self.plugins);
        run_with(&mut command, &self.netconf, PATIENCE)
            .with_context(|| format!("CNI {verb} of {}", self.name))
    }
}

/// What flannel's CNI plugin hands to `bridge`, from its usual configuration and the subnet file.
fn netconf(node: &Node) -> Result<Value> {
    let file = node.subnet_file();
    let (mut ranges, mut routes) = (Vec::new(), Vec::new());
    if subnet_env::has_v4(&file)? {
        let env = SubnetEnv::read(&file)?;
        ranges.push(json!([{ "subnet": env.subnet.to_string() }]));
        routes.push(json!({ "dst": env.network.to_string() }));
    }
    if let Some(env) = SubnetEnvV6::read(&file)? {
        ranges.push(json!([{ "subnet": env.subnet.to_string() }]));
        routes.push(json!({ "dst": env.network.to_string() }));
    }
    Ok(json!({
        "cniVersion": "0.3.1",
        "name": "cbr0",
        "type": "bridge",
        "hairpinMode": true,
        "ipMasq": false,
        "isDefaultGateway": true,
        "isGateway": true,
        "mtu": subnet_env::mtu(&file)?,
        "ipam": {
            "type": "host-local",
            "dataDir": node.dir().join("cni"),
            "ranges": ranges,
            "routes": routes,
        },
    }))
}
