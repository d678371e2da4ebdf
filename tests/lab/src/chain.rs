//! Chains of CNI plugins, called as container runtimes call them.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{Netns, Node, Root, SubnetEnv, SubnetEnvV6, agent::agent_binary, make_dir, netns, subnet_env};
use crate::{
    command::run_with,
    manifest,
    requirements::{CNI_PLUGINS, cni_directory},
};

/// How long one call of a CNI plugin may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A list of plugins, as a conflist has them.
#[derive(Clone, Debug)]
pub struct Chain {
    conflist: Value,
    /// `CNI_PATH`.
    path: OsString,
    /// What the plugins take for the root directory, if not the machine's.
    root: Option<Root>,
}

/// Where kubelet finds plugins and their configuration, on every node.
const PLUGINS: &str = "/opt/cni/bin";
const CONFLIST: &str = "/etc/cni/net.d/10-flannel.conflist";

impl Chain {
    /// The plugins of a conflist, ours among them.
    pub fn new(conflist: Value) -> Result<Self> {
        let plugin = plugin_binary()?;
        let own = plugin.parent().context("the directory of our plugin")?;
        let path = std::env::join_paths([own, &cni_directory()?]).context("CNI_PATH")?;
        Ok(Self { conflist, path, root: None })
    }

    /// What kube-flannel installs, with the files of `node` in place of the machine's.
    pub fn kube_flannel(node: &Node) -> Result<Self> {
        let mut conflist: Value = serde_json::from_str(&manifest::config_file("cni-conf.json")?)?;
        let flannel = &mut conflist["plugins"][0];
        flannel["subnetFile"] = json!(node.subnet_file());
        flannel["dataDir"] = json!(Self::data_dir(node));
        flannel["ipam"] = json!({ "dataDir": node.dir().join("cni") });
        Self::new(conflist)
    }

    /// What is installed in the root directory of `node`, as it is.
    pub fn installed(node: &Node) -> Result<Self> {
        let file = node.root_path(CONFLIST);
        let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        let conflist = serde_json::from_str(&text).with_context(|| file.display().to_string())?;
        let root = Root::new(node.dir().to_owned())?.mount(Path::new(netns::DIRECTORY), netns::DIRECTORY);
        Ok(Self { conflist, path: PLUGINS.into(), root: Some(root) })
    }

    /// Puts our plugin and the manifest's configuration where kubelet finds them on `node`. Upstream's leaves the
    /// same state behind.
    pub fn install(node: &Node) -> Result<()> {
        Self::install_others(node)?;
        fs::copy(plugin_binary()?, node.root_path(PLUGINS).join("flannel")).context("install flannel")?;
        let conflist = node.root_path(CONFLIST);
        make_dir(conflist.parent().context("a directory")?)?;
        fs::write(&conflist, manifest::config_file("cni-conf.json")?)
            .with_context(|| conflist.display().to_string())
    }

    /// Puts the plugins that kube-flannel chains to ours where those of `node` are, as kubeadm's packages do.
    pub fn install_others(node: &Node) -> Result<()> {
        let (from, to) = (cni_directory()?, node.root_path(PLUGINS));
        make_dir(&to)?;
        for name in CNI_PLUGINS {
            fs::copy(from.join(name), to.join(name)).with_context(|| format!("install {name}"))?;
        }
        Ok(())
    }

    /// Where our plugin keeps what it has to remember on `node`.
    pub fn data_dir(node: &Node) -> PathBuf {
        node.dir().join("cni-flannel")
    }

    /// `bridge` alone, told what flannel's plugin tells it.
    pub(super) fn bridge(node: &Node) -> Result<Self> {
        let file = node.subnet_file();
        let (mut ranges, mut routes) = (Vec::new(), Vec::new());
        if subnet_env::has_v4(&file)? {
            let env = SubnetEnv::read(&file)?;
            ranges.push(json!([{ "subnet": env.subnet.to_string() }]));
            routes.push(json!({ "dst": env.network.to_string() }));
        }
        if let Some(env) = SubnetEnvV6::read(&file)? {
            ranges.push(json!([{ "subnet": env.subnet.to_string() }]));
            routes.push(json!({ "dst": env.network.to_string() }));
        }
        let bridge = json!({
            "type": "bridge",
            "hairpinMode": true,
            "ipMasq": false,
            "isDefaultGateway": true,
            "isGateway": true,
            "mtu": subnet_env::mtu(&file)?,
            "ipam": {
                "type": "host-local",
                "dataDir": node.dir().join("cni"),
                "ranges": ranges,
                "routes": routes,
            },
        });
        let conflist = json!({ "name": "cbr0", "cniVersion": "0.3.1", "plugins": [bridge] });
        Ok(Self { conflist, path: cni_directory()?.into_os_string(), root: None })
    }

    /// The conflist, to be changed.
    pub fn conflist(&mut self) -> &mut Value {
        &mut self.conflist
    }

    /// Calls every plugin with `verb` for interface `eth0` of `pod` on `node`: DEL from the last to the first, each
    /// with the result of the one before, and `runtime` as far as it says it can do that. The last result.
    pub fn call(
        &self,
        verb: &str,
        node: &Netns,
        pod: &Netns,
        runtime: &Value,
        previous: &Value,
    ) -> Result<Value> {
        let mut plugins: Vec<&Value> =
            self.conflist["plugins"].as_array().context("no plugins")?.iter().collect();
        if verb == "DEL" {
            plugins.reverse();
        }
        let mut result = previous.clone();
        for plugin in plugins {
            let mut conf = plugin.clone();
            for field in ["name", "cniVersion"] {
                conf[field] = self.conflist[field].clone();
            }
            let capabilities = plugin["capabilities"].as_object().into_iter().flatten();
            for (name, _) in
                capabilities.filter(|(name, can)| **can == json!(true) && !runtime[name].is_null())
            {
                conf["runtimeConfig"][name] = runtime[name].clone();
            }
            if !result.is_null() {
                conf["prevResult"] = result.clone();
            }
            let kind = plugin["type"].as_str().context("a plugin without a type")?;
            let output = self.plugin(verb, kind, node, pod, &conf.to_string())?;
            if verb == "ADD" {
                result = serde_json::from_str(&output)
                    .with_context(|| format!("result of CNI {verb} by {kind}: {output}"))?;
            }
        }
        Ok(result)
    }

    /// One call of the plugin `kind`; what it writes.
    pub fn plugin(&self, verb: &str, kind: &str, node: &Netns, pod: &Netns, conf: &str) -> Result<String> {
        let seen = |file: &Path| match &self.root {
            Some(root) => root.directory().join(file.strip_prefix("/").unwrap_or(file)),
            None => file.to_owned(),
        };
        let program = std::env::split_paths(&self.path).map(|directory| directory.join(kind));
        let program = program
            .into_iter()
            .find(|file| seen(file).is_file())
            .with_context(|| format!("no plugin {kind} in {}", self.path.display()))?;
        let program = program.to_string_lossy().into_owned();
        let variables = [
            ("CNI_COMMAND", verb.to_owned()),
            ("CNI_CONTAINERID", pod.name().to_owned()),
            ("CNI_NETNS", pod.path().to_string_lossy().into_owned()),
            ("CNI_IFNAME", "eth0".to_owned()),
            ("CNI_PATH", self.path.to_string_lossy().into_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value));
        let mut command = match &self.root {
            Some(root) => root.command(node, &variables, &[program])?,
            None => {
                let mut command = node.command(&program);
                command.envs(variables);
                command
            }
        };
        run_with(&mut command, conf, PATIENCE)
            .with_context(|| format!("CNI {verb} of {} by {kind}", pod.name()))
    }
}

/// Where the CNI plugin `flannel` is: beside the agent.
pub fn plugin_binary() -> Result<PathBuf> {
    let plugin = agent_binary()?.with_file_name("flannel");
    let built = Path::is_file(&plugin);
    built
        .then_some(plugin.clone())
        .with_context(|| format!("no {}: build it (cargo build -p flannel-agent)", plugin.display()))
}
