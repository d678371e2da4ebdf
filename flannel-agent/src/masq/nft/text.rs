//! The rules in the language of nft.

use ipnetwork::IpNetwork;

use super::{Chain, Table};
use crate::{
    masq::rules::{IPS_HELPER, In, Rule, State, Transport, Verdict},
    values::Family,
};

/// Input of `nft -f -` that puts `table` in place of what it was, in one step.
pub(super) fn replace(table: &Table, comments: bool) -> String {
    let name = format!("{} {}", word(table.family), table.name);
    // Deleting what is not there is an error; declaring what is there is none.
    let mut text = format!("table {name} {{\n}}\ndelete table {name}\ntable {name} {{\n");
    if comments {
        text += &format!("\tcomment \"rules for {}\"\n", table.name);
    }
    for chain in &table.chains {
        text += &format!("\tchain {} {{\n", chain.name);
        if comments {
            text += &format!("\t\tcomment \"{}\"\n", chain.comment);
        }
        text += &format!(
            "\t\ttype {} hook {} priority {}; policy accept;\n",
            chain.kind,
            chain.hook,
            priority(chain)
        );
        for rule in &chain.rules {
            text += &format!("\t\t{}\n", line(rule, table.family));
        }
        text += "\t}\n";
    }
    text + "}\n"
}

/// One rule.
pub(in crate::masq) fn line(rule: &Rule, family: Family) -> String {
    let ip = word(family);
    let mut words = Vec::new();
    if let Some(mark) = rule.mark {
        let sign = if mark.negated { "!=" } else { "==" };
        words.push(format!("meta mark & {:#x} {sign} {:#x}", mark.mask, mark.value));
    }
    for (field, end) in [("saddr", rule.source), ("daddr", rule.destination)] {
        if let Some(In { network, negated }) = end {
            words.push(format!("{ip} {field} {}{network}", if negated { "!= " } else { "" }));
        }
    }
    if let Some(network) = rule.destination_not {
        words.push(format!("{ip} daddr != {network}"));
    }
    if let Some(transport) = rule.transport {
        words.extend(of_transport(&transport));
    }
    words.extend(rule.state.map(|state| match state {
        State::Established => "ct state established".to_owned(),
        State::TranslatedIn(network) => format!("ct status snat,dnat ct original {ip} daddr {network}"),
        State::BegunTo(network) => format!("ct original {ip} daddr {network}"),
        State::Helped => format!("ct status & {IPS_HELPER:#x} != 0"),
    }));
    words.push(match rule.verdict {
        Verdict::Return => "return".to_owned(),
        Verdict::Accept => "accept".to_owned(),
        Verdict::Masquerade { random_fully: true } => "masquerade fully-random".to_owned(),
        Verdict::Masquerade { random_fully: false } => "masquerade".to_owned(),
        // Accepting would only end this chain. A source that is bound, though to what it was, ends them all.
        Verdict::Keep => format!("snat to {ip} saddr"),
        Verdict::Mark(bits) => format!("meta mark set meta mark | {bits:#x}"),
        Verdict::Unmark(bits) => format!("meta mark set meta mark & {:#x}", !bits),
    });
    words.join(" ")
}

fn of_transport(transport: &Transport) -> Vec<String> {
    let Transport { protocol, source_ports, destination_ports } = transport;
    let named = [("sport", source_ports), ("dport", destination_ports)];
    let ports = named.into_iter().filter_map(|(field, ports)| match (*ports)? {
        (low, high) if low == high => Some(format!("{protocol} {field} {low}")),
        (low, high) => Some(format!("{protocol} {field} {low}-{high}")),
    });
    let words: Vec<String> = ports.collect();
    if words.is_empty() { vec![format!("meta l4proto {protocol}")] } else { words }
}

/// `ip` or `ip6`.
pub(super) fn word(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

/// Name of the table of a family.
pub(super) fn table_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "flannel-ipv4",
        Family::V6 => "flannel-ipv6",
    }
}

/// nft's name of the priority, as far as it has one.
fn priority(chain: &Chain) -> String {
    match chain.priority {
        100 => "srcnat".to_owned(),
        95 => "srcnat - 5".to_owned(),
        0 => "filter".to_owned(),
        -150 => "mangle".to_owned(),
        other => other.to_string(),
    }
}

/// The length of an address of this family, bits.
pub(super) fn address_bits(network: IpNetwork) -> u8 {
    if network.is_ipv4() { 32 } else { 128 }
}
