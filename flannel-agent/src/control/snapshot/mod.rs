//! How things stand, in the words of the control socket. All times are seconds since 1970 (Unix time).

mod peers;

use std::{
    net::IpAddr,
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

pub use peers::{Difference, Drift, NextHop, Peer, Peers, Probe, Probed};

/// All but the peers, one by one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Snapshot {
    /// [`super::VERSION`].
    pub version: u32,
    /// The process.
    pub agent: Agent,
    /// The store of leases; absent before it is known.
    pub store: Option<Store>,
    /// Our lease; absent before we have one.
    pub lease: Option<OwnLease>,
    /// The external interface; absent before it is chosen.
    pub interface: Option<Interface>,
    /// The backend; absent before the network configuration is read.
    pub backend: Option<Backend>,
    /// How far packets may skip the host's stack; absent before the programs are loaded.
    pub fast_path: Option<FastPath>,
    /// The rules, of each firewall that keeps some.
    pub rules: Vec<Rules>,
    /// What the rules follow from, of each family.
    pub rule_settings: Vec<RuleSettings>,
    /// What the programs did lately; absent without programs, and in the first seconds.
    pub traffic: Option<Traffic>,
    /// What probes of peers found.
    pub probes: Probes,
    /// The dataplane, as the reconciler has it.
    pub dataplane: Option<Dataplane>,
    /// Why the dataplane is absent.
    pub without_dataplane: Option<String>,
}

/// The agent's process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Agent {
    /// Version of the program.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// When it started.
    pub started: u64,
    /// What it does: `running`, or what it waits for.
    pub doing: String,
    /// Whether pods can be started, as `/readyz` says.
    pub ready: bool,
    /// Why not.
    pub not_ready: Option<String>,
    /// Where it writes the subnet.
    pub subnet_file: PathBuf,
    /// Where it pins programs and maps.
    pub bpffs: PathBuf,
}

/// The store of leases.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Store {
    /// What it is: `etcd`, `Kubernetes`, a file.
    pub server: String,
    /// Why the last request failed; absent while it answers.
    pub trouble: Option<String>,
    /// Since when it answers, or does not.
    pub since: u64,
    /// Up to which state of it the leases of other nodes are known: a revision of etcd, a resourceVersion of Kubernetes.
    pub revision: Option<String>,
    /// When it last said something of them, or that there is nothing new.
    pub heard: Option<u64>,
    /// What is wrong with the network configuration there, and what to do about it; absent while an agent could start.
    pub bad_config: Option<[String; 2]>,
    /// Leases of others that cannot be used: they are among the skipped ones of the dataplane and of the peers.
    pub unusable: Vec<Skipped>,
}

/// Our lease.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct OwnLease {
    /// The pod subnets of this node.
    pub subnets: Vec<IpNetwork>,
    /// The networks they are cut from.
    pub networks: Vec<IpNetwork>,
    /// The addresses other nodes know this one by.
    pub public: Vec<IpAddr>,
    /// When it ends unless it is renewed; absent where leases have no end.
    pub expires: Option<u64>,
    /// How often others changed it, and it was put right.
    pub mended: u64,
    /// When they last did.
    pub last_mended: Option<u64>,
    /// What others write again and again, beside what should be there; absent while nobody does.
    pub contested: Option<String>,
}

/// The external interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Largest packet, bytes.
    pub mtu: u32,
    /// Our addresses on it.
    pub addresses: Vec<IpAddr>,
}

/// The backend.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Backend {
    /// `Type` of the network configuration.
    pub kind: String,
    /// Whether peers on our link are reached without the tunnel.
    pub direct_routing: bool,
    /// The devices of the tunnel.
    pub devices: Vec<Device>,
    /// MTU of pods, bytes.
    pub pod_mtu: u32,
}

impl Backend {
    /// The device that carries packets for the pods of `subnet` by `way`, as [`Peer::way`] has it; `None` where they go
    /// by the external interface.
    pub fn device_to(&self, subnet: IpNetwork, way: &str) -> Option<&Device> {
        let carries = |device: &&Device| {
            device
                .networks
                .iter()
                .any(|network| network.is_ipv4() == subnet.is_ipv4() && network.contains(subnet.network()))
        };
        self.devices.iter().find(carries).filter(|_| way != "direct")
    }
}

/// A device of the tunnel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// Its VNI, where it has one.
    pub vni: Option<u32>,
    /// UDP port, where it has one.
    pub port: Option<u16>,
    /// Its MAC, where it has one.
    pub mac: Option<String>,
    /// Largest packet, bytes.
    pub mtu: u32,
    /// The networks whose packets it carries.
    pub networks: Vec<IpNetwork>,
}

/// How far packets may skip the host's stack.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FastPath {
    /// `--fast-path`.
    pub asked: String,
    /// What is done.
    pub granted: String,
    /// What limits it, where less is done than was asked.
    pub limit: Option<String>,
    /// That is the backend, whose packets the kernel or the agent alone moves: nothing is to be mended.
    pub by_backend: bool,
    /// How the programs are attached.
    pub attached_by: Option<String>,
    /// XDP on the external interface: `off`, `native` or `generic`.
    pub xdp: String,
}

/// What the rules of one family follow from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleSettings {
    /// The cluster's network.
    pub network: IpNetwork,
    /// Our subnet of it.
    pub subnet: IpNetwork,
    /// `--ip-masq`.
    pub ip_masq: bool,
    /// `--iptables-forward-rules`.
    pub forward: bool,
    /// The masquerade's ports are drawn at random.
    pub random_fully: bool,
    /// The bit by which the programs mark what is exempt from masquerading, if they do.
    pub exempt_mark: Option<u32>,
    /// The bit from which the programs learn flows, if they do.
    pub flow_mark: Option<u32>,
}

/// What keeps some of the rules.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rules {
    /// `iptables` or `nftables`, and the family where it keeps one.
    pub kept_by: String,
    /// They were put in place.
    pub in_place: bool,
    /// Why they cannot be kept.
    pub error: Option<String>,
    /// How often rules were put back.
    pub restored: u64,
    /// What was put back last.
    pub last_restored: Option<Restored>,
    /// Rules of others for which each packet counts: flows that they can see do not skip the stack.
    pub each_packet: Vec<String>,
}

/// Between two rounds of probes, seconds: what was found is as old as that while nobody asks for more.
pub const PROBE_PERIOD: u64 = 30;

/// What the probes of peers found, those of `check` included: the last of each, of a day at most.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Probes {
    /// Peers that were asked.
    pub peers: usize,
    /// Those of them that did not answer.
    pub unanswered: usize,
    /// Those that did, and to which something is wrong on the way.
    pub hampered: usize,
    /// When the one that was asked longest ago was asked, and the last one.
    pub asked: Option<[u64; 2]>,
    /// The longest round trip of those that did, through the overlay where there is one.
    pub longest_rtt_seconds: Option<f64>,
}

/// Packets between pods of different nodes, as the programs counted them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Traffic {
    /// Over how many seconds, a minute at most.
    pub seconds: u64,
    /// Moved by a program.
    pub fast: u64,
    /// Left to the kernel.
    pub kernel: u64,
    /// Dropped by a program.
    pub dropped: u64,
}

impl Traffic {
    /// Whether there was any.
    pub fn any(&self) -> bool {
        self.fast + self.kernel + self.dropped > 0
    }
}

/// The dataplane as the reconciler has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dataplane {
    /// The leases have been read.
    pub synced: bool,
    /// Since the start there was a moment at which nothing was left to do.
    pub settled: bool,
    /// Passes that read the state of the kernel.
    pub passes: u64,
    /// Leases that are followed.
    pub peers: usize,
    /// Of those, the ones of which a change failed.
    pub peers_pending: usize,
    /// Leases that should be looked into.
    pub faults: usize,
    /// The leases that are not followed: the first hundred.
    pub skipped: Vec<Skipped>,
    /// Changes that failed and are tried again: how many.
    pub pending_total: usize,
    /// The same: the first hundred.
    pub pending: Vec<Pending>,
    /// The last failure that is still standing.
    pub last_error: Option<String>,
    /// Peers whose packets the programs leave to the kernel.
    pub on_kernel: usize,
    /// What is left to the kernel's path for others' hooks: the first hundred.
    pub hooked: Vec<Hooked>,
    /// The programs there should be, and where.
    pub programs: Vec<Program>,
    /// Pods of this node whose place is known.
    pub pods: usize,
    /// How many objects were put back since the start.
    pub restored: u64,
    /// Those put back last, newest first.
    pub last_restored: Vec<Restored>,
}

/// A lease that is not followed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Its subnets.
    pub lease: String,
    /// In which family: `IPv4` or `IPv6`.
    pub family: String,
    /// Why.
    pub reason: String,
    /// Somebody should look into it.
    pub fault: bool,
    /// What to do about it.
    #[serde(default)]
    pub remedy: String,
}

/// A change that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// What it is.
    pub change: String,
    /// Why it failed.
    pub error: String,
    /// How often.
    pub attempts: u32,
}

/// What is left to the kernel's path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hooked {
    /// Where somebody else's hook is.
    pub interface: String,
    /// What it is.
    pub hook: String,
    /// What is left to the kernel for it.
    pub left: String,
}

/// A program at its hook.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Program {
    /// Its name.
    pub name: String,
    /// Index of the interface.
    pub ifindex: u32,
}

/// Something that was put back after somebody deleted or changed it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    /// When.
    pub at: u64,
    /// What.
    pub what: String,
}

/// The kernel's ids of the maps in which the programs tell of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceMaps {
    /// What is wanted.
    pub filter: u32,
    /// Packets.
    pub ring: u32,
    /// Packets and bytes, added up.
    pub sums: u32,
    /// What was not told.
    pub state: u32,
}

/// Seconds since 1970.
pub fn unix(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Now, in seconds since 1970.
pub fn now() -> u64 {
    unix(SystemTime::now())
}

/// The time that is so many seconds after 1970.
pub fn time(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}
