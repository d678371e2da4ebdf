//! The external interface changes under a running agent: its address, its index, its MTU. The dataplane and the
//! lease follow, and pods keep their addresses.

use std::{
    fs,
    io::Write as _,
    net::Ipv4Addr,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use flannel_lab::{
    AgentOptions, CONVERGENCE, Cluster, FastPath, Lab, Member, PREFIX, UNDERLAY_ADDRESS, eventually, in_lab,
    traffic::{Endpoint, Paced, PacedReport, ping::ping},
};
use serde_json::Value;

const NEW: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 101);
const VXLAN: &str = r#"{"Type":"vxlan"}"#;
const HOST_GW: &str = r#"{"Type":"host-gw"}"#;

fn cluster(lab: &Lab, backend: &str, fast_path: FastPath) -> Result<Cluster> {
    let etcd = lab.etcd()?;
    let config = format!(
        r#"{{"Network":"10.244.0.0/16","SubnetMin":"10.244.16.0","SubnetMax":"10.244.63.0","Backend":{backend}}}"#
    );
    etcd.put(&format!("{PREFIX}/config"), &config)?;
    let members =
        (0..2).map(|_| Member::start(lab.node()?, &etcd, fast_path, 1)).collect::<Result<Vec<_>>>()?;
    let cluster = Cluster { members, etcd };
    cluster.await_reachable(&[])?;
    if backend == VXLAN {
        await_fast_path(&cluster, fast_path)?;
    }
    Ok(cluster)
}

fn await_fast_path(cluster: &Cluster, fast_path: FastPath) -> Result<()> {
    cluster.await_fast_path(0, 1, fast_path)?;
    cluster.await_fast_path(1, 0, fast_path)
}

/// The first node's lease.
fn lease(cluster: &Cluster) -> Result<Value> {
    let subnet = cluster.members[0].node.subnet_env()?.subnet;
    let leases = cluster.etcd.leases()?;
    ensure!(leases.len() == cluster.members.len(), "{leases:?}");
    leases.get(&subnet).cloned().with_context(|| format!("no lease of {subnet}"))
}

/// The first node's VXLAN device.
fn device(cluster: &Cluster) -> Result<Value> {
    let shown = cluster.members[0].node.netns().ip("-j -d link show flannel.1")?;
    let shown: Value = serde_json::from_str(&shown)?;
    Ok(shown[0].clone())
}

/// Disturbs the first node's underlay while its pod talks to the second's, until they talk again; prints what
/// that cost.
fn under_traffic(what: &str, cluster: &Cluster, disturb: impl FnOnce() -> Result<()>) -> Result<PacedReport> {
    let flow = Paced::usual(&cluster.members[0].pod()?, &cluster.members[1].pod()?)?;
    sleep(Duration::from_millis(300));
    disturb()?;
    eventually(Duration::from_secs(30), "pods talk again, both ways", || {
        let before = flow.received();
        sleep(Duration::from_millis(100));
        let after = flow.received();
        ensure!(after.0 > before.0 && after.1 > before.1, "{before:?}, then {after:?}");
        Ok(())
    })?;
    let report = flow.stop()?;
    println!("{what}: {report}");
    cluster.await_reachable(&[])?;
    Ok(report)
}

fn move_address(member: &Member, to: Ipv4Addr) -> Result<()> {
    let from = member.node.address();
    member.node.netns().ip_batch(&format!(
        "addr del {from}/24 dev eth0\naddr add {to}/24 dev eth0\n\
         route replace default via {UNDERLAY_ADDRESS} dev eth0\n"
    ))
}

/// Waits until the first node's lease says so.
fn await_published(cluster: &Cluster, address: Ipv4Addr) -> Result<()> {
    let start = Instant::now();
    eventually(Duration::from_secs(30), "the lease has the new address", || {
        let lease = lease(cluster)?;
        ensure!(lease["PublicIP"] == address.to_string(), "{lease}");
        Ok(())
    })?;
    println!("published after {:?}", start.elapsed());
    Ok(())
}

/// The moved node hears of leases over a connection from its new address, not when the old one is given up.
fn knows_of_newcomers(cluster: &Cluster, backend: &str) -> Result<()> {
    let subnet = "10.244.190.0/24".parse()?;
    let data = r#","BackendData":{"VNI":1,"VtepMAC":"0e:00:00:00:00:01"}"#;
    let (kind, data) = if backend == VXLAN { ("vxlan", data) } else { ("host-gw", "") };
    let attrs = format!(r#"{{"PublicIP":"192.168.77.190","PublicIPv6":null,"BackendType":"{kind}"{data}}}"#);
    cluster.etcd.put_lease(subnet, &attrs)?;
    eventually(Duration::from_secs(10), "the moved node routes to a newcomer", || {
        let shown = cluster.members[0].node.netns().ip(&format!("route show {subnet}"))?;
        ensure!(!shown.is_empty(), "no route to {subnet}");
        Ok(())
    })?;
    cluster.etcd.delete_lease(subnet)
}

/// The first node gets another address, as from another DHCP server.
fn address_changes(backend: &str, fast_path: FastPath) -> Result<()> {
    in_lab(|lab| {
        let mut cluster = cluster(lab, backend, fast_path)?;
        let before = (lease(&cluster)?, cluster.members[0].node.subnet_env()?);
        let mac = if backend == VXLAN { Some(device(&cluster)?["address"].clone()) } else { None };
        under_traffic(&format!("{backend}, {fast_path:?}: another address"), &cluster, || {
            move_address(&cluster.members[0], NEW)?;
            await_published(&cluster, NEW)
        })?;
        let mut expected = before.0;
        expected["PublicIP"] = NEW.to_string().into();
        let now = lease(&cluster)?;
        ensure!(now == expected, "{now} instead of {expected}");
        ensure!(cluster.members[0].node.subnet_env()? == before.1, "subnet.env has changed");
        if let Some(mac) = mac {
            let device = device(&cluster)?;
            ensure!(device["address"] == mac, "{device}");
            ensure!(device["linkinfo"]["info_data"]["local"] == NEW.to_string(), "{device}");
            await_fast_path(&cluster, fast_path)?;
        }
        for member in &mut cluster.members {
            member.agent.check_running()?;
        }
        knows_of_newcomers(&cluster, backend)?;
        let (a, b) = (&cluster.members[0], &cluster.members[1]);
        let host = Endpoint::new("moved host".to_owned(), a.node.netns().clone(), NEW);
        ping(&host, &b.pod()?, 56).context("the moved host itself")?;
        // What is restarted then finds everything as it is.
        let kept = lease(&cluster)?;
        cluster.members[0].agent.kill()?;
        cluster.members[0].agent.start_again()?;
        ensure!(lease(&cluster)? == kept, "the restarted agent changed its lease");
        cluster.await_reachable(&[])
    })
}

#[test]
fn another_address_with_all() -> Result<()> {
    address_changes(VXLAN, FastPath::All)
}

#[test]
fn another_address_with_off() -> Result<()> {
    address_changes(VXLAN, FastPath::Off)
}

#[test]
fn another_address_with_host_gw() -> Result<()> {
    address_changes(HOST_GW, FastPath::Off)
}

/// A DHCP client that takes the address away for a moment changes nothing; nor does an address beside it.
#[test]
fn a_flap_of_the_address_changes_nothing() -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster(lab, VXLAN, FastPath::All)?;
        let node = &cluster.members[0].node;
        let identity = || -> Result<_> {
            let device = device(&cluster)?;
            Ok((lease(&cluster)?, device["ifindex"].clone(), device["address"].clone()))
        };
        let before = identity()?;
        let revision = cluster.etcd.ctl(&["endpoint", "status", "-w", "json"])?;
        let revision = |text: &str| -> Result<Value> {
            let status: Value = serde_json::from_str(text)?;
            Ok(status[0]["Status"]["header"]["revision"].clone())
        }(&revision)?;
        let flap = under_traffic("address removed and put back at once", &cluster, || {
            move_address(&cluster.members[0], node.address())
        })?;
        // What the kernel refuses between the two commands, and no more.
        let lost = flap.forward.lost() + flap.backward.lost();
        ensure!(lost < 100, "a flap of milliseconds lost {lost} packets: {flap}");
        let away = under_traffic("address away for a second", &cluster, || {
            node.netns().ip(&format!("addr del {}/24 dev eth0", node.address()))?;
            sleep(Duration::from_secs(1));
            node.netns().ip_batch(&format!(
                "addr add {}/24 dev eth0\nroute replace default via {UNDERLAY_ADDRESS} dev eth0\n",
                node.address()
            ))
        })?;
        // Programs go the ways that were known; the kernel would have lost a thousand.
        let lost = away.forward.lost() + away.backward.lost();
        ensure!(lost < 500, "{lost} packets lost: {away}");
        let beside = under_traffic("another address beside it", &cluster, || {
            node.netns().ip(&format!("addr add {NEW}/24 dev eth0"))?;
            sleep(Duration::from_secs(3));
            node.netns().ip(&format!("addr del {NEW}/24 dev eth0")).map(drop)
        })?;
        beside.check_lossless()?;
        under_traffic("eth0 down and up", &cluster, || {
            node.netns().ip("link set eth0 down")?;
            sleep(Duration::from_secs(3));
            node.netns().ip_batch(&format!(
                "link set eth0 up\nroute replace default via {UNDERLAY_ADDRESS} dev eth0\n"
            ))
        })?;
        ensure!(identity()? == before, "{:?} instead of {before:?}", identity()?);
        let status: Value = serde_json::from_str(&cluster.etcd.ctl(&["endpoint", "status", "-w", "json"])?)?;
        ensure!(status[0]["Status"]["header"]["revision"] == revision, "something was written to etcd");
        let log = cluster.members[0].agent.log();
        ensure!(log.contains("our address is back; nothing has changed"), "{log}");
        await_fast_path(&cluster, FastPath::All)
    })
}

/// While there is no address at all, everything stays as it is and the log says so.
#[test]
fn without_an_address_everything_stays() -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster(lab, VXLAN, FastPath::Flow)?;
        let before = (lease(&cluster)?, device(&cluster)?["ifindex"].clone());
        let member = &cluster.members[0];
        under_traffic("no address for a while, then another", &cluster, || {
            member.node.netns().ip(&format!("addr del {}/24 dev eth0", member.node.address()))?;
            eventually(CONVERGENCE, "the log says that nothing can be done", || {
                let log = member.agent.log();
                ensure!(log.contains("everything stays as it is"), "{log}");
                Ok(())
            })?;
            ensure!((lease(&cluster)?, device(&cluster)?["ifindex"].clone()) == before, "it did not stay");
            member.node.netns().ip_batch(&format!(
                "addr add {NEW}/24 dev eth0\nroute replace default via {UNDERLAY_ADDRESS} dev eth0\n"
            ))
        })?;
        ensure!(lease(&cluster)?["PublicIP"] == NEW.to_string(), "{}", lease(&cluster)?);
        Ok(())
    })
}

/// `--public-ip` is what peers are told, wherever the interface goes.
#[test]
fn a_fixed_public_address_is_kept() -> Result<()> {
    in_lab(|lab| {
        // An address that leads here whatever the interface has.
        let fixed = "192.168.77.201";
        let etcd = lab.etcd()?;
        let node = lab.node()?;
        node.netns().ip(&format!("addr add {fixed}/32 dev lo"))?;
        let flags = vec![format!("--public-ip={fixed}")];
        let agent = node.agent(&etcd, AgentOptions { fast_path: FastPath::Off, flags })?;
        let member = Member { pods: vec![node.pod("pod1")?], agent, node };
        let other = Member::start(lab.node()?, &etcd, FastPath::Off, 1)?;
        let cluster = Cluster { members: vec![member, other], etcd };
        cluster.await_reachable(&[])?;
        let before = cluster.etcd.leases()?;
        under_traffic("another address behind --public-ip", &cluster, || {
            move_address(&cluster.members[0], NEW)?;
            eventually(CONVERGENCE, "the device has the new address", || {
                let device = device(&cluster)?;
                ensure!(device["linkinfo"]["info_data"]["local"] == NEW.to_string(), "{device}");
                Ok(())
            })
        })?;
        let device = device(&cluster)?;
        ensure!(device["linkinfo"]["info_data"]["local"] == NEW.to_string(), "{device}");
        ensure!(cluster.etcd.leases()? == before, "{:?} instead of {before:?}", cluster.etcd.leases()?);
        Ok(())
    })
}

fn mtu_changes(backend: &str, overhead: u32) -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster(lab, backend, FastPath::All)?;
        let member = &cluster.members[0];
        let index = || -> Result<Value> {
            Ok(if backend == VXLAN { device(&cluster)?["ifindex"].clone() } else { Value::Null })
        };
        let before = (lease(&cluster)?, index()?);
        // As mk-docker-opts.sh -d writes it, where docker reads its options from the same file.
        let options = "DOCKER_OPTS=\" --bip=10.244.1.1/24 --mtu=1450\"\n";
        let file = member.node.subnet_file();
        fs::OpenOptions::new().append(true).open(&file)?.write_all(options.as_bytes())?;
        for mtu in [1400, 1500] {
            let flow = Paced::usual(&member.pod()?, &cluster.members[1].pod()?)?;
            member.node.netns().ip(&format!("link set eth0 mtu {mtu}"))?;
            eventually(CONVERGENCE, "subnet.env and device have the MTU", || {
                let env = member.node.subnet_env()?;
                ensure!(env.mtu == mtu - overhead, "{env:?}");
                let text = fs::read_to_string(&file)?;
                ensure!(text.ends_with(options), "{text}");
                if backend == VXLAN {
                    let device = device(&cluster)?;
                    ensure!(device["mtu"] == mtu - overhead, "{device}");
                }
                Ok(())
            })?;
            sleep(Duration::from_millis(200));
            let report = flow.stop()?;
            println!("{backend}: MTU {mtu}: {report}");
            report.check_lossless()?;
        }
        ensure!((lease(&cluster)?, index()?) == before, "a new device or lease");
        let log = member.agent.log();
        ensure!(log.contains("running pods keep theirs"), "{log}");
        Ok(())
    })
}

#[test]
fn another_mtu_with_vxlan() -> Result<()> {
    mtu_changes(VXLAN, 50)
}

#[test]
fn another_mtu_with_host_gw() -> Result<()> {
    mtu_changes(HOST_GW, 0)
}

/// The interface is deleted and made anew, as when a bond or a driver is set up again.
fn interface_made_anew(backend: &str, fast_path: FastPath) -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster(lab, backend, fast_path)?;
        let member = &cluster.members[0];
        let before = lease(&cluster)?;
        let (underlay, node) = (lab.underlay()?, member.node.netns());
        under_traffic(&format!("{backend}, {fast_path:?}: eth0 made anew"), &cluster, || {
            node.ip("link del eth0")?;
            sleep(Duration::from_millis(500));
            underlay.ip_batch(&format!(
                "link add node1 type veth peer name eth0 netns {}\nlink set node1 master br0\nlink set node1 up\n",
                node.name()
            ))?;
            node.ip_batch(&format!(
                "addr add {}/24 dev eth0\nlink set eth0 up\nroute add default via {UNDERLAY_ADDRESS} dev eth0\n",
                member.node.address()
            ))
        })?;
        ensure!(lease(&cluster)? == before, "{} instead of {before}", lease(&cluster)?);
        if backend == VXLAN {
            let device = device(&cluster)?;
            ensure!(device["address"] == before["BackendData"]["VtepMAC"], "{device}");
            await_fast_path(&cluster, fast_path)?;
        }
        Ok(())
    })
}

#[test]
fn an_interface_made_anew_with_all() -> Result<()> {
    interface_made_anew(VXLAN, FastPath::All)
}

#[test]
fn an_interface_made_anew_with_host_gw() -> Result<()> {
    interface_made_anew(HOST_GW, FastPath::Off)
}
