//! A machine of the cluster.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, Result};
use nix::mount::{MsFlags, mount};

use super::{
    Agent, AgentOptions, Etcd, KubernetesAccess, Lab, LeasesIn, Netns, Peer, Pod, PodOptions, Stock,
    StockUdp, StockV6, SubnetEnv, SubnetEnvV6, make_dir, names::Names, node_address, node_address_v6,
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
        let names = Arc::clone(lab.names());
        let netns = names.netns(&name)?;
        let node = Self { number, netns, names, lab_dir: lab.dir().to_owned(), dir };
        make_dir(&node.bpffs())?;
        make_dir(&node.root_path("/run/flannel"))?;
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

    /// Gives `eth0` an IPv6 address, too, and the default route through `gateway` or else the link itself.
    pub(super) fn connect_v6(&self, gateway: Option<Ipv6Addr>) -> Result<()> {
        let via = gateway.map_or(String::new(), |gateway| format!("via {gateway} "));
        self.netns.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        self.netns.ip_batch(&format!(
            "addr add {}/64 dev eth0 nodad\nroute add ::/0 {via}dev eth0\n",
            self.address_v6()
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

    /// Its IPv6 address on the underlay, if it was given one.
    pub fn address_v6(&self) -> Ipv6Addr {
        node_address_v6(self.number)
    }

    /// Its namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Where its bpffs is mounted: its `/sys/fs/bpf`.
    pub fn bpffs(&self) -> PathBuf {
        self.root_path("/sys/fs/bpf")
    }

    /// Its `/run/flannel/subnet.env`.
    pub fn subnet_file(&self) -> PathBuf {
        self.root_path("/run/flannel/subnet.env")
    }

    /// Where its file `path`, which begins with a slash, is on this machine.
    pub fn root_path(&self, path: &str) -> PathBuf {
        self.dir.join(path.trim_start_matches('/'))
    }

    /// What the subnet file says now.
    pub fn subnet_env(&self) -> Result<SubnetEnv> {
        SubnetEnv::read(&self.subnet_file())
    }

    /// What the subnet file says of IPv6 now.
    pub fn subnet_env_v6(&self) -> Result<SubnetEnvV6> {
        SubnetEnvV6::read(&self.subnet_file())?.context("the subnet file has no IPv6")
    }

    /// Directory of its own, for what persists over restarts of its daemons: its root directory, where they have one.
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

    /// The same, not yet started: for starts in other surroundings.
    pub fn prepared_agent(&self, etcd: &Etcd, options: impl Into<AgentOptions>) -> Agent {
        Agent::prepare(self, LeasesIn::Etcd(etcd.endpoint()), options.into())
    }

    /// Starts the agent here, with its leases on the nodes of Kubernetes. Our Node object must be there.
    pub fn agent_in_kubernetes(&self, access: &KubernetesAccess, options: AgentOptions) -> Result<Agent> {
        Agent::start(self, LeasesIn::Kubernetes(access), options)
    }

    /// Starts the agent here, with its leases in the file at `path`.
    pub fn agent_from_file(&self, path: &Path, options: AgentOptions) -> Result<Agent> {
        Agent::start(self, LeasesIn::File(path), options)
    }

    /// The same on the nodes of Kubernetes, not yet started: for starts that are to fail or to wait.
    pub fn prepared_in_kubernetes(&self, access: &KubernetesAccess, options: AgentOptions) -> Agent {
        Agent::prepare(self, LeasesIn::Kubernetes(access), options)
    }

    /// Makes this a node as stock flannel makes one, holding 10.244.(200 + `number`).0/24, unpublished and
    /// without peers.
    pub fn stock(&self) -> Result<Stock> {
        Stock::create(self)
    }

    /// Makes this a node of stock flannel's udp backend, holding 10.244.(200 + `number`).0/24, unpublished and without
    /// peers.
    pub fn stock_udp(&self) -> Result<StockUdp> {
        StockUdp::create(self)
    }

    /// Starts stock flannel's udp backend where any flannel ran before and holds `subnet`.
    pub fn stock_udp_with(&self, subnet: ipnetwork::Ipv4Network) -> Result<StockUdp> {
        StockUdp::start(self, subnet)
    }

    /// Starts stock flannel's part where any flannel ran before, on what that left behind.
    pub fn stock_again(&self, etcd: &Etcd) -> Result<Stock> {
        Stock::adopt_by_etcd(self, etcd)
    }

    /// The same, with the lease `own` wherever that is; not yet with peers.
    pub fn stock_with(&self, own: Peer) -> Result<Stock> {
        Stock::adopt(self, own)
    }

    /// Adds IPv6 to a [`Stock`] node, holding fd00:10:244:(0xf000 + number)::/64.
    pub fn stock_v6(&self) -> Result<StockV6> {
        StockV6::create(self)
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

    /// The same by IPv6, if it was given an address.
    pub fn underlay_endpoint_v6(&self) -> Endpoint {
        Endpoint::new(format!("{} (IPv6)", self.name()), self.netns.clone(), self.address_v6())
    }

    /// The node as pods of other nodes see it: the `.0` address of its subnet, on its VXLAN device.
    pub fn overlay_endpoint(&self) -> Result<Endpoint> {
        let address = self.subnet_env()?.subnet.network();
        Ok(Endpoint::new(format!("{} (host)", self.name()), self.netns.clone(), address))
    }

    /// The same in IPv6.
    pub fn overlay_endpoint_v6(&self) -> Result<Endpoint> {
        let address = self.subnet_env_v6()?.subnet.network();
        Ok(Endpoint::new(format!("{} (host, IPv6)", self.name()), self.netns.clone(), address))
    }
}
