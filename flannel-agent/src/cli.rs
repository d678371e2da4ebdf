//! The command line: upstream's flags, their `FLANNELD_` twins, and ours.

use std::{
    ffi::OsString,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use clap::{
    ArgAction, Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum,
    builder::PossibleValue,
};
use flannel_common::layout;
use ipnetwork::Ipv4Network;
use regex::Regex;

use crate::{bpf::LogLevel, cmd};

/// A drop-in flanneld whose dataplane is eBPF.
///
/// Every flag has a twin in the environment: FLANNELD_ and its name in capitals, `-` written as `_`
/// (FLANNELD_ETCD_ENDPOINTS). The command line wins over the environment.
#[derive(Debug, Parser)]
#[command(name = "flannel-agent", disable_version_flag = true, subcommand_negates_reqs = true)]
pub struct Cli {
    /// Print the version on stderr and exit.
    #[arg(long)]
    pub version: bool,
    /// What to do instead of running the agent.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Options of the agent.
    #[command(flatten)]
    pub run: RunOptions,
}

/// Subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Look at, load or unload the programs, without an agent.
    #[command(subcommand)]
    Bpf(cmd::bpf::BpfCommand),
}

/// Options of the agent.
#[derive(Clone, Debug, Args)]
pub struct RunOptions {
    /// Where the leases are.
    #[command(flatten)]
    pub etcd: EtcdFlags,
    /// Interface for traffic between nodes: an address or a name; repeatable, the first that fits is
    /// taken. Default: that of the default route.
    #[arg(long, value_name = "IP|NAME", help_heading = "Network")]
    pub iface: Vec<String>,
    /// The same by a regular expression on addresses, then on names; repeatable, tried after --iface.
    #[arg(long, value_name = "REGEX", help_heading = "Network", value_parser = regex)]
    pub iface_regex: Vec<Regex>,
    /// The same by the route to an address, tried last.
    #[arg(long, value_name = "IP", help_heading = "Network")]
    pub iface_can_reach: Option<IpAddr>,
    /// Address other nodes reach this one at. Default: that of the interface.
    #[arg(long, value_name = "IP", help_heading = "Network", value_parser = ipv4)]
    pub public_ip: Option<Ipv4Addr>,
    /// IPv6 address other nodes reach this one at.
    #[arg(long, value_name = "IP", help_heading = "Network")]
    pub public_ipv6: Option<Ipv6Addr>,
    /// File that tells container runtimes this node's subnet.
    #[arg(long, value_name = "FILE", default_value = "/run/flannel/subnet.env", help_heading = "Network")]
    pub subnet_file: PathBuf,
    /// Minutes before a lease ends that it is renewed, 1 to 1439.
    #[arg(long, value_name = "MINUTES", default_value_t = 60, help_heading = "Network",
          value_parser = clap::value_parser!(u16).range(1..=1439))]
    pub subnet_lease_renew_margin: u16,
    /// Masquerade what pods send out of the cluster's network.
    #[arg(long, value_name = "BOOL", default_value = "false", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          action = ArgAction::Set, value_parser = go_bool, help_heading = "Rules")]
    pub ip_masq: bool,
    /// Masquerade with the kernel's own choice of source ports.
    #[arg(long, value_name = "BOOL", default_value = "false", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          action = ArgAction::Set, value_parser = go_bool, help_heading = "Rules")]
    pub ip_masq_fully_random_disable: bool,
    /// Seconds between looks at the rules.
    #[arg(long, value_name = "SECONDS", default_value_t = 5, help_heading = "Rules",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub iptables_resync: u32,
    /// Accept forwarded packets of the cluster's network.
    #[arg(long, value_name = "BOOL", default_value = "true", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          action = ArgAction::Set, value_parser = go_bool, help_heading = "Rules")]
    pub iptables_forward_rules: bool,
    /// Route what of our own subnet no pod has into a blackhole.
    #[arg(long, value_name = "BOOL", default_value = "false", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          action = ArgAction::Set, value_parser = go_bool, help_heading = "Rules")]
    pub ip_blackhole_route: bool,
    /// Destinations that pods' packets reach with the pod's own address; repeatable.
    #[arg(long, value_name = "CIDR", help_heading = "Rules")]
    pub snat_exempt_cidr: Vec<Ipv4Network>,
    /// File of such destinations, one a line; read again when it changes.
    #[arg(long, value_name = "FILE", help_heading = "Rules")]
    pub snat_exempt_file: Option<PathBuf>,
    /// Exempt the addresses of all nodes, too.
    #[arg(long, value_name = "BOOL", default_value = "false", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          action = ArgAction::Set, value_parser = go_bool, help_heading = "Rules")]
    pub snat_exempt_nodes: bool,
    /// Address that /healthz and /readyz are served at.
    #[arg(long, value_name = "IP", default_value = "0.0.0.0", help_heading = "Health")]
    pub healthz_ip: IpAddr,
    /// Port they are served at; 0 serves nothing.
    #[arg(long, value_name = "PORT", default_value_t = 0, help_heading = "Health")]
    pub healthz_port: u16,
    /// How far packets may skip the host's stack.
    #[arg(long, value_name = "HOW FAR", default_value = "overlay", help_heading = "eBPF")]
    pub fast_path: FastPath,
    /// Where the BPF file system is mounted that programs and maps are pinned in.
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf", help_heading = "eBPF")]
    pub bpffs: PathBuf,
    /// What the programs write to the agent's log.
    #[arg(long, value_name = "LEVEL", default_value = "off", help_heading = "eBPF")]
    pub bpf_log: LogLevel,
    /// Verbosity of the log: 0 changes of state, 2 and more what led to them, 5 and more everything.
    #[arg(short, long = "v", value_name = "LEVEL", default_value_t = 0, help_heading = "Log")]
    pub v: u8,
}

/// Flags about etcd, as upstream has them.
#[derive(Clone, Args)]
pub struct EtcdFlags {
    /// Endpoints of etcd, separated by commas.
    #[arg(
        long,
        value_name = "URLS",
        value_delimiter = ',',
        help_heading = "etcd",
        default_value = "http://127.0.0.1:4001,http://127.0.0.1:2379"
    )]
    pub etcd_endpoints: Vec<String>,
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
}

impl std::fmt::Debug for EtcdFlags {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Written out so that no log ever holds the password.
        f.debug_struct("EtcdFlags")
            .field("etcd_endpoints", &self.etcd_endpoints)
            .field("etcd_prefix", &self.etcd_prefix)
            .field("etcd_keyfile", &self.etcd_keyfile)
            .field("etcd_certfile", &self.etcd_certfile)
            .field("etcd_cafile", &self.etcd_cafile)
            .field("etcd_username", &self.etcd_username)
            .field("etcd_password", &self.etcd_password.as_ref().map(|_| "<hidden>"))
            .finish()
    }
}

/// `--fast-path`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FastPath(pub layout::FastPath);

impl ValueEnum for FastPath {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self(layout::FastPath::All), Self(layout::FastPath::Overlay), Self(layout::FastPath::Off)]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let help = match self.0 {
            layout::FastPath::All => {
                "every pod-to-pod packet skips netfilter: for clusters without Services and policies"
            }
            layout::FastPath::Overlay => "the tunnel device's work only; netfilter sees every packet",
            layout::FastPath::Off => "stock flannel's dataplane",
            layout::FastPath::Flow => return None,
        };
        Some(PossibleValue::new(self.0.label()).help(help))
    }
}

/// What Go's strconv.ParseBool takes.
fn go_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("write true or false".to_owned()),
    }
}

/// Nearly what Go's regexp takes: `\Q...\E` and `\C` are unknown here.
fn regex(text: &str) -> Result<Regex, String> {
    Regex::new(text).map_err(|error| {
        format!(
            "could not compile the regular expression: {error}\nwrite one as eth.* or 192\\.0\\.2\\.[0-9]+"
        )
    })
}

fn ipv4(text: &str) -> Result<Ipv4Addr, String> {
    text.parse().map_err(|_| "write an IPv4 address, as 192.0.2.1".to_owned())
}

impl Cli {
    /// Reads `arguments` (the program's name first) and, for flags not among them, the environment.
    ///
    /// # Errors
    /// What clap says of a flag or value it does not accept.
    pub fn read(
        arguments: impl IntoIterator<Item = OsString>,
        environment: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, clap::Error> {
        // A flag set to nothing, as unit files do with empty variables, is not set.
        let empty =
            |argument: &OsString| argument.to_str().is_some_and(|text| is_flag(text) && text.ends_with('='));
        let mut arguments: Vec<OsString> =
            arguments.into_iter().map(go_flag).filter(|argument| !empty(argument)).collect();
        let mut command = Self::command();
        let given = |name: &str| {
            let flag = format!("--{name}");
            arguments.iter().filter_map(|argument| argument.to_str()).any(|argument| {
                argument == flag || argument.strip_prefix(&flag).is_some_and(|rest| rest.starts_with('='))
            })
        };
        let mut twins = Vec::new();
        for name in command.get_arguments().filter_map(|argument| argument.get_long()) {
            if name == "version" || given(name) {
                continue;
            }
            let variable = format!("FLANNELD_{}", name.to_uppercase().replace('-', "_"));
            if let Some(value) = environment(&variable).filter(|value| !value.is_empty()) {
                let mut twin = OsString::from(format!("--{name}="));
                twin.push(value);
                twins.push(twin);
            }
        }
        let at = arguments.len().min(1);
        arguments.splice(at..at, twins);
        Self::from_arg_matches(&command.try_get_matches_from_mut(arguments)?)
    }
}

fn is_flag(argument: &str) -> bool {
    argument.starts_with("--") && argument.matches('=').count() == 1
}

/// Go's flags may have one dash: `-iface eth0` is `--iface eth0`. `-v` and `-h` are as they are.
fn go_flag(argument: OsString) -> OsString {
    match argument.to_str() {
        Some(text)
            if text.len() > 2
                && text.starts_with('-')
                && !text.starts_with("--")
                && !text[1..].starts_with("v=")
                && !text[1..].starts_with(|c: char| c.is_ascii_digit()) =>
        {
            OsString::from(format!("-{text}"))
        }
        _ => argument,
    }
}

#[cfg(test)]
mod tests;
