//! The command line: upstream's flags, their `FLANNELD_` twins, and ours.

use std::{
    ffi::{OsStr, OsString},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    time::Duration,
};

use clap::{
    ArgAction, Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand,
    error::{ContextKind, ErrorKind},
};
use flannel_common::{map::MAX_FLOWS, mark::Marks};
use ipnetwork::IpNetwork;
use regex::Regex;

use crate::{
    bpf::{LogLevel, TcAttach},
    cmd, exempt,
    node::xdp::{XdpChoice, XdpMode},
    telemetry::log::LogFormat,
};

mod choice;
mod etcd_migrate;
mod given;
mod idle;
mod syntax;
mod value;

pub use choice::{EtcdApi, FastPath, UnknownVtep};
pub use etcd_migrate::EtcdMigrateOptions;
pub use given::Given;

use syntax::Stop;
use value::{
    HIDDEN, go_bool, healthz_port, hold, ipv4, mark_bit, regex, renew_margin, seconds, shown, verbosity,
};

/// A drop-in flanneld whose dataplane is eBPF.
#[derive(Debug, Parser)]
#[command(
    name = "flannel-agent",
    disable_version_flag = true,
    disable_help_flag = true,
    max_term_width = 100,
    after_help = "Flags take one dash or two, and their value after `=` or as the next word; `=false` turns a switch \
                  off. Each flag has a variable, as FLANNELD_ETCD_PREFIX for --etcd-prefix; the command line wins."
)]
pub struct Cli {
    /// Print the version on stderr and exit.
    #[arg(long, value_name = "BOOL", default_value = "false", hide_default_value = true, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          action = ArgAction::Set, value_parser = go_bool)]
    pub version: bool,
    /// Print this help and exit.
    #[arg(short, long, global = true, action = ArgAction::HelpShort)]
    help: Option<bool>,
    /// What to do instead of running the agent.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Options of the agent.
    #[command(flatten)]
    pub run: RunOptions,
    /// What of all this was given, and where.
    #[arg(skip)]
    pub given: Given,
}

/// Subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Look at, load or unload the programs, without an agent.
    #[command(subcommand)]
    Bpf(cmd::bpf::BpfCommand),
    /// Show step by step what would happen to a packet, without sending it.
    Explain(cmd::explain::ExplainOptions),
    /// Show packets at each hook of the programs.
    Trace(cmd::trace::TraceOptions),
    /// Show what happens: leases, repairs, flows learned, packets that should not be.
    Monitor(cmd::monitor::MonitorOptions),
    /// Show what passes this node now, by peer, pod and reason, and what the programs cost.
    Top(cmd::top::TopOptions),
    /// Write all that tells how this node stands into one archive, without secrets.
    Bugreport(cmd::bugreport::BugreportOptions),
    /// How this node stands, on one screen. Exits with 0 if healthy, 1 if something is wrong, 2 without an agent.
    Status(cmd::status::StatusOptions),
    /// The peers: what is in place for each, and how it is reached. Exits as status does.
    Peers(cmd::peers::PeersOptions),
    /// Ask the peers for echoes, look at the node, and say what is wrong and what to do. Exits as status does.
    Check(cmd::check::CheckOptions),
    /// What differs between the leases, the kernel and the maps; nothing when all is well. Exits as status does.
    Drift(cmd::drift::DriftOptions),
    /// Move a cluster's leases from etcd's v2 store to its v3 store, with every node running.
    EtcdMigrate(Box<EtcdMigrateOptions>),
}

/// Options of the agent.
#[derive(Clone, Debug, Args)]
pub struct RunOptions {
    /// Where the leases are.
    #[command(flatten)]
    pub etcd: EtcdFlags,
    /// Leases in the Kubernetes API.
    #[command(flatten)]
    pub kube: KubeFlags,
    /// File that lists the nodes and their subnets, used instead of etcd; read again when it changes.
    #[arg(long, value_name = "FILE", help_heading = "Network")]
    pub lease_file: Option<PathBuf>,
    /// Interface for traffic between nodes, by address or name; repeatable, the first match is used. Default: the
    /// interface of the default route.
    #[arg(long, value_name = "IP|NAME", help_heading = "Network")]
    pub iface: Vec<String>,
    /// The same, by a regular expression on addresses, then on names; repeatable, tried after --iface.
    #[arg(long, value_name = "REGEX", help_heading = "Network", value_parser = regex)]
    pub iface_regex: Vec<Regex>,
    /// The same, by the route to an address; tried last.
    #[arg(long, value_name = "IP", help_heading = "Network")]
    pub iface_can_reach: Option<IpAddr>,
    /// Address at which other nodes reach this one. Default: the address of the interface.
    #[arg(long, value_name = "IP", help_heading = "Network", value_parser = ipv4)]
    pub public_ip: Option<Ipv4Addr>,
    /// IPv6 address at which other nodes reach this one. Default: the address of the interface.
    #[arg(long, value_name = "IP", help_heading = "Network")]
    pub public_ipv6: Option<Ipv6Addr>,
    /// File that tells container runtimes the subnet of this node.
    #[arg(long, value_name = "FILE", default_value = "/run/flannel/subnet.env", help_heading = "Network")]
    pub subnet_file: PathBuf,
    /// Renew the lease this many minutes before it ends, 1 to 1439.
    #[arg(long, value_name = "MINUTES", default_value = "60", help_heading = "Network", value_parser = renew_margin)]
    pub subnet_lease_renew_margin: u16,
    /// Masquerade packets of pods to destinations outside the cluster's network.
    #[arg(long, value_name = "BOOL", default_value = "false", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          action = ArgAction::Set, value_parser = go_bool, help_heading = "Rules")]
    pub ip_masq: bool,
    /// Masquerade without random source ports: the kernel keeps ports where it can.
    #[arg(long, value_name = "BOOL", default_value = "false", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          action = ArgAction::Set, value_parser = go_bool, help_heading = "Rules")]
    pub ip_masq_fully_random_disable: bool,
    /// Seconds between checks of the rules and of the blackhole route.
    #[arg(long, value_name = "SECONDS", default_value = "5", help_heading = "Rules", value_parser = seconds)]
    pub iptables_resync: u32,
    /// Accept forwarded packets of the cluster's network.
    #[arg(long, value_name = "BOOL", default_value = "true", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          action = ArgAction::Set, value_parser = go_bool, help_heading = "Rules")]
    pub iptables_forward_rules: bool,
    /// Add a blackhole route for this node's subnet, for addresses that no pod has.
    #[arg(long, value_name = "BOOL", default_value = "false", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          action = ArgAction::Set, value_parser = go_bool, help_heading = "Rules")]
    pub ip_blackhole_route: bool,
    /// Destinations that see the pod's own address; repeatable.
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = exempt::prefix, help_heading = "Rules")]
    pub snat_exempt_cidr: Vec<IpNetwork>,
    /// File of such destinations, one per line; read again when it changes.
    #[arg(long, value_name = "FILE", help_heading = "Rules")]
    pub snat_exempt_file: Option<PathBuf>,
    /// Exempt the addresses of all other nodes, too.
    #[arg(long, value_name = "BOOL", default_value = "false", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          action = ArgAction::Set, value_parser = go_bool, help_heading = "Rules")]
    pub snat_exempt_nodes: bool,
    /// Bit of packet marks that exempts packets of pods from masquerading.
    #[arg(long, value_name = "BIT", default_value = "0x40", help_heading = "Rules", value_parser = mark_bit)]
    pub snat_exempt_mark: u32,
    /// Bit of packet marks that tells the programs which flows netfilter has accepted.
    #[arg(long, value_name = "BIT", default_value = "0x1000", help_heading = "Rules", value_parser = mark_bit)]
    pub flow_mark: u32,
    /// Address at which /healthz, /readyz and /metrics are served.
    #[arg(long, value_name = "IP", default_value = "0.0.0.0", help_heading = "Health")]
    pub healthz_ip: IpAddr,
    /// Port at which they are served; 0 turns them off.
    #[arg(long, value_name = "PORT", default_value = "0", help_heading = "Health", value_parser = healthz_port)]
    pub healthz_port: u16,
    /// Add metrics of each peer to /metrics: some series for each node of the cluster.
    #[arg(long, value_name = "BOOL", default_value = "false", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          action = ArgAction::Set, value_parser = go_bool, help_heading = "Health")]
    pub metrics_peers: bool,
    /// Random peers that are asked for echoes in each half minute, 0 to 100; 0 asks none.
    #[arg(long, value_name = "NUMBER", default_value_t = 3, help_heading = "Health",
          value_parser = clap::value_parser!(u32).range(0..=100))]
    pub peer_probes: u32,
    /// How much of the host's stack packets may skip.
    #[arg(long, value_name = "MODE", default_value = "flow", help_heading = "eBPF")]
    pub fast_path: FastPath,
    /// Seconds until a flow on the fast path sends a packet through netfilter again, so that a changed policy takes
    /// effect, 1 to 30.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, help_heading = "eBPF",
          value_parser = clap::value_parser!(u32).range(1..=30))]
    pub flow_refresh: u32,
    /// Flows of each IP family that the programs remember, 1024 to 4194304; each takes 110 bytes, with IPv6 130, used or
    /// not.
    #[arg(long, value_name = "NUMBER", default_value_t = MAX_FLOWS, help_heading = "eBPF",
          value_parser = clap::value_parser!(u32).range(1024..=4_194_304))]
    pub flow_table_size: u32,
    /// Seconds that the programs go on without an agent, 5 or more; 0 means without end.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, help_heading = "eBPF", value_parser = hold)]
    pub fast_path_hold: u32,
    /// How tc programs are attached.
    #[arg(long, value_name = "WAY", default_value = "auto", help_heading = "eBPF")]
    pub tc_attach: TcAttach,
    /// XDP on the external interface.
    #[arg(long, value_name = "MODE", default_value = "off", help_heading = "eBPF")]
    pub xdp: XdpMode,
    /// What XDP does with VXLAN from an unknown VTEP, an address that no lease names.
    #[arg(long, value_name = "WHAT", default_value = "drop", help_heading = "eBPF")]
    pub xdp_unknown_vtep: UnknownVtep,
    /// Mount point of the BPF file system in which programs and maps are pinned.
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf", help_heading = "eBPF")]
    pub bpffs: PathBuf,
    /// What the programs write to the agent's log.
    #[arg(long, value_name = "LEVEL", default_value = "off", help_heading = "eBPF")]
    pub bpf_log: LogLevel,
    /// Verbosity of the log: 0 for changes of state, 2 and more for what led to them, 5 and more for everything.
    #[arg(short, long = "v", value_name = "LEVEL", default_value = "0", help_heading = "Log", value_parser = verbosity)]
    pub v: i32,
    /// Format of the log.
    #[arg(long, value_name = "FORMAT", default_value = "text", help_heading = "Log")]
    pub log_format: LogFormat,
    /// klog's verbosity by file; has no effect.
    #[arg(long, value_name = "PATTERN=LEVEL", help_heading = "Log")]
    pub vmodule: Option<String>,
    /// klog's stack trace at a line; has no effect.
    #[arg(long = "log_backtrace_at", value_name = "FILE:LINE", help_heading = "Log")]
    pub log_backtrace_at: Option<String>,
}

/// Flags about etcd, as upstream has them.
#[derive(Clone, Args)]
pub struct EtcdFlags {
    /// Endpoints of etcd, separated by commas.
    #[arg(
        long,
        value_name = "URLS",
        help_heading = "etcd",
        default_value = "http://127.0.0.1:4001,http://127.0.0.1:2379"
    )]
    pub etcd_endpoints: String,
    /// Prefix of flannel's keys.
    #[arg(long, value_name = "KEY", default_value = "/coreos.com/network", help_heading = "etcd")]
    pub etcd_prefix: String,
    /// Private key of the client certificate, PEM.
    #[arg(long, value_name = "FILE", help_heading = "etcd")]
    pub etcd_keyfile: Option<PathBuf>,
    /// Client certificate, PEM.
    #[arg(long, value_name = "FILE", help_heading = "etcd")]
    pub etcd_certfile: Option<PathBuf>,
    /// Certificate of the authority that signed etcd's, PEM.
    #[arg(long, value_name = "FILE", help_heading = "etcd")]
    pub etcd_cafile: Option<PathBuf>,
    /// User, where etcd's authentication is on.
    #[arg(long, value_name = "NAME", help_heading = "etcd")]
    pub etcd_username: Option<String>,
    /// That user's password; better given as FLANNELD_ETCD_PASSWORD.
    #[arg(long, value_name = "PASSWORD", help_heading = "etcd")]
    pub etcd_password: Option<String>,
    /// Which of etcd's stores holds the leases.
    #[arg(long, value_name = "API", default_value = "auto", help_heading = "etcd")]
    pub etcd_api: EtcdApi,
}

/// Flags about leases in the Kubernetes API, as upstream has them.
#[derive(Clone, Debug, Args)]
pub struct KubeFlags {
    /// Keep leases in the Kubernetes API instead of etcd.
    #[arg(long, value_name = "BOOL", default_value = "false", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          action = ArgAction::Set, value_parser = go_bool, help_heading = "Kubernetes")]
    pub kube_subnet_mgr: bool,
    /// Address of the API server. Default: as a pod finds it.
    #[arg(long, value_name = "URL", help_heading = "Kubernetes")]
    pub kube_api_url: Option<String>,
    /// kubeconfig file for the API server; --kube-api-url overrides its address.
    #[arg(long, value_name = "FILE", help_heading = "Kubernetes")]
    pub kubeconfig_file: Option<PathBuf>,
    /// Prefix of flannel's annotations on nodes.
    #[arg(
        long,
        value_name = "PREFIX",
        default_value = "flannel.alpha.coreos.com",
        help_heading = "Kubernetes"
    )]
    pub kube_annotation_prefix: String,
    /// File with the network configuration.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/etc/kube-flannel/net-conf.json",
        help_heading = "Kubernetes"
    )]
    pub net_config_path: PathBuf,
    /// Set the node's condition NetworkUnavailable to false when ready.
    #[arg(long, value_name = "BOOL", default_value = "true", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          action = ArgAction::Set, value_parser = go_bool, help_heading = "Kubernetes")]
    pub set_node_network_unavailable: bool,
}

impl RunOptions {
    /// `--flow-refresh`.
    pub fn flow_refresh(&self) -> Duration {
        Duration::from_secs(self.flow_refresh.into())
    }

    /// What is asked of XDP.
    pub const fn xdp(&self) -> XdpChoice {
        XdpChoice { mode: self.xdp, unknown_vtep: self.xdp_unknown_vtep.0 }
    }

    /// `--snat-exempt-mark` and `--flow-mark`.
    pub const fn marks(&self) -> Marks {
        Marks { exempt: self.snat_exempt_mark, flow: self.flow_mark }
    }

    /// Where the commands that look at an agent find one with these options.
    pub fn defaults(&self) -> cmd::Defaults {
        cmd::Defaults { subnet_file: self.subnet_file.clone(), bpffs: self.bpffs.clone() }
    }

    /// `--fast-path-hold`; zero is for ever.
    pub fn hold(&self) -> Duration {
        Duration::from_secs(self.fast_path_hold.into())
    }
}

impl std::fmt::Debug for EtcdFlags {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Written out so that no log ever holds the password.
        f.debug_struct("EtcdFlags")
            .field("etcd_endpoints", &shown("etcd-endpoints", OsStr::new(&self.etcd_endpoints)))
            .field("etcd_prefix", &self.etcd_prefix)
            .field("etcd_keyfile", &self.etcd_keyfile)
            .field("etcd_certfile", &self.etcd_certfile)
            .field("etcd_cafile", &self.etcd_cafile)
            .field("etcd_username", &self.etcd_username)
            .field("etcd_password", &self.etcd_password.as_ref().map(|_| HIDDEN))
            .field("etcd_api", &self.etcd_api)
            .finish()
    }
}

impl Cli {
    /// Reads `arguments` (the program's name first) and, for flags not among them, the environment. A bad
    /// variable is an error only where upstream does not start either; of others [`Given::log`] tells.
    ///
    /// # Errors
    /// What clap says of a flag or value it does not accept. Help, too, is such an error.
    pub fn read(
        arguments: impl IntoIterator<Item = OsString>,
        environment: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, clap::Error> {
        let mut arguments = arguments.into_iter();
        let program = arguments.next().unwrap_or_default();
        let mut command = Self::command();
        let line = syntax::split(&command, arguments);
        if let Some(Stop::Malformed(flag)) = &line.stop {
            let text = format!("{flag} is no flag: write one dash or two, and the flag's name");
            return Err(command.error(ErrorKind::UnknownArgument, text));
        }
        let last = line.flags.last().map(|(name, _)| name.clone());
        let mut given = Given::gather(&command, line.flags, environment);
        let mut canonical = vec![program];
        let mut words = line.words;
        let migrates = words.first().is_some_and(|word| word == EtcdMigrateOptions::NAME) && !line.ended;
        match migrates && line.stop.is_none() {
            true => canonical.extend(etcd_migrate::words(given.arguments(), std::mem::take(&mut words))),
            false => canonical.extend(given.arguments()),
        }
        canonical.extend(line.stop.map(|stop| match stop {
            Stop::Help => OsString::from("--help"),
            // Its value is not repeated: it may be that of a password whose flag was misspelled.
            Stop::Unknown(flag) | Stop::NoValue(flag) | Stop::Malformed(flag) => {
                OsString::from(format!("--{flag}"))
            }
        }));
        let subcommand = words.first().filter(|_| !line.ended).and_then(|word| word.to_str());
        let subcommand = subcommand.and_then(|word| command.find_subcommand(word));
        match last {
            // As upstream, where flags were read; a word alone is rather a subcommand misspelled.
            Some(name) if subcommand.is_none() && !words.is_empty() => {
                given.ignore_words(&name, words.len());
            }
            _ if line.ended => {}
            _ => canonical.extend(words),
        }
        let matches = command.try_get_matches_from_mut(canonical).map_err(without_tip)?;
        let mut cli = Self::from_arg_matches(&matches)?;
        if let Some(reason) = given.fatal().filter(|_| !cli.version && cli.command.is_none()) {
            return Err(command.error(ErrorKind::ValueValidation, reason));
        }
        let Marks { exempt, flow } = cli.run.marks();
        if exempt == flow && !cli.version && cli.command.is_none() {
            let text = format!(
                "--snat-exempt-mark and --flow-mark are both {flow:#x}: give each a bit of its own, as 0x40 and 0x1000"
            );
            return Err(command.error(ErrorKind::ValueValidation, text));
        }
        cli.given = given;
        Ok(cli)
    }
}

/// The same without the advice to write a flag that there is not as if it were a value, behind `--`.
fn without_tip(mut error: clap::Error) -> clap::Error {
    let tip = error.get(ContextKind::Suggested).map(ToString::to_string);
    if error.kind() == ErrorKind::UnknownArgument && tip.is_some_and(|tip| tip.contains("as a value")) {
        error.remove(ContextKind::Suggested);
    }
    error
}

#[cfg(test)]
mod tests;
