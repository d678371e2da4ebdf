//! The agent goes and comes back under traffic, and no packet is lost.

use std::{fs, thread::sleep, time::Duration};

use anyhow::{Result, ensure};
use flannel_agent::bpf::{Attachment, TcAttach};
use flannel_common::map::{LAYOUT_VERSION, PIN_DIRECTORY};
use flannel_lab::{
    Agent, AgentOptions, CONVERGENCE, Cluster, FastPath, Lab, Xdp, eventually, in_lab, traffic::Paced,
};

/// Traffic between the pods of two nodes, and between a host and a pod, while `disturb` goes on.
fn under_traffic(cluster: &mut Cluster, disturb: impl FnOnce(&mut Cluster) -> Result<()>) -> Result<()> {
    let [a, b] = [&cluster.members[0], &cluster.members[1]];
    let pods = Paced::usual(&a.pod()?, &b.pod()?)?;
    let host = Paced::usual(&a.node.overlay_endpoint()?, &b.pod()?)?;
    sleep(Duration::from_millis(500));
    let outcome = disturb(cluster);
    sleep(Duration::from_millis(500));
    let (pods, host) = (pods.stop()?, host.stop()?);
    outcome?;
    pods.check_lossless()?;
    host.check_lossless()
}

fn ready(lab: &Lab, options: impl Into<AgentOptions>) -> Result<Cluster> {
    let options = options.into();
    let fast_path = options.fast_path;
    let cluster = Cluster::start(lab, 2, 1, options)?;
    cluster.await_fast_path(0, 1, fast_path)?;
    cluster.await_fast_path(1, 0, fast_path)?;
    Ok(cluster)
}

/// Ends the first node's agent with `end`, leaves it down for a while, and starts it again.
fn restarted(options: impl Into<AgentOptions>, end: impl Fn(&mut Agent) -> Result<()>) -> Result<()> {
    let options = options.into();
    let fast_path = options.fast_path;
    in_lab(|lab| {
        let mut cluster = ready(lab, options)?;
        under_traffic(&mut cluster, |cluster| {
            for _ in 0..2 {
                let agent = &mut cluster.members[0].agent;
                end(agent)?;
                sleep(Duration::from_millis(700));
                agent.start_again()?;
                cluster.await_fast_path(0, 1, fast_path)?;
                cluster.await_fast_path(1, 0, fast_path)?;
            }
            Ok(())
        })
    })
}

fn terminated(agent: &mut Agent) -> Result<()> {
    let status = agent.terminate()?;
    ensure!(status.success(), "SIGTERM ended the agent with {status}");
    Ok(())
}

#[test]
fn killed_with_all_loses_nothing() -> Result<()> {
    restarted(FastPath::All, Agent::kill)
}

#[test]
fn killed_with_flow_loses_nothing() -> Result<()> {
    restarted(FastPath::Flow, Agent::kill)
}

#[test]
fn killed_with_all_by_clsact_loses_nothing() -> Result<()> {
    restarted(FastPath::All.attached_by(TcAttach::Clsact), Agent::kill)
}

#[test]
fn killed_with_flow_by_clsact_loses_nothing() -> Result<()> {
    restarted(FastPath::Flow.attached_by(TcAttach::Clsact), Agent::kill)
}

#[test]
fn killed_with_off_loses_nothing() -> Result<()> {
    restarted(FastPath::Off, Agent::kill)
}

#[test]
fn terminated_with_all_loses_nothing() -> Result<()> {
    restarted(FastPath::All, terminated)
}

#[test]
fn terminated_with_flow_loses_nothing() -> Result<()> {
    restarted(FastPath::Flow, terminated)
}

#[test]
fn terminated_with_overlay_loses_nothing() -> Result<()> {
    restarted(FastPath::Overlay, terminated)
}

#[test]
fn terminated_with_off_loses_nothing() -> Result<()> {
    restarted(FastPath::Off, terminated)
}

/// Going back to the kernel's path and forth again is a restart like any other.
#[test]
fn another_fast_path_after_a_restart_loses_nothing() -> Result<()> {
    in_lab(|lab| {
        let mut cluster = ready(lab, FastPath::All)?;
        under_traffic(&mut cluster, |cluster| {
            for fast_path in [FastPath::Off, FastPath::All, FastPath::Overlay, FastPath::All] {
                for member in &mut cluster.members {
                    terminated(&mut member.agent)?;
                    member.agent.set_flag("fast-path", fast_path.name());
                    member.agent.start_again()?;
                }
                cluster.await_fast_path(0, 1, fast_path)?;
            }
            Ok(())
        })
    })
}

/// From links to filters and back: each restart leaves the programs attached in one way alone, so that no packet is
/// decided about twice.
#[test]
fn attached_another_way_after_a_restart_loses_nothing() -> Result<()> {
    in_lab(|lab| {
        // Qdiscs are there from the start: the kernel drops packets while one is made.
        let mut cluster = ready(lab, FastPath::Flow.attached_by(TcAttach::Clsact))?;
        let usual = cluster.members[0].node.netns().attachments()?;
        under_traffic(&mut cluster, |cluster| {
            let ways = [
                (TcAttach::Tcx, Attachment::Tcx),
                (TcAttach::Clsact, Attachment::Clsact),
                (TcAttach::Auto, Attachment::Tcx),
            ];
            for (choice, way) in ways {
                let member = &mut cluster.members[0];
                member.agent.kill()?;
                member.agent.set_flag("tc-attach", choice.label());
                member.agent.start_again()?;
                let member = &cluster.members[0];
                eventually(CONVERGENCE, "programs are attached in one way", || {
                    let now = member.node.netns().attachments()?;
                    ensure!(now.keys().eq(usual.keys()), "{now:?}, not {usual:?}");
                    ensure!(now.values().all(|ways| *ways == [way]), "not by {} alone: {now:?}", way.label());
                    Ok(())
                })?;
                cluster.await_fast_path(0, 1, FastPath::Flow)?;
                cluster.await_fast_path(1, 0, FastPath::Flow)?;
            }
            let said = cluster.members[0].agent.log();
            ensure!(said.contains("attached_by=\"clsact\"") || said.contains("attached_by=clsact"), "{said}");
            Ok(())
        })
    })
}

/// The agents of both nodes are replaced, one after the other, by some that know another layout of maps. What the old ones
/// have pinned is put where agents of that layout would have it, with their programs running on.
fn upgraded(options: impl Into<AgentOptions>) -> Result<()> {
    let options = options.into();
    let fast_path = options.fast_path;
    in_lab(|lab| {
        let mut cluster = ready(lab, options)?;
        let usual = cluster.members[0].node.netns().attachments()?;
        under_traffic(&mut cluster, |cluster| {
            for at in 0..cluster.members.len() {
                let agent = &mut cluster.members[at].agent;
                terminated(agent)?;
                let pins = agent.bpffs().join(PIN_DIRECTORY);
                let (new, old) = (pins.join(LAYOUT_VERSION), pins.join("v0"));
                fs::rename(&new, &old)?;
                sleep(Duration::from_millis(700));
                ensure!(!new.exists(), "an agent is there");
                agent.start_again()?;
                eventually(CONVERGENCE, "the programs are the new agent's", || {
                    ensure!(!old.exists() && new.exists(), "the old maps are there");
                    let now = cluster.members[at].node.netns().attachments()?;
                    ensure!(at != 0 || now == usual, "{now:?}, not {usual:?}");
                    Ok(())
                })?;
                let log = cluster.members[at].agent.log();
                ensure!(log.contains("another layout of maps"), "{log}");
                cluster.await_fast_path(0, 1, fast_path)?;
                cluster.await_fast_path(1, 0, fast_path)?;
            }
            Ok(())
        })
    })
}

#[test]
fn upgraded_to_another_layout_with_all_loses_nothing() -> Result<()> {
    upgraded(AgentOptions::new(FastPath::All.with(Xdp::Generic), &[]))
}

#[test]
fn upgraded_to_another_layout_with_native_xdp_loses_nothing() -> Result<()> {
    upgraded(AgentOptions::new(FastPath::Flow.with(Xdp::Native), &[]))
}

#[test]
fn upgraded_to_another_layout_with_flow_loses_nothing() -> Result<()> {
    upgraded(FastPath::Flow)
}

#[test]
fn upgraded_to_another_layout_by_clsact_loses_nothing() -> Result<()> {
    upgraded(FastPath::All.attached_by(TcAttach::Clsact))
}

/// Killed at any moment of its start, the agent leaves a dataplane that works.
#[test]
fn killed_while_starting_loses_nothing() -> Result<()> {
    in_lab(|lab| {
        let mut cluster = ready(lab, FastPath::All)?;
        under_traffic(&mut cluster, |cluster| {
            let agent = &mut cluster.members[0].agent;
            for milliseconds in [5, 20, 40, 80, 120, 180, 250, 400] {
                agent.kill()?;
                agent.launch()?;
                sleep(Duration::from_millis(milliseconds));
            }
            agent.kill()?;
            agent.start_again()?;
            cluster.await_fast_path(0, 1, FastPath::All)
        })
    })
}

/// With etcd gone, everything runs on, and an agent that starts then waits without touching anything.
#[test]
fn without_etcd_the_dataplane_runs_on() -> Result<()> {
    in_lab(|lab| {
        let mut cluster = ready(lab, FastPath::All)?;
        under_traffic(&mut cluster, |cluster| {
            cluster.etcd.stop()?;
            sleep(Duration::from_secs(1));
            cluster.await_fast_path(0, 1, FastPath::All)?;
            cluster.members[0].agent.kill()?;
            cluster.members[0].agent.launch()?;
            sleep(Duration::from_secs(2));
            cluster.members[0].agent.check_running()?;
            cluster.await_fast_path(0, 1, FastPath::All)?;
            cluster.etcd.start()?;
            for member in &mut cluster.members {
                member.agent.check_running()?;
            }
            Ok(())
        })?;
        // And the cluster goes on growing.
        cluster.join(lab, FastPath::All)?;
        cluster.await_reachable(&[])
    })
}

/// What changed while the agent was down is put right when it is back.
#[test]
fn leases_that_changed_meanwhile_are_caught_up_with() -> Result<()> {
    in_lab(|lab| {
        let mut cluster = Cluster::start(lab, 3, 1, FastPath::All)?;
        cluster.await_fast_path(0, 1, FastPath::All)?;
        let gone = cluster.members[2].node.subnet_env()?.subnet;
        under_traffic(&mut cluster, |cluster| {
            cluster.members[0].agent.kill()?;
            cluster.members[2].agent.kill()?;
            cluster.members.truncate(2);
            // First the new one: it could be given the subnet that gets free.
            cluster.join(lab, FastPath::All)?;
            cluster.etcd.delete_lease(gone)?;
            cluster.members[0].agent.start_again()?;
            cluster.await_reachable(&[])?;
            let node = cluster.members[0].node.netns().clone();
            eventually(CONVERGENCE, "nothing is left of the node that went", || {
                let listing = [node.ip("route show")?, node.ip("neigh show dev flannel.1")?].concat();
                ensure!(!listing.contains(&gone.network().to_string()), "{listing}");
                Ok(())
            })
        })
    })
}

/// Where the kernel takes no programs (here: no BPF file system to pin them in), the agent says why, once,
/// and the node is one of stock flannel; given one, it overtakes the kernel's path. Nothing is lost.
#[test]
fn without_ebpf_the_kernel_carries_everything() -> Result<()> {
    const SAID: &str = "eBPF cannot be used here";
    in_lab(|lab| {
        let mut cluster = ready(lab, FastPath::Off)?;
        under_traffic(&mut cluster, |cluster| {
            let bpffs = cluster.members[0].agent.bpffs().display().to_string();
            let agent = &mut cluster.members[0].agent;
            terminated(agent)?;
            agent.set_flag("fast-path", FastPath::All.name());
            agent.set_flag("bpffs", &lab.dir().display().to_string());
            agent.start_again()?;
            sleep(Duration::from_secs(1));
            let log = agent.log();
            ensure!(log.matches(SAID).count() == 1, "not said once:\n{log}");
            ensure!(log.contains("--bpffs"), "the log names no remedy:\n{log}");

            terminated(agent)?;
            agent.set_flag("bpffs", &bpffs);
            agent.start_again()?;
            terminated(&mut cluster.members[1].agent)?;
            cluster.members[1].agent.set_flag("fast-path", FastPath::All.name());
            cluster.members[1].agent.start_again()?;
            cluster.await_fast_path(0, 1, FastPath::All)
        })
    })
}

/// An appliance that has no lease, and a pod that was moved: stock flannel leaves what an administrator has set up for them,
/// and so does the agent as long as it runs. What a node without a lease has left goes at a start.
#[test]
fn entries_of_others_stay_beside_those_of_leases_until_the_next_start() -> Result<()> {
    in_lab(|lab| {
        let mut cluster = Cluster::start(lab, 2, 1, FastPath::Flow)?;
        let member = &cluster.members[0];
        let netns = member.node.netns().clone();
        let peer = cluster.members[1].node.subnet_env()?.subnet;
        netns.ip_batch(&format!(
            "route add 10.244.99.0/24 via 10.244.99.0 dev flannel.1 onlink\n\
             neigh add 10.244.99.0 lladdr 0e:04:0a:f4:99:00 dev flannel.1 nud permanent\n\
             route add {}/32 via 10.244.99.0 dev flannel.1 onlink\n",
            peer.broadcast()
        ))?;
        netns.bridge("fdb append 0e:04:0a:f4:99:00 dev flannel.1 dst 192.168.77.50")?;
        let there = || {
            let routes = netns.ip("route show dev flannel.1")?;
            let neighbours = netns.ip("neigh show dev flannel.1 nud permanent")?;
            let entries = netns.bridge("fdb show dev flannel.1")?;
            let routed = routes.matches("via 10.244.99.0").count();
            Ok::<_, anyhow::Error>((
                routed,
                neighbours.contains("0e:04:0a:f4:99:00"),
                entries.contains("0e:04:0a:f4:99:00"),
            ))
        };
        // What is repaired is looked at with all the rest.
        netns.ip(&format!("route del {peer}"))?;
        eventually(CONVERGENCE, "the route to the peer is back", || {
            let routes = netns.ip("route show dev flannel.1")?;
            ensure!(routes.contains(&format!("{peer} via")), "{routes}");
            Ok(())
        })?;
        ensure!(there()? == (2, true, true), "{:?}", there()?);
        let agent = &mut cluster.members[0].agent;
        agent.terminate()?;
        agent.start_again()?;
        eventually(CONVERGENCE, "what looks like an earlier run's is gone", || {
            ensure!(there()? == (0, false, false), "{:?}", there()?);
            Ok(())
        })?;
        let log = cluster.members[0].agent.log();
        ensure!(log.contains("of an earlier run, and in no lease"), "{log}");
        Ok(())
    })
}
