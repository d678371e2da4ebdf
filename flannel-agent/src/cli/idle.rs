//! Flags that change nothing.

use tracing::warn;

use super::{Given, RunOptions};

/// Flags of one store of leases, which change nothing with another.
const KUBERNETES: [&str; 5] = [
    "kube-api-url",
    "kube-annotation-prefix",
    "kubeconfig-file",
    "net-config-path",
    "set-node-network-unavailable",
];
const ETCD: [&str; 9] = [
    "etcd-endpoints",
    "etcd-prefix",
    "etcd-keyfile",
    "etcd-certfile",
    "etcd-cafile",
    "etcd-username",
    "etcd-password",
    "etcd-api",
    "subnet-lease-renew-margin",
];
const KLOG: [&str; 2] = ["vmodule", "log_backtrace_at"];

impl Given {
    /// Logs which of the flags change nothing.
    pub fn log_without_effect(&self, options: &RunOptions) {
        for (flags, because) in self.without_effect(options) {
            warn!(flags, because, "these flags have no effect");
        }
    }

    pub(super) fn without_effect(&self, options: &RunOptions) -> Vec<(String, &'static str)> {
        let given = |names: &[&str]| -> Vec<String> {
            names.iter().filter(|name| self.has(name)).map(|name| format!("--{name}")).collect()
        };
        const IN_FILE: &str = "they belong to leases in a store, and --lease-file is given";
        let of_other_stores: &[(&[&str], _)] = match (&options.lease_file, options.kube.kube_subnet_mgr) {
            (Some(_), _) => &[(&ETCD, IN_FILE), (&KUBERNETES, IN_FILE)],
            (None, true) => &[(&ETCD, "they belong to leases in etcd, and --kube-subnet-mgr is on")],
            (None, false) => &[(&KUBERNETES, "they belong to --kube-subnet-mgr, which is off")],
        };
        let klog: (&[&str], _) = (&KLOG, "the log is narrowed by -v, or by module with RUST_LOG");
        let all = of_other_stores.iter().chain([&klog]);
        all.map(|(names, because)| (given(names).join(" "), *because))
            .filter(|(names, _)| !names.is_empty())
            .collect()
    }
}
