//! What the operator says about leases in the Kubernetes API.

use std::path::PathBuf;

use super::{Identity, annotations::AnnotationPrefix};

/// How to reach the API server, and what to do there.
#[derive(Clone, Debug)]
pub struct KubeOptions {
    /// `--kube-api-url`.
    pub api_url: Option<String>,
    /// `--kubeconfig-file`.
    pub kubeconfig: Option<PathBuf>,
    /// `--kube-annotation-prefix`.
    pub prefix: AnnotationPrefix,
    /// `--net-config-path`.
    pub net_config: PathBuf,
    /// `--set-node-network-unavailable`.
    pub set_condition: bool,
    /// Which node this is.
    pub identity: Identity,
    /// `CONT_WHEN_CACHE_NOT_READY`: wait for the API server without an end.
    pub patient: bool,
}
