//! Nodes that change under the agent's feet.

use flannel_lab::{FastPath, agent_binary, in_kubernetes_lab, traffic::Paced};

use super::*;

#[test]
fn a_pod_cidr_that_comes_late_is_waited_for() -> Result<()> {
    in_kubernetes_lab(|lab| {
        let mut kube = Kube::start(lab)?;
        kube.join(lab, FastPath::Off)?;
        let node = lab.node()?;
        kube.api.add_node(&node, &[])?;
        let mut agent = node.prepared_in_kubernetes(&kube.access, FastPath::Off.into());
        let before = agent.subnet_file_now();
        agent.launch()?;
        await_log(&agent, "pod cidr not assigned")?;
        kube.await_event(&node, "NoPodCIDR")?;
        let mut status = node.netns().command(&agent_binary()?.display().to_string());
        status.arg("status").arg(format!("--subnet-file={}", node.subnet_file().display()));
        let status = String::from_utf8(status.output()?.stdout)?;
        let words = status.split_whitespace().collect::<Vec<_>>().join(" ");
        ensure!(words.contains("pod cidr not assigned: waiting for it"), "{status}");
        let cidr = cidr(node.number());
        let patch = json!({"spec": {"podCIDR": cidr, "podCIDRs": [cidr]}});
        kube.api.patch(&format!("/api/v1/nodes/{}", node.name()), &patch)?;
        agent.await_subnet_file(before)?;
        let pods = vec![node.pod("pod1")?];
        kube.members.push(Member { pods, agent, node });
        kube.await_reachable(&[])
    })
}

#[test]
fn a_node_made_anew_with_another_pod_cidr() -> Result<()> {
    in_kubernetes_lab(|lab| {
        let mut kube = Kube::start(lab)?;
        kube.join(lab, FastPath::All)?;
        kube.join(lab, FastPath::All)?;
        kube.await_reachable(&[])?;
        let (name, pid) = (kube.members[1].node.name(), kube.members[1].agent.pid()?);
        let before = kube.members[1].agent.subnet_file_now();
        kube.api.delete(&format!("/api/v1/nodes/{name}"))?;
        await_log(&kube.members[1].agent, "our Node was deleted")?;
        await_route(&kube.members[0].node, "10.244.2.0/24", false)?;

        kube.api.add_node(&kube.members[1].node, &[cidr(77)])?;
        let moved = &mut kube.members[1];
        moved.agent.await_subnet_file(before)?;
        ensure!(moved.node.subnet_env()?.subnet.to_string() == cidr(77));
        ensure!(moved.agent.pid()? == pid, "it started over in place");
        await_route(&kube.members[0].node, &cidr(77), true)?;
        // What kubelet does when its pods are restarted.
        let moved = &mut kube.members[1];
        moved.pods.clear();
        moved.node.netns().ip("link del cni0")?;
        moved.pods.push(moved.node.pod("pod2")?);
        kube.await_reachable(&[])
    })
}

#[test]
fn annotations_edited_to_garbage_are_mended_and_nothing_is_lost() -> Result<()> {
    in_kubernetes_lab(|lab| {
        let mut kube = Kube::start(lab)?;
        kube.join(lab, FastPath::All)?;
        kube.join(lab, FastPath::All)?;
        kube.await_reachable(&[])?;
        let name = kube.members[1].node.name();
        let good = kube.annotations(&name)?;
        let traffic = Paced::usual(&kube.members[0].pod()?, &kube.members[1].pod()?)?;
        for garbage in [
            [("backend-data", "nonsense")],
            [("public-ip", "nonsense")],
            [("backend-data", r#"{"VNI":1,"VtepMAC":"00:00:00:00:00:00"}"#)],
            [("kube-subnet-manager", "false")],
        ] {
            kube.annotate(&name, &garbage)?;
            eventually(CONVERGENCE, "its annotations are mended", || {
                let now = kube.annotations(&name)?;
                ensure!(now == good, "{now:?}");
                Ok(())
            })?;
        }
        traffic.stop()?.check_lossless()?;
        await_log(&kube.members[1].agent, "somebody has changed the annotations of our lease")?;
        let node = &kube.members[1].node;
        let mut status = node.netns().command(&agent_binary()?.display().to_string());
        status.arg("status").arg(format!("--subnet-file={}", node.subnet_file().display()));
        let status = String::from_utf8(status.output()?.stdout)?;
        let words = status.split_whitespace().collect::<Vec<_>>().join(" ");
        let named = format!("somebody else writes the annotations of our Node {name} again and again");
        ensure!(words.contains(&named) && words.contains("written again 4 times"), "{status}");
        Ok(())
    })
}
