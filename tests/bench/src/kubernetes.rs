//! Two nodes of Kubernetes: by kube-flannel's manifest, or of stock flannel beside the same servers.
//!
//! The API server and its etcd are on the client's node, as the nodes share one veth and nothing else. They rest while
//! packets are measured; what that takes, it takes from every mode but the bare network.

use std::{net::Ipv4Addr, path::PathBuf, time::Duration};

use anyhow::{Result, bail, ensure};
use flannel_lab::{
    ApiServer, Chain, Etcd, FastPath, Image, KubeFlannel, KubeProxy, Lab, Member, Node, Plugins, Pod,
    PodOptions, manifest, stock, wait::eventually,
};
use serde_json::{Value, json};

use super::{Mode, service::ADDRESS};

const SERVICES: &str = "/api/v1/namespaces/default/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1beta1/namespaces/default/endpointslices";
const SERVICE: &str = "bench";

/// How long kube-proxy may take to write a Service's rules.
const SYNC: Duration = Duration::from_secs(30);

/// The cluster's servers, and what each node runs beside flannel. Dropped before what they stand on.
#[derive(Debug)]
pub(super) struct Servers {
    proxies: Vec<KubeProxy>,
    api: ApiServer,
    proxy_account: PathBuf,
    _etcd: Etcd,
}

/// A network by kube-flannel's DaemonSet, with a pod on each node.
pub(super) fn agents(lab: &Lab, fast_path: FastPath) -> Result<([Member; 2], Servers)> {
    let (a, b) = lab.pair()?;
    let mut servers = Servers::start(lab, &a)?;
    let image = Image::build(lab)?;
    // What the manifest says is measured as it is.
    if fast_path != FastPath::Flow {
        let flannel = KubeFlannel { api: &servers.api, image: &image };
        flannel.edit(|container| {
            if let Some(args) = container["args"].as_array_mut() {
                args.push(json!(format!("--fast-path={}", fast_path.name())));
            }
        })?;
    }
    let mut join = |node: Node| {
        servers.add_node(&node, &format!("10.244.{}.0/24", node.number()))?;
        let agent = KubeFlannel { api: &servers.api, image: &image }.start_pod(&node)?;
        let pods = vec![installed_pod(&node)?];
        anyhow::Ok(Member { pods, agent, node })
    };
    let members = [join(a)?, join(b)?];
    Ok((members, servers))
}

/// Nodes of stock flannel, and a pod on each.
pub(super) fn stock(lab: &Lab, mode: Mode) -> Result<([Node; 2], [Pod; 2], Servers)> {
    if mode == Mode::Kernel {
        bail!("nodes of Kubernetes have kube-proxy's rules: what they do without ours is kernel-rules");
    }
    let (a, b) = lab.pair()?;
    let mut servers = Servers::start(lab, &a)?;
    let (mut stock_a, mut stock_b) = (a.stock()?, b.stock()?);
    stock::join(&mut [&mut stock_a, &mut stock_b])?;
    for (node, stock) in [(&a, &stock_a), (&b, &stock_b)] {
        servers.add_node(node, &stock.own().subnet.to_string())?;
        node.load_flannel_rules()?;
        Chain::install(node)?;
    }
    let pods = [installed_pod(&a)?, installed_pod(&b)?];
    Ok(([a, b], pods, servers))
}

/// A pod by the conflist and the plugins that were installed on `node`.
fn installed_pod(node: &Node) -> Result<Pod> {
    node.pod_with("pod1", &PodOptions { plugins: Plugins::Installed, ..PodOptions::default() })
}

impl Servers {
    /// An API server on `node` that has the manifest's objects, and no nodes.
    fn start(lab: &Lab, node: &Node) -> Result<Self> {
        let etcd = lab.etcd_on(node)?;
        let api = lab.api_server_on(node, &etcd)?;
        api.apply(&manifest::objects()?)?;
        let proxy_account = api.kube_proxy_account()?;
        Ok(Self { proxies: Vec::new(), api, proxy_account, _etcd: etcd })
    }

    /// Makes `node` a Node with kube-proxy.
    fn add_node(&mut self, node: &Node, pod_subnet: &str) -> Result<()> {
        self.api.add_node(node, &[pod_subnet.to_owned()])?;
        self.proxies.push(KubeProxy::start(node, self.proxy_account.clone(), &[])?);
        Ok(())
    }

    /// Makes `ports` of [`ADDRESS`], over TCP and UDP, those of `backend`, which is on the second node; returns when
    /// every node has the rules.
    pub(super) fn serve(&self, backend: Ipv4Addr, ports: &[u16]) -> Result<()> {
        let named: Vec<Value> = ports
            .iter()
            .flat_map(|port| ["TCP", "UDP"].map(|protocol| (port, protocol)))
            .map(|(port, protocol)| {
                let name = format!("{}-{port}", protocol.to_lowercase());
                json!({ "name": name, "protocol": protocol, "port": port })
            })
            .collect();
        self.api.create(
            SERVICES,
            &json!({
                "metadata": { "name": SERVICE },
                "spec": { "type": "ClusterIP", "clusterIP": ADDRESS, "ports": named },
            }),
        )?;
        self.api.create(
            SLICES,
            &json!({
                "metadata": { "name": SERVICE, "labels": { "kubernetes.io/service-name": SERVICE } },
                "addressType": "IPv4",
                "endpoints": [{ "addresses": [backend], "conditions": { "ready": true } }],
                "ports": named,
            }),
        )?;
        for proxy in &self.proxies {
            eventually(SYNC, "kube-proxy has the Service's rules", || {
                let rules = proxy.rules("nat")?;
                for port in ports {
                    let target = format!("--to-destination {backend}:{port}");
                    let found = rules.lines().filter(|rule| rule.ends_with(&target)).count();
                    ensure!(found == 2, "{found} rules with {target}:\n{rules}");
                }
                Ok(())
            })?;
        }
        Ok(())
    }
}
