//! Rules for which each packet counts: they go by rates, volumes or contents, or hand packets to somebody.
//!
//! Of a flow that skips the stack they would see a packet now and then, and what they limit or copy would go on without
//! them. So the packets of flows that such a rule can see are kept from the mark, as those with a helper are.
//! Only rules that packets of established flows come to matter: most firewalls accept those first.

use std::collections::BTreeSet;

use ipnetwork::IpNetwork;

use super::saved::{SavedRule, SavedTable};
use crate::{
    netlink::nft_rules::words::{EACH, MATCHES, TELLS},
    values::{as_typed, overlap},
};

/// The chains of the kernel that forwarded packets go through.
const PLACES: [&str; 3] = ["PREROUTING", "FORWARD", "POSTROUTING"];
/// Options of the match `set` by the counters of its elements.
const OF_COUNTERS: [&str; 6] =
    ["--bytes-eq", "--bytes-gt", "--bytes-lt", "--packets-eq", "--packets-gt", "--packets-lt"];
/// A rule for which each packet counts, and which packets between pods it can see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// The rule, behind the name of its chain.
    pub(super) text: String,
    /// Keeps these packets from the mark.
    pub(super) exception: SavedRule,
    /// Whether it can see every flow.
    pub(super) sees_all: bool,
}

/// Those of `table` that packets of established flows between addresses of `network` come to.
pub(super) fn found(table: &SavedTable, network: IpNetwork, comment: &str) -> Vec<Found> {
    let mut all = Vec::new();
    for place in PLACES {
        let mut walk = Walk {
            table,
            network,
            comment,
            translated: place == "PREROUTING",
            open: BTreeSet::new(),
            found: Vec::new(),
        };
        walk.chain(place, &Conditions::default());
        all.extend(walk.found);
    }
    all
}

/// The packets that a rule sees, as far as it can be said where flows are marked: behind routing and translation.
#[derive(Clone, Debug, Default)]
struct Conditions {
    source: Option<IpNetwork>,
    destination: Option<IpNetwork>,
    /// What packets went to before they were translated, as to a Service.
    service: Option<IpNetwork>,
    /// Protocol and ports, with a space behind them.
    transport: String,
}

/// What becomes of packets of established flows between pods in a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// They, or some of them, come back from it.
    On,
    /// None comes back: it is accepted, or dropped.
    Ended,
}

struct Walk<'a> {
    table: &'a SavedTable,
    network: IpNetwork,
    comment: &'a str,
    /// What packets go to may be translated later.
    translated: bool,
    /// The chains that lead to this one.
    open: BTreeSet<String>,
    found: Vec<Found>,
}

impl Walk<'_> {
    fn chain(&mut self, name: &str, above: &Conditions) -> Way {
        let Some(rules) = self.table.chain(name) else { return Way::On };
        if !self.open.insert(name.to_owned()) {
            return Way::On;
        }
        let way = self.rules(name, rules, above);
        self.open.remove(name);
        way
    }

    fn rules(&mut self, name: &str, rules: &[SavedRule], above: &Conditions) -> Way {
        let (network, translated) = (self.network, self.translated);
        for rule in rules.iter().filter(|rule| may_see(rule, network, translated)) {
            let conditions = self.conditions(rule, above);
            if counts(rule) {
                self.add(name, rule, &conditions);
            }
            let all = takes_all(rule, network);
            let way = match (rule.value("-j"), rule.value("-g")) {
                (Some("ACCEPT" | "DROP" | "REJECT" | "NFQUEUE"), _) => Way::Ended,
                (Some("RETURN"), _) if all => return Way::On,
                (Some(chain), _) => self.chain(chain, &conditions),
                // From there packets do not come back to this chain.
                (_, Some(chain)) => match self.chain(chain, &conditions) {
                    way if all => return way,
                    way => way,
                },
                (None, None) => Way::On,
            };
            if all && way == Way::Ended {
                return Way::Ended;
            }
        }
        Way::On
    }

    fn conditions(&self, rule: &SavedRule, above: &Conditions) -> Conditions {
        let narrower = |option: &str, above: Option<IpNetwork>| {
            let own = rule.value(option).and_then(|text| text.parse::<IpNetwork>().ok());
            own.filter(|own| own.prefix() >= above.map_or(0, |above| above.prefix())).or(above)
        };
        let destination = narrower("-d", above.destination).filter(|_| !self.translated);
        let service = narrower("-d", above.service)
            .filter(|service| self.translated && !overlap(*service, self.network));
        let own = transport(rule, !self.translated);
        // What names no ports is wider than what leads there.
        let transport =
            if own.contains("port") || above.transport.is_empty() { own } else { above.transport.clone() };
        Conditions { source: narrower("-s", above.source), destination, service, transport }
    }

    fn add(&mut self, chain: &str, rule: &SavedRule, conditions: &Conditions) {
        let Conditions { source, destination, service, transport } = conditions;
        let within = |named: &Option<IpNetwork>| {
            named.filter(|named| named.prefix() > self.network.prefix()).unwrap_or(self.network)
        };
        let (source, destination) = (within(source), within(destination));
        let service = service.map(begun_to).unwrap_or_default();
        let spec = format!(
            "-s {source} -d {destination} {transport}{service}-m comment --comment \"{}\" -j RETURN",
            self.comment
        );
        let sees_all =
            [source, destination] == [self.network; 2] && transport.is_empty() && service.is_empty();
        let text = format!("-A {chain} {}", as_typed(&rule.text));
        self.found.push(Found { text, exception: SavedRule::new(&spec), sees_all });
    }
}

/// That a flow was begun to an address in `network`, as iptables shows it: a single address alone. With a space behind it.
pub(super) fn begun_to(network: IpNetwork) -> String {
    match network.prefix() {
        32 if network.is_ipv4() => format!("-m conntrack --ctorigdst {} ", network.ip()),
        128 => format!("-m conntrack --ctorigdst {} ", network.ip()),
        _ => format!("-m conntrack --ctorigdst {network} "),
    }
}

/// The protocol of `rule` and, with `ports`, the ports it names, as conditions with a space behind them. A negation is no
/// condition.
pub(super) fn transport(rule: &SavedRule, ports: bool) -> String {
    let Some(protocol) = rule.value("-p") else { return String::new() };
    let mut text = format!("-p {protocol} ");
    if !ports {
        return text;
    }
    for option in ["--sport", "--dport"] {
        if let Some(port) = rule.value(option) {
            let of_protocol = format!("-m {protocol} ");
            if !text.contains(&of_protocol) {
                text.push_str(&of_protocol);
            }
            text.push_str(&format!("{option} {port} "));
        }
    }
    if text.contains("port") {
        return text;
    }
    for option in ["--sports", "--dports", "--ports"] {
        if let Some(ports) = rule.value(option) {
            text.push_str(&format!("-m multiport {option} {ports} "));
            break;
        }
    }
    text
}

fn counts(rule: &SavedRule) -> bool {
    let target = rule.value("-j").unwrap_or_default();
    let by_match = MATCHES.iter().any(|name| rule.has(&["-m", name]))
        || has_word(rule, &OF_COUNTERS)
        || tells_segments_apart(rule);
    (by_match && !TELLS.contains(&target)) || EACH.contains(&target)
}

/// Whether an option of `rule` is one of these, negated or not.
fn has_word(rule: &SavedRule, wanted: &[&str]) -> bool {
    rule.options().any(|words| words.iter().any(|word| wanted.contains(&word.as_str())))
}

/// Whether a rule goes by what differs from segment to segment in the midst of a TCP connection: options, and flags other
/// than those with which it begins or ends, which take the kernel path.
fn tells_segments_apart(rule: &SavedRule) -> bool {
    let flags = rule.options().find_map(|words| match words {
        [option, mask, set] if option == "--tcp-flags" => Some((mask, set)),
        [not, option, mask, set] if not == "!" && option == "--tcp-flags" => Some((mask, set)),
        _ => None,
    });
    let has = |list: &str, flags: &[&str]| list.split(',').any(|flag| flags.contains(&flag));
    let by_flags = flags.is_some_and(|(mask, set)| {
        let acknowledges = !has(mask, &["ACK", "ALL"]) || has(set, &["ACK", "ALL"]);
        has(mask, &["PSH", "URG", "ALL"]) && acknowledges && !has(set, &["SYN", "FIN", "RST", "ALL"])
    });
    by_flags || has_word(rule, &["--tcp-option"])
}

/// Whether packets of established flows between addresses of `network` may meet the conditions of a rule.
/// Where they are `translated` later, what they go to may be anything.
fn may_see(rule: &SavedRule, network: IpNetwork, translated: bool) -> bool {
    let is_elsewhere = |option: &str| {
        rule.value(option)
            .and_then(|text| text.parse::<IpNetwork>().ok())
            .is_some_and(|named| !overlap(named, network))
    };
    let states = ["--ctstate", "--state"].iter().find_map(|option| rule.value(option));
    let first_only = rule.has(&["--syn"])
        || rule.has(&["--tcp-flags", "FIN,SYN,RST,ACK", "SYN"])
        || states.is_some_and(|states| !states.contains("ESTABLISHED"));
    let no_flow = rule.value("-p").is_some_and(|protocol| !matches!(protocol, "tcp" | "udp" | "all"));
    let on_loopback = ["-i", "-o"].iter().any(|option| rule.value(option) == Some("lo"));
    !first_only && !no_flow && !on_loopback && !is_elsewhere("-s") && (translated || !is_elsewhere("-d"))
}

/// Whether each of them does.
fn takes_all(rule: &SavedRule, network: IpNetwork) -> bool {
    rule.options().all(|words| match words {
        [option, _] if matches!(option.as_str(), "-j" | "-g" | "--comment" | "--reject-with") => true,
        [option, name] if option == "-m" => matches!(name.as_str(), "comment" | "conntrack" | "state"),
        [option, states] if matches!(option.as_str(), "--ctstate" | "--state") => {
            states.contains("ESTABLISHED")
        }
        [option, named] if matches!(option.as_str(), "-s" | "-d") => named
            .parse::<IpNetwork>()
            .is_ok_and(|named| overlap(named, network) && named.prefix() <= network.prefix()),
        [nothing] => nothing.is_empty(),
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::masq::iptables::saved::Saved;

    /// The rules that are found, each with what is kept from the mark for it.
    fn found_in(rules: &[&str]) -> Vec<(String, String)> {
        let chains = "PREROUTING INPUT FORWARD OUTPUT POSTROUTING OURS MORE";
        let chains: String = chains.split(' ').map(|name| format!(":{name} - [0:0]\n")).collect();
        let rules: String = rules.iter().map(|rule| format!("-A {rule}\n")).collect();
        let saved = Saved::parse(&format!("*filter\n{chains}{rules}COMMIT\n"));
        let all = found(&saved.table("filter"), "10.244.0.0/16".parse().unwrap(), "flanneld flow");
        let short = |text: String| {
            text.replace(" -m comment --comment \"flanneld flow\" -j RETURN", "")
                .replace("-s 10.244.0.0/16 -d 10.244.0.0/16", "all")
        };
        all.into_iter().map(|found| (found.text, short(found.exception.text))).collect()
    }

    #[test]
    fn what_goes_by_rates_volumes_and_contents_or_copies_packets_is_found_with_what_it_sees() {
        for (rule, seen) in [
            (
                "FORWARD -m hashlimit --hashlimit-above 20/sec --hashlimit-mode srcip --hashlimit-name x -j DROP",
                "all",
            ),
            ("FORWARD -p tcp -m tcp --tcp-flags PSH,URG PSH -j DROP", "all -p tcp"),
            ("FORWARD -p tcp -m tcp ! --tcp-flags PSH,ACK PSH,ACK -j DROP", "all -p tcp"),
            ("FORWARD -p tcp -m tcp --tcp-option 8 -j DROP", "all -p tcp"),
            ("FORWARD -m set --match-set x src --bytes-gt 5000 -j DROP", "all"),
            ("FORWARD -m set --match-set x src ! --packets-eq 0 -j DROP", "all"),
            ("FORWARD -j SET --add-set active src --exist --timeout 3", "all"),
            (
                "FORWARD -s 10.244.1.11/32 -p udp -m udp --dport 53 -m limit --limit 10/sec -j ACCEPT",
                "-s 10.244.1.11/32 -d 10.244.0.0/16 -p udp -m udp --dport 53",
            ),
            (
                "FORWARD -s 10.0.0.0/8 -d 10.244.2.0/24 -p tcp -m multiport --dports 80,443 -j NFQUEUE --queue-num 1",
                "-s 10.244.0.0/16 -d 10.244.2.0/24 -p tcp -m multiport --dports 80,443",
            ),
            ("FORWARD -p tcp -m tcp ! --dport 22 -m connbytes --connbytes 300000: -j DROP", "all -p tcp"),
            ("POSTROUTING -j TEE --gateway 10.244.1.9", "all"),
            // A Service's address and port are others where flows are marked.
            (
                "PREROUTING -s 10.244.1.11/32 -d 10.96.0.0/12 -p udp -m udp --dport 53 -j TEE --gateway 10.244.1.9",
                "-s 10.244.1.11/32 -d 10.244.0.0/16 -p udp -m conntrack --ctorigdst 10.96.0.0/12",
            ),
            (
                "PREROUTING -d 10.96.0.1/32 -m statistic --mode random --probability 0.5 -j DROP",
                "all -m conntrack --ctorigdst 10.96.0.1",
            ),
            ("FORWARD -d 10.96.0.1/32 -m statistic --mode random --probability 0.5 -j DROP", ""),
            ("FORWARD -m nfacct --nfacct-name x -j DROP", "all"),
            (
                "PREROUTING -s 10.244.1.11/32 -p udp -m udp --dport 53 -j TEE --gateway 10.244.1.9",
                "-s 10.244.1.11/32 -d 10.244.0.0/16 -p udp",
            ),
        ] {
            let (text, found) = found_in(&[rule]).pop().unwrap_or_default();
            assert_eq!(found, seen, "{rule}");
            assert!(found.is_empty() || text == format!("-A {rule}"), "{text}");
        }
    }

    #[test]
    fn what_established_flows_between_pods_never_come_to_is_not() {
        let limit = "FORWARD -m limit --limit 10/sec -j ACCEPT";
        for rules in [
            &["INPUT -m limit --limit 10/sec -j ACCEPT", "OUTPUT -j NFQUEUE --queue-num 0"][..],
            &["FORWARD -s 192.0.2.0/24 -m limit --limit 10/sec -j ACCEPT"],
            &["FORWARD -m limit --limit 3/min -j LOG --log-prefix \"[UFW BLOCK] \""],
            &["FORWARD -m conntrack --ctstate NEW -m recent --set --name x --rsource"],
            &["FORWARD -p icmp -m limit --limit 10/sec -j ACCEPT"],
            &["FORWARD -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -m limit --limit 10/sec -j ACCEPT"],
            &["FORWARD -p tcp -m tcp --tcp-flags FIN,SYN,RST,PSH,ACK,URG NONE -j DROP"],
            &["FORWARD -p tcp -m tcp --tcp-flags FIN,PSH,URG FIN,PSH,URG -j DROP"],
            &["FORWARD -p tcp -m tcp --tcp-flags SYN,RST SYN,RST -j DROP"],
            &["FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", limit],
            &["FORWARD -m comment --comment \"a b\" -j OURS", "OURS -s 10.244.0.0/16 -j ACCEPT", limit],
            &["FORWARD -j OURS", "OURS -j RETURN", "OURS -m limit --limit 10/sec -j ACCEPT"],
            &["FORWARD -m conntrack --ctstate NEW -j OURS", "OURS -m limit --limit 10/sec -j ACCEPT"],
            &["OURS -m limit --limit 10/sec -j ACCEPT"],
        ] {
            assert_eq!(found_in(rules), [], "{rules:?}");
        }
        for before in [
            "FORWARD -i eth0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
            "FORWARD -m conntrack ! --ctstate ESTABLISHED -j ACCEPT",
            "FORWARD -s 10.244.1.0/24 -j ACCEPT",
            "FORWARD -j OURS",
        ] {
            assert_eq!(found_in(&[before, limit]).len(), 1, "{before}");
        }
    }

    #[test]
    fn conditions_of_the_way_there_count_too_and_chains_may_go_in_circles() {
        let rules = [
            "FORWARD -p udp -m udp --dport 5000 -j OURS",
            "OURS -s 10.244.1.0/24 -j MORE",
            "MORE -p udp -m length --length 1000:65535 -j DROP",
            "MORE -j OURS",
        ];
        let found = found_in(&rules);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].1, "-s 10.244.1.0/24 -d 10.244.0.0/16 -p udp -m udp --dport 5000");
    }
}
