//! Chains as `iptables -S` lists them.

use std::collections::BTreeSet;

use ipnetwork::IpNetwork;

use super::{Asks, Base, Chains, Condition, Rule, Step, condition::Ranges};
use crate::values::as_typed;

/// The chains that the kernel calls of `table`, from all its lines.
pub(in crate::inspect::checks) fn tables(table: &str, lines: &[String]) -> Vec<Base> {
    let mut chains = Chains::new();
    let (mut drops, mut bases) = (BTreeSet::new(), Vec::new());
    for line in lines {
        let words = words(line);
        match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["-P", chain, policy] => {
                chains.entry(chain.to_owned()).or_default();
                if policy == "DROP" {
                    drops.insert(chain.to_owned());
                }
                bases.push(chain.to_owned());
            }
            ["-N", chain] => {
                chains.entry(chain.to_owned()).or_default();
            }
            ["-A", chain, ref rest @ ..] => {
                let rules = chains.entry(chain.to_owned()).or_default();
                rules.push(rule(rest, line, rules.len() as u64 + 1));
            }
            _ => {}
        }
    }
    let named: BTreeSet<String> = chains.keys().cloned().collect();
    for rule in chains.values_mut().flatten() {
        // A target that is no chain only marks, logs or changes packets.
        if let Step::Jump(target) = &rule.step
            && !named.contains(target)
        {
            rule.step = Step::Nothing;
        }
    }
    bases
        .into_iter()
        .map(|name| Base {
            place: if table == "filter" { name.clone() } else { format!("{name} of table {table}") },
            drops: drops.contains(&name),
            hook: name.to_lowercase(),
            devices: Vec::new(),
            name,
            chains: chains.clone(),
        })
        .collect()
}

/// The words of a line; what is quoted is one.
fn words(line: &str) -> Vec<String> {
    let mut all = Vec::new();
    let (mut word, mut quoted, mut any) = (String::new(), false, false);
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => (quoted, any) = (!quoted, true),
            '\\' if quoted => word.extend(characters.next()),
            ' ' if !quoted => {
                if any || !word.is_empty() {
                    all.push(std::mem::take(&mut word));
                }
                any = false;
            }
            other => word.push(other),
        }
    }
    if any || !word.is_empty() {
        all.push(word);
    }
    all
}

fn rule(words: &[&str], line: &str, number: u64) -> Rule {
    let mut rule = Rule { conditions: Vec::new(), step: Step::Nothing, text: as_typed(line), number };
    let mut words = words.iter().copied().peekable();
    let (mut negated, mut module) = (false, String::new());
    while let Some(word) = words.next() {
        let mut ask = |asks| rule.conditions.push(Condition { asks, negated });
        let mut value = || words.next().unwrap_or_default().to_owned();
        let networks = |text: &str| text.parse::<IpNetwork>().into_iter().collect();
        match word {
            "!" => {
                negated = true;
                continue;
            }
            "-s" => ask(Asks::Source(networks(&value()))),
            "-d" => ask(Asks::Destination(networks(&value()))),
            "-i" => ask(Asks::By(vec![value()])),
            "-o" => ask(Asks::Out(vec![value()])),
            "-p" => ask(protocol(&value()).map_or(Asks::Something, |number| Asks::Protocol(vec![number]))),
            "--sport" | "--sports" => ask(ranges(&value(), |ranges| Asks::SourcePort(None, ranges))),
            "--dport" | "--dports" => ask(ranges(&value(), |ranges| Asks::DestinationPort(None, ranges))),
            "--ports" => ask(ranges(&value(), Asks::EitherPort)),
            "--tcp-flags" => {
                let [mask, set] = [value(), value()].map(|names| tcp_flags(&names));
                ask(mask.zip(set).map_or(Asks::Something, |(mask, set)| Asks::TcpFlags(mask, set)));
            }
            // That of a connection has the same option.
            "--mark" if module == "mark" => {
                ask(mark(&value()).map_or(Asks::Something, |(value, mask)| Asks::Mark(value, mask)));
            }
            "--ctstate" | "--state" => {
                let states = value();
                let has = |state: &str| states.split(',').any(|named| named == state);
                ask(Asks::State { new: has("NEW"), known: has("ESTABLISHED") });
            }
            // What a module asks stands in its options.
            "-m" => {
                module = value();
                if ["statistic", "limit"].contains(&module.as_str()) {
                    rule.conditions.push(Condition { asks: Asks::Chance, negated: false });
                }
            }
            "--mode" | "--probability" | "--every" | "--packet" if module == "statistic" => drop(value()),
            "--limit" | "--limit-burst" if module == "limit" => drop(value()),
            "--dst-type" => ask(if value() == "LOCAL" { Asks::ForNode } else { Asks::Something }),
            "--comment" => drop(value()),
            "-j" => {
                rule.step = match value().as_str() {
                    "ACCEPT" => Step::Accept,
                    "DROP" | "REJECT" => Step::Drop,
                    "RETURN" => Step::Return,
                    "NFQUEUE" | "QUEUE" => Step::Unclear,
                    "DNAT" | "REDIRECT" | "NETMAP" => Step::Translate,
                    target => Step::Jump(target.to_owned()),
                };
                break;
            }
            "-g" => {
                rule.step = Step::GoTo(value());
                break;
            }
            // Also the values of options that are not known.
            _ => ask(Asks::Something),
        }
        negated = false;
    }
    rule
}

/// The number of a protocol (IANA) that is so called.
pub(super) fn protocol(name: &str) -> Option<u8> {
    Some(match name {
        "icmp" => 1,
        "tcp" => 6,
        "udp" => 17,
        "ipv6-icmp" | "icmpv6" => 58,
        "sctp" => 132,
        number => number.parse().ok()?,
    })
}

fn ranges(text: &str, asks: impl FnOnce(Ranges) -> Asks) -> Asks {
    let range = |range: &str| {
        let (from, to) = range.split_once(':').unwrap_or((range, range));
        Some((from.parse().ok()?, to.parse().ok()?))
    };
    text.split(',').map(range).collect::<Option<Ranges>>().map_or(Asks::Something, asks)
}

/// A value, and the bits that it is about.
fn mark(text: &str) -> Option<(u32, u32)> {
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    };
    match text.split_once('/') {
        Some((value, mask)) => Some((number(value)?, number(mask)?)),
        None => Some((number(text)?, u32::MAX)),
    }
}

fn tcp_flags(names: &str) -> Option<u8> {
    let bit = |name: &str| {
        Some(match name {
            "FIN" => 0x01,
            "SYN" => 0x02,
            "RST" => 0x04,
            "PSH" => 0x08,
            "ACK" => 0x10,
            "URG" => 0x20,
            "ALL" => 0x3f,
            "NONE" => 0,
            _ => return None,
        })
    };
    names.split(',').try_fold(0, |all, name| Some(all | bit(name)?))
}

#[cfg(test)]
mod tests {
    use super::{super::tests::fates, *};

    fn forward(text: &str) -> Base {
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        tables("filter", &lines).into_iter().find(|base| base.name == "FORWARD").unwrap()
    }

    const OURS: &str = "-N FLANNEL-FWD\n\
        -A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD\n\
        -A FLANNEL-FWD -s 10.244.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT\n\
        -A FLANNEL-FWD -d 10.244.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT";

    #[test]
    fn what_is_ahead_of_flannels_rules_is_judged() {
        for (rule, fates_of) in [
            ("", ["pass", "pass"]),
            ("-A FORWARD -s 10.244.0.0/16 -j DROP", ["dropped", "dropped"]),
            (
                "-A FORWARD -s 10.244.1.0/24 -j REJECT --reject-with icmp-port-unreachable",
                ["dropped", "pass"],
            ),
            (
                "-A FORWARD -d 10.0.0.0/8 -m comment --comment \"a \\\"b\\\" -j X\" -j DROP",
                ["dropped", "dropped"],
            ),
            ("-A FORWARD -i cni+ -j DROP", ["dropped", "pass"]),
            ("-A FORWARD -j DROP", ["dropped", "dropped"]),
            // What takes some out of many is seen.
            (
                "-A FORWARD -d 10.244.0.0/16 -m statistic --mode random --probability 0.3 -j DROP",
                ["perhaps"; 2],
            ),
            ("-A FORWARD -d 10.99.0.0/16 -m statistic --mode random --probability 0.3 -j DROP", ["pass"; 2]),
            ("-A FORWARD -s 10.244.3.0/24 -j DROP", ["pass", "perhaps"]),
            // Policies for one pod, one port, one state are somebody's, and no fault.
            ("-A FORWARD -d 10.244.1.7/32 -j DROP", ["pass", "pass"]),
            ("-A FORWARD -s 10.244.0.0/16 -p tcp -m tcp --dport 25 -j DROP", ["pass", "pass"]),
            ("-A FORWARD -m conntrack --ctstate INVALID -j DROP", ["pass", "pass"]),
            ("-A FORWARD ! -s 10.244.0.0/16 -j DROP", ["pass", "pass"]),
            ("-A FORWARD -i docker0 -j DROP", ["pass", "pass"]),
            ("-A FORWARD ! -i docker0 -o docker0 -j DROP", ["pass", "pass"]),
            ("-A FORWARD -j LOG --log-prefix \"x \"", ["pass", "pass"]),
            (
                "-N MINE\n-A FORWARD -j MINE\n-A MINE -m mark --mark 0x1 -j RETURN\n-A MINE -j DROP",
                ["perhaps"; 2],
            ),
            (
                "-N MINE\n-A FORWARD -j MINE\n-A MINE -s 10.244.0.0/16 -j RETURN\n-A MINE -j DROP",
                ["pass", "pass"],
            ),
            ("-N MINE\n-A FORWARD -g MINE", ["pass", "pass"]),
        ] {
            let base = forward(&format!("-P FORWARD ACCEPT\n{rule}\n{OURS}"));
            assert_eq!(fates(&base), fates_of, "{rule}");
        }
    }

    #[test]
    fn a_policy_of_drop_is_fine_with_our_rules() {
        assert_eq!(fates(&forward(&format!("-P FORWARD DROP\n{OURS}"))), ["pass"; 2]);
        assert_eq!(fates(&forward("-P FORWARD DROP\n-N DOCKER\n-A FORWARD -j DOCKER")), ["dropped"; 2]);
        assert_eq!(fates(&forward("-P FORWARD ACCEPT")), ["pass"; 2]);
        let dropped = forward("-P FORWARD DROP").drops(&super::super::tests::both_ways()[0]).unwrap();
        assert_eq!(dropped.rule, None);
    }
}
