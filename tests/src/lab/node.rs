//! A machine of the cluster.

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, Result};
use nix::mount::{MsFlags, mount};

use super::{
    Agent, AgentOptions, Etcd, KubernetesAccess, Lab, LeasesIn, Names, Netns, Pod, PodOptions, Stock,
    SubnetEnv, make_dir, node_address,
};
use crate::traffic::Endpoint;

/// A machine of the cluster: a namespace with `eth0`, its own bpffs and its own files. What makes its
/// overlay, an [`Agent`] or [`Stock`], comes and goes as a daemon does on a real node.
#[derive(Debug)]
pub struct Node {
    number: u8,
    netns: Netns,
    names: Arc<Names>,
    lab_dir: PathBuf,
    dir: PathBuf,
}

impl Node {
    pub(super) fn create(lab: &Lab, number: u8) -> Result<Self> {
        let name = format!("node{number}");
        let dir = lab.dir().join(&name);
        let names = Arc::clone(&lab.names);
        let netns = names.netns(&name)?;
        let node = Self { number, netns, names, lab_dir: lab.dir().to_owned(), dir };
        make_dir(&node.bpffs())?;
        mount(Some("bpf"), &node.bpffs(), Some("bpf"), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("mount bpffs at {}", node.bpffs().display()))?;
        node.netns.sysctl("net/ipv4/ip_forward", "1")?;
        Ok(node)
    }

    /// Gives `eth0` its address, and the default route through `gateway` or else the link itself.
    pub(super) fn connect(&self, gateway: Option<Ipv4Addr>) -> Result<()> {
        let via = gateway.map_or(String::new(), |gateway| format!("via {gateway} "));
        self.netns.ip_batch(&format!(
            "addr add {} dev eth0\nlink set eth0 up\nroute add default {via}dev eth0\n",
            node_address(self.number)
        ))
    }

    pub(super) fn lab_dir(&self) -> &Path {
        &self.lab_dir
    }

    pub(super) fn names(&self) -> &Arc<Names> {
        &self.names
    }

    /// Its number in the lab, from 1: the last octet of its address.
    pub fn number(&self) -> u8 {
        self.number
    }

    /// `node<number>`.
    pub fn name(&self) -> String {
        format!("node{}", self.number)
    }

    /// Its address on the underlay.
    pub fn address(&self) -> Ipv4Addr {
        node_address(self.number).ip()
    }

    /// Its namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Where its bpffs is mounted.
    pub fn bpffs(&self) -> PathBuf {
        self.dir.join("bpf")
    }

    /// Its `/run/flannel/subnet.env`.
    pub fn subnet_file(&self) -> PathBuf {
        self.dir.join("subnet.env")
    }

    /// What the subnet file says now.
    pub fn subnet_env(&self) -> Result<SubnetEnv> {
        SubnetEnv::read(&self.subnet_file())
    }

    /// Directory of its own, for what persists over restarts of its daemons.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// File `<name>-<daemon>.log`, printed when a test fails.
    pub fn log(&self, daemon: &str) -> PathBuf {
        self.lab_dir.join(format!("{}-{daemon}.log", self.name()))
    }

    /// Starts the agent here.
    pub fn agent(&self, etcd: &Etcd, options: AgentOptions) -> Result<Agent> {
        Agent::start(self, LeasesIn::Etcd(etcd.endpoint()), options)
    }

    /// Starts the agent here, with its leases on the nodes of Kubernetes. Our Node object must be there.
    pub fn agent_in_kubernetes(&self, access: &KubernetesAccess, options: AgentOptions) -> Result<Agent> {
        Agent::start(self, LeasesIn::Kubernetes(access), options)
    }

    /// The same, not yet started: for starts that are to fail or to wait.
    pub fn prepared_in_kubernetes(&self, access: &KubernetesAccess, options: AgentOptions) -> Agent {
        Agent::prepare(self, LeasesIn::Kubernetes(access), options)
    }

    /// Makes this a node as stock flannel makes one, holding 10.244.(200 + `number`).0/24, unpublished and
    /// without peers.
    pub fn stock(&self) -> Result<Stock> {
        Stock::create(self)
    }

    /// Starts stock flannel's part where any flannel ran before, on what that left behind.
    pub fn stock_again(&self, etcd: &Etcd) -> Result<Stock> {
        Stock::adopt(self, etcd)
    }

    /// Adds a pod by the CNI plugins, as kubelet and flannel's plugin would; `name` is unique on this node.
    pub fn pod(&self, name: &str) -> Result<Pod> {
        self.pod_with(name, &PodOptions::default())
    }

    /// Adds a pod in another way.
    pub fn pod_with(&self, name: &str, options: &PodOptions) -> Result<Pod> {
        Pod::add(self, self.sandbox(name)?, name, options)
    }

    /// What a container runtime makes before it calls the plugins: a namespace with nothing in it but `lo`.
    pub fn sandbox(&self, name: &str) -> Result<Netns> {
        self.names.netns(&format!("{}-{name}", self.name()))
    }

    /// The node on the underlay.
    pub fn underlay_endpoint(&self) -> Endpoint {
        Endpoint::new(self.name(), self.netns.clone(), self.address())
    }

    /// The node as pods of other nodes see it: the `.0` address of its subnet, on its VXLAN device.
    pub fn overlay_endpoint(&self) -> Result<Endpoint> {
        let address = self.subnet_env()?.subnet.network();
        Ok(Endpoint::new(format!("{} (host)", self.name()), self.netns.clone(), address))
    }
}
