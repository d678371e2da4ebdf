//! Pods, made by the real CNI plugins.

use std::{net::Ipv4Addr, sync::Arc};

use anyhow::{Context as _, Result};
use ipnetwork::Ipv4Network;
use serde_json::{Value, json};

use super::{Chain, Names, Netns, Node};
use crate::traffic::Endpoint;

/// How a pod is added.
#[derive(Clone, Debug, Default)]
pub struct PodOptions {
    /// By our own plugin and what kube-flannel chains to it. Otherwise `bridge` is told what our plugin would tell it.
    pub kube_flannel: bool,
    /// Ports of the node, and ports of the pod that `portmap` forwards their TCP connections to. Only with
    /// `kube_flannel`.
    pub host_ports: Vec<(u16, u16)>,
}

/// A pod with one interface `eth0` on its node's `cni0`.
#[derive(Debug)]
pub struct Pod {
    name: String,
    netns: Netns,
    node: Netns,
    names: Arc<Names>,
    address: Ipv4Addr,
    chain: Chain,
    runtime: Value,
    result: Value,
}

impl Pod {
    pub(super) fn add(node: &Node, netns: Netns, name: &str, options: &PodOptions) -> Result<Self> {
        let chain = if options.kube_flannel { Chain::kube_flannel(node)? } else { Chain::bridge(node)? };
        let mapping =
            |(host, pod): &(u16, u16)| json!({ "hostPort": host, "containerPort": pod, "protocol": "tcp" });
        let mappings: Vec<Value> = options.host_ports.iter().map(mapping).collect();
        let runtime = if mappings.is_empty() { json!({}) } else { json!({ "portMappings": mappings }) };
        let result = chain.call("ADD", node.netns(), &netns, &runtime, &Value::Null)?;
        let address =
            result["ips"][0]["address"].as_str().with_context(|| format!("no address in {result}"))?;
        let address = address.parse::<Ipv4Network>().with_context(|| address.to_owned())?.ip();
        Ok(Self {
            name: format!("{}/{name}", node.name()),
            netns,
            node: node.netns().clone(),
            names: Arc::clone(node.names()),
            address,
            chain,
            runtime,
            result,
        })
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
        self.chain.call("DEL", &self.node, &self.netns, &self.runtime, &self.result)?;
        self.names.remove(&self.netns)
    }
}
