//! Which rules packets of established flows between pods come to, and what is known of those that do.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use ipnetwork::IpNetwork;

use super::{
    CountingRule, NetlinkError, Seen, Table,
    compare::ESTABLISHED,
    rule::{Lookup, Rule, Step, Verdict},
};
use crate::values::overlap;

/// What becomes of them in a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// They, or some of them, come back from it.
    On,
    /// None comes back: it is accepted, or dropped.
    Ended,
}

pub(super) struct Walk<'a> {
    table: Table<'a>,
    /// Family and name of the table.
    place: &'a str,
    network: IpNetwork,
    /// What packets go to may be translated later.
    translated: bool,
    /// The chains that were read.
    chains: BTreeMap<String, Rc<[Rule]>>,
    /// The chains that lead to this one.
    open: BTreeSet<String>,
    /// What came of a chain, by what is known of the packets.
    known: BTreeMap<(String, Seen), Way>,
    found: Vec<CountingRule>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(table: Table<'a>, place: &'a str, network: IpNetwork, translated: bool) -> Self {
        Self {
            table,
            place,
            network,
            translated,
            chains: BTreeMap::new(),
            open: BTreeSet::new(),
            known: BTreeMap::new(),
            found: Vec::new(),
        }
    }

    /// The rules for which each packet counts, from the chain `name` on that the kernel calls.
    pub(super) fn base(mut self, name: &str) -> Result<Vec<CountingRule>, NetlinkError> {
        self.chain(name, &Seen::default())?;
        Ok(self.found)
    }

    fn chain(&mut self, name: &str, above: &Seen) -> Result<Way, NetlinkError> {
        let key = (name.to_owned(), above.clone());
        if let Some(way) = self.known.get(&key) {
            return Ok(*way);
        }
        if !self.open.insert(name.to_owned()) {
            return Ok(Way::On);
        }
        let rules = match self.chains.get(name) {
            Some(rules) => rules.clone(),
            None => self.table.rules(name)?,
        };
        self.chains.insert(name.to_owned(), rules.clone());
        let way = self.rules(name, &rules, above)?;
        self.open.remove(name);
        self.known.insert(key, way);
        Ok(way)
    }

    fn rules(&mut self, name: &str, rules: &[Rule], above: &Seen) -> Result<Way, NetlinkError> {
        for rule in rules {
            let of_another = rule.seen.protocol.zip(above.protocol).is_some_and(|(own, above)| own != above);
            if of_another || !self.may_see(rule)? {
                continue;
            }
            let seen = self.narrowed(rule, above);
            if let Some(what) = rule.counts {
                let text = format!("{what} in {} {name}, handle {}", self.place, rule.handle);
                self.found.push(CountingRule { text, seen: seen.clone() });
            }
            let takes_all = rule.takes_all && self.takes_all_of(rule);
            for (verdict, is_certain) in self.verdicts(&rule.step)? {
                let takes_all = takes_all && is_certain;
                let way = match verdict {
                    Verdict::Ended => Way::Ended,
                    Verdict::Return if takes_all => return Ok(Way::On),
                    Verdict::Return => Way::On,
                    Verdict::Jump(chain) => self.chain(&chain, &seen)?,
                    // From there packets do not come back to this chain.
                    Verdict::GoTo(chain) => match self.chain(&chain, &seen)? {
                        way if takes_all => return Ok(way),
                        way => way,
                    },
                };
                if takes_all && way == Way::Ended {
                    return Ok(Way::Ended);
                }
            }
        }
        Ok(Way::On)
    }

    /// What a rule may do with packets that are as it asks, and whether it does so with each of them.
    fn verdicts(&mut self, step: &Step) -> Result<Vec<(Verdict, bool)>, NetlinkError> {
        Ok(match step {
            Step::On => Vec::new(),
            Step::Verdict(verdict) => vec![(verdict.clone(), true)],
            Step::Map(Lookup { set, by_state: true }) => {
                let elements = self.table.elements(set)?.into_iter();
                let fitting = elements.filter(|element| element.key == ESTABLISHED.to_ne_bytes());
                fitting.filter_map(|element| Some((element.verdict?, true))).collect()
            }
            Step::Map(Lookup { set, by_state: false }) => {
                self.table.verdicts(set)?.into_iter().map(|verdict| (verdict, false)).collect()
            }
        })
    }

    /// Whether packets of established flows between addresses of the network may meet the conditions of a rule.
    fn may_see(&mut self, rule: &Rule) -> Result<bool, NetlinkError> {
        let is_elsewhere =
            |named: Option<IpNetwork>| named.is_some_and(|named| !overlap(named, self.network));
        let destination = rule.seen.destination.filter(|_| !self.translated);
        if !rule.sees_flows || is_elsewhere(rule.seen.source) || is_elsewhere(destination) {
            return Ok(false);
        }
        for (set, negated) in &rule.states {
            let holds = self.table.elements(set)?.iter().any(|it| it.key == ESTABLISHED.to_ne_bytes());
            if holds == *negated {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether each of them does, as far as addresses tell.
    fn takes_all_of(&self, rule: &Rule) -> bool {
        let all = |named: Option<IpNetwork>| {
            named.is_none_or(|named| overlap(named, self.network) && named.prefix() <= self.network.prefix())
        };
        all(rule.seen.source) && all(rule.seen.destination)
    }

    /// What is known of packets behind the conditions of `rule`, `above` being known already.
    fn narrowed(&self, rule: &Rule, above: &Seen) -> Seen {
        let narrower = |own: Option<IpNetwork>, above: Option<IpNetwork>| {
            own.filter(|own| own.prefix() >= above.map_or(0, |above| above.prefix())).or(above)
        };
        let own = &rule.seen;
        let (destination, service) = match self.translated {
            true => {
                let service = own.destination.filter(|named| !overlap(*named, self.network));
                (None, narrower(service, above.service))
            }
            false => (narrower(own.destination, above.destination), None),
        };
        Seen {
            source: narrower(own.source, above.source),
            destination,
            service,
            protocol: own.protocol.or(above.protocol),
            // Those of a Service are others behind it.
            source_ports: own.source_ports.or(above.source_ports).filter(|_| !self.translated),
            destination_ports: own.destination_ports.or(above.destination_ports).filter(|_| !self.translated),
        }
    }
}
