//! The agent as a program of its host: the daemon, the CNI plugin, docker, packaging; and the lab itself.

mod cni;
mod daemon;
mod docker;
mod lab_selfcheck;
mod memory;
mod metrics;
mod mk_docker_opts;
mod packaging;
