//! The tests that run in the lab, each directory of `tests/` a program of them by what it is about:
//!
//! - `programs`: the programs in the kernel, packet by packet, beside the host's decision;
//! - `packets`: what pods send over the fast path, odd, large and forged packets included;
//! - `flow`: what `--fast-path=flow` lets past the host's stack, and what it does not;
//! - `backends`: VXLAN, host-gw and both, by IPv4, IPv6 and both;
//! - `leases`: leases in etcd, and nodes that come and go;
//! - `kubernetes`: leases on the nodes of Kubernetes, the manifest and the chart;
//! - `node`: what the agent keeps in a node's kernel, and brings back;
//! - `host`: the daemon, the CNI plugin, docker and packaging, and the lab itself;
//! - `docs`: that documentation is true.
