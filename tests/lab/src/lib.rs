//! The lab, and what is built on it: tests, the demo, the benchmark.
//!
//! - [`lab`]: clusters in network namespaces of their own: nodes, pods by the real CNI plugins, etcd,
//!   agents, and peers built as stock flannel builds them. Nothing outlives a [`lab::Lab`].
//! - [`traffic`]: what is sent through them, with every byte checked and every lost packet counted.
//! - [`counters`]: how many packets a node's programs took, by reason.
//! - [`etcd`]: etcd servers outside a lab, for tests of the lease side alone.
//! - [`manifest`]: the objects that install the agent in Kubernetes.
//! - [`budget`]: what the programs may cost.
//! - [`demo`], [`bench`]: what `flannel-lab` runs.
//!
//! Everything needs root; [`requirements`] says what else, and what to do about it.

pub mod bench;
pub mod budget;
pub mod command;
pub mod counters;
pub mod demo;
pub mod etcd;
pub mod lab;
pub mod manifest;
pub mod requirements;
pub mod traffic;
pub mod wait;

pub use requirements::{kubernetes_available, lab_available};
pub use wait::eventually;
