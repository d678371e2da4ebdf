//! Services and their backends, as the API server knows them.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::ApiServer;

const SERVICES: &str = "/api/v1/namespaces/default/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1beta1/namespaces/default/endpointslices";

/// Which backends take what comes to a node's port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrafficPolicy {
    /// All; they see the node's address.
    Cluster,
    /// Those on that very node; they see the client's address.
    Local,
}

/// A pod that serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// The pod's address.
    pub address: IpAddr,
    /// The node it is on.
    pub node: String,
}

/// A Service for one port, over TCP and over UDP.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its name in the namespace `default`.
    pub name: String,
    /// Its clusterIP.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// The port of its pods.
    pub target: u16,
    /// Every node's port for it, from 30000 to 32767; makes it a NodePort.
    pub node_port: Option<u16>,
    /// `externalTrafficPolicy`.
    pub policy: TrafficPolicy,
    /// Whether a client always meets the same pod.
    pub affinity: bool,
    /// Its pods.
    pub backends: Vec<Backend>,
}

impl Service {
    fn object(&self) -> Value {
        let ports = ["TCP", "UDP"].map(|protocol| {
            let mut port = json!({
                "name": protocol.to_lowercase(),
                "protocol": protocol,
                "port": self.port,
                "targetPort": self.target,
            });
            if let Some(node_port) = self.node_port {
                port["nodePort"] = node_port.into();
            }
            port
        });
        let mut spec = json!({
            "type": "ClusterIP",
            "clusterIP": self.address,
            "ports": ports,
            "sessionAffinity": if self.affinity { "ClientIP" } else { "None" },
        });
        if self.node_port.is_some() {
            spec["type"] = "NodePort".into();
            spec["externalTrafficPolicy"] = match self.policy {
                TrafficPolicy::Cluster => "Cluster".into(),
                TrafficPolicy::Local => "Local".into(),
            };
        }
        json!({ "metadata": { "name": self.name }, "spec": spec })
    }

    fn slice(&self) -> Value {
        let endpoints = self.backends.iter().map(|backend| {
            json!({
                "addresses": [backend.address],
                "conditions": { "ready": true },
                "topology": { "kubernetes.io/hostname": backend.node },
            })
        });
        let endpoints: Vec<Value> = endpoints.collect();
        let ports = ["TCP", "UDP"].map(
            |protocol| json!({ "name": protocol.to_lowercase(), "protocol": protocol, "port": self.target }),
        );
        json!({
            "metadata": { "name": self.name, "labels": { "kubernetes.io/service-name": self.name } },
            "addressType": if self.address.is_ipv4() { "IPv4" } else { "IPv6" },
            "endpoints": endpoints,
            "ports": ports,
        })
    }

    /// Its clusterIP with its port.
    pub fn socket_address(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port)
    }

    /// Whether these rules of kube-proxy send its packets to its backends, and to no others.
    pub(super) fn check_rules(&self, nat: &str, filter: &str) -> Result<()> {
        let to_it = format!("-d {}/{}", self.address, if self.address.is_ipv4() { 32 } else { 128 });
        for protocol in ["tcp", "udp"] {
            let port = format!("default/{}:{protocol}", self.name);
            let about = |rule: &&str| rule.contains(&format!("\"{port}")) || rule.contains(&to_it);
            let mut targets: Vec<&str> = nat
                .lines()
                .filter(|rule| rule.contains(&format!("\"{port}\"")))
                .filter_map(|rule| rule.split("--to-destination ").nth(1))
                .collect();
            targets.sort_unstable();
            let target = |backend: &Backend| SocketAddr::new(backend.address, self.target).to_string();
            let mut backends: Vec<String> = self.backends.iter().map(target).collect();
            backends.sort_unstable();
            let rules = || nat.lines().chain(filter.lines()).filter(about).collect::<Vec<_>>().join("\n");
            ensure!(targets == backends, "{port} goes to {targets:?}, not {backends:?}:\n{}", rules());
            let refused = filter.lines().any(|rule| {
                rule.contains(&to_it)
                    && rule.contains(&format!("-p {protocol}"))
                    && rule.contains("-j REJECT")
            });
            ensure!(refused == self.backends.is_empty(), "{port} refused: {refused}\n{}", rules());
            if let Some(node_port) = self.node_port {
                let open = nat.lines().any(|rule| {
                    rule.contains("-A KUBE-NODEPORTS") && rule.contains(&format!("--dport {node_port} "))
                });
                ensure!(open || self.backends.is_empty(), "no rule for port {node_port}:\n{}", rules());
            }
        }
        Ok(())
    }
}

impl ApiServer {
    /// Creates a Service and the EndpointSlice with its backends.
    pub fn add_service(&self, service: &Service) -> Result<()> {
        self.create(SERVICES, &service.object())?;
        self.create(SLICES, &service.slice()).map(drop)
    }

    /// Writes the backends that `service` has now.
    pub fn update_backends(&self, service: &Service) -> Result<()> {
        self.patch(&format!("{SLICES}/{}", service.name), &service.slice()).map(drop)
    }

    /// Deletes a Service and its EndpointSlice.
    pub fn remove_service(&self, service: &Service) -> Result<()> {
        self.delete(&format!("{SERVICES}/{}", service.name))?;
        self.delete(&format!("{SLICES}/{}", service.name))
    }
}
