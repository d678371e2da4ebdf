//! What Prometheus is told: [`METRICS`], with the numbers of this moment.
//!
//! Nothing is counted for it: a scrape reads what the agent knows anyway, and the maps.

mod maps;
mod metric;
mod page;
mod process;

use std::fmt;

pub use metric::{Base, Kind, METRICS, Metric};
pub use page::MEDIA_TYPE;

use crate::{
    bpf::Pins,
    control::snapshot::{Peers, Snapshot},
};
use page::Page;

/// The page. `pins` are absent where no programs are loaded, `peers` where nobody asked for each of them.
///
/// # Errors
/// When it cannot be written, which a string never refuses.
pub fn text(snapshot: &Snapshot, pins: Option<&Pins>, peers: Option<&Peers>) -> Result<String, fmt::Error> {
    let mut page = Page::default();
    of_agent(&mut page, snapshot);
    of_dataplane(&mut page, snapshot);
    if let Some(pins) = pins {
        maps::add(&mut page, pins);
    }
    process::add(&mut page, snapshot.agent.started);
    if let Some(peers) = peers {
        of_peers(&mut page, peers);
        if let Some(pins) = pins {
            maps::add_tunnels(&mut page, pins);
        }
    }
    page.text()
}

fn flag(is: bool) -> f64 {
    f64::from(u8::from(is))
}

fn of_agent(page: &mut Page, snapshot: &Snapshot) {
    let Snapshot { agent, store, lease, interface, backend, fast_path, probes, .. } = snapshot;
    page.add(&metric::BUILD, [&agent.version], 1.0);
    page.add(&metric::READY, [], flag(agent.ready));
    if let Some(store) = store {
        page.add(&metric::STORE_CONNECTED, [&store.server], flag(store.trouble.is_none()));
        page.add(&metric::STORE_SINCE, [&store.server], store.since as f64);
        if let Some(heard) = store.heard {
            page.add(&metric::STORE_HEARD, [&store.server], heard as f64);
        }
    }
    if let Some(expires) = lease.as_ref().and_then(|lease| lease.expires) {
        page.add(&metric::LEASE_EXPIRY, [], expires as f64);
    }
    if let Some(lease) = lease {
        page.add(&metric::LEASE_MENDED, [], lease.mended as f64);
    }
    page.add(&metric::PROBED, [], probes.peers as f64);
    page.add(&metric::UNANSWERED, [], probes.unanswered as f64);
    if let Some(seconds) = probes.longest_rtt_seconds {
        page.add(&metric::PROBE_RTT, [], seconds);
    }
    if let Some(backend) = backend {
        let interface = interface.as_ref().map_or("", |interface| &interface.name);
        page.add(&metric::BACKEND, [&backend.kind, interface], 1.0);
    }
    if let Some(fast_path) = fast_path {
        let attached_by = fast_path.attached_by.as_deref().unwrap_or("");
        page.add(
            &metric::FAST_PATH,
            [&fast_path.asked, &fast_path.granted, attached_by, &fast_path.xdp],
            1.0,
        );
        page.add(&metric::FAST_PATH_LIMITED, [], flag(fast_path.limit.is_some() && !fast_path.by_backend));
    }
    for rules in &snapshot.rules {
        page.add(&metric::RULES_IN_PLACE, [&rules.kept_by], flag(rules.in_place && rules.error.is_none()));
    }
    for rules in &snapshot.rules {
        page.add(&metric::RULES_RESTORED, [&rules.kept_by], rules.restored as f64);
    }
}

fn of_dataplane(page: &mut Page, snapshot: &Snapshot) {
    let Some(dataplane) = &snapshot.dataplane else {
        // What nobody has read yet is said to be absent, not zero, but for this.
        page.add(&metric::SYNCED, [], 0.0);
        return;
    };
    page.add(&metric::SYNCED, [], flag(dataplane.synced));
    page.add(&metric::PEERS, [], dataplane.peers as f64);
    page.add(&metric::PEERS_PENDING, [], dataplane.peers_pending as f64);
    page.add(&metric::PEERS_ON_KERNEL, [], dataplane.on_kernel as f64);
    page.add(&metric::LEASES_SKIPPED, [], dataplane.faults as f64);
    page.add(&metric::CHANGES_PENDING, [], dataplane.pending_total as f64);
    page.add(&metric::PASSES, [], dataplane.passes as f64);
    page.add(&metric::RESTORED, [], dataplane.restored as f64);
    page.add(&metric::PODS, [], dataplane.pods as f64);
    page.add(&metric::FOREIGN_HOOKS, [], dataplane.hooked.len() as f64);
}

fn of_peers(page: &mut Page, peers: &Peers) {
    for peer in &peers.peers {
        let (subnet, public_ip) = (peer.subnet.to_string(), peer.public_ip.to_string());
        let node = peer.node.as_deref().unwrap_or("");
        page.add(&metric::PEER, [node, &subnet, &public_ip, &peer.way], 1.0);
    }
    // Of the others there is nothing to say: a series of zeros for each of them would be a third of the page.
    for peer in peers.peers.iter().filter(|peer| !peer.pending.is_empty()) {
        page.add(&metric::PEER_PENDING, [&peer.subnet.to_string()], peer.pending.len() as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::snapshot::{Dataplane, Peer};

    fn page(leases: usize, of_each: bool) -> String {
        let subnet = |number: usize| format!("10.{}.{}.0/24", number >> 8, number & 255).parse().unwrap();
        let peer = |number| Peer {
            subnet: subnet(number),
            node: Some(format!("node-{number}.example.org")),
            public_ip: "192.0.2.2".parse().unwrap(),
            way: "vxlan".to_owned(),
            mac: None,
            on_kernel: None,
            next_hop: None,
            pending: Vec::new(),
            probe: None,
        };
        let peers = of_each.then(|| Peers { peers: (0..leases).map(peer).collect(), skipped: Vec::new() });
        let dataplane = Some(Dataplane { peers: leases, ..Dataplane::default() });
        text(&Snapshot { dataplane, ..Snapshot::default() }, None, peers.as_ref()).unwrap()
    }

    /// Prometheus takes no page of any length, and keeps each series.
    #[test]
    fn a_page_grows_with_the_cluster_only_where_that_is_asked_for() {
        let (small, large) = (page(2, false), page(10_000, false));
        assert!(
            large.len() < small.len() + 8,
            "{} bytes with 2 leases, {} with 10000",
            small.len(),
            large.len()
        );
        let (asked, lines) = (page(10_000, true), page(10_000, true).lines().count());
        assert!(
            (10_000..10_100).contains(&lines) && asked.len() < 5 << 18,
            "{lines} lines, {} bytes",
            asked.len()
        );
    }
}
