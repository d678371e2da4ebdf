//! Flags of upstream's for what is not built here yet.

use tracing::warn;

use super::{Given, RunOptions};

/// A flag asks for what is not built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "--kube-subnet-mgr: leases in the Kubernetes API are not built yet; keep them in etcd: give --etcd-endpoints, and \
     leave out --kube-subnet-mgr and FLANNELD_KUBE_SUBNET_MGR"
)]
pub struct Unbuilt;

/// Flags that change nothing, and why.
const WITHOUT_EFFECT: [(&[&str], &str); 2] = [
    (
        &[
            "kube-api-url",
            "kube-annotation-prefix",
            "kubeconfig-file",
            "net-config-path",
            "set-node-network-unavailable",
        ],
        "they belong to --kube-subnet-mgr, which is off",
    ),
    (&["vmodule", "log_backtrace_at"], "the log is narrowed by -v, or by module with RUST_LOG"),
];

impl RunOptions {
    /// Refuses options that ask for what is not built.
    ///
    /// # Errors
    /// What is asked for, and what to use instead.
    pub fn check_built(&self) -> Result<(), Unbuilt> {
        if self.kube.kube_subnet_mgr { Err(Unbuilt) } else { Ok(()) }
    }
}

impl Given {
    /// Logs which of the flags change nothing.
    pub fn log_without_effect(&self) {
        for (flags, because) in self.without_effect() {
            warn!(flags, because, "these flags have no effect");
        }
    }

    pub(super) fn without_effect(&self) -> Vec<(String, &'static str)> {
        let given = |names: &[&str]| -> Vec<String> {
            names.iter().filter(|name| self.has(name)).map(|name| format!("--{name}")).collect()
        };
        WITHOUT_EFFECT
            .iter()
            .map(|(names, because)| (given(names).join(" "), *because))
            .filter(|(names, _)| !names.is_empty())
            .collect()
    }
}
