//! Which findings follow from others of the same look, and what is to be done about a tunnel through which nothing comes.
//!
//! What keeps packets from their way is found where it is, and again in what the peers do not answer. Whoever reads gets
//! the cause first, with what follows from it below.

use std::collections::BTreeMap;

use super::{Finding, Severity};

/// The check of an agent that ended by itself.
pub const ENDED: &str = "agent's end";

/// What a finding keeps from working.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeps {
    /// Every packet between this node and others.
    Link,
    /// The device of the tunnel from being there, or up.
    Device,
    /// All packets of the tunnel.
    Tunnel,
    /// Packets of the tunnel, perhaps: it sees them first, and may take some.
    Some,
    /// Packets to a peer of more bytes than these.
    Large(u32),
}

/// Orders `findings`, the worst first, each behind what it follows from.
pub fn attribute(findings: Vec<Finding>) -> Vec<Finding> {
    let mut findings = findings;
    let seen: Vec<Option<usize>> = (0..findings.len()).map(|at| cause(&findings, at)).collect();
    let causes: Vec<Option<usize>> =
        (0..findings.len()).map(|at| seen[at].or_else(|| likewise(&findings, &seen, at))).collect();
    let root = |at: usize| {
        // Each leads to another one; more steps than findings there cannot be.
        let mut root = at;
        for _ in 0..causes.len() {
            root = causes[root].unwrap_or(root);
        }
        root
    };
    let roots: Vec<usize> = (0..findings.len()).map(root).collect();
    advise(&mut findings, &roots);
    let mut worst = BTreeMap::<usize, Severity>::new();
    for (finding, root) in findings.iter().zip(&roots) {
        let severity = worst.entry(*root).or_insert(finding.severity);
        *severity = finding.severity.max(*severity);
    }
    for at in 0..findings.len() {
        if roots[at] != at {
            let root = &findings[roots[at]];
            findings[at].follows_from = Some(format!("{}: {}", root.check, root.evidence));
        }
    }
    let mut all: Vec<(usize, Finding)> = findings.into_iter().enumerate().collect();
    all.sort_by_key(|(at, _)| (std::cmp::Reverse(worst[&roots[*at]]), roots[*at], roots[*at] != *at, *at));
    all.into_iter().map(|(_, finding)| finding).collect()
}

/// What finding `at` follows from, if anything.
fn cause(findings: &[Finding], at: usize) -> Option<usize> {
    let finding = &findings[at];
    let is_error = finding.severity == Severity::Error;
    let first = |is_it: &dyn Fn(&Finding) -> bool| {
        findings
            .iter()
            .position(|other| other.severity != Severity::Ok && is_it(other))
            .filter(|cause| *cause != at)
    };
    let keeps = |what: Keeps| first(&|other: &Finding| other.keeps == Some(what));
    let of_check = |check: &'static str| first(&|other: &Finding| other.check == check);
    if finding.severity == Severity::Ok {
        return None;
    }
    // What failed is told of the agent, and of each peer that it is for.
    let same = findings[..at]
        .iter()
        .position(|other| other.severity == finding.severity && other.evidence == finding.evidence);
    match finding.check {
        _ if same.is_some() => same,
        // Who reaches neither the store nor any peer, is cut off.
        "underlay" if is_error => keeps(Keeps::Link)
            .or_else(|| first(&is_silent_store).filter(|_| nobody_answers(findings, "underlay"))),
        "store" => keeps(Keeps::Link).filter(|_| is_silent_store(finding)),
        "overlay" if is_error => keeps(Keeps::Link)
            .or_else(|| keeps(Keeps::Device))
            .or_else(|| {
                first(&|other: &Finding| {
                    other.check == "objects"
                        && other.severity == Severity::Error
                        && other.peer == finding.peer
                })
            })
            .or_else(|| {
                // Without an agent, the other nodes may have nobody to send to.
                let why = keeps(Keeps::Tunnel).or_else(|| of_check(ENDED));
                why.filter(|_| nobody_answers(findings, "overlay"))
            }),
        "objects" if finding.keeps == Some(Keeps::Device) => keeps(Keeps::Link)
            .or_else(|| of_check("VXLAN port"))
            .or_else(|| keeps(Keeps::Device).filter(|device| *device < at)),
        "objects" if is_error => keeps(Keeps::Device),
        "agent" if finding.evidence.contains("external interface") => keeps(Keeps::Link),
        "fast path" => first(&|other: &Finding| other.check == "bpffs" && other.severity == Severity::Error),
        // What stands at the external interface is told of by itself.
        "kernel path" if finding.evidence.starts_with("a bridge port that is locked") => of_check("pods"),
        "kernel path" => first(&|other: &Finding| {
            let hook = other.evidence.split_once(" is somebody else's").map(|(hook, _)| hook);
            other.check == "programs" && hook.is_some_and(|hook| finding.evidence.starts_with(hook))
        }),
        // One network carries no more, to whichever peer.
        "path MTU" if finding.keeps.is_some() => {
            findings[..at].iter().position(|other| other.check == "path MTU" && other.keeps == finding.keeps)
        }
        // What came broken of what was asked counts in the kernel's counters, too.
        "checksums" if finding.peer.is_none() => {
            first(&|other: &Finding| other.check == "checksums" && other.peer.is_some())
        }
        _ => None,
    }
}

/// The store cannot be reached; one that refuses can.
fn is_silent_store(finding: &Finding) -> bool {
    let says = |text: &str| finding.evidence.contains(text);
    finding.check == "store" && (says("does not answer") || says("has not answered"))
}

/// Of several peers, none answers there.
fn nobody_answers(findings: &[Finding], check: &str) -> bool {
    // Only of one that answers beside the tunnel anything is said of what comes through it.
    let is_beside = |other: &Finding| check == "underlay" && other.check == "overlay";
    !findings
        .iter()
        .any(|other| is_beside(other) || other.check == check && other.severity != Severity::Error)
}

/// The first of the peers that do not answer, where none does and nothing is seen to keep them from it.
fn likewise(findings: &[Finding], causes: &[Option<usize>], at: usize) -> Option<usize> {
    let check = findings[at].check;
    let is_silent = |finding: &Finding| finding.check == check && finding.severity == Severity::Error;
    if !["overlay", "underlay"].contains(&check)
        || !is_silent(&findings[at])
        || !nobody_answers(findings, check)
    {
        return None;
    }
    let first = (0..findings.len()).find(|at| is_silent(&findings[*at]) && causes[*at].is_none())?;
    (first != at).then_some(first)
}

/// Chooses the remedy of what has no cause here.
fn advise(findings: &mut [Finding], roots: &[usize]) {
    let named = |finding: &Finding| format!("{}: {}", finding.check, finding.evidence);
    let suspects: Vec<String> = findings
        .iter()
        .filter(|finding| finding.severity != Severity::Ok)
        .filter(|finding| {
            let is_undone = finding.check == "agent" && finding.evidence.starts_with("cannot ");
            is_undone || matches!(finding.keeps, Some(Keeps::Some | Keeps::Tunnel))
        })
        .map(named)
        .collect();
    let cut_off =
        findings.iter().any(|finding| finding.check == "underlay" && finding.severity == Severity::Error)
            && nobody_answers(findings, "underlay");
    for (at, finding) in findings.iter_mut().enumerate() {
        if cut_off && roots[at] == at && is_silent_store(finding) {
            finding.remedy =
                "no peer answers either, so begin at this node: its interface, routes, rules and cable; the \
                              store itself may be well"
                    .to_owned();
        }
    }
    for check in ["overlay", "underlay"] {
        let silent = |finding: &Finding| finding.check == check && finding.severity == Severity::Error;
        let number = findings.iter().filter(|finding| silent(finding)).count();
        let all = number > 1 && nobody_answers(findings, check);
        let others =
            findings.iter().any(|finding| finding.check == check && finding.severity == Severity::Ok);
        for at in 0..findings.len() {
            if !silent(&findings[at]) {
                continue;
            }
            let finding = &mut findings[at];
            let mut remedy = String::new();
            if roots[at] == at {
                if all {
                    remedy.push_str(&format!("none of {number} peers answers, so begin at this node: "));
                } else if others {
                    remedy.push_str("other peers answer, so it lies between this node and that one: ");
                }
                if check == "overlay" && !suspects.is_empty() {
                    remedy.push_str(&format!(
                        "see what may take the packets first ({}); ",
                        suspects.join("; ")
                    ));
                }
            }
            remedy.push_str(&finding.remedy);
            // What that node does to packets only it sees, and which way they are lost only both.
            remedy.push_str("; run `flannel-agent check` on that node, too");
            if check == "overlay" {
                remedy.push_str(", and `flannel-agent trace` on both, which shows the way that loses them");
            }
            finding.remedy = remedy;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(peer: &str, finding: Finding) -> Finding {
        Finding { peer: Some(peer.to_owned()), ..finding }
    }

    fn silent(peer: &str) -> Finding {
        of(peer, Finding::error("overlay", format!("{peer} answers, but nothing comes back"), "let it pass"))
    }

    #[test]
    fn a_peer_of_which_the_tunnel_tells_answers_beside_it() {
        let cut_off = of("a", Finding::error("underlay", "192.0.2.1 does not answer", "see the node"));
        let store = Finding::error("store", "etcd has not answered for 9 s", "see etcd");
        let remedy = |others: &[Finding]| {
            let mut findings = vec![store.clone(), cut_off.clone()];
            findings.extend_from_slice(others);
            let roots: Vec<usize> = (0..findings.len()).collect();
            advise(&mut findings, &roots);
            findings[0].remedy.clone()
        };
        assert!(remedy(&[]).starts_with("no peer answers either"));
        assert_eq!(remedy(&[answers("b")]), "see etcd");
        assert_eq!(remedy(&[silent("b")]), "see etcd");
    }

    fn answers(peer: &str) -> Finding {
        of(peer, Finding::ok("overlay", "answers in 1 ms"))
    }

    /// The findings as they are shown: what follows from another is indented.
    fn shown(findings: Vec<Finding>) -> Vec<String> {
        let all = attribute(findings).into_iter();
        all.map(|finding| {
            let indent = if finding.follows_from.is_some() { "  " } else { "" };
            format!("{indent}{} {}", finding.check, finding.peer.unwrap_or_default())
        })
        .collect()
    }

    #[test]
    fn what_follows_from_a_cause_stands_below_it() {
        let down = || Finding::error("interface", "eth0 is down", "set it up").keeping(Keeps::Link);
        let device = |peer| {
            of(
                peer,
                Finding::error("objects", "the VXLAN device is absent", "the agent").keeping(Keeps::Device),
            )
        };
        let port = || Finding::warning("VXLAN port", "device other uses UDP port 8472", "delete it");
        let rule =
            || Finding::warning("nftables", "a rule drops UDP port 8472", "delete it").keeping(Keeps::Tunnel);
        let route = of("b", Finding::error("objects", "route: absent", "the agent"));
        let ended = || Finding::error(ENDED, "another node holds its lease", "start it again");
        let hook = || Finding::warning("programs", "a tc filter", "see it").keeping(Keeps::Some);
        let store = |what| Finding::error("store", format!("etcd: etcd {what}"), "bring it back");
        let unheard = |peer: &str| {
            of(peer, Finding::error("underlay", format!("{peer} does not answer"), "see the node"))
        };
        let reached = |peer| of(peer, Finding::ok("underlay", "answers in 1 ms"));
        let small = |peer, bytes| {
            let text = format!("packets of {bytes} bytes pass to {peer}");
            of(peer, Finding::error("path MTU", text, "set it").keeping(Keeps::Large(bytes)))
        };
        let locked =
            Finding::warning("kernel path", "a bridge port that is locked or not forwarding of veth1", "");
        let down_bridge = Finding::error("pods", "bridge cni0 is down", "set it up");
        for (findings, expected) in [
            (vec![silent("b"), answers("c"), down()], vec!["interface ", "  overlay b", "overlay c"]),
            (
                vec![device("b"), silent("b"), device("c"), silent("c")],
                vec!["objects b", "  overlay b", "  objects c", "  overlay c"],
            ),
            (vec![device("b"), silent("b"), port()], vec!["VXLAN port ", "  objects b", "  overlay b"]),
            (vec![route, silent("b"), silent("c")], vec!["objects b", "  overlay b", "overlay c"]),
            (vec![silent("b"), silent("c"), rule()], vec!["nftables ", "  overlay b", "  overlay c"]),
            (vec![ended(), silent("b"), silent("c")], vec!["agent's end ", "  overlay b", "  overlay c"]),
            (vec![ended(), silent("b"), rule()], vec!["agent's end ", "nftables ", "  overlay b"]),
            (vec![ended(), silent("b"), answers("c")], vec!["agent's end ", "overlay b", "overlay c"]),
            // Who answers shows that the rule is not all of it.
            (vec![silent("b"), answers("c"), rule()], vec!["overlay b", "nftables ", "overlay c"]),
            (vec![silent("b"), silent("c"), hook()], vec!["overlay b", "  overlay c", "programs "]),
            (vec![answers("b"), hook()], vec!["programs ", "overlay b"]),
            // Neither the store nor a peer.
            (
                vec![store("does not answer"), unheard("b"), unheard("c")],
                vec!["store ", "  underlay b", "  underlay c"],
            ),
            (vec![store("wants a password"), unheard("b")], vec!["store ", "underlay b"]),
            (
                vec![store("does not answer"), unheard("b"), reached("c")],
                vec!["store ", "underlay b", "underlay c"],
            ),
            (
                vec![store("does not answer"), unheard("b"), down()],
                vec!["interface ", "  store ", "  underlay b"],
            ),
            (
                vec![small("b", 1390), small("c", 1390), small("d", 1200)],
                vec!["path MTU b", "  path MTU c", "path MTU d"],
            ),
            (vec![locked, down_bridge], vec!["pods ", "  kernel path "]),
        ] {
            assert_eq!(shown(findings), expected);
        }
    }

    #[test]
    fn the_remedy_of_a_silent_tunnel_goes_by_what_else_was_found() {
        let remedy = |findings: Vec<Finding>| attribute(findings)[0].remedy.clone();
        let hook = Finding::warning("programs", "a tc filter of priority 9", "see it").keeping(Keeps::Some);
        let always = "; run `flannel-agent check` on that node, too, and `flannel-agent trace` on both, which shows the way \
                      that loses them";
        assert_eq!(remedy(vec![silent("b")]), format!("let it pass{always}"));
        for (findings, begins) in [
            (vec![silent("b"), silent("c")], "none of 2 peers answers, so begin at this node: let it"),
            (
                vec![silent("b"), answers("c")],
                "other peers answer, so it lies between this node and that one: let it",
            ),
            (
                vec![silent("b"), hook],
                "see what may take the packets first (programs: a tc filter of priority 9); let",
            ),
        ] {
            let text = remedy(findings);
            assert!(text.starts_with(begins) && text.ends_with(always), "{text}");
        }
    }
}
