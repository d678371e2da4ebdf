//! What is logged of a pass: each change of state once, bursts in one line.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    mem::take,
    time::SystemTime,
};

use ipnetwork::IpNetwork;
use tracing::{debug, info, warn};

use crate::{
    lease::LeaseSubnet,
    plan::{Change, LeftToKernel, NoHop, ObjectKey, Patch, Peer, PeerRoute, Pods, Skip},
    values::Family,
};

/// So many lines of one kind are written per pass; of more, only their number.
const LINES: usize = 20;

/// What has been logged, so that nothing is logged twice.
#[derive(Debug, Default)]
pub(super) struct Journal {
    skipped: BTreeMap<(LeaseSubnet, Family), Skip>,
    on_kernel: BTreeMap<IpNetwork, NoHop>,
    crowded: BTreeSet<u32>,
    /// What was named as left by an earlier run.
    leftovers: BTreeSet<ObjectKey>,
    /// Peers that came, left or changed since their number was last logged, or not logged for being few.
    moves: usize,
    /// Their number, if it was logged lately.
    logged: Option<usize>,
    hooked: LeftToKernel,
    read_error: Option<String>,
    changes: usize,
    repairs: Vec<String>,
    restored: Restorations,
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

    /// The veths behind which there are more addresses than are followed: each is named once as long as it is there, for
    /// its pod may take the addresses away and give them to itself again.
    pub(super) fn crowded(&mut self, pods: &Pods) {
        for (veth, name) in &pods.crowded {
            if self.crowded.insert(*veth) {
                warn!(
                    veth = name,
                    "a pod has more addresses than are followed: packets of the others take the kernel path"
                );
            }
        }
        self.crowded.retain(|veth| pods.links.contains(veth));
    }

    /// What an earlier run seems to have left, and `changes` of the first pass take away.
    pub(super) fn leftovers(&mut self, changes: &[Change]) {
        let mut news = Vec::new();
        for change in changes.iter().filter(|change| change.takes_a_peers_entry()) {
            if self.leftovers.insert(change.key()) {
                news.push(change);
            }
        }
        for change in news.iter().take(LINES) {
            info!("of an earlier run, and in no lease: {change}");
        }
        if news.len() > LINES {
            info!(changes = news.len(), "of an earlier run, and in no lease: more than is listed");
        }
    }

    /// A change was made.
    pub(super) fn done(&mut self, change: &Change, repair: bool, recovered: bool) {
        self.changes += 1;
        self.recovered += usize::from(recovered);
        debug!(%change, repair, "done");
        if repair && !recovered {
            self.restored.add(change);
            self.repairs.push(change.to_string());
        }
    }

    /// What was put back since the start.
    pub(super) fn restored(&self) -> &Restorations {
        &self.restored
    }

    /// A change failed with an error it had not had before.
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
                _ => warn!(%error, changes = count, "cannot {first}, and others of the kind; trying again"),
            }
        }
        let recovered = take(&mut self.recovered);
        if recovered > 0 {
            info!(changes = recovered, "failed changes have been applied");
        }
        let repairs = take(&mut self.repairs);
        for repair in repairs.iter().take(LINES) {
            info!("restored: {repair}");
        }
        if repairs.len() > LINES {
            info!(changes = repairs.len(), "restored: more than is listed");
        }
        let changes = take(&mut self.changes);
        if changes > 0 {
            debug!(changes, "pass done");
        }
    }

    /// The peers that were reached, and those that are now.
    pub(super) fn peers(&mut self, before: &BTreeMap<IpNetwork, Peer>, now: &BTreeMap<IpNetwork, Peer>) {
        let lines = Lines::of(before, now);
        if lines.written > LINES {
            info!(
                joined = lines.joined,
                left = lines.left,
                changed = lines.moved,
                peers = now.len(),
                "peers changed"
            );
            self.logged = Some(now.len());
        } else {
            self.moves += lines.written;
        }
    }

    /// Whether [`Journal::total`] may have something to say.
    pub(super) fn is_unsettled(&self) -> bool {
        self.moves > 0 || self.logged.is_some()
    }

    /// After many changes: how many peers there are now, if the log does not say so already. The single lines of a storm
    /// may be left out, and what follows one is few changes at a time.
    pub(super) fn total(&mut self, peers: usize) {
        let many = take(&mut self.moves) > LINES;
        let outdated = self.logged.take().is_some_and(|logged| logged != peers);
        if many || outdated {
            info!(peers, "peers changed: how many there are now");
        }
    }

    /// What became of one lease.
    pub(super) fn patched(&mut self, patch: &Patch) {
        let skipped = &patch.after().skipped;
        let lines = Lines::of(&patch.before().peers, &patch.after().peers);
        self.moves += lines.written;
        for (key @ (subnet, family), skip) in skipped {
            if self.skipped.insert(*key, skip.clone()).as_ref() == Some(skip) {
                continue;
            }
            match skip.is_fault() {
                true => warn!(%subnet, %family, reason = %skip, "lease is not followed"),
                false => info!(%subnet, %family, reason = %skip, "lease is not followed"),
            }
        }
        for key in patch.before().skipped.keys().filter(|key| !skipped.contains_key(*key)) {
            self.skipped.remove(key);
        }
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

impl Journal {
    /// The peers whose packets the programs leave to the kernel now: by reason, for a route that changes may
    /// change it for all of them.
    pub(super) fn on_kernel(&mut self, now: &BTreeMap<IpNetwork, NoHop>) {
        // Of routes to pods each peer has its own.
        let mut news = BTreeMap::<_, (usize, IpNetwork, NoHop)>::new();
        for (subnet, why) in now {
            if self.on_kernel.get(subnet) != Some(why) {
                debug!(%subnet, reason = %why, "packets of this peer take the kernel path");
                let kind = match why {
                    NoHop::PodRoute(..) => None,
                    why => Some(*why),
                };
                news.entry(kind).or_insert((0, *subnet, *why)).0 += 1;
            }
        }
        for (peers, first, why) in news.into_values() {
            info!(peers, %first, reason = %why, "packets of these peers take the kernel path");
        }
        let back = self.on_kernel.keys().filter(|subnet| !now.contains_key(*subnet)).count();
        if back > 0 {
            info!(peers = back, left = now.len(), "packets of these peers take the fast path again");
        }
        self.on_kernel.clone_from(now);
    }

    /// What is left to the kernel's path now for others' hooks.
    pub(super) fn hooked(&mut self, now: &LeftToKernel) {
        let mut written = 0;
        for (key @ (_, stretch), hooked) in now {
            if self.hooked.contains_key(key) {
                continue;
            }
            written += 1;
            match written {
                ..=LINES => info!(
                    interface = %hooked.interface, hook = %hooked.hook,
                    "kernel path for {stretch}: the fast path would skip this hook"
                ),
                _ => {
                    debug!(interface = %hooked.interface, hook = %hooked.hook, "kernel path for {stretch}")
                }
            }
        }
        for (key @ (_, stretch), hooked) in &self.hooked {
            if now.contains_key(key) {
                continue;
            }
            written += 1;
            match written {
                ..=LINES => info!(
                    interface = %hooked.interface, hook = %hooked.hook,
                    "the hook is gone: fast path again for {stretch}"
                ),
                _ => debug!(interface = %hooked.interface, hook = %hooked.hook, "the hook is gone"),
            }
        }
        if written > LINES {
            info!(left = now.len(), "hooks of others changed at more interfaces than are listed");
        }
        self.hooked.clone_from(now);
    }
}

/// What was put back, after somebody deleted or changed it.
#[derive(Debug, Default)]
pub(super) struct Restorations {
    /// How many objects.
    pub(super) count: u64,
    /// The last ones, newest first.
    pub(super) last: VecDeque<(SystemTime, String)>,
}

impl Restorations {
    /// So many are kept.
    const KEPT: usize = 20;

    fn add(&mut self, change: &Change) {
        self.count += 1;
        self.last.truncate(Self::KEPT - 1);
        self.last.push_front((SystemTime::now(), change.to_string()));
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
    /// Writes what became of the peers there were.
    fn of(before: &BTreeMap<IpNetwork, Peer>, now: &BTreeMap<IpNetwork, Peer>) -> Self {
        let mut lines = Self::default();
        for (subnet, peer) in now {
            match before.get(subnet) {
                None => lines.joined(subnet, peer),
                Some(before) if (before.public_ip, before.route) != (peer.public_ip, peer.route) => {
                    lines.moved(subnet, before, peer);
                }
                Some(_) => {}
            }
        }
        for (subnet, peer) in before.iter().filter(|(subnet, _)| !now.contains_key(*subnet)) {
            lines.left(subnet, peer);
        }
        lines
    }

    /// Whether there is room for another line.
    fn room(&mut self) -> bool {
        self.written += 1;
        self.written <= LINES
    }

    fn joined(&mut self, subnet: &IpNetwork, peer: &Peer) {
        self.joined += 1;
        if self.room() {
            info!(%subnet, node = %peer.public_ip, route = route(peer), mac = mac(peer), "peer joined");
        } else {
            debug!(%subnet, node = %peer.public_ip, route = route(peer), mac = mac(peer), "peer joined");
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
                %subnet, node = %now.public_ip, route = route(now), mac = mac(now),
                old_node = %before.public_ip, old_route = route(before), old_mac = mac(before), "peer changed"
            );
        } else {
            debug!(%subnet, node = %now.public_ip, mac = mac(now), "peer changed");
        }
    }
}

/// MAC of a peer's VXLAN device, where one is used.
fn mac(peer: &Peer) -> Option<String> {
    peer.route.vtep_mac().map(|mac| mac.to_string())
}

/// How a peer is reached.
pub(super) fn route(peer: &Peer) -> &'static str {
    match peer.route {
        PeerRoute::Vxlan(_) => "vxlan",
        PeerRoute::Direct => "direct",
        PeerRoute::Objects => "tunnel",
    }
}
