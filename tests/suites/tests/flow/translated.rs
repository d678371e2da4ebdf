//! Flows to a Service that last are translated by the programs, for exactly as long as netfilter would do the same.

use std::{
    collections::BTreeSet,
    fs::{File, read_to_string},
    net::UdpSocket,
    process::Stdio,
    thread::sleep,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use flannel_agent::{
    bpf::{LogLevel, MapSizes, Pins, Programs, attached},
    netlink::ConntrackEnds,
};
use flannel_common::{layout, map::MAX_FLOWS, mark::Marks, path::Carrier};
use flannel_lab::{
    CONVERGENCE, Cluster, Netns, Xdp, agent_binary, eventually, in_lab,
    traffic::{Dialogue, Serving},
};

use crate::{
    behind, cluster, cluster_behind, counted, fast, nftables_cluster,
    services::{BACKEND_PORT, DESTINATION, Service},
    translated_fast,
};

const REFRESH: Duration = Duration::from_secs(2);
/// The number of the backend on the other node.
const REMOTE: usize = 1;

/// What connection tracking knows of a client's port, with the ids of its entries.
fn entries(netns: &Netns, protocol: &str, port: &str) -> Result<String> {
    netns.run("conntrack", &["-L", "-o", "id", "-p", protocol, "--orig-port-src", port])
}

impl Service {
    /// A connection to the backend on the other node.
    pub(crate) fn connection(&self, port: u16) -> Result<Dialogue> {
        for _ in 0..100 {
            let dialogue = self.serving.connect(&self.client, port, DESTINATION)?;
            if self.serving.backend(&dialogue)? == REMOTE {
                return Ok(dialogue);
            }
            dialogue.close_at_the_server()?;
        }
        anyhow::bail!("nobody was sent to the backend on the other node")
    }

    /// The same by datagrams.
    pub(crate) fn questions(&self) -> Result<UdpSocket> {
        for number in 0..100 {
            let asker = Serving::asker(&self.client, DESTINATION)?;
            if self.serving.ask(&asker, number)?.0 == REMOTE {
                return Ok(asker);
            }
        }
        anyhow::bail!("no question was sent to the backend on the other node")
    }

    pub(crate) fn ask(&self, asker: &UdpSocket, times: u64) -> Result<()> {
        (0..times).try_for_each(|number| {
            let (backend, _) = self.serving.ask(asker, number)?;
            ensure!(backend == REMOTE, "another backend answered");
            Ok(())
        })
    }
}

/// Waits until `exchange` of ten packets each way is translated by the programs of the client's node.
pub(crate) fn await_fast(cluster: &Cluster, mut exchange: impl FnMut() -> Result<()>) -> Result<()> {
    eventually(CONVERGENCE, "the flow to the Service is fast", || {
        let mut done = Ok(());
        let [at_client, _] = counted(cluster, || {
            done = exchange();
            Ok(())
        })?;
        done?;
        let [out, back] = translated_fast(&at_client);
        ensure!(out >= 8 && back >= 8, "{at_client}");
        Ok(())
    })
}

fn becomes_fast(cluster: &Cluster) -> Result<()> {
    let service = Service::new(cluster, false)?;
    let mut dialogue = service.connection(0)?;
    await_fast(cluster, || dialogue.exchanges(10))?;
    let [at_client, at_backend] = counted(cluster, || dialogue.exchanges(200))?;
    let [out, back] = translated_fast(&at_client);
    ensure!(out >= 190 && back >= 190, "{at_client}");
    // There nothing is translated.
    ensure!(translated_fast(&at_backend) == [0, 0], "{at_backend}");

    let asker = service.questions()?;
    await_fast(cluster, || service.ask(&asker, 10))?;
    let [at_client, _] = counted(cluster, || service.ask(&asker, 200))?;
    let [out, back] = translated_fast(&at_client);
    ensure!(out >= 190 && back >= 190, "{at_client}");
    dialogue.close_at_the_server()
}

#[test]
fn a_flow_to_a_service_becomes_fast() -> Result<()> {
    behind(&Xdp::EACH, |lab, xdp| becomes_fast(&cluster_behind(xdp, lab, 2, Duration::from_secs(30))?))
}

#[test]
fn a_flow_to_a_service_becomes_fast_beside_nftables() -> Result<()> {
    in_lab(|lab| becomes_fast(&nftables_cluster(lab, 2, Duration::from_secs(30))?))
}

/// After its first answer it only ever goes one way, as logs and metrics do.
#[test]
fn a_flow_to_a_service_that_is_never_answered_again_becomes_fast() -> Result<()> {
    behind(&[Xdp::Off, Xdp::Native], |lab, xdp| {
        let cluster = cluster_behind(xdp, lab, 2, Duration::from_secs(30))?;
        let service = Service::new(&cluster, false)?;
        let asker = service.questions()?;
        eventually(CONVERGENCE, "the flow to the Service is fast", || {
            let [at_client, _] = counted(&cluster, || {
                for number in 0..20 {
                    service.serving.tell(&asker, number)?;
                    sleep(Duration::from_millis(5));
                }
                Ok(())
            })?;
            ensure!(translated_fast(&at_client)[0] >= 15, "{at_client}");
            Ok(())
        })
    })
}

/// The programs that tell of packets ask the same agent as those whose place they have for a while.
#[test]
fn a_flow_to_a_service_becomes_fast_while_somebody_looks_at_packets_and_after() -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster(lab, 2, Duration::from_secs(30))?;
        let service = Service::new(&cluster, false)?;
        let node = &cluster.members[0].node;
        let programs = || {
            let pins = Pins::under(cluster.members[0].agent.bpffs())?;
            let attached = node.netns().inside(|| Ok(attached(&pins)?))?;
            Ok::<BTreeSet<u32>, anyhow::Error>(attached.into_iter().map(|at| at.id).collect())
        };
        let before = programs()?;
        let directory = tempfile::tempdir()?;
        let said = directory.path().join("trace");
        let mut trace = node.netns().command(&agent_binary()?.display().to_string());
        trace.args(["trace", "--proto", "udp", "--for", "300", "--subnet-file"]).arg(node.subnet_file());
        let mut trace = trace.stdout(Stdio::null()).stderr(File::create(&said)?).spawn()?;
        let begun = eventually(CONVERGENCE, "trace looks at the programs", || {
            ensure!(read_to_string(&said)?.contains("looking at packets"), "not yet");
            ensure!(programs()?.is_disjoint(&before), "links hold the same programs");
            Ok(())
        });
        let beside = begun.and_then(|()| {
            let asker = service.questions()?;
            await_fast(&cluster, || service.ask(&asker, 10))?;
            ensure!(trace.try_wait()?.is_none(), "trace has ended: {}", read_to_string(&said)?);
            Ok(asker)
        });
        trace.kill()?;
        trace.wait()?;
        let asker = beside?;
        eventually(CONVERGENCE, "the programs are back", || {
            ensure!(programs()? == before, "links hold other programs");
            Ok(())
        })?;
        await_fast(&cluster, || service.ask(&asker, 10))?;
        let later = service.questions()?;
        await_fast(&cluster, || service.ask(&later, 10))
    })
}

/// Connections from one port, one behind the other: to either backend, ended by either side. None is translated as the one
/// before it was.
#[test]
fn a_port_that_is_used_again_gets_a_translation_of_its_own() -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster(lab, 2, Duration::from_secs(30))?;
        let service = Service::new(&cluster, false)?;
        let mut served = [0; 2];
        for round in 0..16 {
            let mut dialogue = service.serving.connect(&service.client, 21_000, DESTINATION)?;
            let backend = service.serving.backend(&dialogue)?;
            served[backend] += 1;
            match backend {
                REMOTE => await_fast(&cluster, || dialogue.exchanges(10))?,
                _ => dialogue.exchanges(10)?,
            }
            match round % 2 {
                0 => dialogue.reset()?,
                _ => dialogue.close_at_the_server()?,
            }
        }
        ensure!(!served.contains(&0), "{served:?} connections to the backends");
        Ok(())
    })
}

/// Connection tracking has not seen how far a fast connection has come, and believes no reset of it. A new connection
/// between the same ports would be taken for the old one: with its translation, and past rules for new ones.
#[test]
fn a_connection_that_is_reset_is_over_for_connection_tracking_too() -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster(lab, 2, Duration::from_secs(30))?;
        let service = Service::new(&cluster, false)?;
        let direct = service.serving.backends[REMOTE].socket_address(BACKEND_PORT);
        let client = &cluster.members[0].node;
        for (port, reset) in
            [(23_000, Dialogue::reset as fn(_) -> _), (23_001, Dialogue::reset_at_the_server)]
        {
            let plain = service.serving.connect(&service.client, port, direct)?;
            for (about, mut dialogue) in [("plain", plain), ("to a Service", service.connection(port + 10)?)]
            {
                eventually(CONVERGENCE, about, || {
                    let [at_client, _] = counted(&cluster, || dialogue.exchanges(10))?;
                    ensure!(fast(&at_client)[0] + translated_fast(&at_client)[0] >= 8, "{at_client}");
                    Ok(())
                })?;
                let port = dialogue.client.local_addr()?.port().to_string();
                reset(dialogue)?;
                for member in &cluster.members {
                    eventually(CONVERGENCE, about, || {
                        let listing = entries(member.node.netns(), "tcp", &port)?;
                        ensure!(listing.contains("CLOSE"), "{about}: {listing}");
                        Ok(())
                    })?;
                }
            }
        }
        // What the rules say now.
        client.unload_service()?;
        let local = service.serving.backends[0].socket_address(BACKEND_PORT);
        client.load_service(*DESTINATION.ip(), DESTINATION.port(), &[local], false)?;
        let mut again = service.serving.connect(&service.client, 23_010, DESTINATION)?;
        ensure!(service.serving.backend(&again)? == 0, "it is led to the backend that is gone");
        again.exchanges(10)
    })
}

/// From one port, one connection behind the other, without a pause: none is taken for the one before it.
#[test]
fn a_port_that_is_reset_can_be_used_again_at_once() -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster(lab, 2, Duration::from_secs(30))?;
        let service = Service::new(&cluster, false)?;
        let direct = service.serving.backends[REMOTE].socket_address(BACKEND_PORT);
        let mut ends = Vec::new();
        let [at_client, _] = counted(&cluster, || {
            for round in 0..200 {
                let mut dialogue = service
                    .serving
                    .connect(&service.client, 24_000, direct)
                    .with_context(|| format!("round {round}"))?;
                dialogue.exchanges(5).with_context(|| format!("round {round}"))?;
                ends.push(dialogue.reset_at_once()?);
            }
            Ok(())
        })?;
        ensure!(fast(&at_client)[0] >= 500, "{at_client}");
        Ok(())
    })
}

/// Where connection tracking forgets a flow, the next datagram is its own again, to whichever backend.
#[test]
fn a_flow_ends_with_its_entry_of_connection_tracking() -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster(lab, 2, Duration::from_secs(30))?;
        let service = Service::new(&cluster, false)?;
        let node = &cluster.members[0].node;
        // Half of them are sent to the other backend.
        for _ in 0..24 {
            let asker = service.questions()?;
            await_fast(&cluster, || service.ask(&asker, 10))?;
            let port = asker.local_addr()?.port().to_string();
            node.netns().run("conntrack", &["-D", "-p", "udp", "--orig-port-src", &port])?;
            sleep(Duration::from_millis(500));
            if service.serving.ask(&asker, 7)?.0 != REMOTE {
                return Ok(());
            }
        }
        bail!("each went on to the backend that it had")
    })
}

/// Connections end by the thousand a second where they are short. Of those that end by themselves, of what nobody
/// translates, and of any while nobody wants to know, the agent is not told.
#[test]
fn only_ends_that_concern_the_programs_are_told() -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster(lab, 2, Duration::from_secs(30))?;
        let service = Service::new(&cluster, false)?;
        let netns = cluster.members[0].node.netns();
        for timeout in ["tcp_timeout_time_wait", "tcp_timeout_last_ack", "tcp_timeout_close", "udp_timeout"] {
            netns.sysctl(&format!("net/netfilter/nf_conntrack_{timeout}"), "1")?;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        // The agent's own maps, and the same program.
        let pins = Pins::under(cluster.members[0].agent.bpffs())?;
        let sizes = MapSizes::of(layout::FastPath::Flow, true, false, MAX_FLOWS);
        let mut programs = Programs::load_sized(pins, LogLevel::Off, sizes, Marks::DEFAULT, Carrier::Vxlan)?;
        let filter = programs.forgotten_flows()?;
        let opened = || runtime.block_on(async { Ok(ConntrackEnds::open(|socket| filter.attach(socket))?) });
        let mut ends = netns.inside(opened)?;
        ends.follow(true)?;
        let closed = service.connection(0)?;
        let port_closed = closed.client.local_addr()?.port().to_string();
        closed.close_at_the_server()?;
        let straight = service.serving.backends[REMOTE].socket_address(BACKEND_PORT);
        let asker = Serving::asker(&service.client, straight)?;
        service.ask(&asker, 3)?;
        let port_asked = asker.local_addr()?.port().to_string();
        // To list the entries is to remove those whose time is over.
        eventually(CONVERGENCE, "the entries are gone", || {
            for (protocol, port) in [("tcp", &port_closed), ("udp", &port_asked)] {
                let found = entries(netns, protocol, port)?;
                ensure!(found.trim().is_empty(), "{found}");
            }
            Ok(())
        })?;
        let [unfollowed, mut open] = [service.connection(0)?, service.connection(0)?];
        await_fast(&cluster, || open.exchanges(10))?;
        let delete = |port: &str| netns.run("conntrack", &["-D", "-p", "tcp", "--orig-port-src", port]);
        ends.follow(false)?;
        delete(&unfollowed.client.local_addr()?.port().to_string())?;
        let port = open.client.local_addr()?.port().to_string();
        let entry = entries(netns, "tcp", &port)?;
        let id =
            entry.split_once("id=").and_then(|(_, id)| id.split_whitespace().next()?.parse::<u32>().ok());
        ends.follow(true)?;
        delete(&port)?;
        let told = runtime.block_on(async { tokio::time::timeout(CONVERGENCE, ends.next()).await });
        let told = told.context("the entry that was deleted is not told of")??;
        let told: Vec<u32> = told.iter().map(|entry| entry.id).collect();
        ensure!(id.is_some_and(|id| told == [id]), "told of {told:?}, where deleted was {entry}");
        Ok(())
    })
}

/// All of them, in the middle of a connection. What it becomes on the kernel path it becomes here.
#[test]
fn flows_survive_that_connection_tracking_is_emptied() -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster(lab, 2, REFRESH)?;
        let service = Service::new(&cluster, false)?;
        let direct = service.serving.backends[REMOTE].socket_address(8080);
        let mut direct = service.serving.connect(&service.client, 0, direct)?;
        let asker = service.questions()?;
        await_fast(&cluster, || service.ask(&asker, 10))?;
        for member in &cluster.members {
            member.node.netns().run("conntrack", &["-F"])?;
        }
        direct.exchanges(50)?;
        (0..50).try_for_each(|number| service.serving.ask(&asker, number).map(drop))
    })
}

/// A rule that comes later holds within the time for which acceptance does.
#[test]
fn a_rule_that_comes_later_ends_a_flow_to_a_service() -> Result<()> {
    in_lab(|lab| {
        let cluster = cluster(lab, 2, REFRESH)?;
        let service = Service::new(&cluster, false)?;
        let mut dialogue = service.connection(0)?;
        await_fast(&cluster, || dialogue.exchanges(10))?;
        let backend = service.serving.backends[REMOTE].address().to_string();
        let node = &cluster.members[0].node;
        node.iptables(&format!("-I FORWARD -d {backend} -j DROP"))?;
        eventually(REFRESH * 3, "the rule holds", || {
            ensure!(dialogue.exchange_within(Duration::from_millis(300)).is_err(), "still exchanged");
            Ok(())
        })
    })
}

/// Without an agent, flows go on for as long as acceptance holds, and by the kernel path then; the next one makes them fast
/// again.
#[test]
fn an_agent_that_dies_takes_no_flow_to_a_service_with_it() -> Result<()> {
    in_lab(|lab| {
        let mut cluster = cluster(lab, 2, REFRESH)?;
        let service = Service::new(&cluster, false)?;
        let mut dialogue = service.connection(0)?;
        await_fast(&cluster, || dialogue.exchanges(10))?;
        cluster.members[0].agent.kill()?;
        for _ in 0..20 {
            dialogue.exchanges(10)?;
            sleep(REFRESH / 10);
        }
        let mut born_meanwhile = service.connection(0)?;
        born_meanwhile.exchanges(10)?;
        cluster.members[0].agent.start_again()?;
        cluster.await_fast_path(0, 1, flannel_lab::FastPath::Flow)?;
        await_fast(&cluster, || dialogue.exchanges(10)).context("the first")?;
        await_fast(&cluster, || born_meanwhile.exchanges(10)).context("the one from meanwhile")
    })
}
