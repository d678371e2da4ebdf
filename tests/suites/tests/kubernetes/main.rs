//! Leases on the nodes of Kubernetes: agents, a real API server, and no more rights than flannel's manifest gives.

use std::{collections::BTreeMap, fs};

use anyhow::{Context as _, Result, ensure};
use flannel_lab::{
    Agent, AgentOptions, ApiServer, CONVERGENCE, Etcd, KubernetesAccess, Lab, Member, Node, Pod, eventually,
    kubernetes::{DAEMON_SET, NAMESPACE},
    manifest,
    stock::{Peer, Stock},
    traffic::{Endpoint, reachability},
};
use serde_json::{Value, json};

mod absent;
mod bench;
mod changes;
mod end_to_end;
mod faults;
mod installed;
mod manifests;
mod names;
mod nodes;
mod outage;
mod rollback;
mod scale;

const PREFIX: &str = "flannel.alpha.coreos.com";
const ACCOUNT: &str = "flannel";

/// A cluster whose nodes are in Kubernetes. What is dropped first stands on what is dropped later.
struct Kube {
    members: Vec<Member>,
    access: KubernetesAccess,
    token: String,
    api: ApiServer,
    etcd: Etcd,
}

impl Kube {
    /// An API server with what the manifest makes, and no nodes.
    fn start(lab: &Lab) -> Result<Self> {
        let etcd = lab.etcd()?;
        let api = lab.api_server(&etcd)?;
        api.apply(&manifest::objects()?)?;
        let token = api.token(NAMESPACE, ACCOUNT, 86_400)?;
        let net_config = lab.dir().join("net-conf.json");
        fs::write(&net_config, manifest::config_file("net-conf.json")?)?;
        let access = KubernetesAccess { kubeconfig: api.kubeconfig(ACCOUNT, &token)?, net_config };
        Ok(Self { members: Vec::new(), access, token, api, etcd })
    }

    /// Waits until `node` says that it has a network.
    fn await_condition(&self, node: &Node) -> Result<()> {
        eventually(CONVERGENCE, "the condition is set", || {
            let object = self.api.get(&format!("/api/v1/nodes/{}", node.name()))?;
            let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let found = conditions.iter().find(|condition| condition["type"] == "NetworkUnavailable");
            let said = found.map(|found| (&found["status"], &found["reason"], &found["message"]));
            let wanted = ["False", "FlannelIsUp", "Flannel is running on this node"].map(Value::from);
            ensure!(said == Some((&wanted[0], &wanted[1], &wanted[2])), "{conditions:?}");
            Ok(())
        })
    }

    /// Waits for an Event of `node`; what it says.
    fn await_event(&self, node: &Node, reason: &str) -> Result<String> {
        eventually(CONVERGENCE, "an Event tells of it", || {
            let events = self.api.get("/apis/events.k8s.io/v1/namespaces/default/events")?;
            let found =
                events["items"].as_array().into_iter().flatten().find(|event| event["reason"] == reason);
            let found = found.with_context(|| format!("no such Event: {events}"))?;
            let about = &found["regarding"];
            ensure!(about["kind"] == "Node" && about["name"] == node.name(), "{found}");
            Ok(found["note"].as_str().context("an Event that says nothing")?.to_owned())
        })
    }

    /// A machine, and its Node with the pod CIDR that has its number.
    fn machine(&self, lab: &Lab) -> Result<Node> {
        let node = lab.node()?;
        self.api.add_node(&node, &[cidr(node.number())])?;
        Ok(node)
    }

    /// A machine with the agent and a pod.
    fn join(&mut self, lab: &Lab, options: impl Into<AgentOptions>) -> Result<&mut Member> {
        let node = self.machine(lab)?;
        let agent = node.agent_in_kubernetes(&self.access, options.into())?;
        let pods = vec![node.pod("pod1")?];
        self.members.push(Member { pods, agent, node });
        self.members.last_mut().context("just pushed")
    }

    /// A machine of stock flannel with its Node, annotated as stock flannel does.
    fn join_stock(&self, lab: &Lab) -> Result<(Node, Stock)> {
        let node = lab.node()?;
        let stock = node.stock()?;
        self.api.add_node(&node, &[stock.own().subnet.to_string()])?;
        self.annotate_as(&node.name(), stock.own())?;
        Ok((node, stock))
    }

    /// Annotates a node as stock flannel does where it is reached like this.
    fn annotate_as(&self, node: &str, Peer { public_ip, mac, .. }: Peer) -> Result<()> {
        let data = format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#);
        let public_ip = public_ip.to_string();
        let all = [
            ("backend-data", data.as_str()),
            ("backend-type", "vxlan"),
            ("kube-subnet-manager", "true"),
            ("public-ip", &public_ip),
        ];
        self.annotate(node, &all)
    }

    /// Sets annotations of flannel's, as an operator with `kubectl annotate`.
    fn annotate(&self, node: &str, annotations: &[(&str, &str)]) -> Result<()> {
        let annotations: BTreeMap<String, &str> =
            annotations.iter().map(|(name, value)| (format!("{PREFIX}/{name}"), *value)).collect();
        let patch = json!({"metadata": {"annotations": annotations}});
        self.api.patch(&format!("/api/v1/nodes/{node}"), &patch).map(drop)
    }

    /// flannel's annotations of a node, without their prefix.
    fn annotations(&self, node: &str) -> Result<BTreeMap<String, String>> {
        let node = self.api.get(&format!("/api/v1/nodes/{node}"))?;
        let all = node["metadata"]["annotations"].as_object().into_iter().flatten();
        let ours = all.filter_map(|(name, value)| {
            let name = name.strip_prefix(PREFIX)?.strip_prefix('/')?;
            Some((name.to_owned(), value.as_str()?.to_owned()))
        });
        Ok(ours.collect())
    }

    /// A node as stock flannel reads it.
    fn peer(&self, node: &str) -> Result<Peer> {
        let annotations = self.annotations(node)?;
        let read = |name: &str| annotations.get(name).with_context(|| format!("{node} has no {name}"));
        let data: Value = serde_json::from_str(read("backend-data")?)?;
        let object = self.api.get(&format!("/api/v1/nodes/{node}"))?;
        Ok(Peer {
            subnet: object["spec"]["podCIDR"].as_str().context("no podCIDR")?.parse()?,
            public_ip: read("public-ip")?.parse()?,
            mac: data["VtepMAC"].as_str().context("no VtepMAC")?.parse()?,
        })
    }

    fn pods(&self) -> Vec<Endpoint> {
        self.members.iter().flat_map(|member| &member.pods).map(Pod::endpoint).collect()
    }

    /// Waits until all pods, and `others`, reach each other.
    fn await_reachable(&self, others: &[Endpoint]) -> Result<()> {
        let everyone = [self.pods(), others.to_vec()].concat();
        eventually(CONVERGENCE, "everyone reaches everyone", || reachability(&everyone).check_complete())
    }
}

/// The pod CIDR of the node of this number.
fn cidr(number: u8) -> String {
    format!("10.244.{number}.0/24")
}

/// Waits for a line in an agent's log.
fn await_log(agent: &Agent, text: &str) -> Result<()> {
    eventually(CONVERGENCE, "the log says it", || {
        ensure!(agent.log().contains(text), "no {text:?} in the log:\n{}", agent.log());
        Ok(())
    })
}

/// Waits until a node has a route to `subnet`, or has none.
fn await_route(node: &Node, subnet: &str, present: bool) -> Result<()> {
    eventually(CONVERGENCE, "the route comes or goes", || {
        let route = node.netns().ip(&format!("route show {subnet}"))?;
        ensure!(route.contains("flannel.1") == present, "{subnet} on {}: {route:?}", node.name());
        Ok(())
    })
}
