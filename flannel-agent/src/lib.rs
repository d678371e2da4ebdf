//! The agent of flannel-ebpf: a drop-in `flanneld` whose dataplane is eBPF.
//!
//! ```text
//! LeaseSource -> LeaseEvent -> Leases -> plan() -> State -> delta(desired, observed) -> [Change] -> Datapath -> kernel
//!      lease/                              plan/                            reconcile/        datapath/
//! ```
//!
//! `app` builds these parts and runs them. `backend` has a file for each way in which packets reach other nodes, which
//! all others ask. `netlink` and `bpf` are the drivers below `datapath`, `node` is this node on its external interface,
//! `host` the machine it runs on.

#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod app;
pub mod backend;
pub mod bpf;
pub mod cli;
pub mod cloud;
pub mod cmd;
pub mod cni;
pub mod config;
pub mod control;
pub mod datapath;
pub mod exempt;
pub mod explain;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod host;
pub mod inspect;
pub mod lease;
pub mod masq;
pub mod metrics;
pub mod netlink;
pub mod node;
pub mod plan;
pub mod reconcile;
pub mod subnet_file;
pub mod telemetry;
pub mod trace;
pub mod translate;
pub mod tunnel;
pub mod values;
pub mod wire;
