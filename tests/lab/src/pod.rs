//! Pods, made by the real CNI plugins.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use anyhow::{Context as _, Result, ensure};
use ipnetwork::IpNetwork;
use serde_json::{Value, json};

use super::{Chain, Netns, Node, names::Names};
use crate::traffic::Endpoint;

/// How a pod is added.
#[derive(Clone, Debug, Default)]
pub struct PodOptions {
    /// By what.
    pub plugins: Plugins,
    /// Ports of the node, and ports of the pod that `portmap` forwards their TCP connections to. Not with
    /// [`Plugins::Bridge`].
    pub host_ports: Vec<(u16, u16)>,
}

/// What makes a pod's interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Plugins {
    /// `bridge`, told what our plugin would tell it.
    #[default]
    Bridge,
    /// Our own plugin and what kube-flannel chains to it.
    KubeFlannel,
    /// What is installed on the node, as [`KubeFlannel`](super::KubeFlannel) does.
    Installed,
}

/// A pod with one interface `eth0` on its node's `cni0`.
#[derive(Debug)]
pub struct Pod {
    name: String,
    netns: Netns,
    node: Netns,
    names: Arc<Names>,
    v4: Option<Ipv4Addr>,
    v6: Option<Ipv6Addr>,
    chain: Chain,
    runtime: Value,
    result: Value,
}

impl Pod {
    pub(super) fn add(node: &Node, netns: Netns, name: &str, options: &PodOptions) -> Result<Self> {
        let chain = match options.plugins {
            Plugins::Bridge => Chain::bridge(node)?,
            Plugins::KubeFlannel => Chain::kube_flannel(node)?,
            Plugins::Installed => Chain::installed(node)?,
        };
        let mapping =
            |(host, pod): &(u16, u16)| json!({ "hostPort": host, "containerPort": pod, "protocol": "tcp" });
        let mappings: Vec<Value> = options.host_ports.iter().map(mapping).collect();
        let runtime = if mappings.is_empty() { json!({}) } else { json!({ "portMappings": mappings }) };
        let result = chain.call("ADD", node.netns(), &netns, &runtime, &Value::Null)?;
        let (mut v4, mut v6) = (None, None);
        for ip in result["ips"].as_array().with_context(|| format!("no addresses in {result}"))? {
            let address = ip["address"].as_str().with_context(|| format!("no address in {result}"))?;
            match address.parse::<IpNetwork>().with_context(|| address.to_owned())?.ip() {
                IpAddr::V4(address) => v4 = Some(address),
                IpAddr::V6(address) => v6 = Some(address),
            }
        }
        ensure!(v4.is_some() || v6.is_some(), "no address in {result}");
        Ok(Self {
            name: format!("{}/{name}", node.name()),
            netns,
            node: node.netns().clone(),
            names: Arc::clone(node.names()),
            v4,
            v6,
            chain,
            runtime,
            result,
        })
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

    /// Its namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Where its traffic starts and ends: by IPv4, if it has that.
    pub fn endpoint(&self) -> Endpoint {
        let v6 = self.v6.map(IpAddr::V6).filter(|_| self.v4.is_none());
        let address = v6.unwrap_or(self.address().into());
        Endpoint::new(self.name.clone(), self.netns.clone(), address)
    }

    /// Where its IPv6 traffic starts and ends.
    pub fn endpoint_v6(&self) -> Result<Endpoint> {
        let address = self.v6.with_context(|| format!("{} has no IPv6 address", self.name))?;
        Ok(Endpoint::new(format!("{} (IPv6)", self.name), self.netns.clone(), address))
    }

    /// Takes it away again, as kubelet does: CNI DEL, then the namespace.
    pub fn remove(self) -> Result<()> {
        self.chain.call("DEL", &self.node, &self.netns, &self.runtime, &self.result)?;
        self.names.remove(&self.netns)
    }
}
