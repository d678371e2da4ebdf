//! kube-proxy on a node, in its iptables mode.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::{API_PORT, ApiServer, Netns, Service};
use crate::{Node, command::Daemon, requirements::kubernetes_program, wait::eventually};

/// All pods of the lab's cluster: what comes from elsewhere to a clusterIP is masqueraded.
const CLUSTER_RANGE: &str = "10.244.0.0/16";

/// How long a change of Services may take to become rules.
const SYNC: Duration = Duration::from_secs(30);

const NAMESPACE: &str = "kube-system";
const ACCOUNT: &str = "kube-proxy";

/// kube-proxy's process. Its rules stay when it ends.
#[derive(Debug)]
pub struct KubeProxy {
    netns: Netns,
    kubeconfig: PathBuf,
    node: String,
    flags: Vec<String>,
    log: PathBuf,
    daemon: Option<Daemon>,
}

impl ApiServer {
    /// Makes the Node object of `node`, named as it is, with these pod subnets.
    pub fn add_node(&self, node: &Node, pod_subnets: &[String]) -> Result<()> {
        let object = json!({
            "metadata": { "name": node.name(), "labels": { "kubernetes.io/hostname": node.name() } },
            "spec": { "podCIDR": pod_subnets.first(), "podCIDRs": pod_subnets },
            "status": { "addresses": [
                { "type": "InternalIP", "address": node.address() },
                { "type": "Hostname", "address": node.name() },
            ] },
        });
        self.create("/api/v1/nodes", &object).map(drop)
    }

    /// Makes kube-proxy's ServiceAccount with the role that every cluster has for it, once for all nodes; its
    /// kubeconfig file.
    pub fn kube_proxy_account(&self) -> Result<PathBuf> {
        self.add_service_account(NAMESPACE, ACCOUNT)?;
        self.bind_cluster_role("system:node-proxier", NAMESPACE, ACCOUNT)?;
        self.kubeconfig(ACCOUNT, &self.token(NAMESPACE, ACCOUNT, 86_400)?)
    }
}

impl KubeProxy {
    /// Starts it on `node`, whose Node object must be there; `flags` are further ones, as `--masquerade-all`.
    pub fn start(node: &Node, kubeconfig: PathBuf, flags: &[&str]) -> Result<Self> {
        let mut proxy = Self {
            netns: node.netns().clone(),
            kubeconfig,
            node: node.name(),
            flags: flags.iter().map(|&flag| flag.to_owned()).collect(),
            log: node.log("kube-proxy"),
            daemon: None,
        };
        proxy.start_again()?;
        Ok(proxy)
    }

    /// Starts it after [`KubeProxy::stop`], and waits until its rules are there.
    pub fn start_again(&mut self) -> Result<()> {
        ensure!(self.daemon.is_none(), "kube-proxy is already running");
        let mut command = self.netns.command(&kubernetes_program("kube-proxy")?.to_string_lossy());
        command.arg("--kubeconfig").arg(&self.kubeconfig);
        command.args([
            "--proxy-mode=iptables",
            &format!("--cluster-cidr={CLUSTER_RANGE}"),
            &format!("--hostname-override={}", self.node),
            "--iptables-min-sync-period=50ms",
            "--metrics-bind-address=127.0.0.1:10249",
            "--healthz-bind-address=127.0.0.1:10256",
            // What is left is the machine's own, as others use it at the same time.
            "--conntrack-max-per-core=0",
            "--conntrack-tcp-timeout-established=0",
            "--conntrack-tcp-timeout-close-wait=0",
            "--oom-score-adj=0",
        ]);
        command.args(&self.flags);
        self.daemon = Some(Daemon::spawn(&mut command, &self.log)?);
        eventually(SYNC, "kube-proxy has written its rules", || {
            self.daemon.as_mut().context("kube-proxy is not running")?.check_running()?;
            let rules = self.rules("nat")?;
            // The API server's own Service, by which pods find it, is the one that is always there.
            let port = format!(":{API_PORT}");
            let mut targets = rules.lines().filter_map(|rule| rule.split("--to-destination ").nth(1));
            ensure!(targets.any(|target| target.ends_with(&port)), "{rules}");
            Ok(())
        })
    }

    /// Kills it; its rules stay.
    pub fn stop(&mut self) -> Result<()> {
        self.daemon.take().context("kube-proxy is not running")?.kill()
    }

    /// The rules of one table, as iptables-save prints them with their counters.
    pub fn rules(&self, table: &str) -> Result<String> {
        self.netns.run("iptables-save", &["-c", "-t", table])
    }

    /// Waits until its rules send `service` to exactly the backends that it has.
    pub fn await_service(&self, service: &Service) -> Result<()> {
        eventually(SYNC, &format!("{} has the rules of {}", self.node, service.name), || {
            let save = if service.address.is_ipv4() { "iptables-save" } else { "ip6tables-save" };
            let rules = |table: &str| self.netns.run(save, &["-t", table]);
            let (nat, filter) = (rules("nat")?, rules("filter")?);
            service.check_rules(&nat, &filter)
        })
    }

    /// Waits until it has no rules of `service` any more.
    pub fn await_no_service(&self, service: &Service) -> Result<()> {
        eventually(SYNC, &format!("{} has no rules of {}", self.node, service.name), || {
            let rules = self.rules("nat")?;
            ensure!(!rules.contains(&format!("\"default/{}:", service.name)), "{rules}");
            Ok(())
        })
    }

    /// Packets that its rule against what connection tracking calls INVALID has dropped.
    pub fn dropped_as_invalid(&self) -> Result<u64> {
        let rules = self.rules("filter")?;
        let rule = rules.lines().find(|rule| rule.contains("-A KUBE-FORWARD") && rule.contains("INVALID"));
        let rule = rule.with_context(|| format!("kube-proxy has no rule against INVALID:\n{rules}"))?;
        ensure!(rule.contains("-j DROP"), "{rule}");
        let packets = rule.trim_start_matches('[').split(':').next().unwrap_or_default();
        packets.parse().with_context(|| rule.to_owned())
    }
}
