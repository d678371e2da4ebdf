//! What commands have in common that look into the programs of a running agent.

use std::{
    collections::BTreeSet,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process,
    time::Duration,
};

use anyhow::ensure;
use clap::Args;
use flannel_common::{
    layout::trace::{ReasonBits, TraceEnd, TraceFilter},
    packet::headers::{PROTOCOL_TCP, PROTOCOL_UDP},
    path::Hook,
    reason::Reason,
};
use ipnetwork::IpNetwork;
use nix::net::if_::if_indextoname;
use tokio::time::{Sleep, sleep};

use super::{Defaults, bpf::enter, value};
use crate::{
    bpf::{TraceMapIds, TraceMaps},
    control::{Client, Snapshot, snapshot},
    telemetry::output::say,
};

/// How often the agent is told that we still look.
const GO_ON: Duration = Duration::from_secs(1);
/// Between questions while the programs are being loaded.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// Which agent.
#[derive(Clone, Debug, Args)]
pub struct OfAgent {
    /// Subnet file of the agent, which its control socket is beside. Default: the agent's.
    #[arg(long, value_name = "FILE")]
    pub subnet_file: Option<PathBuf>,
    /// Mount point of the BPF file system. Default: the agent's, which has to be the same.
    #[arg(long, value_name = "DIR")]
    pub bpffs: Option<PathBuf>,
    /// Network namespace of the node, by its name in /run/netns.
    #[arg(long, value_name = "NAME")]
    pub netns: Option<String>,
}

impl OfAgent {
    /// Asks it.
    ///
    /// # Errors
    /// When it is not the one whose pins `--bpffs` names, or does not say.
    pub(super) async fn client(&self, defaults: &Defaults) -> anyhow::Result<Client> {
        let client = Client::beside(self.subnet_file(defaults));
        if self.bpffs.is_some() {
            self.check(&client.snapshot().await?.agent.bpffs, defaults)?;
        }
        Ok(client)
    }

    fn subnet_file<'a>(&'a self, defaults: &'a Defaults) -> &'a Path {
        self.subnet_file.as_deref().unwrap_or(&defaults.subnet_file)
    }

    /// Whether an agent that pins under `its` is the one that is meant: the programs tell of packets in maps that only the
    /// agent knows.
    fn check(&self, its: &Path, defaults: &Defaults) -> anyhow::Result<()> {
        let Some(bpffs) = self.bpffs.as_deref().filter(|bpffs| *bpffs != its) else { return Ok(()) };
        let (bpffs, its) = (bpffs.display(), its.display());
        let beside = self.subnet_file(defaults).display();
        anyhow::bail!(
            "--bpffs {bpffs}: the agent of {beside} pins under {its}: leave --bpffs out, or name the subnet file of the other \
             agent by --subnet-file"
        )
    }
}

/// Which packets.
#[derive(Clone, Debug, Args)]
pub struct OfPackets {
    /// One end of the packets, or both: addresses or prefixes, whichever sends.
    #[arg(value_name = "END", num_args = 0..=2, value_parser = value::end)]
    pub ends: Vec<IpNetwork>,
    /// Their protocol: tcp, udp, icmp, sctp, or a number.
    #[arg(long, value_name = "PROTOCOL", value_parser = protocol)]
    pub proto: Option<u8>,
    /// A port of either end, of TCP or UDP.
    #[arg(long, value_name = "PORT", value_parser = value::port)]
    pub port: Option<u16>,
}

fn protocol(text: &str) -> Result<u8, String> {
    match text {
        "tcp" => Ok(PROTOCOL_TCP),
        "udp" => Ok(PROTOCOL_UDP),
        "icmp" => Ok(1),
        "icmpv6" => Ok(58),
        "sctp" => Ok(132),
        number => {
            number.parse().map_err(|_| "write tcp, udp, icmp, icmpv6, sctp, or a number up to 255".to_owned())
        }
    }
}

/// Addresses as the programs compare them.
fn end(network: &IpNetwork) -> TraceEnd {
    let words = |address: IpAddr| -> [u64; 2] {
        let mut octets = [0; 16];
        match address {
            IpAddr::V4(address) => octets[..4].copy_from_slice(&address.octets()),
            IpAddr::V6(address) => octets = address.octets(),
        }
        let [low, high]: [[u8; 8]; 2] = bytemuck::cast(octets);
        [low, high].map(u64::from_ne_bytes)
    };
    TraceEnd { address: words(network.network()), mask: words(network.mask()) }
}

impl OfPackets {
    /// The filter that lets these packets through, of all hooks.
    ///
    /// # Errors
    /// When its ends are of two families, or its protocol has no ports.
    pub(super) fn filter(&self) -> anyhow::Result<TraceFilter> {
        if let [a, b] = self.ends.as_slice() {
            ensure!(a.is_ipv4() == b.is_ipv4(), "{a} and {b} are of two families: give two of one");
        }
        if let Some((port, proto)) = self.port.zip(self.proto) {
            ensure!(
                matches!(proto, PROTOCOL_TCP | PROTOCOL_UDP),
                "--port {port} --proto {proto}: packets of that protocol have no ports here: give tcp or udp, or leave out \
                 --port"
            );
        }
        let mut ends = self.ends.iter().map(end);
        let family = self.ends.first().map_or(0, |network| if network.is_ipv4() { 4 } else { 6 });
        Ok(TraceFilter {
            ends: [ends.next().unwrap_or_default(), ends.next().unwrap_or_default()],
            family,
            protocol: self.proto.unwrap_or(0).into(),
            port: self.port.unwrap_or(0).into(),
            hooks: u32::MAX,
            ..TraceFilter::default()
        })
    }
}

/// A look into the programs of a running agent.
pub(super) struct TraceSession {
    pub(super) maps: TraceMaps,
    pub(super) snapshot: Snapshot,
    client: Client,
}

impl TraceSession {
    /// Begins to look.
    ///
    /// # Errors
    /// When there is no agent, or it is of another version, or it cannot.
    pub(super) async fn begin(client: Client) -> anyhow::Result<Self> {
        let snapshot = client.snapshot().await?;
        let version = env!("CARGO_PKG_VERSION");
        ensure!(
            snapshot.agent.version == version,
            "the agent has version {}, and this program {version}: use the agent's own, /proc/{}/exe",
            snapshot.agent.version,
            snapshot.agent.pid
        );
        let maps = TraceMaps::open(ids(&client).await?)?;
        Ok(Self { maps, snapshot, client })
    }

    /// Looks at what `filter` lets through.
    pub(super) fn want(&mut self, filter: TraceFilter) -> anyhow::Result<()> {
        let devices = self.snapshot.backend.iter().flat_map(|backend| &backend.devices);
        let port = devices.filter(|device| device.vni.is_some()).find_map(|device| device.port).unwrap_or(0);
        Ok(self.maps.want(&TraceFilter { vxlan_port: port.into(), ..filter })?)
    }

    /// Says that we still look: to be called each second.
    pub(super) async fn go_on(&self) -> anyhow::Result<()> {
        ids(&self.client).await.map(drop)
    }

    /// Says so again and again, until it cannot: then why. An agent that is busy holds up nobody who prints meanwhile.
    pub(super) fn going_on(&self) -> impl Future<Output = anyhow::Error> + use<> {
        let client = self.client.clone();
        async move {
            loop {
                sleep(GO_ON).await;
                if let Err(error) = ids(&client).await {
                    return error;
                }
            }
        }
    }
}

async fn ids(client: &Client) -> anyhow::Result<TraceMapIds> {
    let question = format!("trace?by={}", process::id());
    // For as long as it takes to load the programs: the agent says when it cannot.
    let mut told = false;
    loop {
        let maps: Option<snapshot::TraceMaps> = client.ask(&question).await?;
        if let Some(snapshot::TraceMaps { filter, ring, sums, state }) = maps {
            return Ok(TraceMapIds { filter, ring, sums, state });
        }
        if !told {
            say("the agent loads the programs that tell of packets: wait for the next line");
            told = true;
        }
        sleep(ASK_AGAIN).await;
    }
}

/// Enters the node, on this thread, before a runtime starts others.
pub(super) fn enter_node(agent: &OfAgent) -> anyhow::Result<()> {
    enter(agent.netns.clone())
}

/// The hooks that packets are looked at.
pub(super) fn hooks(named: &[Hook]) -> BTreeSet<Hook> {
    if named.is_empty() { Hook::ALL.into() } else { named.iter().copied().collect() }
}

/// Their bits in a filter.
pub(super) fn bits(hooks: &BTreeSet<Hook>) -> u32 {
    hooks.iter().fold(0, |bits, hook| bits | 1 << (*hook as u32))
}

/// The bits of reasons in a filter.
pub(super) fn reason_bits(reasons: &[Reason]) -> ReasonBits {
    reasons.iter().fold(ReasonBits::default(), |bits, reason| bits.with(*reason as u8))
}

/// When to end that was asked to go on for so many seconds, or without an end.
pub(super) fn end_after(seconds: Option<u64>) -> Sleep {
    const LONG: Duration = Duration::from_secs(365 * 86_400);
    sleep(seconds.map_or(LONG, Duration::from_secs))
}

/// The name of an interface, or its number where it is gone.
pub(super) fn interface(index: u32) -> String {
    if_indextoname(index).map_or_else(|_| index.to_string(), |name| name.to_string_lossy().into_owned())
}

/// As Kubernetes knows it, or the host's.
pub(super) fn node_name() -> String {
    let host = || fs::read_to_string("/proc/sys/kernel/hostname").ok().map(|name| name.trim().to_owned());
    std::env::var("NODE_NAME").ok().or_else(host).unwrap_or_else(|| "this node".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_asked_of_protocols_that_have_some() {
        let of = |proto, port| OfPackets { ends: Vec::new(), proto, port }.filter();
        assert!(of(Some(1), None).is_ok() && of(None, Some(80)).is_ok() && of(Some(17), Some(53)).is_ok());
        let error = of(Some(1), Some(80)).unwrap_err().to_string();
        assert!(error.contains("--port 80 --proto 1"), "{error}");
    }

    #[test]
    fn each_reason_is_told_from_every_other() {
        for one in Reason::ALL {
            for other in Reason::ALL {
                assert_eq!(
                    reason_bits(&[*one]).meets(reason_bits(&[*other])),
                    one == other,
                    "{one:?} {other:?}"
                );
            }
        }
        assert!(reason_bits(&[]).is_empty() && !reason_bits(Reason::ALL).is_empty());
    }
}
