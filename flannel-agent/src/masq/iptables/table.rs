//! One table: what of it is ours, what is wrong with it, and what puts it right.

use ipnetwork::IpNetwork;

use super::{
    saved::{SavedRule, SavedTable},
    spec::{jump, spec, uncommented},
};
use crate::{
    masq::{
        keep::Look,
        rules::{EXEMPT, FLOW, FORWARD, MASQ, Rule, RuleSet, State},
    },
    netlink::FLOW_CHAIN,
    values::Family,
};

/// What one table should hold of ours.
#[derive(Clone, Debug)]
pub(super) struct Table {
    /// `nat`, `filter` or `mangle`.
    pub(super) name: &'static str,
    /// The kernel's chain that ours is jumped to from.
    base: &'static str,
    /// The first rules of `base`.
    first: Vec<SavedRule>,
    chain: &'static str,
    comment: &'static str,
    /// The rules of `chain`; none if it is not to be.
    rules: Option<Vec<SavedRule>>,
    /// Rules directly in `base` that only flannel can have made.
    old: Vec<SavedRule>,
    /// Rules of `chain` that this run has put there and wants no more.
    dropped: Vec<SavedRule>,
}

impl Table {
    /// The tables that hold `rules`. Of the networks in `earlier`, past runs have left rules.
    pub(super) fn of(rules: &RuleSet, earlier: &[IpNetwork]) -> [Self; 3] {
        let render = |rules: &[Rule], comment| {
            // iptables has no words for it: see `helped`.
            let sayable = rules.iter().filter(|rule| rule.state != Some(State::Helped));
            sayable.map(|rule| SavedRule::new(&spec(rule, comment))).collect::<Vec<_>>()
        };
        let old = earlier.iter().flat_map(|network| uncommented(*network));
        [
            Self {
                name: "nat",
                base: "POSTROUTING",
                first: render(&rules.exempt, EXEMPT),
                chain: "FLANNEL-POSTRTG",
                comment: MASQ,
                rules: rules.masq.as_ref().map(|rules| render(rules, MASQ)),
                old: old.map(|spec| SavedRule::new(&spec)).collect(),
                dropped: Vec::new(),
            },
            Self {
                name: "filter",
                base: "FORWARD",
                first: Vec::new(),
                chain: "FLANNEL-FWD",
                comment: FORWARD,
                rules: rules.forward.as_ref().map(|rules| render(rules, FORWARD)),
                old: Vec::new(),
                dropped: Vec::new(),
            },
            Self {
                name: "mangle",
                base: "POSTROUTING",
                first: Vec::new(),
                chain: FLOW_CHAIN,
                comment: FLOW,
                rules: rules.flow.as_ref().map(|rules| render(rules, FLOW)),
                old: Vec::new(),
                dropped: Vec::new(),
            },
        ]
    }

    /// Tables that hold nothing of flannel's.
    pub(super) fn without_ours(family: Family, earlier: &[IpNetwork]) -> [Self; 3] {
        let nothing = RuleSet { family, exempt: Vec::new(), masq: None, forward: None, flow: None };
        Self::of(&nothing, earlier)
    }

    /// With `exceptions` behind the first of the rules, which clears the mark, and without those that were `dropped`.
    pub(super) fn with_exceptions(mut self, exceptions: &[SavedRule], dropped: &[SavedRule]) -> Self {
        self.dropped = dropped.to_vec();
        if let Some(rules) = self.rules.as_mut().filter(|rules| !rules.is_empty()) {
            rules.splice(1..1, exceptions.iter().cloned());
        }
        self
    }

    /// Whether it is to hold anything.
    pub(super) fn is_wanted(&self) -> bool {
        self.rules.is_some() || !self.first.is_empty()
    }

    /// What is wrong, one phrase each.
    pub(super) fn faults(&self, saved: &SavedTable, look: Look) -> Vec<String> {
        let mut faults = Vec::new();
        let base = saved.chain(self.base).unwrap_or_default();
        if !self.first_in_place(base, look) {
            faults.push(self.misplaced(base));
        }
        let jumps = self.jumps(base);
        if look == Look::Start {
            let stray = self.strays(base);
            if stray > 0 {
                faults.push(format!("{stray} rules of another flannel in {}", self.base));
            }
            if jumps > 1 {
                faults.push(format!("{jumps} jumps to {} in {}", self.chain, self.base));
            }
        }
        let there = saved.chain(self.chain);
        match (&self.rules, there) {
            (None, None) => {}
            (None, Some(_)) if look == Look::Start => {
                faults.push(format!("a chain {} from an earlier run", self.chain));
            }
            // Somebody else's, who came after us.
            (None, Some(_)) => {}
            (Some(_), None) => faults.push(format!("chain {} is missing", self.chain)),
            (Some(rules), Some(there)) => {
                if jumps == 0 {
                    faults.push(format!("the jump to {} is missing from {}", self.chain, self.base));
                }
                let dropped = there.iter().filter(|rule| self.dropped.contains(rule)).count();
                let right = match look {
                    Look::Start => there == rules,
                    Look::Resync => contains_in_order(there, rules),
                };
                if right && dropped > 0 {
                    faults.push(format!("{dropped} rules of {} are for what is gone", self.chain));
                } else if !right {
                    let missing = rules.iter().filter(|rule| !there.contains(rule)).count();
                    faults.push(match missing {
                        0 => {
                            format!("the rules of {} are not those, or not in the order, wanted", self.chain)
                        }
                        _ => format!("{missing} of {} rules are missing from {}", rules.len(), self.chain),
                    });
                }
            }
        }
        faults
    }

    /// Input of `iptables-restore --noflush` that puts the table right in one step.
    pub(super) fn restore(&self, saved: &SavedTable, look: Look) -> String {
        let mut lines = vec![format!("*{}", self.name)];
        let base = saved.chain(self.base).unwrap_or_default();
        let there = saved.chain(self.chain);
        let start = look == Look::Start;
        let rebuild = start || there.is_none();
        if rebuild && (self.rules.is_some() || there.is_some()) {
            // Creates the chain, or empties it.
            lines.push(format!(":{} - [0:0]", self.chain));
        }
        let place = !self.first_in_place(base, look);
        let mut jumps = 0;
        for rule in base {
            let is_jump = self.is_jump(rule);
            jumps += usize::from(is_jump);
            let surplus = is_jump && (self.rules.is_none() || jumps > 1);
            let replaced = place && self.first.contains(rule);
            if replaced || (start && (surplus || self.is_stray(rule))) {
                lines.push(format!("-D {} {}", self.base, rule.text));
            }
        }
        if place {
            let numbered = self.first.iter().zip(1..);
            lines.extend(numbered.map(|(rule, number)| format!("-I {} {number} {}", self.base, rule.text)));
        }
        match &self.rules {
            Some(rules) => {
                if rebuild {
                    lines.extend(rules.iter().map(|rule| format!("-A {} {}", self.chain, rule.text)));
                }
                let gone =
                    there.unwrap_or_default().iter().filter(|rule| !rebuild && self.dropped.contains(rule));
                lines.extend(gone.map(|rule| format!("-D {} {}", self.chain, rule.text)));
                if let Some(there) = there.filter(|there| !rebuild && !contains_in_order(there, rules)) {
                    let ours = there.iter().filter(|rule| rules.contains(rule));
                    lines.extend(ours.map(|rule| format!("-D {} {}", self.chain, rule.text)));
                    // At the front: of a second flanneld's rules, the first is the same as ours.
                    let numbered = rules.iter().zip(1..);
                    lines.extend(
                        numbered.map(|(rule, number)| format!("-I {} {number} {}", self.chain, rule.text)),
                    );
                }
                if jumps == 0 {
                    lines.push(format!("-A {} {}", self.base, jump(self.chain, self.comment)));
                }
            }
            None if start && there.is_some() => lines.push(format!("-X {}", self.chain)),
            None => {}
        }
        lines.push("COMMIT\n".to_owned());
        lines.join("\n")
    }

    /// The exemptions lead, alone or among those of a second flanneld.
    fn first_in_place(&self, base: &[SavedRule], look: Look) -> bool {
        let lead = base.iter().take_while(|rule| rule.has_comment(EXEMPT)).count();
        match look {
            Look::Start => base.get(..self.first.len()) == Some(&self.first),
            Look::Resync => contains_in_order(&base[..lead], &self.first),
        }
    }

    fn misplaced(&self, base: &[SavedRule]) -> String {
        let missing = self.first.iter().filter(|rule| !base.contains(rule)).count();
        let before = base.iter().find(|rule| !rule.has_comment(EXEMPT));
        match (missing, before) {
            (0, Some(before)) => {
                format!("the exemptions do not come first in {}: `{}` does", self.base, before.text)
            }
            (0, None) => format!("the exemptions are not in order in {}", self.base),
            _ => format!("{missing} of {} exemptions are missing from {}", self.first.len(), self.base),
        }
    }

    fn jumps(&self, base: &[SavedRule]) -> usize {
        base.iter().filter(|rule| self.is_jump(rule)).count()
    }

    fn is_jump(&self, rule: &SavedRule) -> bool {
        *rule == SavedRule::new(&jump(self.chain, self.comment))
    }

    fn strays(&self, base: &[SavedRule]) -> usize {
        let is_stray = |rule| self.is_stray(rule) || (self.rules.is_none() && self.is_jump(rule));
        base.iter().filter(|rule| is_stray(rule)).count()
    }

    /// Of flannel's making, and not wanted now.
    fn is_stray(&self, rule: &SavedRule) -> bool {
        let flannels = rule.has_comment(self.comment)
            || rule.jumps_to(self.chain)
            || (self.name == "nat" && rule.has_comment(EXEMPT))
            || self.old.contains(rule);
        flannels && !self.is_jump(rule) && !self.first.contains(rule)
    }
}

/// Whether `rules` are all in `there`, in their order, perhaps with others between.
fn contains_in_order(there: &[SavedRule], rules: &[SavedRule]) -> bool {
    let mut rest = there.iter();
    rules.iter().all(|rule| rest.any(|other| other == rule))
}
