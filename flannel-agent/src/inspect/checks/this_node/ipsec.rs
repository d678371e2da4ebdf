//! Whether IPsec policies drop packets between pods.

use std::net::IpAddr;

use flannel_common::packet::headers::PROTOCOL_TCP;
use ipnetwork::IpNetwork;

use crate::{
    inspect::checks::{End, Finding, Keeps, Passage},
    netlink::{DecidedPacket, IpsecTable, IpsecVerdict, xfrm::Direction},
    values::overlap,
};

/// What packets pass that are forwarded, and those from the node's own address in the overlay.
const WAYS: [(Direction, &str); 2] = [(Direction::Forward, "forwarded"), (Direction::Out, "sent")];

/// Adds what was found.
pub(super) fn add(table: &IpsecTable, passages: &[Passage], found: &mut Vec<Finding>) {
    let before = found.len();
    let remedy = "ip xfrm policy: delete it, or add one of a smaller priority that allows them";
    for policy in table.blocking() {
        let hit = passages.iter().any(|passage| {
            let ends =
                sample(passage.source, policy.source).zip(sample(passage.destination, policy.destination));
            let Some((source, destination)) = ends else { return false };
            let protocol = if policy.protocol == 0 { PROTOCOL_TCP } else { policy.protocol };
            let packet =
                DecidedPacket { source, destination, protocol, ports: policy.sample_ports(), mark: 0 };
            table.decide(policy.direction, &packet) == IpsecVerdict::Block(Some(policy))
        });
        if !hit {
            continue;
        }
        let what = format!("an IPsec policy blocks packets between pods: {}", policy.describe());
        found.push(match policy.is_of_any_protocol() {
            true => Finding::error("IPsec", what, remedy).keeping(Keeps::Some),
            false => Finding::warning("IPsec", what, remedy).keeping(Keeps::Some),
        });
    }
    for (way, name) in WAYS {
        let by_default = passages.iter().find(|passage| {
            let ends = sample(passage.source, passage.source.network)
                .zip(sample(passage.destination, passage.destination.network));
            ends.is_some_and(|(source, destination)| {
                let packet =
                    DecidedPacket { source, destination, protocol: PROTOCOL_TCP, ports: (0, 0), mark: 0 };
                table.decide(way, &packet) == IpsecVerdict::Block(None)
            })
        });
        if let Some(passage) = by_default {
            let (from, to) = (passage.source.network, passage.destination.network);
            found.push(Finding::error(
                "IPsec",
                format!("packets from {from} to {to} are dropped when they are {name}: no IPsec policy is about them"),
                "ip xfrm policy setdefault in accept fwd accept out accept, or a policy that allows them",
            )
            .keeping(Keeps::Some));
        }
    }
    if found.len() == before {
        found.push(Finding::ok("IPsec", "no policy blocks packets between pods"));
    }
}

/// An address of `end` that the selector `named` is about; none where that is about a single address, which is somebody's
/// policy for one pod.
fn sample(end: End, named: IpNetwork) -> Option<IpAddr> {
    if !overlap(named, end.network) || named == IpNetwork::from(named.ip()) {
        return None;
    }
    let narrower = if named.prefix() > end.network.prefix() { named } else { end.network };
    let is_meant = |address: &IpAddr| end.without.is_none_or(|without| !without.contains(*address));
    [narrower.network(), narrower.broadcast()].into_iter().find(is_meant)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        inspect::checks::{Severity, both_ways},
        netlink::ipsec_table::tests::{blocking, of},
    };

    #[test]
    fn policies_that_block_pods_are_found_and_others_are_not() {
        for (direction, source, destination, is_found) in [
            (Direction::Forward, "10.244.1.0/24", "10.244.2.0/24", true),
            (Direction::Out, "0.0.0.0/0", "10.244.0.0/16", true),
            (Direction::Forward, "10.244.0.0/16", "10.244.1.0/24", true),
            (Direction::Out, "192.168.0.0/16", "10.244.0.0/16", false),
            (Direction::Out, "10.244.1.7/32", "10.244.2.0/24", false),
            (Direction::Out, "10.244.2.0/24", "10.244.3.0/24", false),
            (Direction::Out, "::/0", "::/0", false),
        ] {
            let mut found = Vec::new();
            add(&of(vec![blocking(direction, source, destination)]), &both_ways(), &mut found);
            let is_error = found.iter().any(|finding| finding.severity == Severity::Error);
            assert_eq!(is_error, is_found, "{source} {destination}: {found:?}");
            assert_eq!(found.len(), 1);
        }
    }
}
