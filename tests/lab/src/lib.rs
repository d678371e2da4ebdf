//! The lab: clusters in network namespaces, and what is sent through them.
//!
//! - [`Lab`]: nodes, pods by the real CNI plugins, etcd, agents, and peers built as stock flannel builds them. Nothing
//!   outlives a lab.
//! - [`kubernetes`]: a real API server and kube-proxy in a lab; [`manifest`]: the objects that install the agent there.
//! - [`traffic`]: what is sent, with every byte checked and every lost packet counted.
//! - [`counters`]: how many packets a node's programs took, by reason.
//! - [`etcd`]: etcd servers outside a lab, for tests of the lease side alone.
//!
//! Everything needs root; [`requirements`] says what else, and what to do about it.

#![deny(clippy::print_stdout, clippy::print_stderr)]

pub use agent::{
    AGENT_BIN, Agent, AgentOptions, Dataplane, FastPath, KubernetesAccess, LeasesIn, SubnetFileState, Xdp,
    agent_binary,
};
pub use attached::Attachments;
pub use cgroup::MemoryGroup;
pub use chain::{Chain, plugin_binary};
pub use cluster::{CONVERGENCE, Cluster, Member, counted};
pub use docker::{Container, Docker};
pub use flannel_agent::telemetry::output;
pub use kubernetes::{ApiServer, Image, KubeFlannel, KubeProxy};
pub use lab::{
    KEEP, Lab, UNDERLAY_ADDRESS, UNDERLAY_ADDRESS_V6, abandon, in_kubernetes_lab, in_lab, make_dir,
    node_address, node_address_v6, sweep,
};
pub use memory::Memory;
pub use netfilter_program::NetfilterProgram;
pub use netns::Netns;
pub use node::Node;
pub use pod::{Plugins, Pod, PodOptions};
pub use requirements::{kubernetes_available, lab_available};
pub use root::Root;
pub use stock::{Peer, Stock};
pub use stock_udp::StockUdp;
pub use stock_v6::StockV6;
pub use store::{Etcd, NETWORK_V6, PREFIX};
pub use subnet_env::{SubnetEnv, SubnetEnvV6};
pub use systemd::Systemd;
pub use wait::eventually;

mod agent;
mod attached;
mod cgroup;
mod chain;
pub mod cloud;
mod cluster;
pub mod command;
pub mod counters;
mod docker;
pub mod etcd;
mod firewall;
pub mod kubernetes;
mod lab;
pub mod manifest;
mod memory;
mod names;
mod nested;
mod netfilter_program;
mod netns;
mod node;
mod owner;
mod pod;
pub mod requirements;
mod root;
pub mod signals;
pub mod stock;
mod stock_udp;
mod stock_v6;
mod store;
mod subnet_env;
mod systemd;
pub mod teardown;
pub mod traffic;
pub mod wait;
