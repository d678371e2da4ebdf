//! The Helm chart, rendered by Go's template language with those of Helm's functions that it uses.

use std::{cell::RefCell, fs};

use anyhow::{Context as _, Result, anyhow, ensure};
use flannel_agent::config::NetworkConfig;
use flannel_lab::manifest::{self, directory, documents};
use gtmpl::{Context as Scope, FuncError, Template, Value as Go};
use serde_json::{Value, json};

/// As the template language has it.
fn go(value: &Value) -> Go {
    match value {
        Value::Null => Go::Nil,
        Value::Bool(flag) => Go::from(*flag),
        Value::Number(number) => Go::from(number.as_i64().unwrap_or_default()),
        Value::String(text) => Go::from(text.as_str()),
        Value::Array(all) => Go::Array(all.iter().map(go).collect()),
        Value::Object(fields) => {
            Go::Map(fields.iter().map(|(name, value)| (name.clone(), go(value))).collect())
        }
    }
}

/// And back, for `toYaml`.
fn json_of(value: &Go) -> Value {
    match value {
        Go::Bool(flag) => json!(flag),
        Go::String(text) => json!(text),
        Go::Array(all) => all.iter().map(json_of).collect(),
        Go::Map(fields) | Go::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| (name.clone(), json_of(value)));
            Value::Object(fields.collect())
        }
        Go::Number(number) => json!(number.as_i64()),
        _ => Value::Null,
    }
}

fn text(arguments: &[Go], at: usize) -> Result<String, FuncError> {
    match arguments.get(at) {
        Some(Go::String(text)) => Ok(text.clone()),
        Some(other) => Err(FuncError::Generic(format!("not a string: {other:?}"))),
        None => Err(FuncError::AtLeastXArgs("a function of the chart".to_owned(), at + 1)),
    }
}

fn quote(arguments: &[Go]) -> Result<Go, FuncError> {
    text(arguments, 0).map(|text| Go::from(json!(text).to_string()))
}

fn nindent(arguments: &[Go]) -> Result<Go, FuncError> {
    let Some(Go::Number(width)) = arguments.first() else {
        return Err(FuncError::Generic("nindent: no width".to_owned()));
    };
    let pad = " ".repeat(width.as_u64().and_then(|width| usize::try_from(width).ok()).unwrap_or_default());
    let lines: Vec<String> = text(arguments, 1)?.split('\n').map(|line| format!("{pad}{line}")).collect();
    Ok(Go::from(format!("\n{}", lines.join("\n"))))
}

/// Block style at the outside, where it joins other lines; JSON within.
fn to_yaml(arguments: &[Go]) -> Result<Go, FuncError> {
    let lines: Vec<String> = match arguments.first().map(json_of) {
        Some(Value::Object(fields)) => {
            fields.iter().map(|(name, value)| format!("{name}: {value}")).collect()
        }
        Some(Value::Array(all)) => all.iter().map(|value| format!("- {value}")).collect(),
        other => vec![other.unwrap_or_default().to_string()],
    };
    Ok(Go::from(lines.join("\n")))
}

fn int(arguments: &[Go]) -> Result<Go, FuncError> {
    arguments.first().cloned().ok_or_else(|| FuncError::AtLeastXArgs("int".to_owned(), 1))
}

thread_local! {
    /// The cluster's DaemonSet, for `lookup`.
    static THERE: RefCell<Value> = const { RefCell::new(Value::Null) };
}

/// As Helm's: an empty map where there is none.
fn lookup(arguments: &[Go]) -> Result<Go, FuncError> {
    let asked = (0..4).map(|at| text(arguments, at)).collect::<Result<Vec<_>, _>>()?;
    if asked != ["apps/v1", "DaemonSet", "kube-flannel", "kube-flannel-ds"] {
        return Err(FuncError::Generic(format!("lookup of {asked:?}")));
    }
    Ok(THERE.with_borrow(|there| if there.is_null() { go(&json!({})) } else { go(there) }))
}

/// `given` laid over `values`, as `--set` does.
fn lay_over(values: &mut Value, given: &Value) {
    match (values, given) {
        (Value::Object(values), Value::Object(given)) => {
            for (name, value) in given {
                lay_over(values.entry(name).or_insert(Value::Null), value);
            }
        }
        (values, given) => *values = given.clone(),
    }
}

/// The chart's objects, with these values over its own.
fn render(given: &Value) -> Result<Vec<Value>> {
    let chart = directory().join("chart/kube-flannel");
    let mut values: Value = serde_saphyr::from_str(&fs::read_to_string(chart.join("values.yaml"))?)?;
    lay_over(&mut values, given);
    let scope = json!({ "Values": values, "Release": { "Namespace": "kube-flannel", "Name": "flannel" } });
    let mut objects = Vec::new();
    for entry in fs::read_dir(chart.join("templates"))? {
        let path = entry?.path();
        let mut template = Template::default();
        template.add_funcs(&[
            ("quote", quote as gtmpl::Func),
            ("nindent", nindent),
            ("toYaml", to_yaml),
            ("int", int),
            ("lookup", lookup),
        ]);
        template.parse(fs::read_to_string(&path)?).map_err(|error| anyhow!("{}: {error}", path.display()))?;
        let text = template
            .render(&Scope::from(go(&scope)))
            .map_err(|error| anyhow!("{}: {error}", path.display()))?;
        objects.extend(documents(&text).with_context(|| format!("{}:\n{text}", path.display()))?);
    }
    Ok(objects)
}

fn of_kind(objects: &[Value], kind: &str) -> Result<Value> {
    objects.iter().find(|object| object["kind"] == kind).cloned().with_context(|| format!("no {kind}"))
}

/// As it comes, the chart installs what the manifest does, but for two things that flannel's chart has otherwise than
/// its manifest; the namespace is for `helm --create-namespace`.
/// Of wireguard: 32 bytes.
const KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";

#[test]
fn the_chart_renders_the_manifest() -> Result<()> {
    let objects = render(&json!({}))?;
    super::check(&objects)?;
    for mut expected in manifest::objects()? {
        let kind = expected["kind"].as_str().unwrap_or_default().to_owned();
        if kind == "Namespace" {
            continue;
        }
        let mut rendered = of_kind(&objects, &kind)?;
        if kind == "DaemonSet" {
            let pod = &mut rendered["spec"]["template"]["spec"];
            ensure!(pod["tolerations"].as_array().is_some_and(|all| all.len() == 2));
            ensure!(pod["initContainers"][0]["command"] == json!(["cp"]));
            for object in [&mut rendered, &mut expected] {
                let pod = &mut object["spec"]["template"]["spec"];
                pod["tolerations"].take();
                pod["initContainers"][0].take();
            }
        }
        ensure!(rendered == expected, "{rendered:#}\nis not\n{expected:#}");
    }
    Ok(())
}

#[test]
fn the_charts_values_do_what_they_say() -> Result<()> {
    let objects = render(&json!({
        "global": {
            "imagePullSecrets": [{ "name": "secret" }], "commonLabels": { "a": "b" }, "commonAnnotations": { "c": "d" },
        },
        "flannel": {
            "image": { "repository": "registry/x", "tag": "y" }, "cniBinDir": "/bin", "cniConfDir": "/conf",
            "bpffs": "/bpf", "skipCNIConfigInstallation": true, "backend": "host-gw", "args": [
                "--ip-masq", "--kube-subnet-mgr", "--fast-path=flow",
            ],
            "healthz": { "port": 0 }, "nodeSelector": { "e": "f" }, "podLabels": { "g": "h" },
            "podAnnotations": { "i": "j" }, "resources": null, "tolerations": [],
        },
    }))?;
    super::check(&objects)?;
    let daemons = of_kind(&objects, "DaemonSet")?;
    ensure!(daemons["metadata"]["labels"]["a"] == "b" && daemons["metadata"]["annotations"]["c"] == "d");
    let template = &daemons["spec"]["template"];
    ensure!(template["metadata"]["labels"]["g"] == "h" && template["metadata"]["annotations"]["i"] == "j");
    let pod = &template["spec"];
    ensure!(
        pod["imagePullSecrets"] == json!([{ "name": "secret" }])
            && pod["nodeSelector"] == json!({ "e": "f" })
    );
    ensure!(pod["initContainers"].as_array().is_some_and(|all| all.len() == 1));
    let agent = &pod["containers"][0];
    ensure!(agent["image"] == "registry/x:y" && agent["args"][2] == "--fast-path=flow");
    ensure!(agent["ports"].is_null() && agent["livenessProbe"].is_null() && pod["tolerations"].is_null());
    let paths: Vec<&Value> = pod["volumes"]
        .as_array()
        .context("volumes")?
        .iter()
        .map(|volume| &volume["hostPath"]["path"])
        .collect();
    for path in ["/bin", "/conf", "/bpf"] {
        ensure!(paths.iter().any(|there| **there == path), "{path} is not among {paths:?}");
    }
    Ok(())
}

#[test]
fn the_chart_gives_udp_its_tun_device() -> Result<()> {
    for (backend, wanted) in [("udp", true), ("vxlan", false)] {
        let objects = render(&json!({ "flannel": { "backend": backend } }))?;
        super::check(&objects)?;
        let pod = &of_kind(&objects, "DaemonSet")?["spec"]["template"]["spec"];
        let device = json!({ "name": "tun", "hostPath": { "path": "/dev/net/tun", "type": "CharDevice" } });
        let mount = json!({ "name": "tun", "mountPath": "/dev/net/tun" });
        let has = |all: &Value, one: &Value| all.as_array().is_some_and(|all| all.contains(one));
        ensure!(has(&pod["volumes"], &device) == wanted, "{backend}: {pod:#}");
        ensure!(has(&pod["containers"][0]["volumeMounts"], &mount) == wanted, "{backend}: {pod:#}");
    }
    Ok(())
}

#[test]
fn the_charts_pod_monitor_scrapes_the_health_port() -> Result<()> {
    let objects = render(
        &json!({ "flannel": { "podMonitor": { "enabled": true, "labels": { "release": "mine" } } } }),
    )?;
    let monitor = of_kind(&objects, "PodMonitor")?;
    ensure!(monitor["metadata"]["labels"]["release"] == "mine", "{monitor:#}");
    let daemons = of_kind(&objects, "DaemonSet")?;
    let template = &daemons["spec"]["template"];
    let labels = &monitor["spec"]["selector"]["matchLabels"];
    ensure!(template["metadata"]["labels"]["app"] == labels["app"], "{labels:#}");
    let endpoint = &monitor["spec"]["podMetricsEndpoints"][0];
    ensure!(endpoint["port"] == template["spec"]["containers"][0]["ports"][0]["name"], "{endpoint:#}");
    ensure!(endpoint["path"] == "/metrics" && endpoint["interval"] == "30s", "{endpoint:#}");
    Ok(())
}

#[test]
fn the_charts_network_configuration_follows_the_values() -> Result<()> {
    let net_conf = |given: &Value| -> Result<Value> {
        let map = of_kind(&render(given)?, "ConfigMap")?;
        let text = map["data"]["net-conf.json"].as_str().context("net-conf.json")?;
        NetworkConfig::parse(text.as_bytes())?;
        Ok(serde_json::from_str(text)?)
    };
    let plain = json!({
        "Network": "10.244.0.0/16", "EnableNFTables": false, "Backend": { "Type": "vxlan" },
    });
    ensure!(net_conf(&json!({}))? == plain);
    let both = net_conf(&json!({
        "podCidrv6": "fd00:10::/48",
        "flannel": { "enableNFTables": true, "backendPort": 4789, "vni": 4096, "GBP": true, "directRouting": true, "mtu": 9000 },
    }))?;
    let expected = json!({
        "Network": "10.244.0.0/16", "IPv6Network": "fd00:10::/48", "EnableIPv6": true, "EnableNFTables": true,
        "Backend": { "Port": 4789, "VNI": 4096, "GBP": true, "DirectRouting": true, "MTU": 9000, "Type": "vxlan" },
    });
    ensure!(both == expected, "{both:#}");
    let six = net_conf(&json!({ "podCidr": "", "podCidrv6": "fd00:10::/48" }))?;
    ensure!(six["EnableIPv4"] == json!(false) && six["Network"].is_null(), "{six:#}");
    let wireguard = net_conf(&json!({ "flannel": {
        "backend": "wireguard", "backendPort": 51820, "backendPortv6": 51821, "psk": KEY, "tunnelMode": "auto",
        "keepaliveInterval": 25, "mtu": 1400,
    } }))?;
    let expected = json!({
        "ListenPort": 51820, "ListenPortV6": 51821, "PSK": KEY, "Mode": "auto", "PersistentKeepaliveInterval": 25,
        "MTU": 1400, "Type": "wireguard",
    });
    ensure!(wireguard["Backend"] == expected, "{wireguard:#}");
    Ok(())
}

#[test]
fn the_charts_controller_for_network_policies_is_that_of_flannels_chart() -> Result<()> {
    let objects = render(&json!({ "netpol": { "enabled": true } }))?;
    super::check(&objects)?;
    let pod = of_kind(&objects, "DaemonSet")?["spec"]["template"]["spec"].take();
    let names = pod["containers"].as_array().context("containers")?.iter().map(|one| &one["name"]);
    ensure!(names.eq([&json!("kube-flannel"), &json!("kube-network-policies")]), "{pod:#}");
    let controller = &pod["containers"][1];
    ensure!(controller["args"] == json!(["--hostname-override=$(MY_NODE_NAME)", "--v=2"]), "{controller:#}");
    let rules = of_kind(&objects, "ClusterRole")?["rules"].take();
    ensure!(rules.to_string().contains("networkpolicies"), "{rules:#}");
    Ok(())
}

/// The API server refuses another selector than the one that is there.
#[test]
fn the_chart_keeps_the_selector_of_a_release_of_flannels() -> Result<()> {
    for selector in [
        json!({ "app": "flannel" }),
        json!({ "app": "flannel", "k8s-app": "flannel" }),
        json!({
            "app": "flannel", "tier": "node", "app.kubernetes.io/name": "flannel", "app.kubernetes.io/instance": "mine",
        }),
    ] {
        THERE.set(json!({ "spec": { "selector": { "matchLabels": selector } } }));
        let objects = render(&json!({}))?;
        super::check(&objects)?;
        let rendered = &of_kind(&objects, "DaemonSet")?["spec"]["selector"]["matchLabels"];
        ensure!(*rendered == selector, "{rendered} is not {selector}");
    }
    THERE.take();
    Ok(())
}
