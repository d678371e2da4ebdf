//! `explain`: what would happen to an imagined packet.

use std::{net::IpAddr, path::PathBuf, process::ExitCode};

use clap::Args;
use comfy_table::{ContentArrangement, Table};
use flannel_common::{
    mark::Marks,
    packet::headers::{PROTOCOL_TCP, PROTOCOL_UDP, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN},
};
use tokio::runtime;

use super::{
    CannotLook, Defaults,
    bpf::{Output, enter},
    output::{print, wrapped},
    place::bpffs,
    value,
};
use crate::{
    bpf::Pins,
    control::Client,
    explain::{Answer, Imagined, Outcome, Question, Told, explain},
    inspect::checks::Filters,
    masq::RuleOptions,
    values::Family,
};

/// Width of the table, columns.
const WIDTH: u16 = 100;
/// `PSH`, which decides nothing.
const TCP_PSH: u8 = 0x08;

/// `flannel-agent explain ...`.
#[derive(Debug, Args)]
pub struct ExplainOptions {
    /// Source of the packet.
    #[arg(value_name = "SRC", value_parser = value::address)]
    pub source: IpAddr,
    /// Its destination.
    #[arg(value_name = "DST", value_parser = value::address)]
    pub destination: IpAddr,
    /// Its protocol: tcp, udp, icmp, or a number.
    #[arg(long, value_name = "PROTOCOL", default_value = "tcp", value_parser = protocol)]
    pub proto: Protocol,
    /// Its source port.
    #[arg(long, value_name = "PORT", default_value = "40000", value_parser = value::port)]
    pub sport: u16,
    /// Its destination port.
    #[arg(long, value_name = "PORT", default_value = "80", value_parser = value::port)]
    pub dport: u16,
    /// Length of the IP packet, bytes. Default: 32 bytes of data.
    #[arg(long, value_name = "BYTES", value_parser = value::whole::<u16>("bytes", 0..=65_535))]
    pub size: Option<u16>,
    /// Flags of TCP, separated by commas: syn, ack, fin, rst, psh.
    #[arg(long, value_name = "FLAGS", default_value = "ack", value_delimiter = ',', value_parser = tcp_flag)]
    pub tcp_flags: Vec<u8>,
    /// Its TTL or hop limit.
    #[arg(long, value_name = "HOPS", default_value = "64", value_parser = value::whole::<u8>("hops", 0..=255))]
    pub ttl: u8,
    /// Its TOS byte or traffic class, DSCP and ECN: 0xb8, or 184.
    #[arg(long, value_name = "BYTE", default_value = "0", value_parser = tos)]
    pub tos: u8,
    /// It arrives from another node, wherever its source is.
    #[arg(long)]
    pub ingress: bool,
    /// It arrives in VXLAN from the node with this public address, whoever holds the lease of its source.
    #[arg(long, value_name = "IP", value_parser = value::address)]
    pub from_node: Option<IpAddr>,
    /// Subnet file of the agent, which says what rules there are at the control socket beside it. Default: the agent's.
    #[arg(long, value_name = "FILE")]
    pub subnet_file: Option<PathBuf>,
    /// Network namespace of the node, by its name in /run/netns.
    #[arg(long, value_name = "NAME")]
    pub netns: Option<String>,
    /// Mount point of the BPF file system. Default: the agent's.
    #[arg(long, value_name = "DIR")]
    pub bpffs: Option<PathBuf>,
    /// How to print.
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Output,
}

/// A protocol by name or number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// ICMP of either family.
    Icmp,
    /// By its number (IANA).
    Number(u8),
}

fn protocol(text: &str) -> Result<Protocol, String> {
    match text {
        "tcp" => Ok(Protocol::Number(PROTOCOL_TCP)),
        "udp" => Ok(Protocol::Number(PROTOCOL_UDP)),
        "icmp" | "icmpv6" => Ok(Protocol::Icmp),
        "sctp" => Ok(Protocol::Number(132)),
        number => number
            .parse()
            .map(Protocol::Number)
            .map_err(|_| "write tcp, udp, icmp, sctp, or a number up to 255".to_owned()),
    }
}

fn tos(text: &str) -> Result<u8, String> {
    let byte = match text.strip_prefix("0x") {
        Some(digits) => u8::from_str_radix(digits, 16),
        None => text.parse(),
    };
    byte.map_err(|_| {
        "write a byte, 0 to 255 or 0x0 to 0xff: four times the DSCP, plus the ECN bits".to_owned()
    })
}

fn tcp_flag(text: &str) -> Result<u8, String> {
    match text {
        "syn" => Ok(TCP_SYN),
        "ack" => Ok(TCP_ACK),
        "fin" => Ok(TCP_FIN),
        "rst" => Ok(TCP_RST),
        "psh" => Ok(TCP_PSH),
        _ => Err("write syn, ack, fin, rst and psh, separated by commas".to_owned()),
    }
}

impl ExplainOptions {
    fn question(&self) -> Question {
        let protocol = match self.proto {
            Protocol::Number(number) => number,
            Protocol::Icmp if self.source.is_ipv4() => 1,
            Protocol::Icmp => 58,
        };
        let mut packet = Imagined {
            source: self.source,
            destination: self.destination,
            protocol,
            source_port: self.sport,
            destination_port: self.dport,
            tcp_flags: self.tcp_flags.iter().fold(0, |all, flag| all | flag),
            hops: self.ttl,
            tos: self.tos,
            size: 0,
        };
        packet.size = self.size.unwrap_or(packet.headers() + 32);
        Question { packet, arrives: self.ingress, from_node: self.from_node }
    }
}

/// Runs `explain`. Enters another network namespace, as `bpf` does. Fails with 1 for a packet that is dropped, and with 2 for one
/// of which it cannot be told.
///
/// # Errors
/// [`CannotLook`], with what to do about it.
pub fn run(options: ExplainOptions, marks: Marks, defaults: &Defaults) -> anyhow::Result<ExitCode> {
    let answer = ask(&options, marks, defaults).map_err(CannotLook)?;
    let text = match options.output {
        Output::Json => {
            format!("{}\n", serde_json::to_string(&answer).map_err(|error| CannotLook(error.into()))?)
        }
        Output::Table => table(&answer),
    };
    print(&text).map_err(CannotLook)?;
    Ok(match answer.outcome {
        Outcome::Dropped { .. } => ExitCode::FAILURE,
        Outcome::Unknown { .. } => ExitCode::from(CannotLook::STATUS),
        _ => ExitCode::SUCCESS,
    })
}

fn ask(options: &ExplainOptions, marks: Marks, defaults: &Defaults) -> anyhow::Result<Answer> {
    enter(options.netns.clone())?;
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let subnet_file = options.subnet_file.as_deref().unwrap_or(&defaults.subnet_file);
    runtime.block_on(async {
        // Without an agent nobody says which rules there are.
        let snapshot = Client::beside(subnet_file).snapshot().await;
        let of_agent = snapshot.as_ref().ok().map(|snapshot| snapshot.agent.bpffs.clone());
        let pins = Pins::under(&bpffs(options.bpffs.as_deref(), of_agent, defaults))?;
        let mut told = snapshot.map_or_else(
            |_| Told::default(),
            |snapshot| Told {
                rules: snapshot.rule_settings.iter().map(RuleOptions::of_told).collect(),
                hooks: snapshot
                    .dataplane
                    .into_iter()
                    .flat_map(|dataplane| dataplane.hooked)
                    .map(|hooked| (hooked.interface, hooked.hook))
                    .collect(),
                filters: None,
            },
        );
        told.filters = Some(Filters::read(Family::of(options.source)));
        Ok(explain(&pins, marks, told, &options.question()).await?)
    })
}

/// The steps, what was looked up at each, and the outcome.
fn table(answer: &Answer) -> String {
    let mut table = Table::new();
    table.set_content_arrangement(ContentArrangement::Dynamic).set_width(WIDTH);
    table.set_header(["at", "interface", "reason", "what"]);
    for step in &answer.steps {
        let mut what = step.what.clone();
        for lookup in &step.lookups {
            let value = lookup.value.as_deref().unwrap_or("no entry");
            what.push_str(&format!("\n{} {}: {value}", lookup.map, lookup.key));
        }
        table.add_row([
            step.at.label().to_owned(),
            step.interface.clone().unwrap_or_else(|| "-".to_owned()),
            step.reason.map_or_else(|| "-".to_owned(), |reason| reason.label().to_owned()),
            what,
        ]);
    }
    let Imagined { source, destination, .. } = answer.packet;
    let mut text = format!("{table}\nThe packet from {source} to {destination} {}.\n", answer.outcome);
    for by in &answer.perhaps {
        text.push_str(&wrapped(&format!("It may be dropped before that: {by}"), 4));
        text.push('\n');
    }
    text
}
