//! Nodes come up, reach each other, and keep what they had.

use std::{thread::sleep, time::Duration};

use anyhow::{Result, ensure};
use flannel_lab::{
    AgentOptions, FastPath, Node, in_kubernetes_lab,
    traffic::{Paced, every_kind::every_kind_both_ways},
};
use serde_json::Value;

use super::*;

fn vtep_mac(node: &Node) -> Result<String> {
    let links: Value = serde_json::from_str(&node.netns().ip("-json link show dev flannel.1")?)?;
    Ok(links[0]["address"].as_str().context("no MAC")?.to_owned())
}

/// Upstream's "kube-flannel manifest is accepted", as far as the daemon goes, and "preserves connectivity and subnet
/// leases across a flannel DaemonSet restart".
#[test]
fn three_nodes_by_the_manifests_role_and_config() -> Result<()> {
    in_kubernetes_lab(|lab| {
        let mut kube = Kube::start(lab)?;
        for _ in 0..3 {
            kube.join(lab, FastPath::All)?;
        }
        kube.await_reachable(&[])?;
        every_kind_both_ways(&kube.members[0].pod()?, &kube.members[2].pod()?)?;
        for Member { node, agent, .. } in &kube.members {
            ensure!(node.subnet_env()?.subnet.to_string() == cidr(node.number()));
            let written: Vec<(String, String)> = kube.annotations(&node.name())?.into_iter().collect();
            let expected = [
                ("backend-data", format!(r#"{{"VNI":1,"VtepMAC":"{}"}}"#, vtep_mac(node)?)),
                ("backend-type", "vxlan".to_owned()),
                ("kube-subnet-manager", "true".to_owned()),
                ("public-ip", node.address().to_string()),
            ]
            .map(|(name, value)| (name.to_owned(), value));
            ensure!(written == expected, "{}: {written:?}", node.name());
            kube.await_condition(node)?;
            ensure!(!agent.log().contains("forbidden"), "{}", agent.log());
        }

        let (a, b) = (kube.members[0].pod()?, kube.members[1].pod()?);
        let traffic = Paced::usual(&a, &b)?;
        let before = kube.members[0].node.subnet_env()?.subnet;
        let restarted = &mut kube.members[0];
        restarted.agent.kill()?;
        sleep(Duration::from_millis(500));
        restarted.agent.start_again()?;
        restarted.agent.terminate()?;
        restarted.agent.start_again()?;
        sleep(Duration::from_millis(500));
        traffic.stop()?.check_lossless()?;
        ensure!(restarted.node.subnet_env()?.subnet == before);

        // A node that was rebooted has no device, but its annotation.
        let mac = vtep_mac(&restarted.node)?;
        restarted.agent.terminate()?;
        restarted.node.netns().ip("link del flannel.1")?;
        restarted.agent.start_again()?;
        ensure!(vtep_mac(&restarted.node)? == mac, "another MAC after the device was gone");
        kube.await_reachable(&[])
    })
}

/// In a cluster that came by one of flannel's first manifests.
#[test]
fn stock_nodes_before_and_after_ours() -> Result<()> {
    in_kubernetes_lab(|lab| {
        let mut kube = Kube::start(lab)?;
        let (early_node, mut early) = kube.join_stock(lab)?;
        kube.api.apply(&[manifest::flannels_first_role()?])?;
        eventually(CONVERGENCE, "a node may only be listed", || {
            let by_name = format!("/api/v1/nodes/{}", early_node.name());
            let answer = kube.api.request_as(&kube.token, "GET", &by_name, None)?;
            ensure!(answer.status == 403, "{answer:?}");
            Ok(())
        })?;
        kube.join(lab, FastPath::All)?;
        kube.join(lab, FastPath::Off)?;
        let (late_node, mut late) = kube.join_stock(lab)?;
        for member in &kube.members {
            let peer = kube.peer(&member.node.name())?;
            early.add_peer(peer)?;
            late.add_peer(peer)?;
        }
        early.add_peer(late.own())?;
        late.add_peer(early.own())?;
        let pods = [early_node.pod("pod1")?, late_node.pod("pod1")?];
        let others: Vec<Endpoint> = pods.iter().map(Pod::endpoint).collect();
        kube.await_reachable(&others)?;

        late.change_mac()?;
        let data = format!(r#"{{"VNI":1,"VtepMAC":"{}"}}"#, late.own().mac);
        kube.annotate(&late_node.name(), &[("backend-data", &data)])?;
        early.add_peer(late.own())?;
        kube.await_reachable(&others)?;

        let gone = late.own().subnet.to_string();
        await_route(&kube.members[0].node, &gone, true)?;
        kube.api.delete(&format!("/api/v1/nodes/{}", late_node.name()))?;
        for member in &kube.members {
            await_route(&member.node, &gone, false)?;
        }
        kube.await_reachable(&others[..1])
    })
}

/// Upstream's "public-ip-overwrite annotation propagates", and the node's own addresses.
#[test]
fn annotations_of_an_operator() -> Result<()> {
    in_kubernetes_lab(|lab| {
        let mut kube = Kube::start(lab)?;
        let node = kube.machine(lab)?;
        kube.annotate(&node.name(), &[("public-ip-overwrite", "172.18.0.2")])?;
        let agent = node.agent_in_kubernetes(&kube.access, FastPath::Off.into())?;
        ensure!(kube.annotations(&node.name())?["public-ip"] == "172.18.0.2");
        // Taken back while it runs.
        kube.annotate(&node.name(), &[("public-ip-overwrite", "")])?;
        eventually(CONVERGENCE, "our own address is published again", || {
            let published = kube.annotations(&node.name())?["public-ip"].clone();
            ensure!(published == node.address().to_string(), "{published}");
            Ok(())
        })?;
        kube.members.push(Member { pods: Vec::new(), agent, node });

        let node = kube.machine(lab)?;
        node.netns().ip("addr add 192.168.77.99/24 dev eth0")?;
        kube.annotate(&node.name(), &[("node-public-ip", "192.168.77.99")])?;
        let agent = node.agent_in_kubernetes(&kube.access, FastPath::Off.into())?;
        ensure!(kube.annotations(&node.name())?["public-ip"] == "192.168.77.99");
        kube.members.push(Member { pods: Vec::new(), agent, node });

        let node = kube.machine(lab)?;
        let flags = vec!["--kube-annotation-prefix=example.org/lab".to_owned()];
        let options = AgentOptions { fast_path: FastPath::Off, flags };
        // As its pod knows it, by the manifest's variables.
        let pod = json!({
            "metadata": {"name": "kube-flannel-ds-x1"},
            "spec": {"nodeName": node.name(), "containers": [{"name": "kube-flannel", "image": "none"}]},
        });
        kube.api.create(&format!("/api/v1/namespaces/{NAMESPACE}/pods"), &pod)?;
        let mut agent = node.prepared_in_kubernetes(&kube.access, options);
        agent.set_variable("NODE_NAME", "");
        agent.set_variable("POD_NAMESPACE", NAMESPACE);
        agent.set_variable("POD_NAME", "kube-flannel-ds-x1");
        agent.start_again()?;
        let object = kube.api.get(&format!("/api/v1/nodes/{}", node.name()))?;
        let annotations = object["metadata"]["annotations"].as_object().context("no annotations")?;
        let names: Vec<&str> = annotations.keys().map(String::as_str).collect();
        ensure!(names.contains(&"example.org/lab-backend-data"), "{names:?}");
        ensure!(!names.iter().any(|name| name.starts_with(PREFIX)), "{names:?}");
        Ok(())
    })
}
