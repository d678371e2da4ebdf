//! What firewalls do with pods' packets that this node forwards, as far as their rules tell.
//!
//! A packet that begins a connection is led through the chains. A condition that cannot be judged here may hold or not:
//! what is certain is told from what may be.

use std::collections::BTreeMap;

use ipnetwork::IpNetwork;

use crate::values::{is_interface, overlap};

mod compared;
mod condition;
mod ends;
mod iptables;
mod nft;

pub use condition::Alone;
use condition::{Asks, Condition, all_of};
use ends::{Culprit, Ends};
pub(super) use iptables::tables as of_iptables;
pub(super) use nft::{Bases, bases as of_nft};

/// Chains that lead on to each other no deeper than this are followed: the kernel takes 16.
const DEEPEST: usize = 32;

/// Packets between pods of this node and those of others, one way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passage {
    /// Where they come from.
    pub source: End,
    /// Where they go to.
    pub destination: End,
    /// The interfaces they may come in by; none where that is not known.
    pub by: Vec<String>,
    /// Those they may leave by.
    pub out: Vec<String>,
    /// What is known of it besides, where it is one packet alone; without it, they are all that begin connections.
    pub alone: Option<Alone>,
}

/// Addresses of pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// All within.
    pub network: IpNetwork,
    /// But for these.
    pub without: Option<IpNetwork>,
}

impl End {
    /// How far `named` holds them.
    fn is_in(self, named: IpNetwork) -> Truth {
        let holds =
            |outer: IpNetwork, inner: IpNetwork| overlap(outer, inner) && outer.prefix() <= inner.prefix();
        match named {
            _ if holds(named, self.network) => Truth::Yes,
            _ if !overlap(named, self.network) => Truth::No,
            _ if self.without.is_some_and(|without| holds(without, named)) => Truth::No,
            // What is meant for one pod is somebody's policy for it.
            _ if holds(IpNetwork::from(named.ip()), named) => Truth::Unknown,
            _ => Truth::Partly,
        }
    }
}

/// Whether something is so, of the packets of a passage: the later, the surer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Truth {
    #[default]
    No,
    /// It may be.
    Unknown,
    /// Of some of them, for certain.
    Partly,
    /// Of all of them.
    Yes,
}

impl Truth {
    fn negated(self) -> Self {
        match self {
            Self::No => Self::Yes,
            Self::Yes => Self::No,
            other => other,
        }
    }
}

/// What a rule does with a packet that is as it asks.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// Nothing that ends it.
    Nothing,
    Accept,
    Drop,
    /// It gets another source.
    Translate,
    Return,
    Jump(String),
    GoTo(String),
    /// Something else decides.
    Unclear,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    conditions: Vec<Condition>,
    step: Step,
    /// As its program lists it; empty where that would be no line.
    text: String,
    /// Its place in its chain, from 1, or its handle: by what its program names it.
    number: u64,
}

/// The chains of a table, by name.
type Chains = BTreeMap<String, Vec<Rule>>;

/// A chain that the kernel calls, and those it leads to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Base {
    /// Where it is: `chain c of table inet t, hook forward`.
    pub place: String,
    name: String,
    /// Which packets meet it: `prerouting`, `input`, `forward`, `output` or `postrouting`, those of bridges as `bridge
    /// input`, or `ingress` or `egress`.
    pub(super) hook: String,
    /// The interfaces whose packets meet it at `ingress` or `egress`.
    pub(super) devices: Vec<String>,
    /// It drops what no rule decides about.
    drops: bool,
    chains: Chains,
}

/// That packets are dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// All of them: else some, or it may be so.
    pub certain: bool,
    /// The rule as its program lists it, empty where that is no line; `None` where it is the policy of the chain.
    pub rule: Option<String>,
    /// Rule or policy, in the words of its program, and where it is.
    pub by: String,
}

/// What drops one packet in a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// This drops it for certain, where nothing before has.
    Dropped(String),
    /// It may be dropped, by a condition that cannot be judged here: by this.
    Perhaps(String),
}

impl Base {
    /// Whether it does the same, wherever it is.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        (&self.name, self.drops, &self.chains) == (&other.name, other.drops, &other.chains)
    }

    /// Whether these are its family, table and name.
    pub(super) fn is_called(&self, name: &str) -> bool {
        let place = |(family, rest): (&str, &str)| {
            let (table, chain) = rest.split_once(' ')?;
            Some(format!("chain {chain} of table {family} {table}, "))
        };
        name.split_once(' ').and_then(place).is_some_and(|place| self.place.starts_with(&place))
    }

    /// Whether packets that pass this interface meet it at its hook.
    pub(super) fn is_at(&self, interface: Option<&str>) -> bool {
        if !["ingress", "egress"].contains(&self.hook.as_str()) {
            return true;
        }
        interface.is_some_and(|interface| {
            self.devices.iter().any(|device| is_interface(device, &['*'], interface))
        })
    }

    /// Whether it drops packets of this passage.
    pub fn drops(&self, passage: &Passage) -> Option<Dropped> {
        let ends = self.ends(passage);
        let certain = ends.accepted == Truth::No;
        // A policy that some rule makes exceptions from, which cannot be judged here, may be in the way.
        let sweeping = ends.by.as_ref().is_none_or(|by| by.sweeping);
        let notable = ends.dropped >= Truth::Partly || (sweeping && ends.accepted <= Truth::Unknown);
        let by = self.named(ends.by.as_ref());
        let rule = ends.by.map(|by| by.text);
        (ends.dropped != Truth::No && (certain || notable)).then_some(Dropped { certain, rule, by })
    }

    /// What becomes of the one packet of this passage: what may drop it, and in the end what does for certain. Where it
    /// passes for certain, there is none.
    pub fn fates(&self, passage: &Passage) -> Vec<Fate> {
        let ends = self.ends(passage);
        let mut all: Vec<String> = ends.all.iter().map(|by| self.named(by.as_ref())).collect();
        // Where nothing lets it pass, the last drops what those before it have left.
        let certain = (ends.accepted == Truth::No).then(|| all.pop()).flatten();
        all.into_iter().map(Fate::Perhaps).chain(certain.map(Fate::Dropped)).collect()
    }

    /// What may give the one packet of this passage another source or destination.
    pub(super) fn translator(&self, passage: &Passage) -> Option<String> {
        let ends = self.walk(&self.name, passage, &mut BTreeMap::new(), 0);
        ends.translator.map(|by| by.named(self))
    }

    /// A rule, or the policy.
    fn named(&self, by: Option<&Culprit>) -> String {
        by.map_or_else(|| format!("the policy of {}", self.place), |culprit| culprit.named(self))
    }

    /// The ends of all packets of a passage, by its policy, too.
    fn ends(&self, passage: &Passage) -> Ends {
        let mut ends = self.walk(&self.name, passage, &mut BTreeMap::new(), 0);
        match self.drops {
            true => ends.drop(ends.fall, None, vec![None]),
            false => ends.accepted = ends.accepted.max(ends.fall),
        }
        ends
    }

    /// A passage as the chain sees it, `bridged` where a bridge has the pods of this node; `None` where its packets do not
    /// come there.
    pub(super) fn sees(&self, passage: &Passage, bridged: bool) -> Option<Passage> {
        // What is for other nodes is for all but this one.
        let leaves = passage.destination.without.is_some();
        let has = |names: &[String]| names.iter().any(|name| self.is_at(Some(name)));
        match self.hook.as_str() {
            "prerouting" | "forward" | "postrouting" => Some(passage.clone()),
            "ingress" if has(&passage.by) => Some(passage.clone()),
            "egress" if has(&passage.out) => Some(passage.clone()),
            // By which of the ports is not known.
            "bridge prerouting" | "bridge input" if bridged && leaves => {
                Some(Passage { by: Vec::new(), out: Vec::new(), ..passage.clone() })
            }
            "bridge output" | "bridge postrouting" if bridged && !leaves => {
                Some(Passage { by: Vec::new(), out: Vec::new(), ..passage.clone() })
            }
            _ => None,
        }
    }

    /// Whether it certainly gives packets of this passage, or some of them, another source.
    pub fn translates(&self, passage: &Passage) -> bool {
        self.walk(&self.name, passage, &mut BTreeMap::new(), 0).translated >= Truth::Partly
    }

    fn walk(&self, name: &str, passage: &Passage, known: &mut BTreeMap<String, Ends>, depth: usize) -> Ends {
        if let Some(ends) = known.get(name) {
            return ends.clone();
        }
        let mut ends = Ends::default();
        let Some(rules) = self.chains.get(name).filter(|_| depth < DEEPEST) else {
            return Ends { accepted: Truth::Unknown, fall: Truth::Unknown, ..ends };
        };
        // Whether packets come to the next rule.
        let mut reach = Truth::Yes;
        for rule in rules {
            let fits = all_of(&rule.conditions, passage);
            if fits == Truth::No {
                continue;
            }
            let here = reach.min(fits);
            let culprit = || {
                Some(Culprit {
                    chain: name.to_owned(),
                    number: rule.number,
                    text: rule.text.clone(),
                    sweeping: rule.conditions.is_empty(),
                })
            };
            // Of those that fit, whether they go on to the next rule.
            let mut goes_on = Truth::No;
            match &rule.step {
                Step::Nothing => continue,
                Step::Accept => ends.accepted = ends.accepted.max(here),
                Step::Drop => ends.drop(here, culprit(), vec![culprit()]),
                Step::Translate => ends.translate(here, culprit()),
                Step::Return => ends.fall = ends.fall.max(here),
                Step::Unclear => {
                    ends.accepted = ends.accepted.max(Truth::Unknown);
                    goes_on = Truth::Unknown;
                }
                Step::Jump(to) | Step::GoTo(to) => {
                    let there = self.walk(to, passage, known, depth + 1);
                    ends.accepted = ends.accepted.max(there.accepted.min(here));
                    ends.drop(there.dropped.min(here), there.by, there.all);
                    ends.translate(there.translated.min(here), there.translator);
                    match rule.step {
                        Step::GoTo(_) => ends.fall = ends.fall.max(there.fall.min(here)),
                        _ => goes_on = there.fall,
                    }
                }
            }
            if goes_on != Truth::Yes {
                reach = reach.min(fits.negated().max(fits.min(goes_on)));
            }
            if reach == Truth::No {
                break;
            }
        }
        ends.fall = ends.fall.max(reach);
        known.insert(name.to_owned(), ends.clone());
        ends
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn net(text: &str) -> IpNetwork {
        text.parse().unwrap()
    }

    /// From the pods of a node to those of others, and back.
    pub(in crate::inspect::checks) fn both_ways() -> [Passage; 2] {
        let own = End { network: net("10.244.1.0/24"), without: None };
        let others = End { network: net("10.244.0.0/16"), without: Some(net("10.244.1.0/24")) };
        let [bridge, tunnel] = ["cni0", "flannel.1"].map(|name| vec![name.to_owned()]);
        let out = Passage {
            source: own,
            destination: others,
            by: bridge.clone(),
            out: tunnel.clone(),
            alone: None,
        };
        [out, Passage { source: others, destination: own, by: tunnel, out: bridge, alone: None }]
    }

    /// What becomes of packets that leave, and of those that come: `pass`, `dropped` or `perhaps`.
    pub(super) fn fates(base: &Base) -> [&'static str; 2] {
        both_ways().map(|passage| match base.drops(&passage) {
            None => "pass",
            Some(Dropped { certain: true, .. }) => "dropped",
            Some(Dropped { certain: false, .. }) => "perhaps",
        })
    }

    #[test]
    fn addresses_are_held_wholly_partly_or_not() {
        let [leaving, coming] = both_ways();
        for (named, of_own, of_others) in [
            ("0.0.0.0/0", Truth::Yes, Truth::Yes),
            ("10.244.0.0/16", Truth::Yes, Truth::Yes),
            ("10.244.1.0/24", Truth::Yes, Truth::No),
            ("10.244.2.0/24", Truth::No, Truth::Partly),
            ("10.244.1.7/32", Truth::Unknown, Truth::No),
            ("192.168.0.0/16", Truth::No, Truth::No),
            ("fd00::/8", Truth::No, Truth::No),
        ] {
            assert_eq!(leaving.source.is_in(net(named)), of_own, "{named}");
            assert_eq!(coming.source.is_in(net(named)), of_others, "{named}");
        }
    }

    #[test]
    fn chains_that_lead_round_in_a_circle_end() {
        let to = |name: &str| {
            let step = Step::Jump(name.to_owned());
            vec![Rule { conditions: Vec::new(), step, text: String::new(), number: 1 }]
        };
        let chains = BTreeMap::from([("a".to_owned(), to("b")), ("b".to_owned(), to("a"))]);
        let base = Base { name: "a".to_owned(), drops: true, chains, ..Base::default() };
        assert_eq!(fates(&base), ["perhaps"; 2]);
    }
}
