//! Policy routing rules (`ip rule`), and those that go by a packet's mark.

use std::{collections::BTreeSet, net::IpAddr};

use ipnetwork::IpNetwork;
use netlink_packet_route::{
    RouteNetlinkMessage,
    route::RouteHeader,
    rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage},
};

use super::{Netlink, NetlinkError, address_family, pod_routes::names_any};
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

    /// The tables that rules of `family` may lead forwarded packets from or to `networks` to before the main one is looked
    /// at.
    pub(super) async fn tables_before_main(
        &mut self,
        family: Family,
        networks: &[IpNetwork],
    ) -> Result<BTreeSet<u32>, NetlinkError> {
        Ok(before_main(&self.rules(family).await?, networks))
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

fn before_main(rules: &[RuleMessage], networks: &[IpNetwork]) -> BTreeSet<u32> {
    let main = u32::from(RouteHeader::RT_TABLE_MAIN);
    // The rules are told in their order. One for the main table that chooses nothing ends the search for flannel's routes.
    let first = rules.iter().take_while(|rule| !(table(rule) == Some(main) && chooses_nothing(rule)));
    first.filter(|rule| may_choose(rule, networks)).filter_map(table).filter(|table| *table != main).collect()
}

/// The table that a rule leads to.
fn table(rule: &RuleMessage) -> Option<u32> {
    let number = rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Table(number) => Some(*number),
        _ => None,
    });
    let table = number.unwrap_or_else(|| rule.header.table.into());
    Some(table).filter(|_| rule.header.action == RuleAction::ToTable)
}

/// Whether every packet is led by it. What belongs to a rule but is no condition, the kernel names for each.
fn chooses_nothing(rule: &RuleMessage) -> bool {
    let is_condition = |attribute: &RuleAttribute| {
        !matches!(
            attribute,
            RuleAttribute::Table(_)
                | RuleAttribute::Priority(_)
                | RuleAttribute::Protocol(_)
                | RuleAttribute::SuppressPrefixLen(u32::MAX)
                | RuleAttribute::SuppressIfGroup(u32::MAX)
                | RuleAttribute::FwMark(0)
                | RuleAttribute::FwMask(0)
        )
    };
    let header = &rule.header;
    header.src_len == 0
        && header.dst_len == 0
        && header.tos == 0
        && !header.flags.contains(RuleFlags::Invert)
        && !rule.attributes.iter().any(is_condition)
}

/// Whether a forwarded packet from or to `networks` may be led by a rule: by addresses and interfaces.
fn may_choose(rule: &RuleMessage, networks: &[IpNetwork]) -> bool {
    if rule.header.flags.contains(RuleFlags::Invert) {
        return true;
    }
    let address = |read: fn(&RuleAttribute) -> Option<IpAddr>| rule.attributes.iter().find_map(read);
    let source = address(|attribute| match attribute {
        RuleAttribute::Source(address) => Some(*address),
        _ => None,
    });
    let destination = address(|attribute| match attribute {
        RuleAttribute::Destination(address) => Some(*address),
        _ => None,
    });
    // Those of packets that this host makes, and has bound to an interface.
    let is_local = rule.attributes.iter().any(|attribute| match attribute {
        RuleAttribute::Iifname(name) => name == "lo",
        RuleAttribute::Oifname(_) => true,
        _ => false,
    });
    !is_local
        && names_any(networks, source, rule.header.src_len)
        && names_any(networks, destination, rule.header.dst_len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_of_rules_for_pods_come_before_the_main_one() {
        let rule = |table: u8, attributes: &[RuleAttribute]| {
            let mut rule = RuleMessage::default();
            (rule.header.action, rule.header.table) = (RuleAction::ToTable, table);
            for attribute in attributes {
                match attribute {
                    RuleAttribute::Source(_) => rule.header.src_len = 24,
                    RuleAttribute::Destination(_) => rule.header.dst_len = 24,
                    _ => {}
                }
            }
            rule.attributes = attributes.to_vec();
            rule
        };
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let rules = [
            rule(255, &[]),
            rule(10, &[RuleAttribute::Source(address("10.244.1.0"))]),
            rule(11, &[RuleAttribute::Source(address("192.0.2.0"))]),
            rule(12, &[RuleAttribute::Destination(address("10.244.2.0"))]),
            rule(13, &[RuleAttribute::Iifname("lo".into())]),
            rule(14, &[RuleAttribute::FwMark(7), RuleAttribute::FwMask(7)]),
            rule(254, &[RuleAttribute::Source(address("10.0.0.0"))]),
            rule(15, &[RuleAttribute::Iifname("cni0".into())]),
            rule(254, &[RuleAttribute::SuppressPrefixLen(u32::MAX), RuleAttribute::Priority(32766)]),
            rule(16, &[]),
        ];
        let found = before_main(&rules, &["10.244.0.0/16".parse().unwrap()]);
        assert_eq!(found, BTreeSet::from([10, 12, 14, 15, 255]));
    }

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
