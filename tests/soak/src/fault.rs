//! What is broken, and what may be lost by it.

use std::{
    fmt, fs,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;
use flannel_common::map::{LAYOUT_VERSION, PIN_DIRECTORY};
use flannel_lab::{
    CONVERGENCE, Cluster, Etcd, FastPath, Lab, PREFIX, agent_binary,
    command::{run, tool},
    eventually,
    traffic::udp,
};

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// The agent is killed, and started again seconds later
    AgentKilled,
    /// The agent is ended, and started again seconds later
    AgentEnded,
    /// The agent stands still for seconds
    AgentPaused,
    /// The agent is replaced by one with another fast path, and that by one as before
    AgentReplaced,
    /// The agent is replaced by one that knows another layout of the maps
    AgentUpgraded,
    /// etcd is killed, and started again seconds later
    EtcdKilled,
    /// etcd does not answer for seconds
    EtcdPaused,
    /// etcd has lost everything, and its configuration is written again
    EtcdEmptied,
    /// A node joins, and etcd is restored from a backup made before; the node leaves
    EtcdRestored,
    /// The external interface is down for seconds
    InterfaceDown,
    /// The external interface has a smaller MTU for seconds
    MtuChanged,
    /// A pod comes, talks, and goes
    PodChurned,
    /// A node joins, is reached, and leaves
    NodeChurned,
    /// Connection tracking forgets all flows
    ConntrackFlushed,
    /// Somebody reloads all rules of the firewall, and so removes ours
    RulesReloaded,
    /// The VXLAN device is deleted
    DeviceDeleted,
    /// The routes to peers are deleted
    RoutesDeleted,
    /// Programs and maps are removed
    ProgramsRemoved,
}

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) kind: Kind,
    /// The node that it befalls, from 0 on.
    pub(crate) node: usize,
    /// How long it lasts, where it lasts.
    pub(crate) seconds: u64,
}

impl Kind {
    /// Whether the agent is another process afterwards.
    pub(crate) const fn ends_the_agent(self) -> bool {
        matches!(self, Self::AgentKilled | Self::AgentEnded | Self::AgentReplaced | Self::AgentUpgraded)
    }

    /// Whether packets of others may be lost. Those that promise nothing take something away that carries packets.
    pub(crate) const fn may_lose(self) -> bool {
        matches!(self, Self::InterfaceDown | Self::DeviceDeleted | Self::RoutesDeleted | Self::MtuChanged)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.kind.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        write!(f, "{name} node{} {} s", self.node + 1, self.seconds)
    }
}

impl Fault {
    /// Does it, and undoes what does not mend itself. How long it lasted for the packets of others.
    pub(crate) fn befall(self, lab: &Lab, cluster: &mut Cluster, round: usize) -> Result<Duration> {
        let pause = Duration::from_secs(self.seconds);
        let start = Instant::now();
        let Cluster { members, etcd } = cluster;
        let member = members.get_mut(self.node).context("a node that there is")?;
        match self.kind {
            Kind::AgentKilled => {
                member.agent.kill()?;
                sleep(pause);
                member.agent.start_again()?;
            }
            Kind::AgentEnded => {
                member.agent.terminate()?;
                sleep(pause);
                member.agent.start_again()?;
            }
            Kind::AgentPaused => {
                signal(member.agent.pid()?, "STOP")?;
                sleep(pause);
                signal(member.agent.pid()?, "CONT")?;
            }
            Kind::AgentReplaced => {
                let mode = ["all", "overlay", "off"][round % 3];
                for mode in [mode, "flow"] {
                    member.agent.terminate()?;
                    member.agent.set_flag("fast-path", mode);
                    member.agent.start_again()?;
                    sleep(pause / 2);
                }
            }
            Kind::AgentUpgraded => {
                member.agent.terminate()?;
                let pins = member.agent.bpffs().join(PIN_DIRECTORY);
                fs::rename(pins.join(LAYOUT_VERSION), pins.join("v0")).context("pins of another layout")?;
                member.agent.start_again()?;
            }
            Kind::EtcdKilled => {
                etcd.stop()?;
                sleep(pause);
                etcd.start()?;
            }
            Kind::EtcdPaused => {
                signal(etcd.pid()?, "STOP")?;
                sleep(pause);
                signal(etcd.pid()?, "CONT")?;
            }
            Kind::EtcdEmptied => {
                etcd.stop()?;
                etcd.wipe()?;
                etcd.start()?;
                etcd.configure_dual("vxlan")?;
                await_leases(etcd, 3)?;
            }
            Kind::EtcdRestored => {
                let resident = member.pod()?;
                etcd.back_up()?;
                let guest = cluster.join(lab, FastPath::Flow)?.pod()?;
                eventually(CONVERGENCE, "the new node is reached", || udp::echo(&resident, &guest, 64, 20))?;
                cluster.etcd.stop()?;
                cluster.etcd.restore()?;
                cluster.etcd.start()?;
                await_leases(&cluster.etcd, 4)?;
                udp::echo(&resident, &guest, 64, 20).context("the node that the backup lacks")?;
                leave(cluster)?;
            }
            Kind::InterfaceDown => {
                let netns = member.node.netns();
                // A link that goes down takes its global IPv6 address along, unless it is told to keep it.
                netns.sysctl("net/ipv6/conf/eth0/keep_addr_on_down", "1")?;
                netns.ip("link set eth0 down")?;
                sleep(pause);
                netns.ip("link set eth0 up")?;
            }
            Kind::MtuChanged => {
                let netns = member.node.netns();
                netns.ip("link set eth0 mtu 1400")?;
                sleep(pause);
                netns.ip("link set eth0 mtu 1500")?;
            }
            Kind::PodChurned => {
                let pod = member.node.pod(&format!("guest{round}"))?;
                let resident = members[(self.node + 1) % 3].pod()?;
                eventually(CONVERGENCE, "the guest is reached", || {
                    udp::echo(&resident, &pod.endpoint(), 700, 20)
                })?;
                pod.remove()?;
            }
            Kind::NodeChurned => {
                let resident = member.pod()?;
                let guest = cluster.join(lab, FastPath::Flow)?.pod()?;
                eventually(CONVERGENCE, "the new node is reached", || udp::echo(&resident, &guest, 64, 20))?;
                leave(cluster)?;
            }
            Kind::ConntrackFlushed => drop(member.node.netns().run("conntrack", &["-F"])?),
            Kind::RulesReloaded => {
                for (program, table) in [
                    ("iptables", "nat"),
                    ("iptables", "filter"),
                    ("iptables", "mangle"),
                    ("ip6tables", "filter"),
                ] {
                    member.node.netns().run(program, &["-w", "-t", table, "-F"])?;
                }
            }
            Kind::DeviceDeleted => drop(member.node.netns().ip("link delete flannel.1")?),
            Kind::RoutesDeleted => drop(member.node.netns().ip("route flush dev flannel.1")?),
            Kind::ProgramsRemoved => {
                let bpffs = format!("--bpffs={}", member.agent.bpffs().display());
                let agent = agent_binary()?.display().to_string();
                member.node.netns().run(&agent, &["bpf", "unload", &bpffs])?;
            }
        }
        Ok(start.elapsed())
    }
}

/// Waits until so many nodes have their lease: each writes its own again.
fn await_leases(etcd: &Etcd, nodes: usize) -> Result<()> {
    eventually(Duration::from_secs(60), "all leases are back", || {
        let leases = etcd.lease_keys()?;
        ensure!(leases.len() >= nodes, "{leases:?}");
        Ok(())
    })
}

/// The node that joined last goes, and an administrator deletes its lease.
fn leave(cluster: &mut Cluster) -> Result<()> {
    let mut gone = cluster.members.pop().context("the node that joined")?;
    let subnet = gone.node.subnet_env()?.subnet;
    gone.agent.kill()?;
    let name = format!("{}-{}", subnet.network(), subnet.prefix());
    for key in cluster.etcd.lease_keys()?.into_keys().filter(|key| key.contains(&name)) {
        cluster.etcd.delete(&format!("{PREFIX}/subnets/{key}"))?;
    }
    Ok(())
}

/// Sends the process `pid` a signal.
fn signal(pid: u32, name: &str) -> Result<()> {
    run(tool("kill").args([format!("-{name}"), pid.to_string()])).map(drop)
}
