//! Our CNI plugin, with the real `bridge`, `host-local` and `portmap`.

use std::{fs, net::SocketAddr, os::unix::fs::PermissionsExt as _, time::Duration};

use anyhow::{Context as _, Result, ensure};
use flannel_tests::{
    eventually,
    lab::{Chain, FastPath, Lab, Member, Netns, Node, Plugins, PodOptions, in_lab},
    traffic::{every_kind_both_ways, reachability},
};
use ipnetwork::IpNetwork;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(20);

/// What upstream's plugin tells the delegate, of which the ranges and routes depend on the families.
fn told(ranges: &Value, routes: &Value, node: &Node) -> Value {
    json!({
        "cniVersion": "0.4.0", "name": "cni-flannel", "type": "bridge", "ipMasq": false, "isGateway": true,
        "mtu": 1472,
        "ipam": {
            "type": "host-local", "dataDir": node.dir().join("cni"), "ranges": ranges, "routes": routes,
        },
    })
}

/// A node with a subnet file and a chain of our plugin alone.
fn node_with(lab: &Lab, env: &str) -> Result<(Node, Chain)> {
    let node = lab.node()?;
    fs::write(node.subnet_file(), format!("{env}FLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n"))?;
    let plugin = json!({
        "type": "flannel",
        "subnetFile": node.subnet_file(),
        "dataDir": Chain::data_dir(&node),
        "ipam": { "dataDir": node.dir().join("cni") },
    });
    let conflist = json!({ "name": "cni-flannel", "cniVersion": "0.4.0", "plugins": [plugin] });
    Ok((node, Chain::new(conflist)?))
}

/// The addresses of `eth0` in a pod that are not link-local.
fn addresses(pod: &Netns) -> Result<Vec<String>> {
    let links: Value = serde_json::from_str(&pod.ip("-json addr show dev eth0 scope global")?)?;
    // Addresses of another scope leave an empty object.
    let all = links[0]["addr_info"].as_array().cloned().unwrap_or_default();
    Ok(all
        .iter()
        .filter_map(|one| Some(format!("{}/{}", one["local"].as_str()?, one["prefixlen"])))
        .collect())
}

/// ADD, CHECK, DEL and DEL again.
fn lifecycle(env: &str, ranges: &Value, routes: &Value, count: usize) -> Result<()> {
    in_lab(|lab| {
        let (node, chain) = node_with(lab, env)?;
        let pod = node.sandbox("pod")?;
        let state = Chain::data_dir(&node).join(pod.name());
        let call = |verb: &str, previous: &Value| chain.call(verb, node.netns(), &pod, &json!({}), previous);
        let result = call("ADD", &Value::Null)?;

        let saved: Value = serde_json::from_slice(&fs::read(&state)?)?;
        ensure!(saved == told(ranges, routes, &node), "the delegate was told {saved:#}");
        let mode = fs::metadata(&state)?.permissions().mode() & 0o777;
        ensure!(mode == 0o600, "{} has mode {mode:o}", state.display());

        let given = result["ips"].as_array().context("ips")?;
        let mut given: Vec<String> =
            given.iter().map(|ip| ip["address"].as_str().unwrap_or_default().to_owned()).collect();
        given.sort();
        let mut there = addresses(&pod)?;
        there.sort();
        ensure!(given.len() == count && given == there, "given {given:?}, on eth0 {there:?}");
        let out = pod.ip("route show")? + &pod.ip("-6 route show")?;
        for route in routes.as_array().context("routes")? {
            let to = route["dst"].as_str().context("dst")?;
            ensure!(
                out.lines().any(|line| line.starts_with(&format!("{to} via "))),
                "no route to {to}:\n{out}"
            );
        }
        for address in &given {
            let network: IpNetwork = address.parse()?;
            let gateway = match network {
                IpNetwork::V4(network) => network.nth(1).context("gateway")?.to_string(),
                IpNetwork::V6(network) => network.iter().nth(1).context("gateway")?.to_string(),
            };
            eventually(PATIENCE, "the pod reaches its node", || {
                pod.run("ping", &["-c", "1", "-W", "1", &gateway]).map(drop)
            })?;
        }
        call("CHECK", &result)?;

        call("DEL", &result)?;
        ensure!(!state.exists(), "{} is still there", state.display());
        ensure!(pod.ip("link show eth0").is_err(), "eth0 is still there");
        let reserved = fs::read_dir(node.dir().join("cni/cni-flannel"))?;
        let reserved: Vec<_> = reserved.flatten().map(|entry| entry.file_name()).collect();
        let addresses = |name: &&std::ffi::OsString| {
            name.to_str().is_some_and(|name| name.parse::<std::net::IpAddr>().is_ok())
        };
        ensure!(reserved.iter().find(addresses).is_none(), "host-local still has {reserved:?}");
        call("DEL", &result).map(drop)
    })
}

#[test]
fn lifecycle_with_ipv4() -> Result<()> {
    lifecycle(
        "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\n",
        &json!([[{ "subnet": "10.1.17.0/24" }]]),
        &json!([{ "dst": "10.1.0.0/16" }]),
        1,
    )
}

#[test]
fn lifecycle_with_ipv4_and_two_networks() -> Result<()> {
    lifecycle(
        "FLANNEL_NETWORK=10.1.0.0/16,192.168.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\n",
        &json!([[{ "subnet": "10.1.17.0/24" }]]),
        &json!([{ "dst": "10.1.0.0/16" }, { "dst": "192.168.0.0/16" }]),
        1,
    )
}

#[test]
fn lifecycle_with_ipv6() -> Result<()> {
    lifecycle(
        "FLANNEL_IPV6_NETWORK=fc00::/48\nFLANNEL_IPV6_SUBNET=fc00::1/64\n",
        &json!([[{ "subnet": "fc00::/64" }]]),
        &json!([{ "dst": "fc00::/48" }]),
        1,
    )
}

#[test]
fn lifecycle_with_both_families() -> Result<()> {
    lifecycle(
        "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\n\
         FLANNEL_IPV6_NETWORK=fc00::/48\nFLANNEL_IPV6_SUBNET=fc00::1/64\n",
        &json!([[{ "subnet": "10.1.17.0/24" }], [{ "subnet": "fc00::/64" }]]),
        &json!([{ "dst": "10.1.0.0/16" }, { "dst": "fc00::/48" }]),
        2,
    )
}

/// A second ADD of a container that is there fails in the delegate, whose error comes through; so does that of a
/// plugin that is not installed.
#[test]
fn errors_come_from_where_they_arise() -> Result<()> {
    in_lab(|lab| {
        let (node, mut chain) = node_with(lab, "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\n")?;
        let pod = node.sandbox("pod")?;
        let call = |chain: &Chain| chain.call("ADD", node.netns(), &pod, &json!({}), &Value::Null);
        let failure =
            |chain: &Chain| call(chain).map_or_else(|error| format!("{error:#}"), |_| String::new());
        call(&chain)?;
        let error = failure(&chain);
        ensure!(error.contains("\"code\"") && error.contains("eth0"), "{error}");
        let plugin = &mut chain.conflist()["plugins"][0];
        plugin["delegate"] = json!({ "type": "no-such-plugin" });
        let error = failure(&chain);
        ensure!(error.contains("no-such-plugin") && error.contains("\"code\": 999"), "{error}");
        fs::remove_file(node.subnet_file())?;
        let error = failure(&chain);
        ensure!(
            error.contains("failed to load flannel 'subnet.env'") && error.contains("\"code\": 11"),
            "{error}"
        );
        Ok(())
    })
}

/// Pods by kube-flannel's conflist on nodes that run the agent: everybody reaches everybody, in every way, on the fast
/// path as on the kernel's.
#[test]
fn pods_of_kube_flannels_conflist_reach_each_other() -> Result<()> {
    in_lab(|lab| {
        let etcd = lab.etcd()?;
        let options = PodOptions { plugins: Plugins::KubeFlannel, ..PodOptions::default() };
        let start = |fast_path| -> Result<Member> {
            let mut member = Member::start(lab.node()?, &etcd, fast_path, 0)?;
            for name in ["pod1", "pod2"] {
                member.pods.push(member.node.pod_with(name, &options)?);
            }
            Ok(member)
        };
        let mut members = [start(FastPath::All)?, start(FastPath::Overlay)?, start(FastPath::Off)?];
        let pods =
            || members.iter().flat_map(|member| &member.pods).map(|pod| pod.endpoint()).collect::<Vec<_>>();
        eventually(PATIENCE, "everyone reaches everyone", || reachability(&pods()).check_complete())?;
        every_kind_both_ways(&members[0].pod()?, &members[1].pod()?)?;
        every_kind_both_ways(&members[0].pod()?, &members[2].pod()?)?;
        let gone = members[0].pods.pop().context("a pod")?;
        gone.remove()?;
        let again = members[0].node.pod_with("pod3", &options)?;
        members[0].pods.push(again);
        let pods: Vec<_> = members.iter().flat_map(|member| &member.pods).map(|pod| pod.endpoint()).collect();
        eventually(PATIENCE, "a pod made anew is reached", || reachability(&pods).check_complete())
    })
}

/// `hostPort`, by portmap behind our plugin: from another node and from a pod of another node, and no more once the
/// pod is gone.
#[test]
fn host_ports_are_forwarded_by_portmap() -> Result<()> {
    in_lab(|lab| {
        let etcd = lab.etcd()?;
        let a = Member::start(lab.node()?, &etcd, FastPath::Flow, 1)?;
        let b = Member::start(lab.node()?, &etcd, FastPath::Flow, 0)?;
        let options = PodOptions { plugins: Plugins::KubeFlannel, host_ports: vec![(8080, 80)] };
        let server = b.node.pod_with("server", &options)?;
        let target = SocketAddr::from((b.node.address(), 8080));
        let listener =
            server.netns().inside(|| std::net::TcpListener::bind("0.0.0.0:80").context("listen"))?;
        let served = std::thread::spawn(move || {
            for stream in listener.incoming().take(2) {
                use std::io::Write as _;
                let _ = stream.and_then(|mut stream| stream.write_all(b"here"));
            }
        });
        let read = |from: &Netns| {
            from.inside(|| {
                use std::io::Read as _;
                let mut stream = std::net::TcpStream::connect_timeout(&target, Duration::from_secs(2))?;
                stream.set_read_timeout(Some(Duration::from_secs(2)))?;
                let mut text = String::new();
                stream.read_to_string(&mut text)?;
                ensure!(text == "here", "{text:?}");
                Ok(())
            })
        };
        eventually(PATIENCE, "the node's port leads to the pod", || read(a.node.netns()))?;
        eventually(PATIENCE, "for a pod, too", || read(a.pods[0].netns()))?;
        served.join().map_err(|_| anyhow::anyhow!("the server panicked"))?;
        server.remove()?;
        ensure!(read(a.node.netns()).is_err(), "the port is still forwarded");
        let rules = b.node.netns().run("iptables-save", &["-t", "nat"])?;
        ensure!(!rules.contains("8080"), "portmap's rules are still there:\n{rules}");
        Ok(())
    })
}
