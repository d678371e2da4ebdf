//! What the log says of a pass: each change of state once, bursts in one line.

use std::{collections::BTreeMap, mem::take};

use ipnetwork::IpNetwork;
use tracing::{debug, info, warn};

use crate::{
    family::Family,
    lease::LeaseSubnet,
    plan::{Change, Peer, Skip},
};

/// So many lines of one kind are written per pass; of more, only their number.
const LINES: usize = 20;

/// What has been told, so that nothing is told twice.
#[derive(Debug, Default)]
pub(super) struct Journal {
    peers: BTreeMap<IpNetwork, Peer>,
    skipped: BTreeMap<(LeaseSubnet, Family), Skip>,
    read_error: Option<String>,
    changes: usize,
    repairs: Vec<String>,
    recovered: usize,
    failures: BTreeMap<String, (usize, String)>,
}

impl Journal {
    /// The state of the kernel could not be read.
    pub(super) fn read_failed(&mut self, error: &str) {
        if self.read_error.as_deref() != Some(error) {
            warn!("{error}; trying again");
            self.read_error = Some(error.to_owned());
        }
    }

    /// It could be read.
    pub(super) fn read(&mut self) {
        if self.read_error.take().is_some() {
            info!("the state of the kernel can be read again");
        }
    }

    /// A change was made.
    pub(super) fn done(&mut self, change: &Change, repair: bool, recovered: bool) {
        self.changes += 1;
        self.recovered += usize::from(recovered);
        debug!(%change, repair, "done");
        if repair && !recovered {
            self.repairs.push(change.to_string());
        }
    }

    /// A change failed in a way it had not before.
    pub(super) fn failed(&mut self, change: &Change, error: String) {
        let (count, _) = self.failures.entry(error).or_insert_with(|| (0, change.to_string()));
        *count += 1;
    }

    /// For the first time everything is as leased.
    pub(super) fn in_place(&self, peers: usize, changes: usize) {
        info!(peers, changes, "dataplane in place");
    }

    /// Writes what was gathered of one pass.
    pub(super) fn flush(&mut self) {
        for (error, (count, first)) in take(&mut self.failures) {
            match count {
                1 => warn!(%error, "cannot {first}; trying again"),
                _ => warn!(%error, changes = count, "cannot {first}, nor do the like; trying again"),
            }
        }
        let recovered = take(&mut self.recovered);
        if recovered > 0 {
            info!(changes = recovered, "changes that had failed are made");
        }
        let repairs = take(&mut self.repairs);
        for repair in repairs.iter().take(LINES) {
            info!("repaired: {repair}");
        }
        if repairs.len() > LINES {
            info!(changes = repairs.len(), "repaired: more than is listed");
        }
        let changes = take(&mut self.changes);
        if changes > 0 {
            debug!(changes, "pass done");
        }
    }

    /// The peers that are reached now.
    pub(super) fn peers(&mut self, now: &BTreeMap<IpNetwork, Peer>) {
        let mut lines = Lines::default();
        for (subnet, peer) in now {
            match self.peers.get(subnet) {
                None => lines.joined(subnet, peer),
                Some(before) if (before.public_ip, before.way) != (peer.public_ip, peer.way) => {
                    lines.moved(subnet, before, peer);
                }
                Some(_) => {}
            }
        }
        for (subnet, peer) in &self.peers {
            if !now.contains_key(subnet) {
                lines.left(subnet, peer);
            }
        }
        if lines.written > LINES {
            info!(
                joined = lines.joined,
                left = lines.left,
                changed = lines.moved,
                peers = now.len(),
                "peers changed"
            );
        }
        self.peers.clone_from(now);
    }

    /// The leases that are not followed now.
    pub(super) fn skipped(&mut self, now: &BTreeMap<(LeaseSubnet, Family), Skip>) {
        let mut others = 0;
        for (key @ (subnet, family), skip) in now {
            if self.skipped.get(key) == Some(skip) {
                continue;
            }
            if skip.is_fault() {
                warn!(%subnet, %family, reason = %skip, "lease is not followed");
                continue;
            }
            others += 1;
            match others {
                ..=LINES => info!(%subnet, %family, reason = %skip, "lease is not followed"),
                _ => debug!(%subnet, %family, reason = %skip, "lease is not followed"),
            }
        }
        if others > LINES {
            info!(leases = others, "leases of other kinds of nodes are not followed: more than is listed");
        }
        self.skipped.clone_from(now);
    }
}

#[derive(Debug, Default)]
struct Lines {
    written: usize,
    joined: usize,
    left: usize,
    moved: usize,
}

impl Lines {
    /// Whether there is room for another line.
    fn room(&mut self) -> bool {
        self.written += 1;
        self.written <= LINES
    }

    fn joined(&mut self, subnet: &IpNetwork, peer: &Peer) {
        self.joined += 1;
        if self.room() {
            info!(%subnet, node = %peer.public_ip, mac = mac(peer), "peer joined");
        } else {
            debug!(%subnet, node = %peer.public_ip, mac = mac(peer), "peer joined");
        }
    }

    fn left(&mut self, subnet: &IpNetwork, peer: &Peer) {
        self.left += 1;
        if self.room() {
            info!(%subnet, node = %peer.public_ip, mac = mac(peer), "peer left");
        } else {
            debug!(%subnet, node = %peer.public_ip, mac = mac(peer), "peer left");
        }
    }

    fn moved(&mut self, subnet: &IpNetwork, before: &Peer, now: &Peer) {
        self.moved += 1;
        if self.room() {
            info!(
                %subnet, node = %now.public_ip, mac = mac(now),
                old_node = %before.public_ip, old_mac = mac(before), "peer changed"
            );
        } else {
            debug!(%subnet, node = %now.public_ip, mac = mac(now), "peer changed");
        }
    }
}

/// MAC of a peer's VXLAN device, where one is used.
fn mac(peer: &Peer) -> Option<String> {
    peer.way.vtep_mac().map(|mac| mac.to_string())
}
