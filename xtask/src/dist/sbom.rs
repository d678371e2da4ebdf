//! The bill of materials: every crate in the programs, as CycloneDX 1.5 has it.

use std::{collections::BTreeMap, fs, process::Command};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{Release, VERSION};
use crate::cargo::cargo;

/// `flannel-vX-linux-ARCH.cdx.json`.
pub(super) fn write(release: &Release<'_>) -> Result<String> {
    let mut metadata = cargo();
    metadata.args([
        "metadata",
        "--locked",
        "--format-version=1",
        "--filter-platform",
        release.architecture.target(),
    ]);
    let output = metadata.output().context("cannot run cargo metadata")?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr).trim());
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata printed no JSON")?;
    let name = format!("flannel-v{VERSION}-linux-{}.cdx.json", release.architecture.name());
    let text =
        serde_json::to_string_pretty(&document(&metadata, release.time)?).context("the bill of materials")?;
    fs::write(release.out.join(&name), text + "\n").with_context(|| format!("cannot write {name}"))?;
    Ok(name)
}

fn document(metadata: &Value, time: u64) -> Result<Value> {
    let packages = by_id(&metadata["packages"]);
    let nodes = by_id(&metadata["resolve"]["nodes"]);
    let is_agent = |package: &&Value| package["name"] == "flannel-agent";
    let agent = packages.values().copied().find(is_agent).context("cargo metadata names no flannel-agent")?;
    let agent_id = agent["id"].as_str().unwrap_or_default();

    // What is linked: normal dependencies of normal dependencies, not what builds or tests take.
    let mut linked = BTreeMap::new();
    let mut open = vec![agent_id];
    while let Some(id) = open.pop() {
        let node = nodes.get(id).with_context(|| format!("cargo metadata does not resolve {id}"))?;
        let needs = node["deps"].as_array().into_iter().flatten().filter(|dependency| {
            dependency["dep_kinds"].as_array().into_iter().flatten().any(|kind| kind["kind"].is_null())
        });
        let needs: Vec<&str> = needs.filter_map(|dependency| dependency["pkg"].as_str()).collect();
        open.extend(needs.iter().filter(|id| !linked.contains_key(**id)));
        linked.insert(id, needs);
    }
    let reference = |id: &str| packages.get(id).map(|package| purl(package)).unwrap_or_default();
    let others = linked.keys().filter(|id| **id != agent_id).filter_map(|id| packages.get(*id));
    let dependencies = linked.iter().map(|(id, needs)| {
        let mut needs: Vec<String> = needs.iter().map(|id| reference(id)).collect();
        needs.sort();
        json!({ "ref": reference(id), "dependsOn": needs })
    });
    Ok(json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "timestamp": timestamp(time)?,
            "component": component("application", agent),
        },
        "components": others.map(|package| component("library", package)).collect::<Vec<_>>(),
        "dependencies": dependencies.collect::<Vec<_>>(),
    }))
}

fn by_id(list: &Value) -> BTreeMap<&str, &Value> {
    list.as_array().into_iter().flatten().filter_map(|item| Some((item["id"].as_str()?, item))).collect()
}

fn component(kind: &str, package: &Value) -> Value {
    let mut component = json!({
        "type": kind,
        "bom-ref": purl(package),
        "name": package["name"],
        "version": package["version"],
        "purl": purl(package),
    });
    if let Some(license) = package["license"].as_str() {
        // Older crates write a slash for "or", which SPDX does not know.
        component["licenses"] = json!([{ "expression": license.replace('/', " OR ") }]);
    }
    component
}

/// The package URL of a crate: <https://github.com/package-url/purl-spec>.
fn purl(package: &Value) -> String {
    let text = |field: &str| package[field].as_str().unwrap_or_default().to_owned();
    format!("pkg:cargo/{}@{}", text("name"), text("version"))
}

/// RFC 3339, UTC.
pub(super) fn timestamp(time: u64) -> Result<String> {
    let mut date = Command::new("date");
    let output = date.args(["--utc", &format!("--date=@{time}"), "+%Y-%m-%dT%H:%M:%SZ"]).output();
    let output = output.context("cannot run date")?;
    ensure!(output.status.success(), "date: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_linked_is_listed() {
        let package =
            |name: &str| json!({"id": name, "name": name, "version": "1.0.0", "license": "MIT/Apache-2.0"});
        let needs = |name: &str, kind: Value| json!({"pkg": name, "dep_kinds": [{"kind": kind}]});
        let metadata = json!({
            "packages": [package("flannel-agent"), package("a"), package("b"), package("build"), package("test")],
            "resolve": {"nodes": [
                {"id": "flannel-agent", "deps": [needs("a", Value::Null), needs("build", json!("build")), needs("test", json!("dev"))]},
                {"id": "a", "deps": [needs("b", Value::Null)]},
                {"id": "b", "deps": []}, {"id": "build", "deps": []}, {"id": "test", "deps": []},
            ]},
        });
        let document = document(&metadata, 0).unwrap();
        let names: Vec<_> =
            document["components"].as_array().unwrap().iter().map(|c| c["purl"].as_str().unwrap()).collect();
        assert_eq!(names, ["pkg:cargo/a@1.0.0", "pkg:cargo/b@1.0.0"]);
        assert_eq!(document["components"][0]["licenses"][0]["expression"], "MIT OR Apache-2.0");
        assert_eq!(document["dependencies"].as_array().unwrap().len(), 3);
    }

    #[test]
    fn times_are_utc() {
        assert_eq!(timestamp(0).unwrap(), "1970-01-01T00:00:00Z");
        assert_eq!(timestamp(951_782_400).unwrap(), "2000-02-29T00:00:00Z");
        assert_eq!(timestamp(1_796_000_461).unwrap(), "2026-11-30T01:01:01Z");
    }
}
