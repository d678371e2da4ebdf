//! Whose packets take the kernel path, and why; and what somebody takes away again and again.

use std::collections::BTreeMap;

use super::Finding;
use crate::{
    control::snapshot::{Restored, Snapshot},
    inspect::peers::{PeerRow, State},
    values::span,
};

/// So many are named.
const NAMED: usize = 4;
/// What was put back within so many seconds is still going on; what was longer ago is history.
const LATELY: u64 = 3600;

/// What was found of them, at the time `now`.
pub fn of_kernel_path(told: &Snapshot, rows: &[PeerRow], now: u64) -> Vec<Finding> {
    let mut found = Vec::new();
    let fast_path = told.fast_path.as_ref();
    if fast_path.is_some_and(|fast_path| fast_path.granted != "off" && !fast_path.by_backend) {
        of_hooks(told, &mut found);
        of_peers(rows, &mut found);
        if found.is_empty() {
            let granted = fast_path.map(|fast_path| fast_path.granted.as_str()).unwrap_or_default();
            let text = format!("nothing keeps a peer, pod or interface from the fast path ({granted})");
            found.push(Finding::ok("kernel path", text));
        }
    }
    repairs(told, now, &mut found);
    found
}

/// The first of `names`, and how many more there are.
fn some(names: &[&str]) -> String {
    let first = names.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMED) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

fn of_hooks(told: &Snapshot, found: &mut Vec<Finding>) {
    let mut alike = BTreeMap::<(&str, &str), Vec<&str>>::new();
    for hooked in told.dataplane.iter().flat_map(|dataplane| &dataplane.hooked) {
        alike.entry((&hooked.hook, &hooked.left)).or_default().push(&hooked.interface);
    }
    found.extend(alike.into_iter().map(|((hook, left), interfaces)| {
        let left = match interfaces.len() {
            1 => left.to_owned(),
            // Said of one interface.
            _ => left.replace("the pod behind this interface", "the pods behind these interfaces"),
        };
        Finding::warning(
            "kernel path",
            format!("{hook} of {}: {left} take the kernel path", some(&interfaces)),
            "they are slower, and meet it there: see that it drops none of them, and remove it, or leave it at that",
        )
    }));
}

fn of_peers(rows: &[PeerRow], found: &mut Vec<Finding>) {
    let mut alike = BTreeMap::<&str, Vec<String>>::new();
    for row in rows.iter().filter(|row| row.state != State::Skipped) {
        if let Some(why) = &row.on_kernel {
            alike.entry(why).or_default().push(row.node.clone().unwrap_or_else(|| row.subnet.to_string()));
        }
    }
    found.extend(alike.into_iter().map(|(why, peers)| {
        let peers: Vec<&str> = peers.iter().map(String::as_str).collect();
        Finding::warning(
            "kernel path",
            format!("packets to and from {} take the kernel path: {why}", some(&peers)),
            "they are slower by that: change it, or leave it at that",
        )
    }));
}

/// What was put back: an agent alone on its node has to put back nothing.
fn repairs(told: &Snapshot, now: u64, found: &mut Vec<Finding>) {
    let before = found.len();
    for rules in told.rules.iter().filter(|rules| rules.restored > 0) {
        let who = "somebody removes them, as firewalld, ufw, nftables.service, iptables-restore of a script or another flanneld \
                   do: `nft monitor` names the process when it happens again";
        found.extend(repaired(
            &format!("rules of {}", rules.kept_by),
            rules.restored,
            rules.last_restored.as_ref(),
            who,
            now,
        ));
    }
    for dataplane in told.dataplane.iter().filter(|dataplane| dataplane.restored > 0) {
        let who = "somebody removes them, as NetworkManager, systemd-networkd (ManageForeignRoutes), another flanneld or a \
                   script do: `ip monitor` shows when";
        found.extend(repaired(
            "routes, neighbours, devices or programs",
            dataplane.restored,
            dataplane.last_restored.first(),
            who,
            now,
        ));
    }
    for lease in told.lease.iter().filter(|lease| lease.mended > 0) {
        let last = lease.last_mended.map(|at| Restored { at, what: "all of it".to_owned() });
        let who = "somebody else writes it: another flanneld on this node, a clone of it, or a person or a script; \
                   other nodes sent to what stood there meanwhile";
        found.extend(repaired(
            "the values of our lease, which others had changed,",
            lease.mended,
            last.as_ref(),
            who,
            now,
        ));
    }
    if found.len() == before {
        found.push(Finding::ok("repairs", "nothing had to be put back lately"));
    }
}

/// A finding, where it is not long ago.
fn repaired(what: &str, times: u64, last: Option<&Restored>, who: &str, now: u64) -> Option<Finding> {
    let Restored { at, what: last } = last?;
    let ago = now.saturating_sub(*at);
    (ago < LATELY).then(|| {
        let text = format!(
            "{what} were put back {times} times since the agent started, last {} ago: {last}",
            span(ago)
        );
        Finding::warning("repairs", text, who)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        control::snapshot::{Dataplane, FastPath, Hooked, Rules},
        inspect::checks::Severity,
    };

    fn hooked(interface: &str, hook: &str, left: &str) -> Hooked {
        Hooked { interface: interface.to_owned(), hook: hook.to_owned(), left: left.to_owned() }
    }

    fn bad(told: &Snapshot) -> Vec<String> {
        let found = of_kernel_path(told, &[], 10_000).into_iter();
        found.filter(|finding| finding.severity != Severity::Ok).map(|finding| finding.evidence).collect()
    }

    #[test]
    fn interfaces_alike_are_one_line_and_what_was_put_back_lately_another() {
        let fast_path = FastPath { asked: "flow".into(), granted: "flow".into(), ..FastPath::default() };
        let pod = "packets of the pod behind this interface";
        let veths = (1..=6).map(|number| hooked(&format!("veth{number}"), "qdisc tbf at egress", pod));
        let mut told = Snapshot {
            fast_path: Some(fast_path),
            dataplane: Some(Dataplane { hooked: veths.collect(), ..Dataplane::default() }),
            ..Snapshot::default()
        };
        assert_eq!(
            bad(&told),
            [
                "qdisc tbf at egress of veth1, veth2, veth3, veth4 and 2 more: packets of the pods behind these interfaces take \
              the kernel path"
            ]
        );
        // Whether what is in the way drops packets, this check does not know.
        let said = of_kernel_path(&told, &[], 10_000);
        assert!(said[0].remedy.contains("see that it drops none"), "{}", said[0].remedy);
        told.dataplane = Some(Dataplane {
            restored: 2,
            last_restored: vec![Restored { at: 9_990, what: "route to 10.244.2.0/24".into() }],
            ..Dataplane::default()
        });
        let long_ago = Restored { at: 10, what: "a rule".into() };
        told.rules = vec![Rules { restored: 5, last_restored: Some(long_ago), ..Rules::default() }];
        let found = bad(&told);
        assert!(
            found.len() == 1 && found[0].contains("2 times since the agent started, last 10 s ago"),
            "{found:?}"
        );
    }
}
