//! Pods, made by the real CNI plugins.

use std::{net::Ipv4Addr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use ipnetwork::Ipv4Network;
use serde_json::{Value, json};

use super::{Names, Netns, Node};
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
    address: Ipv4Addr,
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
            address: Ipv4Addr::UNSPECIFIED,
            plugins: cni_directory()?,
            netconf: netconf(node)?.to_string(),
        };
        let result: Value = serde_json::from_str(&pod.call("ADD")?).context("result of CNI ADD")?;
        let address =
            result["ips"][0]["address"].as_str().with_context(|| format!("no address in {result}"))?;
        pod.address = address.parse::<Ipv4Network>().with_context(|| address.to_owned())?.ip();
        Ok(pod)
    }

    /// `<node>/<name>`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address, as host-local gave it.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Its namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Where its traffic starts and ends.
    pub fn endpoint(&self) -> Endpoint {
        Endpoint::new(self.name.clone(), self.netns.clone(), self.address)
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
    let env = node.subnet_env()?;
    Ok(json!({
        "cniVersion": "0.3.1",
        "name": "cbr0",
        "type": "bridge",
        "hairpinMode": true,
        "ipMasq": false,
        "isDefaultGateway": true,
        "isGateway": true,
        "mtu": env.mtu,
        "ipam": {
            "type": "host-local",
            "dataDir": node.dir().join("cni"),
            "ranges": [[{ "subnet": env.subnet.to_string() }]],
            "routes": [{ "dst": env.network.to_string() }],
        },
    }))
}
