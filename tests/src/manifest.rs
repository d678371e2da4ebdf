//! kube-flannel's manifest, as it is in `flannel-agent/packaging/kubernetes`.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

/// The directory of the manifest, the chart and the container file.
pub fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../flannel-agent/packaging/kubernetes")
}

/// The objects of the manifest, in its order.
pub fn objects() -> Result<Vec<Value>> {
    let path = directory().join("kube-flannel.yml");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    documents(&text).with_context(|| path.display().to_string())
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
