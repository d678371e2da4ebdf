//! All chains of this node that may drop a packet, whoever has made them.

use std::{collections::BTreeMap, net::IpAddr};

use flannel_common::packet::headers::PROTOCOL_UDP;
use ipnetwork::IpNetwork;

use super::{Alone, Base, End, Fate, Firewall, Nft, Passage, Surroundings, program_for};
use crate::values::Family;

/// A port that the kernel may send from.
const SOME_PORT: u16 = 49_152;

/// Chains of iptables, of either back end, and of nftables.
#[derive(Clone, Debug, Default)]
pub struct Filters {
    bases: Vec<Base>,
    /// Those that may give packets another destination.
    destinations: Vec<Base>,
    /// Programs that could not be asked: what they have made is not known.
    pub unread: Vec<&'static str>,
    /// Rules of others put marks on packets: which ones a packet has on its way is not known.
    sets_marks: bool,
}

impl Filters {
    /// Asks the programs for what packets of `family` meet.
    pub fn read(family: Family) -> Self {
        Self::of(Firewall::read(family).as_ref(), Nft::read().as_ref(), family)
    }

    /// What packets of `family` meet, of what was read; the programs are asked for a family that was not looked at.
    pub fn among(around: &Surroundings, family: Family) -> Self {
        match around.firewalls.get(&family) {
            Some(firewall) => Self::of(Some(firewall), around.nft.as_ref(), family),
            None => Self::of(Firewall::read(family).as_ref(), around.nft.as_ref(), family),
        }
    }

    fn of(firewall: Option<&Firewall>, nft: Option<&Nft>, family: Family) -> Self {
        let mut found = Self::default();
        match firewall {
            Some(firewall) => {
                found.sets_marks = firewall.sets_marks;
                found.bases.extend_from_slice(&firewall.bases);
                found.destinations.extend_from_slice(&firewall.destinations);
            }
            None => found.unread.push(program_for(family)),
        }
        match nft {
            Some(Nft { bases, .. }) => {
                found.sets_marks |= bases.sets_marks;
                let of_family =
                    |all: &BTreeMap<Family, Vec<Base>>| all.get(&family).cloned().unwrap_or_default();
                found.bases.extend(of_family(&bases.filters));
                found.destinations.extend(of_family(&bases.destinations));
            }
            None => found.unread.push("nft"),
        }
        found
    }

    /// What the chains at `hook` of an interface do to the one packet of `passage`: all that may drop it, up to the first
    /// that does.
    pub fn meet(&self, hook: &str, interface: Option<&str>, passage: &Passage) -> Vec<Fate> {
        let passage = self.with_known_marks(passage);
        let mut found = Vec::new();
        let is_there = |base: &&Base| base.hook == hook && base.is_at(interface);
        for base in self.bases.iter().filter(is_there) {
            found.extend(base.fates(&passage));
            if matches!(found.last(), Some(Fate::Dropped(_))) {
                break;
            }
        }
        found
    }

    /// What may give the one packet of `passage` another destination at `hook`.
    pub fn translator(&self, hook: &str, passage: &Passage) -> Option<String> {
        let passage = self.with_known_marks(passage);
        let mut there = self.destinations.iter().filter(|base| base.hook == hook);
        there.find_map(|base| base.translator(&passage))
    }

    /// What drops packets of `carrier`, protocol and port, between `own` address and a peer's on interface `external`, either
    /// way, for certain.
    pub fn drops_carrier(
        &self,
        (own, peer): (IpAddr, IpAddr),
        (protocol, port): (u8, u16),
        external: &str,
    ) -> Vec<String> {
        let end = |address| End { network: IpNetwork::from(address), without: None };
        let alone = Alone {
            protocol,
            ports: (protocol == PROTOCOL_UDP).then_some((SOME_PORT, port)),
            tcp_flags: 0,
            begins: None,
            mark: (0, 0),
            for_node: false,
        };
        let there = vec![external.to_owned()];
        let [leaves, comes] = [(own, peer), (peer, own)].map(|(from, to)| Passage {
            source: end(from),
            destination: end(to),
            by: Vec::new(),
            out: Vec::new(),
            alone: Some(Alone { for_node: to == own, ..alone }),
        });
        let leaves = Passage { out: there.clone(), ..leaves };
        let comes = Passage { by: there, ..comes };
        let hooks = [
            ("output", &leaves),
            ("postrouting", &leaves),
            ("egress", &leaves),
            ("ingress", &comes),
            ("prerouting", &comes),
            ("input", &comes),
        ];
        let fates = hooks.into_iter().flat_map(|(hook, passage)| self.meet(hook, Some(external), passage));
        let certain = fates.filter_map(|fate| match fate {
            Fate::Dropped(by) => Some(by),
            Fate::Perhaps(_) => None,
        });
        certain.collect()
    }

    fn with_known_marks(&self, passage: &Passage) -> Passage {
        match passage.alone {
            Some(alone) if self.sets_marks => {
                Passage { alone: Some(Alone { mark: (alone.mark.0, 0), ..alone }), ..passage.clone() }
            }
            _ => passage.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use flannel_common::packet::headers::PROTOCOL_TCP;
    use serde_json::{Value, json};

    use super::{super::forwarded, *};

    /// What the program lists of a table with these rules in a base chain, and what else it lists.
    fn filters(family: &str, (hook, kind): (&str, &str), rules: &[Value], more: &[Value]) -> Filters {
        let table = json!({ "family": family, "table": "own" });
        let with = |mut object: Value| {
            (object["family"], object["table"]) = (table["family"].clone(), table["table"].clone());
            object
        };
        let chain = json!({ "name": "c", "hook": hook, "type": kind, "policy": "accept" });
        let mut objects: Vec<Value> = more.iter().map(|set| json!({ "map": with(set.clone()) })).collect();
        objects.push(json!({ "chain": with(chain) }));
        objects.extend(rules.iter().zip(1..).map(|(expr, handle): (&Value, u64)| {
            json!({ "rule": with(json!({ "chain": "c", "handle": handle, "expr": expr })) })
        }));
        let mut found = forwarded::of_nft(&json!({ "nftables": objects }));
        Filters {
            bases: found.filters.remove(&Family::V4).unwrap_or_default(),
            destinations: found.destinations.remove(&Family::V4).unwrap_or_default(),
            ..Filters::default()
        }
    }

    fn passage(destination: &str, port: u16) -> Passage {
        let end = |text: &str| End { network: text.parse().unwrap(), without: None };
        Passage {
            source: end("10.244.1.2"),
            destination: end(destination),
            by: vec!["cni0".to_owned()],
            out: vec!["flannel.1".to_owned()],
            alone: Some(Alone {
                protocol: PROTOCOL_TCP,
                ports: Some((40_000, port)),
                tcp_flags: 0,
                begins: None,
                mark: (0, u32::MAX),
                for_node: false,
            }),
        }
    }

    fn field(protocol: &str, field: &str) -> Value {
        json!({ "payload": { "protocol": protocol, "field": field } })
    }

    /// A rule that drops what is as the comparison says.
    fn drops(left: Value, op: &str, right: Value) -> Value {
        json!([{ "match": { "op": op, "left": left, "right": right } }, { "drop": null }])
    }

    const FORWARD: (&str, &str) = ("forward", "filter");

    fn dropped(by: u64) -> Fate {
        Fate::Dropped(format!("the rule with handle {by} of chain c of table inet own, hook forward"))
    }

    fn perhaps(by: u64) -> Fate {
        Fate::Perhaps(format!("the rule with handle {by} of chain c of table inet own, hook forward"))
    }

    #[test]
    fn named_maps_and_joined_fields_are_judged_element_by_element() {
        let ports = json!({ "name": "v", "elem": [[22, { "accept": null }],
            [{ "elem": { "val": 8080, "timeout": 60 } }, { "drop": null }]] });
        let service = json!({ "concat": [field("ip", "daddr"), field("tcp", "dport")] });
        let one = json!({ "concat": ["10.244.2.2", 8080] });
        let several = json!({ "concat": [{ "prefix": { "addr": "10.244.2.0", "len": 24 } }, { "range": [8000, 9000] }] });
        let bad = json!({ "name": "bad", "elem": [one, several] });
        let verdicts = json!({ "name": "joined", "elem": [[one, { "drop": null }]] });
        let sets = [ports, bad, verdicts];
        let looked_up = |key: &Value, data: Value| json!([{ "vmap": { "key": key, "data": data } }]);
        let port = field("tcp", "dport");
        for (rule, destination, to, expected) in [
            (looked_up(&port, json!("@v")), "10.244.2.2", 8080, vec![dropped(1)]),
            (looked_up(&port, json!("@v")), "10.244.2.2", 22, vec![]),
            (looked_up(&port, json!("@v")), "10.244.2.2", 80, vec![]),
            // One that is not listed may be anything.
            (looked_up(&port, json!("@other")), "10.244.2.2", 80, vec![perhaps(1)]),
            (drops(service.clone(), "==", json!("@bad")), "10.244.2.2", 8080, vec![dropped(1)]),
            (drops(service.clone(), "==", json!("@bad")), "10.244.2.9", 8500, vec![dropped(1)]),
            (drops(service.clone(), "==", json!("@bad")), "10.244.2.9", 80, vec![]),
            (drops(service.clone(), "==", json!("@bad")), "10.244.3.2", 8080, vec![]),
            (drops(service.clone(), "!=", json!({ "set": [one] })), "10.244.2.2", 8080, vec![]),
            (drops(service.clone(), "!=", json!({ "set": [one] })), "10.244.2.2", 80, vec![dropped(1)]),
            (looked_up(&service, json!("@joined")), "10.244.2.2", 8080, vec![dropped(1)]),
            (looked_up(&service, json!("@joined")), "10.244.2.2", 80, vec![]),
            (
                looked_up(&service, json!({ "set": [[one, { "drop": null }]] })),
                "10.244.2.2",
                8080,
                vec![dropped(1)],
            ),
            // Which of the packets it takes is not known.
            (
                json!([{ "limit": { "rate": 1, "inv": true } }, { "drop": null }]),
                "10.244.2.2",
                80,
                vec![perhaps(1)],
            ),
        ] {
            let filters = filters("inet", FORWARD, std::slice::from_ref(&rule), &sets);
            assert_eq!(
                filters.meet("forward", None, &passage(destination, to)),
                expected,
                "{rule} {destination}:{to}"
            );
        }
        let of_udp = drops(
            json!({ "concat": [field("ip", "daddr"), field("udp", "dport")] }),
            "!=",
            json!({ "set": [one] }),
        );
        assert_eq!(
            filters("inet", FORWARD, &[of_udp], &[]).meet("forward", None, &passage("10.244.2.2", 80)),
            []
        );
    }

    #[test]
    fn what_drops_for_certain_is_told_from_what_may_before_it() {
        let may = drops(json!({ "meta": { "key": "priority" } }), "==", json!(7));
        let does = drops(field("tcp", "dport"), "==", json!(80));
        let both = filters("inet", FORWARD, &[may, does], &[]);
        assert_eq!(both.meet("forward", None, &passage("10.244.2.2", 80)), [perhaps(1), dropped(2)]);
        assert_eq!(both.meet("forward", None, &passage("10.244.2.2", 81)), [perhaps(1)]);
    }

    #[test]
    fn chains_of_bridges_and_interfaces_are_met_at_their_own_hooks() {
        let rule = drops(field("ip", "daddr"), "==", json!("10.244.2.2"));
        let arp = drops(field("ether", "type"), "==", json!("arp"));
        let packet = passage("10.244.2.2", 80);
        let bridge = filters("bridge", ("input", "filter"), &[arp, rule.clone()], &[]);
        assert_eq!(bridge.meet("input", Some("cni0"), &packet), []);
        assert_eq!(
            bridge.meet("bridge input", None, &packet),
            [Fate::Dropped("the rule with handle 2 of chain c of table bridge own, hook input".to_owned())]
        );
        let mut device = filters("netdev", ("ingress", "filter"), &[rule], &[]);
        assert!(device.bases[0].is_called("netdev own c") && !device.bases[0].is_called("netdev own d"));
        device.bases[0].devices = vec!["cni*".to_owned()];
        assert_eq!(device.meet("ingress", Some("eth0"), &packet), []);
        assert_eq!(device.meet("ingress", Some("cni0"), &packet).len(), 1);
    }

    #[test]
    fn what_may_give_a_packet_another_destination_is_named() {
        let to_service = json!([
            { "match": { "op": "==", "left": field("ip", "daddr"), "right": "10.96.0.1" } },
            { "dnat": { "addr": "10.244.2.2" } }
        ]);
        // As docker's, for a port of the node.
        let type_of = json!({ "fib": { "result": "type", "flags": ["daddr"] } });
        let of_node = json!([{ "match": { "op": "==", "left": type_of, "right": "local" } }, { "redirect": { "port": 90 } }]);
        let nat = filters("ip", ("prerouting", "nat"), &[to_service, of_node], &[]);
        let named = |destination| nat.translator("prerouting", &passage(destination, 80));
        let rule = "the rule with handle 1 of chain c of table ip own, hook prerouting";
        assert_eq!(named("10.96.0.1").as_deref(), Some(rule));
        assert_eq!(named("10.244.2.2"), None);
        assert_eq!(nat.meet("prerouting", None, &passage("10.96.0.1", 80)), []);
        let lines = [
            "-P PREROUTING ACCEPT",
            "-N SVC",
            "-A PREROUTING -d 10.96.0.1/32 -p tcp -m tcp --dport 80 -j SVC",
            "-A SVC -m statistic --mode random --probability 0.5 -j DNAT --to-destination 10.244.2.2:80",
        ];
        let destinations = forwarded::of_iptables("nat", &lines.map(str::to_owned));
        let of_iptables = Filters { destinations, ..Filters::default() };
        let named = |port| of_iptables.translator("prerouting", &passage("10.96.0.1", port));
        assert!(
            named(80).is_some_and(|rule| rule.contains("-A SVC") && rule.contains("PREROUTING of table nat"))
        );
        assert_eq!(named(81), None);
    }

    #[test]
    fn what_drops_packets_that_carry_others_is_named() {
        let to_peer = |port: u16| {
            json!([
                { "match": { "op": "==", "left": field("ip", "daddr"), "right": "192.0.2.2" } },
                { "match": { "op": "==", "left": field("udp", "dport"), "right": port } },
                { "drop": null }
            ])
        };
        let ends = |peer: &str| ("192.0.2.1".parse().unwrap(), peer.parse().unwrap());
        let carrier = (PROTOCOL_UDP, 8472);
        let output = filters("inet", ("output", "filter"), &[to_peer(4789), to_peer(8472)], &[]);
        assert_eq!(
            output.drops_carrier(ends("192.0.2.2"), carrier, "eth0"),
            ["the rule with handle 2 of chain c of table inet own, hook output"]
        );
        assert!(output.drops_carrier(ends("192.0.2.3"), carrier, "eth0").is_empty());
        // What comes from it is for this node.
        let input = filters("inet", ("input", "filter"), &[to_peer(8472)], &[]);
        assert!(input.drops_carrier(ends("192.0.2.2"), carrier, "eth0").is_empty());
    }
}
