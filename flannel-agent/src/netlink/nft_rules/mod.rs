//! Rules of nft tables for which each packet counts: of which the outcome depends on the packets they have seen, or
//! that hand packets on.
//!
//! The chains that forwarded packets pass are followed from their hooks on, chain by chain: of the very many that
//! kube-proxy may have, nearly all see the first packets of flows alone, and are not read.

use std::{collections::BTreeSet, rc::Rc};

use ipnetwork::IpNetwork;

use super::{
    Netfilter, NetlinkError,
    netfilter::{GENERIC, GET_RULE, INET, NEW_RULE, NFTABLES, big_endian, of_hook, of_ip},
    raw::{HEADER, attributes, put, text, value},
};
use crate::values::Family;
use rule::{Rule, Verdict, verdict};
use walk::Walk;

mod compare;
mod reader;
mod rule;
mod walk;
pub(crate) mod words;

/// Kinds of messages of nftables (include/uapi/linux/netfilter/nf_tables.h, `enum nf_tables_msg_types`).
const NEW_CHAIN: u16 = NFTABLES | 3;
const GET_CHAIN: u16 = NFTABLES | 4;
const NEW_ELEMENT: u16 = NFTABLES | 12;
const GET_ELEMENT: u16 = NFTABLES | 13;
const NEW_GENERATION: u16 = NFTABLES | 15;
const GET_GENERATION: u16 = NFTABLES | 16;
/// NF_INET_PRE_ROUTING, NF_INET_FORWARD, NF_INET_POST_ROUTING: what forwarded packets pass.
const PREROUTING: u32 = 0;
const FORWARD: u32 = 2;
const POSTROUTING: u32 = 4;
/// The tables of iptables, whose rules are read by its own program where there is one.
const OF_IPTABLES: [&str; 5] = ["filter", "mangle", "nat", "raw", "security"];
/// NFTA_LIST_ELEM.
const ELEMENT: u16 = 1;

/// A rule for which each packet counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CountingRule {
    /// What in it counts, and its table, chain and handle.
    pub text: String,
    /// Which packets it can see.
    pub seen: Seen,
}

/// Packets between pods that a rule can see, as far as it can be said behind routing and translation.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seen {
    /// Where they come from.
    pub source: Option<IpNetwork>,
    /// Where they go to.
    pub destination: Option<IpNetwork>,
    /// What they went to before they were translated, as to a Service.
    pub service: Option<IpNetwork>,
    /// Number of their protocol: TCP's or UDP's.
    pub protocol: Option<u8>,
    /// Their source ports: the lowest and the highest.
    pub source_ports: Option<(u16, u16)>,
    /// Their destination ports.
    pub destination_ports: Option<(u16, u16)>,
}

/// A chain that the kernel calls.
struct Base {
    table: String,
    name: String,
    hook: u32,
}

/// An element of a set or of a map of verdicts.
#[derive(Clone, Debug)]
struct Element {
    key: Vec<u8>,
    verdict: Option<Verdict>,
}

impl Netfilter {
    /// A number that changes with every change of tables, chains, rules and sets that somebody makes; `None` where there is no
    /// nftables.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn generation(&mut self) -> Result<Option<u32>, NetlinkError> {
        const ID: u16 = 1;
        let answers = self.ask(GET_GENERATION, NEW_GENERATION)?;
        let id = |answer: &Vec<u8>| big_endian(value(answer.get(HEADER + GENERIC..)?, ID)?);
        Ok(answers.iter().find_map(id))
    }

    /// The rules for which each packet counts and that packets of established flows of TCP and UDP between addresses of
    /// `network` may come to. Flannel's own are left out, and `of_iptables` says whether those of its tables count.
    ///
    /// # Errors
    /// When the kernel refuses. That it has no nftables is no error.
    pub fn counting_rules(
        &mut self,
        network: IpNetwork,
        of_iptables: bool,
    ) -> Result<Vec<CountingRule>, NetlinkError> {
        let own = Family::of_network(network);
        let word = match own {
            Family::V4 => "ip",
            Family::V6 => "ip6",
        };
        let mut found: Vec<CountingRule> = Vec::new();
        for (family, word) in [(of_ip(own), word), (INET, "inet")] {
            for base in self.bases(family)? {
                let is_left_out = base.table.starts_with("flannel-")
                    || !of_iptables && family != INET && OF_IPTABLES.contains(&base.table.as_str());
                if is_left_out {
                    continue;
                }
                let place = format!("{word} {}", base.table);
                let translated = base.hook == PREROUTING;
                let source = Table { netfilter: self, family, own, name: &base.table };
                for rule in Walk::new(source, &place, network, translated).base(&base.name)? {
                    if !found.contains(&rule) {
                        found.push(rule);
                    }
                }
            }
        }
        Ok(found)
    }

    /// The chains that see each packet that is forwarded: not those that translate addresses, which see first packets.
    fn bases(&mut self, family: u8) -> Result<Vec<Base>, NetlinkError> {
        const TABLE: u16 = 1;
        const NAME: u16 = 3;
        const HOOK: u16 = 4;
        const TYPE: u16 = 7;
        let mut found = Vec::new();
        for message in self.dump(GET_CHAIN, NEW_CHAIN, family)? {
            let of = message.get(HEADER + GENERIC..).unwrap_or_default();
            let Some((hook, devices)) = value(of, HOOK).map(of_hook) else { continue };
            let is_nat = value(of, TYPE).is_some_and(|kind| text(kind) == "nat");
            if devices.is_empty() && !is_nat && [PREROUTING, FORWARD, POSTROUTING].contains(&hook) {
                let word = |kind| value(of, kind).map(text).unwrap_or_default();
                found.push(Base { table: word(TABLE), name: word(NAME), hook });
            }
        }
        Ok(found)
    }
}

/// Where rules are read from.
struct Table<'a> {
    netfilter: &'a mut Netfilter,
    /// The table's.
    family: u8,
    /// That of the packets.
    own: Family,
    name: &'a str,
}

impl Table<'_> {
    /// The rules of a chain, in order; none if it has gone.
    fn rules(&mut self, chain: &str) -> Result<Rc<[Rule]>, NetlinkError> {
        const TABLE: u16 = 1;
        const CHAIN: u16 = 2;
        let mut wanted = Vec::new();
        put(&mut wanted, TABLE, &terminated(self.name));
        put(&mut wanted, CHAIN, &terminated(chain));
        let messages = self.netfilter.dump_of(GET_RULE, NEW_RULE, self.family, &wanted)?;
        // A kernel that does not heed what is wanted tells of all.
        let is_wanted = |message: &&Vec<u8>| {
            let of = message.get(HEADER + GENERIC..).unwrap_or_default();
            let word = |kind| value(of, kind).map(text).unwrap_or_default();
            word(TABLE) == self.name && word(CHAIN) == chain
        };
        let rules = messages.iter().filter(is_wanted);
        Ok(rules.filter_map(|message| reader::read(message.get(HEADER + GENERIC..)?, self.own)).collect())
    }

    /// What is in a set.
    fn elements(&mut self, set: &str) -> Result<Vec<Element>, NetlinkError> {
        const TABLE: u16 = 1;
        const SET: u16 = 2;
        const ELEMENTS: u16 = 3;
        const KEY: u16 = 1;
        const DATA: u16 = 2;
        const VALUE: u16 = 1;
        let mut wanted = Vec::new();
        put(&mut wanted, TABLE, &terminated(self.name));
        put(&mut wanted, SET, &terminated(set));
        let mut found = Vec::new();
        for message in self.netfilter.dump_of(GET_ELEMENT, NEW_ELEMENT, self.family, &wanted)? {
            let all = message.get(HEADER + GENERIC..).and_then(|of| value(of, ELEMENTS)).unwrap_or_default();
            for (_, element) in attributes(all).filter(|(kind, _)| *kind == ELEMENT) {
                let key = value(element, KEY).and_then(|key| value(key, VALUE)).unwrap_or_default().to_vec();
                found.push(Element { key, verdict: value(element, DATA).and_then(verdict) });
            }
        }
        Ok(found)
    }

    /// Of what is in a map of verdicts, each once.
    fn verdicts(&mut self, map: &str) -> Result<BTreeSet<Verdict>, NetlinkError> {
        Ok(self.elements(map)?.into_iter().filter_map(|element| element.verdict).collect())
    }
}

/// As names are in messages.
fn terminated(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.push(0);
    bytes
}
