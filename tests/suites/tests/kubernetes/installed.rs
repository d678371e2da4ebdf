//! Clusters that kube-flannel's manifest makes, and nothing else: its objects in the API server, its DaemonSet's pods
//! with their own account's tokens, its plugins and their configuration, and a kube-proxy on every node.

use std::path::PathBuf;

use flannel_lab::{Image, KubeFlannel, KubeProxy, NETWORK_V6, Plugins, PodOptions};

use super::*;

/// Which families pods have.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Families {
    V4,
    Both,
}

/// Such a cluster.
pub(super) struct Installed {
    pub(super) kube: Kube,
    pub(super) proxies: Vec<KubeProxy>,
    proxy_account: PathBuf,
    image: Image,
    families: Families,
}

impl Installed {
    /// The manifest's objects, its network configuration as `configure` makes it, and no nodes.
    pub(super) fn start(lab: &Lab, families: Families, configure: impl FnOnce(&mut Value)) -> Result<Self> {
        let kube = Kube::start(lab)?;
        let mut map = manifest::object("ConfigMap")?;
        let as_it_is: Value = serde_json::from_str(&manifest::config_file("net-conf.json")?)?;
        let mut config = as_it_is.clone();
        if families == Families::Both {
            config["EnableIPv6"] = json!(true);
            config["IPv6Network"] = json!(NETWORK_V6);
        }
        configure(&mut config);
        if config != as_it_is {
            map["data"]["net-conf.json"] = json!(config.to_string());
            kube.api.apply(&[map])?;
        }
        let proxy_account = kube.api.kube_proxy_account()?;
        Ok(Self { kube, proxies: Vec::new(), proxy_account, image: Image::build(lab)?, families })
    }

    /// As many nodes, with two pods each.
    pub(super) fn with_nodes(mut self, lab: &Lab, nodes: usize) -> Result<Self> {
        for _ in 0..nodes {
            self.join(lab)?;
        }
        self.await_reachable()?;
        Ok(self)
    }

    pub(super) fn flannel(&self) -> KubeFlannel<'_> {
        KubeFlannel { api: &self.kube.api, image: &self.image }
    }

    /// A machine that is a Node with kube-proxy, and not yet with a network.
    pub(super) fn machine(&mut self, lab: &Lab) -> Result<Node> {
        let node = if self.families == Families::Both { lab.dual_node()? } else { lab.node()? };
        let mut cidrs = vec![cidr(node.number())];
        if self.families == Families::Both {
            cidrs.push(format!("fd00:10:244:{:x}::/64", node.number()));
        }
        self.kube.api.add_node(&node, &cidrs)?;
        self.add_proxy(&node)?;
        Ok(node)
    }

    fn add_proxy(&mut self, node: &Node) -> Result<()> {
        let flags: &[&str] = match self.families {
            Families::V4 => &[],
            Families::Both => {
                &["--feature-gates=IPv6DualStack=true", "--cluster-cidr=10.244.0.0/16,fd00:10:244::/48"]
            }
        };
        self.proxies.push(KubeProxy::start(node, self.proxy_account.clone(), flags)?);
        Ok(())
    }

    /// A machine of stock flannel that is a Node with kube-proxy.
    pub(super) fn join_stock(&mut self, lab: &Lab) -> Result<(Node, Stock)> {
        let (node, stock) = self.kube.join_stock(lab)?;
        self.add_proxy(&node)?;
        Ok((node, stock))
    }

    pub(super) fn join(&mut self, lab: &Lab) -> Result<&mut Member> {
        let node = self.machine(lab)?;
        let agent = self.flannel().start_pod(&node)?;
        let pods = ["pod1", "pod2"].map(|name| pod(&node, name)).into_iter().collect::<Result<_>>()?;
        self.kube.members.push(Member { pods, agent, node });
        self.kube.members.last_mut().context("just pushed")
    }

    pub(super) fn replace_pod(&mut self, at: usize) -> Result<()> {
        let flannel = KubeFlannel { api: &self.kube.api, image: &self.image };
        let Member { node, agent, .. } = &mut self.kube.members[at];
        flannel.replace_pod(node, agent)
    }

    /// Waits until the pod on a node answers its readiness probe.
    pub(super) fn await_ready(&mut self, at: usize) -> Result<()> {
        let flannel = KubeFlannel { api: &self.kube.api, image: &self.image };
        let Member { node, agent, .. } = &mut self.kube.members[at];
        flannel.await_ready(node, agent)
    }

    /// What `kubectl rollout status` waits for.
    pub(super) fn roll_out(&mut self) -> Result<()> {
        (0..self.kube.members.len()).try_for_each(|at| self.replace_pod(at))
    }

    /// Waits until all pods reach each other by every family they have.
    pub(super) fn await_reachable(&self) -> Result<()> {
        self.kube.await_reachable(&[])?;
        if self.families == Families::V4 {
            return Ok(());
        }
        let pods = self.kube.members.iter().flat_map(|member| &member.pods);
        let pods = pods.map(Pod::endpoint_v6).collect::<Result<Vec<_>>>()?;
        eventually(CONVERGENCE, "everyone reaches everyone by IPv6", || reachability(&pods).check_complete())
    }

    pub(super) fn pod(&self, member: usize, pod: usize) -> Result<Endpoint> {
        self.kube.members[member].pods.get(pod).map(Pod::endpoint).context("a pod too few")
    }
}

/// A pod by what is installed on its node.
pub(super) fn pod(node: &Node, name: &str) -> Result<Pod> {
    node.pod_with(name, &PodOptions { plugins: Plugins::Installed, ..PodOptions::default() })
}
