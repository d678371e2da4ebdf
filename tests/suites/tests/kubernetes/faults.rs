//! The API server fails, in each of its ways, and traffic goes on.

use std::{thread::sleep, time::Duration};

use flannel_lab::{FastPath, in_kubernetes_lab, kubernetes::WatchFault, traffic::Paced};

use super::*;

#[test]
fn without_an_api_server_nothing_is_lost() -> Result<()> {
    in_kubernetes_lab(|lab| {
        let mut kube = Kube::start(lab)?;
        kube.join(lab, FastPath::All)?;
        kube.join(lab, FastPath::All)?;
        kube.await_reachable(&[])?;
        let traffic = Paced::usual(&kube.members[0].pod()?, &kube.members[1].pod()?)?;
        kube.api.stop()?;
        for member in &kube.members {
            await_log(&member.agent, "Known leases stay in force")?;
        }
        sleep(Duration::from_secs(3));
        kube.api.start()?;
        for member in &kube.members {
            await_log(&member.agent, "the API server answers again")?;
        }
        traffic.stop()?.check_lossless()?;
        for member in &kube.members {
            let warnings = member.agent.log().matches("Known leases stay in force").count();
            ensure!(warnings < 20, "{warnings} lines about one outage");
        }
        kube.join(lab, FastPath::All)?;
        kube.await_reachable(&[])
    })
}

#[test]
fn what_breaks_a_watch_is_survived() -> Result<()> {
    in_kubernetes_lab(|lab| {
        let mut kube = Kube::start(lab)?;
        let faulty = kube.api.faulty()?;
        let direct = kube.access.kubeconfig.clone();
        kube.access.kubeconfig = kube.api.kubeconfig_for("faulty", &kube.token, faulty.url())?;

        // It starts while the API server refuses everything, and waits.
        faulty.refuse(Some(500));
        let node = kube.machine(lab)?;
        let mut agent = node.prepared_in_kubernetes(&kube.access, FastPath::Off.into());
        let before = agent.subnet_file_now();
        agent.launch()?;
        await_log(&agent, "refused with 500 by the lab")?;
        faulty.refuse(Some(401));
        await_log(&agent, "it does not know who we are")?;
        faulty.refuse(None);
        agent.await_subnet_file(before)?;
        kube.access.kubeconfig = direct;

        let mut last = 0;
        for (number, fault) in
            (100..).zip([WatchFault::Cut, WatchFault::Garbage, WatchFault::Gone, WatchFault::Cut])
        {
            eventually(CONVERGENCE, "it watches", || {
                ensure!(faulty.asked("watch") > last, "{} watches", faulty.asked("watch"));
                Ok(())
            })?;
            last = faulty.asked("watch");
            let hit = faulty.to_watches(fault);
            ensure!(hit >= 1, "{fault:?} found no watch");
            if number == 103 {
                faulty.refuse(Some(503));
                await_log(&agent, "refused with 503 by the lab")?;
            }
            // Made while nobody watches.
            let name = format!("made{number}");
            kube.api.create("/api/v1/nodes", &stock_object(&name, number))?;
            faulty.refuse(None);
            await_route(&node, &cidr(number), true).with_context(|| format!("after {fault:?}"))?;
        }
        kube.api.delete("/api/v1/nodes/made100")?;
        await_route(&node, &cidr(100), false)?;
        agent.check_running()
    })
}

/// What the backup says of a node is older than what the node wrote: nobody's watch tells of it, and its version is one that
/// was passed long ago.
#[test]
fn annotations_that_a_restored_backup_lacks_are_written_again_and_nothing_is_lost() -> Result<()> {
    in_kubernetes_lab(|lab| {
        let mut kube = Kube::start(lab)?;
        kube.join(lab, FastPath::All)?;
        let node = kube.machine(lab)?;
        kube.etcd.back_up()?;
        let agent = node.agent_in_kubernetes(&kube.access, FastPath::All.into())?;
        let pods = vec![node.pod("pod1")?];
        kube.members.push(Member { pods, agent, node });
        kube.await_reachable(&[])?;
        let name = kube.members[1].node.name();
        let good = kube.annotations(&name)?;
        let traffic = Paced::usual(&kube.members[0].pod()?, &kube.members[1].pod()?)?;
        kube.api.stop()?;
        kube.etcd.stop()?;
        kube.etcd.restore()?;
        kube.etcd.start()?;
        kube.api.start()?;
        eventually(CONVERGENCE, "its annotations are back", || {
            let now = kube.annotations(&name)?;
            ensure!(now == good, "{now:?}");
            Ok(())
        })?;
        await_log(&kube.members[1].agent, "restored from a backup")?;
        kube.await_reachable(&[])?;
        traffic.stop()?.check_lossless()
    })
}

/// A Node as stock flannel annotates it, of which there is no machine.
pub(crate) fn stock_object(name: &str, number: u8) -> Value {
    json!({
        "metadata": {"name": name, "annotations": {
            format!("{PREFIX}/kube-subnet-manager"): "true",
            format!("{PREFIX}/backend-type"): "vxlan",
            format!("{PREFIX}/backend-data"): format!(r#"{{"VNI":1,"VtepMAC":"0e:00:00:00:01:{number:02x}"}}"#),
            format!("{PREFIX}/public-ip"): format!("192.168.77.{number}"),
        }},
        "spec": {"podCIDR": cidr(number), "podCIDRs": [cidr(number)]},
    })
}
