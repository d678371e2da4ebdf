//! A rule in the words of iptables, as `iptables-save` writes it.

use ipnetwork::IpNetwork;

use super::each_packet::begun_to;
use crate::masq::rules::{In, Rule, State, Transport, Verdict};

/// `rule` with `comment`, without the chain it is in.
pub(super) fn spec(rule: &Rule, comment: &str) -> String {
    let mut words = Vec::new();
    for (flag, end) in [("-s", rule.source), ("-d", rule.destination)] {
        if let Some(In { network, negated }) = end {
            words.push(format!("{}{flag} {network}", not(negated)));
        }
    }
    if let Some(network) = rule.destination_not {
        words.push(format!("-m iprange ! --dst-range {}", range(network)));
    }
    if let Some(mark) = rule.mark {
        words.push(format!("-m mark {}--mark {:#x}/{:#x}", not(mark.negated), mark.value, mark.mask));
    }
    if let Some(Transport { protocol, source_ports, destination_ports }) = rule.transport {
        words.push(format!("-p {protocol}"));
        if source_ports.or(destination_ports).is_some() {
            words.push(format!("-m {protocol}"));
        }
        for (option, ports) in [("--sport", source_ports), ("--dport", destination_ports)] {
            match ports {
                Some((low, high)) if low == high => words.push(format!("{option} {low}")),
                Some((low, high)) => words.push(format!("{option} {low}:{high}")),
                None => {}
            }
        }
    }
    match rule.state {
        Some(State::Established) => words.push("-m conntrack --ctstate ESTABLISHED".to_owned()),
        Some(State::TranslatedIn(network)) => {
            words.push(format!("-m conntrack --ctstate SNAT,DNAT --ctorigdst {network}"));
        }
        Some(State::BegunTo(network)) => words.push(begun_to(network).trim_end().to_owned()),
        // iptables has no words for it.
        Some(State::Helped) | None => {}
    }
    words.push(format!("-m comment --comment \"{comment}\""));
    words.push(match rule.verdict {
        // In a base chain it ends at the chain's policy, before anybody's masquerade.
        Verdict::Return | Verdict::Keep => "-j RETURN".to_owned(),
        Verdict::Accept => "-j ACCEPT".to_owned(),
        Verdict::Masquerade { random_fully: true } => "-j MASQUERADE --random-fully".to_owned(),
        Verdict::Masquerade { random_fully: false } => "-j MASQUERADE".to_owned(),
        Verdict::Mark(bits) => format!("-j MARK --set-xmark {bits:#x}/{bits:#x}"),
        Verdict::Unmark(bits) => format!("-j MARK --set-xmark 0x0/{bits:#x}"),
    });
    words.join(" ")
}

/// The jump to one of flannel's chains.
pub(super) fn jump(chain: &str, comment: &str) -> String {
    format!("-m comment --comment \"{comment}\" -j {chain}")
}

/// What the oldest versions of flannel put into POSTROUTING itself and without a comment, as far as nobody
/// else would write it and it does anything beside today's rules.
pub(super) fn uncommented(network: IpNetwork) -> Vec<String> {
    let multicast = if network.is_ipv4() { "224.0.0.0/4" } else { "ff00::/8" };
    let mut specs = Vec::new();
    for masquerade in ["-j MASQUERADE", "-j MASQUERADE --random-fully"] {
        specs.push(format!("-s {network} ! -d {multicast} {masquerade}"));
        specs.push(format!("! -s {network} -d {network} {masquerade}"));
    }
    specs
}

fn not(negated: bool) -> &'static str {
    if negated { "! " } else { "" }
}

fn range(network: IpNetwork) -> String {
    match network {
        IpNetwork::V4(network) => format!("{}-{}", network.network(), network.broadcast()),
        IpNetwork::V6(network) => format!("{}-{}", network.network(), network.broadcast()),
    }
}
