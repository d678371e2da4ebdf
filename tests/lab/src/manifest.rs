//! kube-flannel's manifest, as it is in `flannel-agent/packaging/kubernetes`.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use flannel_ebpf_toolchain::workspace_root;
use serde_json::{Value, json};

/// The directory of the manifest, the chart and the container file.
pub fn directory() -> PathBuf {
    workspace_root().join("flannel-agent/packaging/kubernetes")
}

/// The objects of the manifest, in its order.
pub fn objects() -> Result<Vec<Value>> {
    let path = directory().join("kube-flannel.yml");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    documents(&text).with_context(|| path.display().to_string())
}

/// flannel's own manifest, as far as ours differs from it.
pub fn flannels() -> Result<Vec<Value>> {
    let mut objects = objects()?;
    for object in &mut objects {
        match object["kind"].as_str() {
            Some("ClusterRole") => {
                if let Some(rules) = object["rules"].as_array_mut() {
                    rules.retain(|rule| rule["resources"] != json!(["events"]));
                }
            }
            Some("DaemonSet") => {
                let pod = &mut object["spec"]["template"]["spec"];
                let image = json!("ghcr.io/flannel-io/flannel:v0.28.0");
                pod["initContainers"][0]["image"] =
                    json!("ghcr.io/flannel-io/flannel-cni-plugin:v1.9.0-flannel1");
                pod["initContainers"][0]["command"] = json!(["cp"]);
                pod["initContainers"][0]["args"] = json!(["-f", "/flannel", "/opt/cni/bin/flannel"]);
                pod["initContainers"][1]["image"] = image.clone();
                let container = &mut pod["containers"][0];
                container["image"] = image;
                container["securityContext"]["capabilities"] = json!({ "add": ["NET_ADMIN", "NET_RAW"] });
                without(&mut container["env"], "NODE_NAME");
                for volume in ["bpffs", "sysctl-net"] {
                    without(&mut pod["containers"][0]["volumeMounts"], volume);
                    without(&mut pod["volumes"], volume);
                }
            }
            _ => {}
        }
    }
    Ok(objects)
}

/// The cluster role of flannel's manifests up to v0.20.0, which does not let a node be read by its name.
pub fn flannels_first_role() -> Result<Value> {
    let mut role = object("ClusterRole")?;
    let rules = role["rules"].as_array_mut().context("a role without rules")?;
    rules.retain(|rule| rule["resources"] != json!(["events"]));
    let nodes = rules.iter_mut().find(|rule| rule["resources"] == json!(["nodes"]));
    nodes.context("a role without nodes")?["verbs"] = json!(["list", "watch"]);
    Ok(role)
}

fn without(list: &mut Value, name: &str) {
    if let Some(list) = list.as_array_mut() {
        list.retain(|one| one["name"] != name);
    }
}

/// The object of this kind, of which the manifest has one.
pub fn object(kind: &str) -> Result<Value> {
    let mut found: Vec<Value> = objects()?.into_iter().filter(|object| object["kind"] == kind).collect();
    ensure!(found.len() == 1, "{} objects of kind {kind}", found.len());
    found.pop().context("just counted")
}

/// A file of the manifest's ConfigMap: `cni-conf.json` or `net-conf.json`.
pub fn config_file(name: &str) -> Result<String> {
    let map = object("ConfigMap")?;
    map["data"][name].as_str().map(str::to_owned).with_context(|| format!("the ConfigMap has no {name}"))
}

/// The documents of a YAML stream that are not empty.
pub fn documents(text: &str) -> Result<Vec<Value>> {
    let all: Vec<Value> = serde_saphyr::from_multiple(text)?;
    Ok(all.into_iter().filter(|document| !document.is_null()).collect())
}
