//! The agent of flannel-ebpf: a drop-in `flanneld` whose dataplane is eBPF.
//!
//! The modules stand in the order data flows:
//!
//! ```text
//! LeaseSource -> LeaseEvent -> Leases -> plan() -> State -> delta(desired, observed) -> [Change] -> Datapath -> kernel
//!      lease/                              plan/                            reconcile        datapath/
//! ```

pub mod app;
pub mod backend;
pub mod bpf;
pub mod cli;
pub mod cmd;
pub mod cni;
pub mod config;
pub mod conntrack;
pub mod datapath;
pub mod exempt;
pub mod family;
mod gojson;
mod heap;
pub mod holder;
pub mod install;
pub mod lease;
pub mod lock;
pub mod mac;
pub mod masq;
pub mod netlink;
pub mod node;
pub mod plan;
pub mod privileges;
pub mod reconcile;
mod steady_file;
pub mod subnet_file;
mod sysctl;
pub mod telemetry;
pub mod underlay;
mod utc;
pub mod xdp;
