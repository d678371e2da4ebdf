//! Exceptions in the words of iptables as rules in nobody's: nft keeps them, too.

use ipnetwork::IpNetwork;

use super::saved::SavedRule;
use crate::masq::rules::{In, Rule, State, Transport, Verdict};

/// The rules that keep from the mark what `exception` does: several where it names several ports. What is not understood of
/// its ports is passed over, so that more is kept from it.
pub(super) fn rules(exception: &SavedRule) -> Vec<Rule> {
    let network = |option: &str| exception.value(option).and_then(|text| text.parse::<IpNetwork>().ok());
    let within = |option: &str| network(option).map(|network| In { network, negated: false });
    let rule = |transport| Rule {
        source: within("-s"),
        destination: within("-d"),
        destination_not: None,
        mark: None,
        transport,
        state: network("--ctorigdst").map(State::BegunTo),
        verdict: Verdict::Return,
    };
    let protocol = match exception.value("-p") {
        Some("tcp") => "tcp",
        Some("udp") => "udp",
        _ => return vec![rule(None)],
    };
    let ports = |option: &str| exception.value(option).map(ranges).unwrap_or_default();
    let of =
        |source_ports, destination_ports| rule(Some(Transport { protocol, source_ports, destination_ports }));
    let (sources, destinations) = (ports("--sport"), ports("--dport"));
    if let (source @ Some(_), destination) | (source, destination @ Some(_)) =
        (sources.first().copied(), destinations.first().copied())
    {
        return vec![of(source, destination)];
    }
    let either = ports("--ports");
    let sources = ports("--sports").into_iter().chain(either.iter().copied());
    let destinations = ports("--dports").into_iter().chain(either.iter().copied());
    let mut all: Vec<Rule> = sources.map(|ports| of(Some(ports), None)).collect();
    all.extend(destinations.map(|ports| of(None, Some(ports))));
    if all.is_empty() { vec![of(None, None)] } else { all }
}

/// `53`, `1000:2000` and lists of these; none where one of them is something else.
fn ranges(text: &str) -> Vec<(u16, u16)> {
    let range = |text: &str| {
        let (low, high) = text.split_once(':').unwrap_or((text, text));
        Some((low.parse().ok()?, high.parse().ok()?))
    };
    text.split(',').map(range).collect::<Option<_>>().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::masq::{nft::text::line, rules::FLOW};

    #[test]
    fn what_iptables_keeps_from_the_mark_nft_can_keep_too() {
        let between = "-s 10.244.0.0/16 -d 10.244.0.0/16";
        let of_nft = "ip saddr 10.244.0.0/16 ip daddr 10.244.0.0/16";
        for (conditions, wanted) in [
            ("", &["return"][..]),
            ("-p tcp", &["meta l4proto tcp return"]),
            ("-p udp -m udp --dport 53", &["udp dport 53 return"]),
            ("-p udp -m udp --sport 53 --dport 1000:2000", &["udp sport 53 udp dport 1000-2000 return"]),
            ("-p tcp -m multiport --dports 80,443", &["tcp dport 80 return", "tcp dport 443 return"]),
            ("-p tcp -m multiport --ports 80", &["tcp sport 80 return", "tcp dport 80 return"]),
            ("-p tcp -m tcp --dport http", &["meta l4proto tcp return"]),
            (
                "-p udp -m conntrack --ctorigdst 10.96.0.1",
                &["meta l4proto udp ct original ip daddr 10.96.0.1/32 return"],
            ),
        ] {
            let spec = format!("{between} {conditions} -m comment --comment \"{FLOW}\" -j RETURN");
            let found: Vec<String> = rules(&SavedRule::new(&spec))
                .iter()
                .map(|rule| line(rule, crate::values::Family::V4))
                .collect();
            let wanted: Vec<String> = wanted.iter().map(|rest| format!("{of_nft} {rest}")).collect();
            assert_eq!(found, wanted, "{conditions}");
        }
    }
}
