//! What the echoes to a peer say.

use super::{Finding, Keeps};
use crate::inspect::{
    peers::{PeerRow, State},
    probe::{Outcome, Target},
};

/// What carries packets to a peer, and what was seen of it meanwhile.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// `UDP port 8472`.
    pub tunnel: String,
    /// Packets came from it through the tunnel after it was asked.
    pub heard_since: bool,
    /// Rules of this node that drop what carries packets to it or from it, for certain.
    pub dropped_by: Vec<String>,
}

/// What was found of a peer, which was asked as `target`.
pub fn of_peer(row: &PeerRow, target: &Target, outcome: &Outcome, seen: &Seen) -> Vec<Finding> {
    let mut found = Vec::new();
    for difference in &row.differences {
        let remedy = match row.state {
            State::Skipped => "correct or delete that lease",
            State::Pending => "it is tried again; remove what is in its way",
            State::InPlace | State::Differs => "the agent puts it right: start it if it does not run",
        };
        let finding = match row.state {
            State::Skipped => Finding::warning("objects", difference.clone(), remedy),
            _ => Finding::error("objects", difference.clone(), remedy),
        };
        let of_device = is_of_device(difference);
        found.push(if of_device { finding.keeping(Keeps::Device) } else { finding });
    }
    found.extend(reached(row, target, outcome, seen));
    for finding in &mut found {
        finding.peer = Some(row.node.clone().unwrap_or_else(|| row.subnet.to_string()));
    }
    found
}

fn reached(row: &PeerRow, target: &Target, outcome: &Outcome, seen: &Seen) -> Vec<Finding> {
    let to = target.public_ip;
    let (underlay, overlay) = (outcome.underlay, outcome.overlay);
    let through = outcome.through();
    let mut found = super::way::broken(target, outcome);
    let corrupt = outcome.corrupt();
    match (underlay.rtt, overlay.map(|echoes| echoes.rtt)) {
        (None, Some(None)) | (None, None) if corrupt.total() == 0 && seen.heard_since => {
            found.push(Finding::warning(
                "underlay",
                format!("{to} answers neither echoes nor TCP, but packets of its pods came in while it was asked"),
                "its firewall drops what asks: let ICMP echo requests of nodes and pods pass, and more is seen",
            ));
            return found;
        }
        (None, Some(None)) | (None, None) if corrupt.total() == 0 => {
            let sent = underlay.error.map_or_else(String::new, |error| format!(" ({error})"));
            found.push(Finding::error(
                "underlay",
                format!("{to} does not answer{sent}, neither echoes nor TCP"),
                "the node is down, its lease names an address that it no longer has, or the network between drops \
                 packets: see the node, and PublicIP of its lease",
            ));
            return found;
        }
        (Some(_), Some(None)) if corrupt.total() == 0 => {
            let heard = match row.heard_seconds_ago {
                // What comes in says nothing of what goes out.
                _ if seen.heard_since => {
                    "; packets of it came in meanwhile, so that it is the way to it".to_owned()
                }
                Some(seconds) if seconds < 60 => {
                    format!("; packets of it were heard {seconds} s ago, before it was asked")
                }
                _ => String::new(),
            };
            let open = match &seen.dropped_by[..] {
                [] => format!(
                    "let {} pass between the nodes, in both directions, on hosts and in between",
                    seen.tunnel
                ),
                by => format!("let {} pass on this node: it is dropped by {}", seen.tunnel, by.join(" and ")),
            };
            found.push(match overlay.and_then(|echoes| echoes.error) {
                Some(error) => Finding::error(
                    "overlay",
                    format!("this node sends nothing through the tunnel to {to}: {error}"),
                    "see its IPsec policies (ip xfrm policy), rules of chain OUTPUT and routes",
                ),
                None => Finding::error(
                    "overlay",
                    format!("{to} answers, but nothing comes back through the tunnel{heard}"),
                    open,
                ),
            });
            return found;
        }
        _ => {}
    }
    if let Some(rtt) = through.rtt {
        let way = if overlay.is_some() { "overlay" } else { "underlay" };
        if through.by_tcp {
            found.push(Finding::warning(
                way,
                format!(
                    "answers TCP in {:.2} ms, and no echoes: how large packets may be is not known",
                    rtt.as_secs_f64() * 1e3
                ),
                "let ICMP echo requests of nodes pass there, and path MTU and checksums are looked at",
            ));
            return found;
        }
        let text = format!("answers in {:.2} ms", rtt.as_secs_f64() * 1e3);
        found.push(Finding::ok(way, text));
        found.push(match through.lost {
            Some(lost) => super::way::loss(lost),
            None => super::way::path_mtu(target, through.largest),
        });
    }
    found
}

/// Whether a difference is the device's that carries packets to all peers.
fn is_of_device(difference: &str) -> bool {
    ["the VXLAN device", "the device"].iter().any(|device| difference.starts_with(device))
}

/// What was found of leases that have in common what no two should have: one finding for both.
pub fn of_leases(rows: &[PeerRow]) -> Vec<Finding> {
    let mut found = Vec::new();
    for row in rows {
        // Said once, with the first of them.
        for shared in row.shared.iter().filter(|shared| shared.with.iter().all(|other| *other > row.subnet)) {
            let evidence = format!("lease {}: {shared}", row.subnet);
            let peer = Some(row.node.clone().unwrap_or_else(|| row.subnet.to_string()));
            found.push(Finding { peer, ..Finding::warning("lease", evidence, shared.remedy()) });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use nix::errno::Errno;

    use super::*;
    use crate::inspect::{
        checks::Severity,
        probe::{Corrupt, Echoes},
    };

    fn row() -> PeerRow {
        PeerRow {
            subnet: "10.244.2.0/24".parse().unwrap(),
            node: None,
            public_ip: None,
            way: "vxlan".to_owned(),
            mac: None,
            on_kernel: None,
            state: State::InPlace,
            remedy: None,
            differences: Vec::new(),
            flows: None,
            heard_seconds_ago: Some(5),
            traffic: None,
            probe: None,
            shared: Vec::new(),
        }
    }

    fn target() -> Target {
        Target {
            public_ip: "192.0.2.2".parse().unwrap(),
            overlay: Some("10.244.2.0".parse().unwrap()),
            behind: None,
            hops: 1,
            mtu: 1450,
            interface: Some(("eth0".to_owned(), 1500)),
        }
    }

    fn echoes(rtt: Option<u64>, largest: Option<u32>, back: u32) -> Echoes {
        let corrupt = Corrupt { back, either: 0 };
        Echoes { rtt: rtt.map(Duration::from_micros), largest, corrupt, ..Echoes::default() }
    }

    #[test]
    fn each_outcome_has_its_line() {
        let target = target();
        let good = echoes(Some(100), Some(1450), 0);
        let none = Echoes::default();
        for (underlay, overlay, errors) in [
            (good, Some(good), ""),
            // Whoever drops echoes to nodes does not drop the tunnel.
            (none, Some(good), ""),
            (good, None, ""),
            (none, Some(none), "underlay: 192.0.2.2 does not answer"),
            (none, None, "underlay: 192.0.2.2 does not answer"),
            (
                good,
                Some(none),
                "overlay: 192.0.2.2 answers, but nothing comes back through the tunnel; packets of it",
            ),
            (
                good,
                Some(echoes(Some(100), Some(1398), 0)),
                "path MTU: packets of 1398 bytes pass, those of 1450 do not: the network to 192.0.2.2 carries 1448 bytes",
            ),
            (good, Some(echoes(Some(100), None, 0)), "path MTU: no packet larger"),
            (
                good,
                Some(echoes(None, None, 2)),
                "checksums: 2 answers came broken on the way from it: with a wrong",
            ),
            (
                good,
                Some(Echoes { corrupt: Corrupt { back: 0, either: 3 }, ..good }),
                "checksums: 3 answers came broken on the way to it or from it",
            ),
        ] {
            let seen = Seen { tunnel: "UDP port 8472".to_owned(), ..Seen::default() };
            let outcome = Outcome { underlay, overlay, ..Outcome::default() };
            let findings = of_peer(&row(), &target, &outcome, &seen);
            let bad = findings.iter().filter(|finding| finding.severity == Severity::Error);
            let bad: Vec<String> =
                bad.map(|finding| format!("{}: {}", finding.check, finding.evidence)).collect();
            assert_eq!(bad.is_empty(), errors.is_empty(), "{bad:?}");
            assert!(bad.join("; ").contains(errors), "{bad:?} instead of {errors}");
            assert!(
                findings.iter().all(|finding| finding.severity == Severity::Ok || !finding.remedy.is_empty())
            );
            // A rule of this node that is the cause is named, where there is something to name it for.
            let dropped_by = vec!["rule 1 of OUTPUT: `-A OUTPUT -j DROP`".to_owned()];
            let named = of_peer(&row(), &target, &outcome, &Seen { dropped_by, ..seen.clone() });
            let is_named = named.iter().any(|finding| finding.remedy.contains("dropped by rule 1 of OUTPUT"));
            assert_eq!(is_named, errors.starts_with("overlay"), "{named:?}");
            // One that answers nothing, and whose packets come in, is there.
            let heard = Seen { heard_since: true, ..seen };
            let through = overlay.unwrap_or(underlay);
            let silent = underlay.rtt.is_none() && through.rtt.is_none() && through.corrupt.total() == 0;
            let findings =
                of_peer(&row(), &target, &Outcome { underlay, overlay, ..Outcome::default() }, &heard);
            let warned = findings.len() == 1 && findings[0].severity == Severity::Warning;
            assert_eq!(warned, silent, "{findings:?}");
        }
    }

    #[test]
    fn who_answers_tcp_alone_is_reached_and_who_cannot_be_sent_to_is_told_apart() {
        let target = target();
        let by_tcp = Echoes { rtt: Some(Duration::from_millis(1)), by_tcp: true, ..Echoes::default() };
        let refused = Echoes { error: Some(Errno::EPERM), ..Echoes::default() };
        for (underlay, overlay, severity, text) in [
            (by_tcp, by_tcp, Severity::Warning, "answers TCP in 1.00 ms"),
            (by_tcp, refused, Severity::Error, "sends nothing through the tunnel to 192.0.2.2: EPERM"),
            (by_tcp, Echoes::default(), Severity::Error, "192.0.2.2 answers, but nothing comes back"),
        ] {
            let outcome = Outcome { underlay, overlay: Some(overlay), ..Outcome::default() };
            let seen = Seen::default();
            let findings = of_peer(&row(), &target, &outcome, &seen);
            assert!(findings.len() == 1 && findings[0].severity == severity, "{findings:?}");
            assert!(findings[0].evidence.contains(text) && findings[0].remedy.contains("e"), "{findings:?}");
        }
    }
}
