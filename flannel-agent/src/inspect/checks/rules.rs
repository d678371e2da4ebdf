//! What iptables holds that may be in the way of pods' packets.

use std::{
    fs,
    process::{Command, Stdio},
};

use ipnetwork::IpNetwork;

use super::forwarded::{self, Base};
use crate::values::{Family, overlap};

/// What iptables, or ip6tables, holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Firewall {
    /// The chains that packets meet.
    pub(super) bases: Vec<Base>,
    /// Those that may give packets another destination.
    pub(super) destinations: Vec<Base>,
    /// Rules of others put marks on packets, which others ask for.
    pub(super) sets_marks: bool,
    /// What `-S` lists of chain POSTROUTING of table nat.
    postrouting: Vec<String>,
}

/// The comments and chains that flannel's rules have.
const OURS: [&str; 2] = ["flanneld", "FLANNEL-"];

/// Tables whose chains drop packets.
const TABLES: [&str; 2] = ["filter", "mangle"];
const LESS_USED: [&str; 2] = ["raw", "security"];

/// The program for the rules of a family.
pub(super) const fn program_for(family: Family) -> &'static str {
    match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    }
}

/// Whether rules of others put marks on packets.
fn sets_marks(lines: &[String]) -> bool {
    let marks = |line: &String| ["-j MARK", "-j CONNMARK"].iter().any(|target| line.contains(target));
    lines.iter().any(|line| !is_ours(line) && marks(line))
}

fn list(program: &str, table: &str) -> Option<Vec<String>> {
    let mut command = Command::new(program);
    command.args(["-w", "2", "-t", table, "-S"]).stdin(Stdio::null());
    let output = command.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
}

impl Firewall {
    /// Asks the program; `None` where there is none, or it may not look. What another program has put into the kernel's
    /// older tables, where this one is for nftables, drops packets as well, and is asked for, too.
    pub(super) fn read(family: Family) -> Option<Self> {
        let program = program_for(family);
        let (older, names) = match family {
            Family::V4 => ("iptables-legacy", "/proc/net/ip_tables_names"),
            Family::V6 => ("ip6tables-legacy", "/proc/net/ip6_tables_names"),
        };
        let (mut bases, mut marks) = (Vec::new(), false);
        // What is in table raw is not asked for: asking makes it, and then every packet passes it.
        for table in TABLES {
            let lines = list(program, table)?;
            bases.extend(forwarded::of_iptables(table, &lines));
            marks |= sets_marks(&lines);
        }
        let there = fs::read_to_string(names).unwrap_or_default();
        // Of the older ones it is known which are there.
        let older_tables = TABLES.into_iter().chain(LESS_USED);
        for table in older_tables.filter(|table| there.lines().any(|name| name == *table)) {
            for mut base in forwarded::of_iptables(table, &list(older, table).unwrap_or_default()) {
                // Where the program is itself for the older tables, these are the same.
                let known = bases.iter().any(|known: &Base| known.is_same(&base));
                base.place = format!("{} ({older})", base.place);
                bases.extend((!known).then_some(base));
            }
        }
        let nat = list(program, "nat")?;
        let destinations = forwarded::of_iptables("nat", &nat);
        marks |= sets_marks(&nat);
        let of_postrouting = |line: &String| line.split(' ').nth(1) == Some("POSTROUTING");
        let postrouting = nat.into_iter().filter(of_postrouting).collect();
        Some(Self { bases, destinations, sets_marks: marks, postrouting })
    }

    /// From the texts that the program lists of table filter, and of chain POSTROUTING of table nat.
    #[cfg(test)]
    pub(super) fn of(filter: &str, postrouting: &str) -> Self {
        let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
        let (filter, postrouting) = (lines(filter), lines(postrouting));
        let bases = forwarded::of_iptables("filter", &filter);
        Self { bases, destinations: Vec::new(), sets_marks: sets_marks(&filter), postrouting }
    }

    /// A rule in front of flannel's that masquerades packets of `network` whatever they are for.
    pub(super) fn masquerades_before(&self, network: IpNetwork) -> Option<&str> {
        let rules = self.postrouting.iter().filter(|line| line.starts_with("-A "));
        rules.take_while(|line| !is_ours(line)).find(|line| takes(line, network)).map(String::as_str)
    }
}

fn is_ours(line: &str) -> bool {
    OURS.iter().any(|mark| line.contains(mark))
}

/// Whether a rule gives packets from `network` to `network` another source. Of conditions only addresses are looked at:
/// one with any other may be for other packets.
fn takes(rule: &str, network: IpNetwork) -> bool {
    let words: Vec<&str> = rule.split_whitespace().collect();
    let target = words.iter().position(|word| *word == "-j").and_then(|at| words.get(at + 1));
    if !matches!(target, Some(&"MASQUERADE" | &"SNAT")) {
        return false;
    }
    let mut words = words.iter().skip(2).peekable();
    let mut negated = false;
    while let Some(word) = words.next() {
        match *word {
            "!" => {
                negated = true;
                continue;
            }
            "-j" => return true,
            "-s" | "-d" => {
                let named = words.next().and_then(|value| value.parse::<IpNetwork>().ok());
                let Some(named) = named else { return false };
                let within = overlap(named, network);
                if within == negated {
                    return false;
                }
            }
            // Out of a tunnel, or out of everything but a bridge: pods' packets to other nodes leave that way.
            "-o" => {
                let name = words.next().copied().unwrap_or_default();
                let tunnel = name.starts_with("flannel");
                if tunnel == negated {
                    return false;
                }
            }
            _ => return false,
        }
        negated = false;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_masquerade_in_front_of_ours_is_told_from_dockers() {
        let network: IpNetwork = "10.244.0.0/16".parse().unwrap();
        let ours = "-A POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG";
        for (rule, found) in [
            ("-A POSTROUTING -j MASQUERADE", true),
            ("-A POSTROUTING -s 10.0.0.0/8 -j MASQUERADE", true),
            ("-A POSTROUTING -s 10.244.1.0/24 ! -o docker0 -j MASQUERADE", true),
            ("-A POSTROUTING -o flannel.1 -j MASQUERADE", true),
            ("-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE", false),
            ("-A POSTROUTING -s 10.244.0.0/16 ! -d 10.0.0.0/8 -j MASQUERADE", false),
            ("-A POSTROUTING -o eth0 -j MASQUERADE", false),
            ("-A POSTROUTING -m mark --mark 0x4000 -j MASQUERADE", false),
            ("-A POSTROUTING -j KUBE-POSTROUTING", false),
        ] {
            let firewall = Firewall::of("", &format!("-P POSTROUTING ACCEPT\n{rule}\n{ours}"));
            assert_eq!(firewall.masquerades_before(network).is_some(), found, "{rule}");
            let behind = Firewall::of("", &format!("{ours}\n{rule}"));
            assert_eq!(behind.masquerades_before(network), None, "{rule}");
        }
    }
}
