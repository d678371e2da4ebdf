//! All chains of this node that may drop a packet, whoever has made them.

use super::{Alone, Base, Fate, Firewall, Nft, Passage, rules::sets_marks};
use crate::values::Family;

/// Chains of iptables, of either back end, and of nftables.
#[derive(Clone, Debug, Default)]
pub struct Filters {
    bases: Vec<Base>,
    /// Programs that could not be asked: what they have made is not known.
    pub unread: Vec<&'static str>,
    /// Rules of others put marks on packets: which ones a packet has on its way is not known.
    sets_marks: bool,
}

impl Filters {
    /// Asks the programs for what packets of `family` meet.
    pub fn read(family: Family) -> Self {
        let mut found = Self::default();
        match Firewall::read(family) {
            Some(firewall) => {
                found.sets_marks = sets_marks(family);
                found.bases.extend(firewall.bases);
            }
            None => found.unread.push(if family == Family::V4 { "iptables" } else { "ip6tables" }),
        }
        match Nft::read() {
            Some(mut nft) => {
                found.sets_marks |= nft.bases.sets_marks;
                found.bases.extend(nft.bases.filters.remove(&family).unwrap_or_default());
            }
            None => found.unread.push("nft"),
        }
        found
    }

    /// What the chains at `hook` do to the one packet of `passage`: the first that drops it, or all that may.
    pub fn meet(&self, hook: &str, passage: &Passage) -> Vec<Fate> {
        let passage = match passage.alone {
            Some(alone) if self.sets_marks => {
                Passage { alone: Some(Alone { mark: (alone.mark.0, 0), ..alone }), ..passage.clone() }
            }
            _ => passage.clone(),
        };
        let mut found = Vec::new();
        for base in self.bases.iter().filter(|base| base.hook == hook) {
            match base.fate(&passage) {
                Fate::Passes => {}
                dropped @ Fate::Dropped(_) => return vec![dropped],
                perhaps @ Fate::Perhaps(_) => found.push(perhaps),
            }
        }
        found
    }
}
