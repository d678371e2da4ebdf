//! Our CNI plugin, with the real `bridge`, `host-local` and `portmap`.

use std::{fs, net::Ipv4Addr, os::unix::fs::PermissionsExt as _, time::Duration};

use anyhow::{Context as _, Result, ensure};
use flannel_lab::{
    AgentOptions, Chain, FastPath, Lab, Member, Netns, Node, PREFIX, Plugins, PodOptions, eventually, in_lab,
    traffic::{every_kind_both_ways, reachability, source_seen},
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

/// A node with a subnet file and a chain of our plugin alone, which has this delegate.
fn node_with(lab: &Lab, env: &str, delegate: &str) -> Result<(Node, Chain)> {
    let node = lab.node()?;
    fs::write(node.subnet_file(), format!("{env}FLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n"))?;
    let plugin = json!({
        "type": "flannel",
        "subnetFile": node.subnet_file(),
        "dataDir": Chain::data_dir(&node),
        "ipam": { "dataDir": node.dir().join("cni") },
        "delegate": { "type": delegate },
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
fn lifecycle(env: &str, ranges: &Value, routes: &Value, count: usize, delegate: &str) -> Result<()> {
    in_lab(|lab| {
        let (node, chain) = node_with(lab, env, delegate)?;
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
        // A kernel without netkit has veths in their place.
        let has_netkit = node.netns().ip("link add nk9 type netkit").is_ok();
        let kind = if delegate == "netkit" && has_netkit { "netkit" } else { "veth" };
        let shown = pod.ip("-d link show eth0")?;
        ensure!(shown.contains(&format!("\n    {kind} ")), "eth0 is no {kind}:\n{shown}");
        call("CHECK", &result)?;
        if delegate == "netkit" {
            pod.ip(&format!("addr del {} dev eth0", given[0]))?;
            let error = call("CHECK", &result).map_or_else(|error| format!("{error:#}"), |_| String::new());
            ensure!(error.contains(&given[0]), "the pod has lost an address, and CHECK says {error:?}");
        }

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
        "bridge",
    )
}

#[test]
fn lifecycle_with_ipv4_and_two_networks() -> Result<()> {
    lifecycle(
        "FLANNEL_NETWORK=10.1.0.0/16,192.168.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\n",
        &json!([[{ "subnet": "10.1.17.0/24" }]]),
        &json!([{ "dst": "10.1.0.0/16" }, { "dst": "192.168.0.0/16" }]),
        1,
        "bridge",
    )
}

#[test]
fn lifecycle_with_ipv6() -> Result<()> {
    lifecycle(
        "FLANNEL_IPV6_NETWORK=fc00::/48\nFLANNEL_IPV6_SUBNET=fc00::1/64\n",
        &json!([[{ "subnet": "fc00::/64" }]]),
        &json!([{ "dst": "fc00::/48" }]),
        1,
        "bridge",
    )
}

#[test]
fn lifecycle_with_both_families() -> Result<()> {
    with_both_families("bridge")
}

#[test]
fn lifecycle_with_netkit_or_veths_where_the_kernel_has_none() -> Result<()> {
    with_both_families("netkit")
}

fn with_both_families(delegate: &str) -> Result<()> {
    lifecycle(
        "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\n\
         FLANNEL_IPV6_NETWORK=fc00::/48\nFLANNEL_IPV6_SUBNET=fc00::1/64\n",
        &json!([[{ "subnet": "10.1.17.0/24" }], [{ "subnet": "fc00::/64" }]]),
        &json!([{ "dst": "10.1.0.0/16" }, { "dst": "fc00::/48" }]),
        2,
        delegate,
    )
}

/// A second ADD of a container that is there fails in the delegate, whose error comes through; so does that of a
/// plugin that is not installed.
#[test]
fn errors_come_from_where_they_arise() -> Result<()> {
    in_lab(|lab| {
        let (node, mut chain) =
            node_with(lab, "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\n", "bridge")?;
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

/// `hostPort`, by portmap behind our plugin, which asks for masquerading by a mark, from wherever one may call it; also
/// once the agent is gone and stock flannel's rules stand beside what it leaves; and no more once the pod is gone.
fn host_ports(fast_path: FastPath, nftables: bool) -> Result<()> {
    in_lab(|lab| {
        let etcd = lab.etcd()?;
        let config = format!(
            r#"{{"Network":"10.244.0.0/16","EnableNFTables":{nftables},"Backend":{{"Type":"vxlan"}}}}"#
        );
        etcd.put(&format!("{PREFIX}/config"), &config)?;
        let options = AgentOptions { fast_path, flags: vec!["--ip-masq".to_owned()] };
        let a = Member::start(lab.node()?, &etcd, options.clone(), 1)?;
        let mut b = Member::start(lab.node()?, &etcd, options, 0)?;
        let outside = lab.node()?.underlay_endpoint();
        let options = PodOptions { plugins: Plugins::KubeFlannel, host_ports: vec![(8080, 80)] };
        let published = b.node.pod_with("server", &options)?;
        let beside = b.node.pod_with("beside", &PodOptions { host_ports: Vec::new(), ..options })?.endpoint();
        let (server, peer) = (published.endpoint(), a.pod()?);
        let [node_a, node_b] = [&a, &b].map(|member| member.node.underlay_endpoint());
        // And whom the server sees; for one on its own node, whose address portmap has masqueraded, no matter whom.
        let ways = [
            (&node_a, node_b.address(), Some(node_a.address())),
            (&outside, node_b.address(), Some(outside.address())),
            (&peer, node_b.address(), Some(node_a.address())),
            (&beside, node_b.address(), None),
            (&server, node_b.address(), None),
            (&node_b, Ipv4Addr::LOCALHOST.into(), None),
            (&node_b, node_b.address(), None),
        ];
        let call = || {
            ways.iter().try_for_each(|(from, address, expected)| {
                let seen = source_seen(from, &server, 80, (*address, 8080))?;
                ensure!(
                    expected.is_none_or(|expected| seen == expected),
                    "{} is seen as {seen}",
                    from.name()
                );
                Ok(())
            })
        };
        let keep_addresses = || {
            let seen = source_seen(&beside, &peer, 81, (peer.address(), 81))?;
            ensure!(seen == beside.address(), "a pod of another node sees {seen}");
            Ok(())
        };
        eventually(PATIENCE, "the node's port leads to the pod", call)?;
        (0..2).try_for_each(|_| call())?;
        eventually(PATIENCE, "pods keep their addresses", keep_addresses)?;

        b.agent.kill()?;
        b.node.load_flannel_rules()?;
        (0..3)
            .try_for_each(|_| call().and_then(|()| keep_addresses()))
            .context("the agent is gone, and stock flannel's rules are there")?;

        published.remove()?;
        let rules = b.node.netns().run("iptables-save", &["-t", "nat"])?;
        ensure!(!rules.contains("8080"), "portmap's rules are still there:\n{rules}");
        ensure!(call().is_err(), "the port is still forwarded");
        Ok(())
    })
}

#[test]
fn host_ports_with_flow() -> Result<()> {
    host_ports(FastPath::Flow, false)
}

#[test]
fn host_ports_with_overlay_and_nftables() -> Result<()> {
    host_ports(FastPath::Overlay, true)
}

#[test]
fn host_ports_with_all() -> Result<()> {
    host_ports(FastPath::All, false)
}
