//! What installs the agent in Kubernetes: every object is what the API knows, and fits the agent.

use std::{collections::BTreeSet, fs};

use anyhow::{Context as _, Result, bail, ensure};
use flannel_agent::{cli::Cli, cni::install::install, config::NetworkConfig};
use flannel_ebpf_toolchain::workspace_root;
use flannel_lab::manifest::{self, directory};
use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{ConfigMap, Namespace, ServiceAccount},
    rbac::v1::{ClusterRole, ClusterRoleBinding},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

mod chart;
mod image;

/// Paths of flannel's images, and of the image of its CNI plugin: what manifests of others start.
const UPSTREAMS_PATHS: [&str; 4] =
    ["/opt/bin/flanneld", "/opt/bin/install-conf", "/opt/bin/mk-docker-opts.sh", "/flannel"];

/// Fails where `object` is not of its kind's type: read into the API's type and written again, nothing is lost, as
/// an unknown or misspelt field would be.
fn check_schema(object: &Value) -> Result<()> {
    fn round<T: DeserializeOwned + Serialize>(object: &Value) -> Result<()> {
        let typed: T = serde_json::from_value(object.clone())?;
        let again = serde_json::to_value(typed)?;
        ensure!(again == *object, "the API does not know all of\n{object:#}\nit keeps\n{again:#}");
        Ok(())
    }
    let (version, kind) = (&object["apiVersion"], object["kind"].as_str().unwrap_or_default());
    let outcome = match (version.as_str().unwrap_or_default(), kind) {
        ("v1", "Namespace") => round::<Namespace>(object),
        ("v1", "ServiceAccount") => round::<ServiceAccount>(object),
        ("v1", "ConfigMap") => round::<ConfigMap>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRole") => round::<ClusterRole>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding") => round::<ClusterRoleBinding>(object),
        ("apps/v1", "DaemonSet") => round::<DaemonSet>(object),
        other => bail!("an object that is not expected: {other:?}"),
    };
    outcome.with_context(|| format!("{kind} {}", object["metadata"]["name"]))
}

/// What holds for the objects of the manifest and of the chart alike.
fn check(objects: &[Value]) -> Result<()> {
    for object in objects {
        check_schema(object)?;
    }
    let of_kind =
        |kind: &str| objects.iter().find(|object| object["kind"] == kind).context("an object is missing");
    let (daemons, config) = (of_kind("DaemonSet")?, of_kind("ConfigMap")?);
    let template = &daemons["spec"]["template"];
    let labels = template["metadata"]["labels"].as_object().context("labels")?;
    for (name, value) in daemons["spec"]["selector"]["matchLabels"].as_object().context("a selector")? {
        ensure!(labels.get(name) == Some(value), "the selector wants {name}, which no pod has");
    }
    let pod = &template["spec"];
    ensure!(pod["serviceAccountName"] == of_kind("ServiceAccount")?["metadata"]["name"]);

    // Every mount has its volume, and every volume a use.
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let volumes: BTreeSet<String> =
        list(&pod["volumes"]).iter().map(|volume| volume["name"].to_string()).collect();
    let containers = [list(&pod["initContainers"]), list(&pod["containers"])].concat();
    let mounted: BTreeSet<String> = containers
        .iter()
        .flat_map(|container| list(&container["volumeMounts"]))
        .map(|mount| mount["name"].to_string())
        .collect();
    ensure!(mounted.is_subset(&volumes), "mounted {mounted:?}, there are {volumes:?}");

    // What is started is in the image, and the agent takes its flags.
    for container in containers.iter().filter(|container| container["name"] != "kube-network-policies") {
        let command = container["command"][0].as_str().context("a command")?;
        ensure!(UPSTREAMS_PATHS.contains(&command) || command == "cp", "{command} is not in the image");
    }
    let named = |container: &Value| container["name"] == "kube-flannel";
    let agent = list(&pod["containers"]).into_iter().find(named).context("a container")?;
    let words = [list(&agent["command"]), list(&agent["args"])].concat();
    let words: Vec<_> = words.iter().filter_map(Value::as_str).map(Into::into).collect();
    let cli = Cli::read(words, |_| None)?;
    ensure!(cli.run.kube.kube_subnet_mgr && cli.run.ip_masq, "{cli:?}");
    let probed = agent["readinessProbe"]["httpGet"]["path"] == "/readyz";
    ensure!(
        (cli.run.healthz_port != 0) == probed,
        "the port is served and not probed, or the other way round"
    );
    let capabilities = &agent["securityContext"]["capabilities"];
    ensure!(*capabilities == json!({ "drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW", "BPF", "PERFMON"] }));
    let mount = |path: &str| list(&agent["volumeMounts"]).into_iter().any(|mount| mount["mountPath"] == path);
    ensure!(mount("/run/flannel") && mount("/run/xtables.lock"), "the agent does not see the host's files");
    ensure!(mount(&cli.run.bpffs.to_string_lossy()), "--bpffs is not the host's");
    for container in &containers {
        for mount in list(&container["volumeMounts"]) {
            ensure!(
                mount["mountPropagation"].is_null(),
                "refused where the host's mounts are private: {mount}"
            );
        }
    }

    // The files of the ConfigMap are what their readers want.
    let net_conf = config["data"]["net-conf.json"].as_str().context("net-conf.json")?;
    NetworkConfig::parse(net_conf.as_bytes())?;
    let directory = tempfile::tempdir()?;
    let source = directory.path().join("cni-conf.json");
    fs::write(&source, config["data"]["cni-conf.json"].as_str().context("cni-conf.json")?)?;
    install(&source, &directory.path().join("10-flannel.conflist"))?;
    Ok(())
}

#[test]
fn the_manifest_is_what_the_api_and_the_agent_know() -> Result<()> {
    let objects = manifest::objects()?;
    check(&objects)?;
    let names: Vec<(&str, &str)> = objects
        .iter()
        .map(|object| {
            let name = object["metadata"]["name"].as_str().unwrap_or_default();
            (object["kind"].as_str().unwrap_or_default(), name)
        })
        .collect();
    // Those of flannel's, so that one replaces the other.
    let expected = [
        ("Namespace", "kube-flannel"),
        ("ServiceAccount", "flannel"),
        ("ClusterRole", "flannel"),
        ("ClusterRoleBinding", "flannel"),
        ("ConfigMap", "kube-flannel-cfg"),
        ("DaemonSet", "kube-flannel-ds"),
    ];
    ensure!(names == expected, "{names:?}");
    let namespaces: BTreeSet<String> = objects
        .iter()
        .filter_map(|object| object["metadata"]["namespace"].as_str().map(str::to_owned))
        .collect();
    ensure!(namespaces == BTreeSet::from(["kube-flannel".to_owned()]), "{namespaces:?}");
    // Of the manifest that flannel releases: applied over another one, the API server refuses it.
    let selector = &manifest::object("DaemonSet")?["spec"]["selector"];
    ensure!(*selector == json!({ "matchLabels": { "app": "flannel", "k8s-app": "flannel" } }), "{selector}");
    Ok(())
}

/// The check finds what it is there to find.
#[test]
fn a_field_that_the_api_does_not_know_is_found() -> Result<()> {
    let mut daemons = manifest::object("DaemonSet")?;
    check_schema(&daemons)?;
    let container = &mut daemons["spec"]["template"]["spec"]["containers"][0];
    container["securtyContext"] = json!({ "privileged": false });
    ensure!(check_schema(&daemons).is_err());
    let mut role = manifest::object("ClusterRole")?;
    role["rules"][0]["verb"] = json!(["get"]);
    ensure!(check_schema(&role).is_err());
    ensure!(check_schema(&json!({ "apiVersion": "v1", "kind": "Daemonset" })).is_err());
    Ok(())
}

/// The capabilities are those of the systemd unit, of which a test starts the agent with exactly these.
#[test]
fn capabilities_are_those_of_the_unit() -> Result<()> {
    let unit = fs::read_to_string(directory().join("../systemd/flanneld.service"))?;
    let unit: BTreeSet<&str> = unit
        .lines()
        .filter_map(|line| line.strip_prefix("CapabilityBoundingSet="))
        .flat_map(str::split_whitespace)
        .filter_map(|name| name.strip_prefix("CAP_"))
        .collect();
    let daemons = manifest::object("DaemonSet")?;
    let added =
        &daemons["spec"]["template"]["spec"]["containers"][0]["securityContext"]["capabilities"]["add"];
    let added: BTreeSet<&str> = added.as_array().context("add")?.iter().filter_map(Value::as_str).collect();
    ensure!(unit == added, "unit {unit:?}, manifest {added:?}");
    Ok(())
}

/// Manifests of others work with our image: it has each file where they start or copy it.
#[test]
fn the_image_has_upstreams_paths() -> Result<()> {
    let text = fs::read_to_string(directory().join("Containerfile"))?;
    let copied: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("COPY --from=build ")?.split_whitespace().nth(1))
        .collect();
    ensure!(copied == BTreeSet::from(UPSTREAMS_PATHS), "{copied:?}");
    for line in text.lines().filter(|line| line.starts_with("COPY --from=build /build/flannel-agent/")) {
        let source = line.split_whitespace().nth(2).context("a source")?;
        let source = workspace_root().join(source.trim_start_matches("/build/"));
        ensure!(source.is_file(), "{} is copied and not there", source.display());
    }
    Ok(())
}
