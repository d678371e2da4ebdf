//! What is wrong on the way to a peer that answers: with checksums, and with large packets.

use super::{Finding, Keeps, Severity};
use crate::inspect::probe::{Checksums, Lost, Outcome, Target};

/// The sentences of all errors on the way.
pub fn hampers(target: &Target, outcome: &Outcome) -> Vec<String> {
    let mut found = broken(target, outcome);
    let through = outcome.through();
    found.extend(through.lost.map(loss));
    if let Some(largest) = through.largest {
        found.push(path_mtu(target, Some(largest)));
    }
    found
        .into_iter()
        .filter(|finding| finding.severity == Severity::Error)
        .map(|finding| format!("{}: {}", finding.check, finding.evidence))
        .collect()
}

/// What came broken, and that nothing did.
pub(super) fn broken(target: &Target, outcome: &Outcome) -> Vec<Finding> {
    let corrupt = outcome.corrupt();
    let mut found = Vec::new();
    if corrupt.back > 0 {
        found.push(Finding::error(
            "checksums",
            format!("{} answers came broken on the way from it: with a wrong checksum", corrupt.back),
            "its card, driver or programs, or a switch, break what it sends: on it try ethtool -K <interface> tx off",
        ));
    }
    if corrupt.either > 0 {
        found.push(Finding::error(
            "checksums",
            format!(
                "{} answers came broken on the way to it or from it: with other bytes than were sent, and a checksum that \
                 fits",
                corrupt.either
            ),
            "something changes packets and makes their checksums fit, as a program, rule or middlebox does on either node \
             or in between",
        ));
    }
    let Checksums { tcp_there, udp_there, tcp_back, lost_by_offload } = outcome.checksums;
    let there = [("TCP", tcp_there), ("UDP", udp_there)];
    let named = |came: bool| {
        let names = there.iter().filter(|(_, whole)| *whole == Some(came)).map(|(name, _)| *name);
        names.collect::<Vec<_>>().join(" and ")
    };
    let (whole, wrong) = (named(true), named(false));
    let interface = target.interface.as_ref().map_or("<interface>", |(name, _)| name);
    if !wrong.is_empty() {
        found.push(Finding::error(
            "checksums",
            format!(
                "packets of {wrong} come broken to it, with a wrong checksum, and ICMP comes whole: on the way from this \
                 node to that one"
            ),
            format!(
                "a program, rule or middlebox changes them, on this node or after it: see `tc filter show dev {interface} \
                 egress`, `bpftool net`, `nft list ruleset` here, and what is in between"
            ),
        ));
    }
    if tcp_back == Some(false) {
        found.push(Finding::error(
            "checksums",
            "its answer of TCP came broken, with a wrong checksum, and ICMP comes whole: on the way from that node to this \
             one",
            "on that node try ethtool -K <interface> tx off, and see its programs (`tc filter show`, `bpftool net`) and \
             rules, and what is in between",
        ));
    }
    if lost_by_offload {
        found.push(Finding::error(
            "checksums",
            "it answers TCP whose checksum this node's kernel has made, and never TCP that leaves it to device and card",
            format!(
                "{interface} or its driver makes wrong checksums of what is in the tunnel: ethtool -K {interface} tx off, or \
                 that of the tunnel's device, as ethtool -K flannel.1 tx-checksum-ip-generic off"
            ),
        ));
    }
    if found.is_empty() && (!whole.is_empty() || tcp_back == Some(true)) {
        let text = match (whole.as_str(), tcp_back) {
            ("", _) => "an answer of TCP comes whole from it".to_owned(),
            (whole, Some(true)) => format!("{whole} come whole to it, and TCP from it"),
            (whole, _) => format!("{whole} come whole to it"),
        };
        found.push(Finding::ok("checksums", text));
    }
    found
}

/// What is said where echoes get lost whatever their size.
pub(super) fn loss(Lost { lost, sent, connected }: Lost) -> Finding {
    let echoes = format!("{lost} of {sent} echoes, large and small, were not answered");
    if (1..Lost::CONNECTIONS).contains(&connected) {
        return Finding::error(
            "loss",
            format!(
                "{echoes}, nor were {} of {} connections of TCP",
                Lost::CONNECTIONS - connected,
                Lost::CONNECTIONS
            ),
            "packets are lost on the way there or back: see rules with limit, statistic or numgen on both nodes and in \
             between, and what `ip -s link` and `tc -s qdisc` drop",
        );
    }
    Finding::warning(
        "loss",
        format!("{echoes}: how large packets may be is not known"),
        "a rule limits echoes there, or packets get lost: let echoes of nodes pass, and see what `ip -s link` and \
         `tc -s qdisc` drop",
    )
}

/// What is said of the largest packet that passes, if any does.
pub(super) fn path_mtu(target: &Target, largest: Option<u32>) -> Finding {
    let (to, wanted) = (target.public_ip, target.mtu);
    match largest {
        Some(largest) if largest >= wanted => {
            Finding::ok("path MTU", format!("packets of {largest} bytes pass whole"))
        }
        Some(largest) => {
            let passed = format!("packets of {largest} bytes pass, those of {wanted} do not");
            // What the tunnel adds takes its part.
            let carried = target
                .interface
                .as_ref()
                .and_then(|(name, mtu)| Some((name, mtu, largest + mtu.checked_sub(wanted)?)));
            let keeps = Keeps::Large(largest);
            match carried {
                Some((name, mtu, carried)) => Finding::error(
                    "path MTU",
                    format!(
                        "{passed}: the network to {to} carries {carried} bytes, {name} here has an MTU of {mtu}, and packets \
                         of pods may have {wanted}"
                    ),
                    format!(
                        "large packets are lost: let the network carry {mtu} bytes, or set the MTU of {name} to {carried} \
                         here and on {to}, and restart the agent and the pods there, which get {largest} then"
                    ),
                ),
                None => Finding::error(
                    "path MTU",
                    format!("{passed}, on the way to {to}"),
                    "large packets are lost: set the MTU of the interfaces of both nodes to what the network carries, and \
                     restart agents and pods",
                ),
            }
            .keeping(keeps)
        }
        None => Finding::error(
            "path MTU",
            "no packet larger than a few bytes passes",
            "large packets are lost: set the interface's MTU to what the network carries",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(checksums: Checksums) -> Vec<String> {
        let target = Target {
            public_ip: "192.0.2.2".parse().unwrap(),
            overlay: None,
            behind: None,
            hops: 1,
            mtu: 1500,
            interface: Some(("eth0".to_owned(), 1500)),
        };
        let outcome = Outcome { checksums, ..Outcome::default() };
        let errors = hampers(&target, &outcome);
        let all = broken(&target, &outcome);
        assert!(all.iter().all(|finding| (finding.severity == Severity::Ok) == finding.remedy.is_empty()));
        assert_eq!(errors.is_empty(), all.iter().all(|finding| finding.severity == Severity::Ok));
        all.into_iter().map(|finding| finding.evidence).collect()
    }

    #[test]
    fn loss_is_an_error_where_not_only_echoes_are_lost() {
        let of = |connected| loss(Lost { lost: 5, sent: 12, connected });
        assert!(of(4).evidence.ends_with("nor were 2 of 6 connections of TCP"));
        let severities = [0, 1, 5, 6].map(|connected| of(connected).severity);
        assert_eq!(severities, [Severity::Warning, Severity::Error, Severity::Error, Severity::Warning]);
    }

    #[test]
    fn what_comes_broken_has_its_direction_and_what_is_not_known_is_no_finding() {
        let nothing = Checksums::default();
        assert!(said(nothing).is_empty());
        for (checksums, expected) in [
            (
                Checksums { tcp_there: Some(true), udp_there: Some(true), ..nothing },
                "TCP and UDP come whole to it",
            ),
            (
                Checksums { udp_there: Some(true), tcp_back: Some(true), ..nothing },
                "UDP come whole to it, and TCP",
            ),
            (Checksums { tcp_back: Some(true), ..nothing }, "an answer of TCP comes whole"),
            (
                Checksums { tcp_there: Some(false), udp_there: Some(true), tcp_back: Some(true), ..nothing },
                "packets of TCP come broken to it",
            ),
            (
                Checksums { tcp_there: Some(false), udp_there: Some(false), ..nothing },
                "packets of TCP and UDP come broken to it",
            ),
            (
                Checksums { tcp_there: Some(true), tcp_back: Some(false), ..nothing },
                "its answer of TCP came broken",
            ),
            (
                Checksums { lost_by_offload: true, ..nothing },
                "it answers TCP whose checksum this node's kernel",
            ),
        ] {
            let found = said(checksums);
            assert!(found.len() == 1 && found[0].starts_with(expected), "{found:?} instead of {expected}");
        }
    }
}
