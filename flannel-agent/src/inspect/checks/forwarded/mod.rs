//! What firewalls do with pods' packets that this node forwards, as far as their rules tell.
//!
//! A packet that begins a connection is led through the chains. A condition that cannot be judged here may hold or not:
//! what is certain is told from what may be.

use std::collections::BTreeMap;

use ipnetwork::IpNetwork;

use crate::values::overlap;

mod iptables;
mod nft;

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

/// What a rule asks of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Condition {
    asks: Asks,
    negated: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Asks {
    Source(Vec<IpNetwork>),
    Destination(Vec<IpNetwork>),
    /// It comes in by one of these; a name may end in `+` or `*`.
    By(Vec<String>),
    /// It leaves by one of these.
    Out(Vec<String>),
    /// It begins a connection, which those do that are looked at here.
    New,
    /// It is what no such packet is: of a known connection, invalid, or translated.
    Other,
    /// What cannot be judged.
    Something,
}

impl Condition {
    fn of(&self, passage: &Passage) -> Truth {
        let any = |networks: &[IpNetwork], end: End| {
            networks.iter().map(|named| end.is_in(*named)).max().unwrap_or_default()
        };
        let truth = match &self.asks {
            Asks::Source(networks) => any(networks, passage.source),
            Asks::Destination(networks) => any(networks, passage.destination),
            Asks::By(names) => is_named(names, &passage.by),
            Asks::Out(names) => is_named(names, &passage.out),
            Asks::New => Truth::Yes,
            Asks::Other => Truth::No,
            Asks::Something => Truth::Unknown,
        };
        if self.negated { truth.negated() } else { truth }
    }
}

fn is_named(names: &[String], interfaces: &[String]) -> Truth {
    let fits = |interface: &String| {
        names.iter().any(|name| match name.strip_suffix(['+', '*']) {
            Some(beginning) => interface.starts_with(beginning),
            None => interface == name,
        })
    };
    match interfaces.iter().filter(|interface| fits(interface)).count() {
        _ if interfaces.is_empty() => Truth::Unknown,
        0 => Truth::No,
        fitting if fitting == interfaces.len() => Truth::Yes,
        _ => Truth::Unknown,
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
}

/// The chains of a table, by name.
type Chains = BTreeMap<String, Vec<Rule>>;

/// A chain that the kernel calls, and those it leads to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Base {
    /// Where it is: `chain c of table inet t, hook forward`.
    pub place: String,
    name: String,
    /// It drops what no rule decides about.
    drops: bool,
    chains: Chains,
}

/// That packets are dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// All of them: else some, or it may be so.
    pub certain: bool,
    /// The rule, as far as it can be shown; `None` where it is the policy of the chain.
    pub rule: Option<String>,
}

/// What may become of packets in a chain.
#[derive(Clone, Debug, Default)]
struct Ends {
    accepted: Truth,
    dropped: Truth,
    /// They get another source.
    translated: Truth,
    /// The rule that drops them: the surest, and whether it drops whatever reaches it.
    by: Option<(String, bool)>,
    /// They come to the end of it.
    fall: Truth,
}

impl Ends {
    fn drop(&mut self, truth: Truth, by: Option<(String, bool)>) {
        if truth > self.dropped {
            (self.dropped, self.by) = (truth, by);
        }
    }
}

impl Base {
    /// Whether it does the same, wherever it is.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        (&self.name, self.drops, &self.chains) == (&other.name, other.drops, &other.chains)
    }

    /// Whether it drops packets of this passage.
    pub fn drops(&self, passage: &Passage) -> Option<Dropped> {
        let mut ends = self.walk(&self.name, passage, &mut BTreeMap::new(), 0);
        match self.drops {
            true => ends.drop(ends.fall, None),
            false => ends.accepted = ends.accepted.max(ends.fall),
        }
        let certain = ends.accepted == Truth::No;
        // A policy that some rule makes exceptions from, which cannot be judged here, may be in the way.
        let sweeping = ends.by.as_ref().is_none_or(|(_, sweeping)| *sweeping);
        let notable = ends.dropped >= Truth::Partly || (sweeping && ends.accepted <= Truth::Unknown);
        let rule = ends.by.map(|(text, _)| text);
        (ends.dropped != Truth::No && (certain || notable)).then_some(Dropped { certain, rule })
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
            let fits = rule.conditions.iter().map(|condition| condition.of(passage)).min();
            let fits = fits.unwrap_or(Truth::Yes);
            if fits == Truth::No {
                continue;
            }
            let here = reach.min(fits);
            // Of those that fit, whether they go on to the next rule.
            let mut goes_on = Truth::No;
            match &rule.step {
                Step::Nothing => continue,
                Step::Accept => ends.accepted = ends.accepted.max(here),
                Step::Drop => ends.drop(here, Some((rule.text.clone(), rule.conditions.is_empty()))),
                Step::Translate => ends.translated = ends.translated.max(here),
                Step::Return => ends.fall = ends.fall.max(here),
                Step::Unclear => {
                    ends.accepted = ends.accepted.max(Truth::Unknown);
                    goes_on = Truth::Unknown;
                }
                Step::Jump(to) | Step::GoTo(to) => {
                    let there = self.walk(to, passage, known, depth + 1);
                    ends.accepted = ends.accepted.max(there.accepted.min(here));
                    ends.drop(there.dropped.min(here), there.by);
                    ends.translated = ends.translated.max(there.translated.min(here));
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
        let out = Passage { source: own, destination: others, by: bridge.clone(), out: tunnel.clone() };
        [out, Passage { source: others, destination: own, by: tunnel, out: bridge }]
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
            vec![Rule { conditions: Vec::new(), step: Step::Jump(name.to_owned()), text: String::new() }]
        };
        let chains = BTreeMap::from([("a".to_owned(), to("b")), ("b".to_owned(), to("a"))]);
        let base = Base { name: "a".to_owned(), drops: true, chains, ..Base::default() };
        assert_eq!(fates(&base), ["perhaps"; 2]);
    }
}
