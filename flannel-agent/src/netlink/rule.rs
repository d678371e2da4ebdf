//! Policy routing rules (`ip rule`), and those that go by a packet's mark.

use netlink_packet_route::{
    RouteNetlinkMessage,
    rule::{RuleAttribute, RuleMessage},
};

use super::{Netlink, NetlinkError, address_family};
use crate::values::Family;

/// The mark by which a rule chooses packets, as `ip rule` has it: `fwmark MARK/MASK`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RuleMark {
    /// What the bits of the mask are compared with.
    pub mark: u32,
    /// Bits that are looked at; all of them where the rule does not say.
    pub mask: u32,
}

impl Netlink {
    /// The marks that rules of `family` go by, also those that say `not`.
    ///
    /// # Errors
    /// The kernel does not answer, or refuses.
    pub async fn rule_marks(&mut self, family: Family) -> Result<Vec<RuleMark>, NetlinkError> {
        Ok(self.rules(family).await?.iter().filter_map(mark_of).collect())
    }

    /// The rules of `family`.
    pub(super) async fn rules(&mut self, family: Family) -> Result<Vec<RuleMessage>, NetlinkError> {
        let mut query = RuleMessage::default();
        query.header.family = address_family(family);
        let objects = self.dump(RouteNetlinkMessage::GetRule(query)).await?;
        let rules = objects.into_iter().filter_map(|object| match object {
            RouteNetlinkMessage::NewRule(rule) => Some(rule),
            _ => None,
        });
        Ok(rules.collect())
    }
}

fn mark_of(rule: &RuleMessage) -> Option<RuleMark> {
    let find = |read: fn(&RuleAttribute) -> Option<u32>| rule.attributes.iter().find_map(read);
    let mark = find(|attribute| match attribute {
        RuleAttribute::FwMark(mark) => Some(*mark),
        _ => None,
    });
    let mask = find(|attribute| match attribute {
        RuleAttribute::FwMask(mask) => Some(*mask),
        _ => None,
    });
    // The kernel names a mask for each rule that has a mark; one of 0 looks at no mark.
    match (mark, mask) {
        (_, Some(0)) | (None, None) => None,
        (mark, mask) => Some(RuleMark { mark: mark.unwrap_or(0), mask: mask.unwrap_or(u32::MAX) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_without_a_mark_go_by_none() {
        let of = |attributes: &[RuleAttribute]| {
            let mut rule = RuleMessage::default();
            rule.attributes = attributes.to_vec();
            mark_of(&rule)
        };
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[RuleAttribute::FwMark(0), RuleAttribute::FwMask(0)]), None);
        assert_eq!(of(&[RuleAttribute::FwMark(7)]), Some(RuleMark { mark: 7, mask: u32::MAX }));
        let masked = of(&[RuleAttribute::FwMark(0x10), RuleAttribute::FwMask(0xf0)]);
        assert_eq!(masked, Some(RuleMark { mark: 0x10, mask: 0xf0 }));
        assert_eq!(of(&[RuleAttribute::FwMask(4)]), Some(RuleMark { mark: 0, mask: 4 }), "what lacks bit 2");
    }
}
