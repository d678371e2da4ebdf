//! kube-flannel, as its manifest in the API server says: on each node a pod of the DaemonSet, made as the DaemonSet's
//! controller makes it and started as kubelet starts it.
//!
//! ```text
//! ConfigMap ────────▶ volume ─┐
//! ServiceAccount ───▶ token ──┼▶ containers in the image's root, with the node's own files, and nothing else of the
//! DaemonSet ─▶ Pod ─▶ args ───┘  machine's: no variable, capability or file that the manifest does not give
//! ```

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::{ApiServer, Image, pod_files};
use crate::{Agent, Chain, Node, Root, command::run, make_dir, wait::eventually};

/// Where the manifest puts everything.
pub const NAMESPACE: &str = "kube-flannel";
const DAEMON_SETS: &str = "/apis/apps/v1/namespaces/kube-flannel/daemonsets";
const PODS: &str = "/api/v1/namespaces/kube-flannel/pods";

/// The DaemonSet's name, in the manifest as in flannel's own.
pub const DAEMON_SET: &str = "kube-flannel-ds";

/// Where every pod finds who it is.
const CREDENTIALS: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// For how long a token holds, in seconds, as kubelet asks for it.
const TOKEN: u32 = 3607;

/// How long a pod may take to be ready.
const START: Duration = Duration::from_secs(60);

/// Plays the DaemonSet's controller, and kubelet on every node.
#[derive(Clone, Copy, Debug)]
pub struct KubeFlannel<'a> {
    /// Where the objects are.
    pub api: &'a ApiServer,
    /// What every container is started from, whatever the manifest calls it.
    pub image: &'a Image,
}

impl KubeFlannel<'_> {
    /// The DaemonSet's only container as `change` makes it, for the pods that are made from now on.
    pub fn edit(&self, change: impl FnOnce(&mut Value)) -> Result<()> {
        let path = format!("{DAEMON_SETS}/{DAEMON_SET}");
        let mut set = self.api.get(&path)?;
        change(&mut set["spec"]["template"]["spec"]["containers"][0]);
        self.api.replace(&path, &set).map(drop)
    }

    /// Makes the DaemonSet's pod on `node` and runs its init containers; what is left to start is the agent.
    pub fn prepare_pod(&self, node: &Node) -> Result<Agent> {
        Chain::install_others(node)?;
        let mut template = self.api.get(&format!("{DAEMON_SETS}/{DAEMON_SET}"))?["spec"]["template"].take();
        template["metadata"]["generateName"] = json!(format!("{DAEMON_SET}-"));
        template["spec"]["nodeName"] = json!(node.name());
        let pod = self.api.create(PODS, &template)?;
        let root = self.with_volumes(node, &pod)?;
        for container in list(&pod["spec"]["initContainers"]) {
            run(&mut self.container(&root, &pod, &container)?.command(node)?)
                .with_context(|| format!("init container {}", container["name"]))?;
        }
        let container = list(&pod["spec"]["containers"]).pop().context("a pod without containers")?;
        Ok(Agent::contained(node, self.container(&root, &pod, &container)?.all()))
    }

    /// The same, started and ready.
    pub fn start_pod(&self, node: &Node) -> Result<Agent> {
        let mut agent = self.prepare_pod(node)?;
        agent.launch()?;
        self.await_ready(node, &mut agent)?;
        Ok(agent)
    }

    /// Replaces the pod on `node` by one of the DaemonSet as it is now: the old one ends first, as with flannel's
    /// update strategy.
    pub fn replace_pod(&self, node: &Node, agent: &mut Agent) -> Result<()> {
        let status = agent.terminate()?;
        ensure!(status.success(), "SIGTERM ended the agent with {status}");
        self.delete_pod(node)?;
        *agent = self.start_pod(node)?;
        Ok(())
    }

    /// Deletes the Pod object on `node`, with whose end its token ends.
    pub fn delete_pod(&self, node: &Node) -> Result<()> {
        let pod = self.pod(node)?;
        let name = pod["metadata"]["name"].as_str().context("a pod without a name")?;
        // Without a grace period nobody has to confirm that its processes are gone.
        self.api.delete(&format!("{PODS}/{name}?gracePeriodSeconds=0"))
    }

    /// Asks as the readiness probe of the manifest does, until it is answered.
    pub fn await_ready(&self, node: &Node, agent: &mut Agent) -> Result<()> {
        let container = list(&self.pod(node)?["spec"]["containers"]).pop().context("a container")?;
        let probe = &container["readinessProbe"]["httpGet"];
        let path = probe["path"].as_str().context("a probe without a path")?;
        let ports = list(&container["ports"]);
        let port =
            ports.iter().find(|port| port["name"] == probe["port"]).context("a port that is probed")?;
        let url = format!("http://{}:{}{path}", node.address(), port["containerPort"]);
        eventually(START, "the pod is ready", || {
            agent.check_running()?;
            node.netns().run("curl", &["--silent", "--show-error", "--fail", "--max-time", "5", &url])
        })
        .map(drop)
        .with_context(|| agent.log())
    }

    /// The token of the pod on `node`.
    pub fn token(&self, node: &Node) -> Result<String> {
        let path = kubelets(node, "token").join("token");
        fs::read_to_string(&path).with_context(|| path.display().to_string())
    }

    /// Gives the pod on `node` another token in place of the one it has, as kubelet does before that expires; the old
    /// one is worth nothing any more, as the Pod it is bound to is replaced by one of the same name. Its containers
    /// run on.
    pub fn renew_token(&self, node: &Node) -> Result<()> {
        let mut pod = self.pod(node)?;
        self.delete_pod(node)?;
        for given in ["uid", "resourceVersion", "creationTimestamp"] {
            if let Some(metadata) = pod["metadata"].as_object_mut() {
                metadata.remove(given);
            }
        }
        self.write_credentials(node, &self.api.create(PODS, &pod)?)
    }

    /// Brings what the pod on `node` has mounted of the API server's up to date, as kubelet does within a minute.
    pub fn renew_volumes(&self, node: &Node) -> Result<()> {
        self.with_volumes(node, &self.pod(node)?).map(drop)
    }

    /// The DaemonSet's pod on `node`.
    pub fn pod(&self, node: &Node) -> Result<Value> {
        let pods = self.api.get(&format!("{PODS}?fieldSelector=spec.nodeName={}", node.name()))?;
        let mut pods = list(&pods["items"]);
        ensure!(pods.len() == 1, "{} pods on {}", pods.len(), node.name());
        pods.pop().context("just counted")
    }

    /// Makes the volumes of `pod`; the image's root with nothing mounted yet.
    fn with_volumes(&self, node: &Node, pod: &Value) -> Result<Volumes> {
        let mut volumes = Volumes { root: self.image.root(), host: BTreeMap::new() };
        for volume in list(&pod["spec"]["volumes"]) {
            let name = volume["name"].as_str().context("a volume without a name")?.to_owned();
            let path = if let Some(path) = volume["hostPath"]["path"].as_str() {
                // Whoever looks there sees what is its own namespace's.
                let path = if path.starts_with("/proc/") { path.into() } else { node.root_path(path) };
                if volume["hostPath"]["type"] == "FileOrCreate" {
                    make_dir(path.parent().context("a directory")?)?;
                    fs::OpenOptions::new().create(true).append(true).open(&path)?;
                } else {
                    make_dir(&path)?;
                }
                path
            } else if let Some(map) = volume["configMap"]["name"].as_str() {
                let map = self.api.get(&format!("/api/v1/namespaces/{NAMESPACE}/configmaps/{map}"))?;
                let path = kubelets(node, &name);
                pod_files::write(&path, &serde_json::from_value(map["data"].clone())?)?;
                path
            } else {
                bail!("a volume of an unknown kind: {volume}");
            };
            volumes.host.insert(name, path);
        }
        self.write_credentials(node, pod)?;
        volumes.root = volumes.root.mount(&kubelets(node, "token"), CREDENTIALS);
        Ok(volumes)
    }

    fn write_credentials(&self, node: &Node, pod: &Value) -> Result<()> {
        pod_files::write(&kubelets(node, "token"), &self.api.pod_credentials(pod, TOKEN)?)
    }

    fn container(&self, volumes: &Volumes, pod: &Value, container: &Value) -> Result<Container> {
        let mut root = volumes.root.clone();
        for mount in list(&container["volumeMounts"]) {
            let name = mount["name"].as_str().context("a mount without a name")?;
            let path = volumes.host.get(name).with_context(|| format!("no volume {name}"))?;
            root = root.mount(path, mount["mountPath"].as_str().context("a mount without a path")?);
        }
        let mut variables = self.services()?;
        for variable in list(&container["env"]) {
            let name = variable["name"].as_str().context("a variable without a name")?.to_owned();
            let value = match variable["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
                Some(field) => pod.pointer(&format!("/{}", field.replace('.', "/"))),
                None => Some(&variable["value"]),
            };
            let value = value.and_then(Value::as_str).with_context(|| format!("no value for {variable}"))?;
            variables.push((name, value.to_owned()));
        }
        let mut words = vec!["/usr/bin/setpriv".to_owned(), "--no-new-privs".to_owned()];
        let capabilities = &container["securityContext"]["capabilities"];
        if capabilities["drop"] == json!(["ALL"]) {
            let added = list(&capabilities["add"]);
            let added =
                added.iter().filter_map(Value::as_str).map(|name| format!(",+{}", name.to_lowercase()));
            words.push(format!("--bounding-set=-all{}", added.collect::<String>()));
            words.push("--inh-caps=-all".to_owned());
        }
        let given = [list(&container["command"]), list(&container["args"])].concat();
        words.extend(given.iter().filter_map(|word| word.as_str().map(str::to_owned)));
        Ok(Container { root, variables, words })
    }

    /// What kubelet tells every pod of Services, as far as it is about the API server's.
    fn services(&self) -> Result<Vec<(String, String)>> {
        let service = self.api.get("/api/v1/namespaces/default/services/kubernetes")?;
        let (spec, name) = (&service["spec"], |end: &str| format!("KUBERNETES_SERVICE_{end}"));
        let host = spec["clusterIP"].as_str().context("a Service without an address")?.to_owned();
        Ok(vec![(name("HOST"), host), (name("PORT"), spec["ports"][0]["port"].to_string())])
    }
}

/// Where volumes of a pod are on this machine, by their names.
struct Volumes {
    root: Root,
    host: BTreeMap<String, PathBuf>,
}

/// What starts in a container.
struct Container {
    root: Root,
    variables: Vec<(String, String)>,
    words: Vec<String>,
}

impl Container {
    fn command(&self, node: &Node) -> Result<std::process::Command> {
        self.root.command(node.netns(), &self.variables, &self.words)
    }

    fn all(&self) -> Vec<String> {
        [self.root.words(&self.variables), self.words.clone()].concat()
    }
}

/// Where kubelet has a volume of the one pod that it runs here.
fn kubelets(node: &Node, volume: &str) -> PathBuf {
    node.root_path("/var/lib/kubelet").join(Path::new(volume))
}

fn list(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}
