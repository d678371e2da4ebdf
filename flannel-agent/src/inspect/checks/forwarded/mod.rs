//! What firewalls do with pods' packets that this node forwards, as far as their rules tell.
//!
//! A packet that begins a connection is led through the chains. A condition that cannot be judged here may hold or not:
//! what is certain is told from what may be.

use std::collections::BTreeMap;

use ipnetwork::IpNetwork;

use crate::values::overlap;

mod condition;
mod iptables;
mod nft;

pub use condition::Alone;
use condition::{Asks, Condition};
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
    /// Which packets meet it: `prerouting`, `input`, `forward`, `output` or `postrouting`.
    pub(super) hook: String,
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
    /// The rule that drops them: the surest.
    by: Option<Culprit>,
    /// They come to the end of it.
    fall: Truth,
}

/// A rule that drops packets.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Culprit {
    chain: String,
    number: u64,
    text: String,
    /// It drops whatever reaches it.
    sweeping: bool,
}

impl Culprit {
    /// In the words of the program that has made it.
    fn named(&self, base: &Base) -> String {
        let Self { chain, number, text, .. } = self;
        let place = match *chain == base.name {
            true => base.place.clone(),
            false => format!("chain {chain}, which {} leads to", base.place),
        };
        match text.is_empty() {
            true => format!("the rule with handle {number} of {place}"),
            false => format!("rule {number} of {place}: `{text}`"),
        }
    }
}

/// What becomes of one packet in a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Nothing drops it.
    Passes,
    /// It is dropped for certain: by this.
    Dropped(String),
    /// It may be dropped, by a condition that cannot be judged here: by this.
    Perhaps(String),
}

impl Ends {
    fn drop(&mut self, truth: Truth, by: Option<Culprit>) {
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
        let ends = self.ends(passage);
        let certain = ends.accepted == Truth::No;
        // A policy that some rule makes exceptions from, which cannot be judged here, may be in the way.
        let sweeping = ends.by.as_ref().is_none_or(|by| by.sweeping);
        let notable = ends.dropped >= Truth::Partly || (sweeping && ends.accepted <= Truth::Unknown);
        let rule = ends.by.map(|by| by.text);
        (ends.dropped != Truth::No && (certain || notable)).then_some(Dropped { certain, rule })
    }

    /// What becomes of the one packet of this passage.
    pub fn fate(&self, passage: &Passage) -> Fate {
        let ends = self.ends(passage);
        let by = match &ends.by {
            Some(culprit) => culprit.named(self),
            None => format!("the policy of {}", self.place),
        };
        match (ends.dropped, ends.accepted) {
            (Truth::No, _) => Fate::Passes,
            (_, Truth::No) => Fate::Dropped(by),
            _ => Fate::Perhaps(by),
        }
    }

    /// The ends of all packets of a passage, by its policy, too.
    fn ends(&self, passage: &Passage) -> Ends {
        let mut ends = self.walk(&self.name, passage, &mut BTreeMap::new(), 0);
        match self.drops {
            true => ends.drop(ends.fall, None),
            false => ends.accepted = ends.accepted.max(ends.fall),
        }
        ends
    }

    /// Whether forwarded packets meet it.
    pub(super) fn is_of_forwarded(&self) -> bool {
        ["prerouting", "forward", "postrouting"].contains(&self.hook.as_str())
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
                Step::Drop => ends.drop(
                    here,
                    Some(Culprit {
                        chain: name.to_owned(),
                        number: rule.number,
                        text: rule.text.clone(),
                        sweeping: rule.conditions.is_empty(),
                    }),
                ),
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
