//! Backends by their names: what each makes of a node, and what refuses to start.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use flannel_lab::{
    Agent, CONVERGENCE, Cluster, Etcd, FastPath, Lab, Member, Node, PREFIX, eventually, in_lab,
    traffic::ping::ping,
};
use serde_json::{Value, json};

fn etcd(lab: &Lab, backend: &str) -> Result<Etcd> {
    let etcd = lab.etcd()?;
    configure(&etcd, &format!(r#","Backend":{backend}"#))?;
    Ok(etcd)
}

fn configure(etcd: &Etcd, backend: &str) -> Result<()> {
    etcd.put(
        &format!("{PREFIX}/config"),
        &format!(
            r#"{{"Network":"10.244.0.0/16","SubnetMin":"10.244.16.0","SubnetMax":"10.244.63.0"{backend}}}"#
        ),
    )
}

/// `ip -j -d link show flannel.<vni>`: the whole, and what is particular to VXLAN.
fn device(node: &Node, vni: u32) -> Result<(Value, Value)> {
    let shown = node.netns().ip(&format!("-j -d link show flannel.{vni}"))?;
    let shown: Value = serde_json::from_str(&shown)?;
    Ok((shown[0].clone(), shown[0]["linkinfo"]["info_data"].clone()))
}

#[test]
fn alloc_leases_and_does_nothing_else() -> Result<()> {
    in_lab(|lab| {
        let etcd = etcd(lab, r#"{"Type":"alloc"}"#)?;
        let mut members = (0..2)
            .map(|_| Member::start(lab.node()?, &etcd, FastPath::All, 1))
            .collect::<Result<Vec<_>>>()?;
        let routes = members[0].node.netns().ip("route show")?;
        etcd.put_lease(
            "10.244.190.0/24".parse()?,
            r#"{"PublicIP":"192.168.77.190","PublicIPv6":null,"BackendType":"host-gw"}"#,
        )?;
        std::thread::sleep(Duration::from_secs(1));
        let leases = etcd.leases()?;
        for member in &mut members {
            member.agent.check_running()?;
            let env = member.node.subnet_env()?;
            ensure!(env.mtu == 1500, "{env:?}");
            let published = &leases[&env.subnet];
            ensure!(
                *published == json!({"PublicIP": member.node.address(), "PublicIPv6": null}),
                "{published}"
            );
            ensure!(!member.node.netns().ip("link show")?.contains("flannel"), "a device was made");
            let log = member.agent.log();
            ensure!(log.contains("the alloc backend moves no packets"), "{log}");
        }
        ensure!(members[0].node.netns().ip("route show")? == routes, "routes were made");

        // The lease is kept: one that is deleted comes back.
        let own = members[0].node.subnet_env()?.subnet;
        etcd.delete_lease(own)?;
        eventually(CONVERGENCE, "the lease is taken back", || {
            ensure!(etcd.leases()?.contains_key(&own), "{:?}", etcd.leases()?);
            Ok(())
        })
    })
}

#[test]
fn the_vxlan_device_has_the_configured_options() -> Result<()> {
    in_lab(|lab| {
        let etcd =
            etcd(lab, r#"{"Type":"vxlan","VNI":7,"Port":4789,"MTU":1400,"GBP":true,"Learning":true}"#)?;
        let members = (0..2)
            .map(|_| Member::start(lab.node()?, &etcd, FastPath::All, 1))
            .collect::<Result<Vec<_>>>()?;
        for member in &members {
            let (link, data) = device(&member.node, 7)?;
            for (name, value) in [
                ("id", json!(7)),
                ("port", json!(4789)),
                ("gbp", json!(true)),
                ("learning", json!(true)),
                ("link", json!("eth0")),
                ("local", json!(member.node.address())),
            ] {
                ensure!(data[name] == value, "{name} in {data}");
            }
            ensure!(link["mtu"] == 1350, "{link}");
            ensure!(member.node.subnet_env()?.mtu == 1350);
            let log = member.agent.log();
            ensure!(log.contains("Backend.GBP: the programs do not write"), "{log}");
        }
        let cluster = Cluster { members, etcd };
        cluster.await_reachable(&[])?;
        ping(&cluster.members[0].pod()?, &cluster.members[1].pod()?, 4000).map(drop)
    })
}

/// As upstream compares: GBP takes another device, and with it another MAC; learning does not.
#[test]
fn options_that_change_over_a_restart_change_the_device() -> Result<()> {
    in_lab(|lab| {
        let etcd = etcd(lab, r#"{"Type":"vxlan"}"#)?;
        let mut members = (0..2)
            .map(|_| Member::start(lab.node()?, &etcd, FastPath::All, 1))
            .collect::<Result<Vec<_>>>()?;
        let identity = |link: &Value| (link["ifindex"].clone(), link["address"].clone());
        let before = identity(&device(&members[0].node, 1)?.0);
        let restart = |agent: &mut Agent| {
            agent.terminate()?;
            agent.start_again()
        };

        configure(&etcd, r#","Backend":{"Type":"vxlan","Learning":true}"#)?;
        restart(&mut members[0].agent)?;
        let (link, data) = device(&members[0].node, 1)?;
        ensure!(identity(&link) == before && data["learning"] == true, "{link}");
        ensure!(members[0].agent.log().contains("Backend.Learning: the kernel must see"), "no word of it");

        configure(&etcd, r#","Backend":{"Type":"vxlan","GBP":true}"#)?;
        for member in &mut members {
            restart(&mut member.agent)?;
        }
        let (link, data) = device(&members[0].node, 1)?;
        ensure!(identity(&link) != before && data["gbp"] == true && data["learning"] == false, "{link}");
        let cluster = Cluster { members, etcd };
        cluster.await_reachable(&[])
    })
}

#[test]
fn what_is_not_built_refuses_to_start_and_says_what_to_use() -> Result<()> {
    in_lab(|lab| {
        let etcd = lab.etcd()?;
        let mut agent = lab.node()?.agent(&etcd, FastPath::Off.into())?;
        agent.terminate()?;
        for (backend, says) in [
            (r#","Backend":{"Type":"tencent-vpc"}"#, "or \"alloc\" and make the routes yourself"),
            (
                r#","Backend":{"Type":"geneve"}"#,
                "unknown backend type: geneve; set Backend.Type to \"vxlan\"",
            ),
        ] {
            configure(&etcd, backend)?;
            agent.launch()?;
            let status = agent.wait_for_end(Duration::from_secs(20)).context(backend)?;
            ensure!(status.code() == Some(1), "{backend}: {status}");
            let log = agent.log();
            ensure!(log.contains(says), "no {says:?} in\n{log}");
        }
        Ok(())
    })
}
