//! What the operator says about leases in the Kubernetes API.

use std::path::PathBuf;

use super::{Identity, KubeError, annotations::AnnotationPrefix};
use crate::cli::KubeFlags;

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

impl KubeOptions {
    /// From the flags and the environment. `EVENT_QUEUE_DEPTH` of upstream's is not read: what waits here makes the
    /// API server wait, and is never dropped.
    ///
    /// # Errors
    /// What of it cannot be used.
    pub fn read(flags: &KubeFlags, variable: impl Fn(&str) -> Option<String>) -> Result<Self, KubeError> {
        Ok(Self {
            api_url: flags.kube_api_url.clone(),
            kubeconfig: flags.kubeconfig_file.clone(),
            prefix: AnnotationPrefix::new(&flags.kube_annotation_prefix)?,
            net_config: flags.net_config_path.clone(),
            set_condition: flags.set_node_network_unavailable,
            // As upstream reads it: nothing but this word is yes.
            patient: variable("CONT_WHEN_CACHE_NOT_READY").as_deref() == Some("true"),
            identity: Identity::read(variable)?,
        })
    }
}
