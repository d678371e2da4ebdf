//! The one table of metrics: the page and the documentation are made from it.

/// What kind of number a metric is (OpenMetrics).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only rises, but for restarts.
    Counter,
    /// It goes up and down.
    Gauge,
    /// Its labels say something; the number is 1.
    Info,
}

impl Kind {
    /// As OpenMetrics names it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Info => "info",
        }
    }
}

/// In what a metric is counted; it ends the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// Things.
    One,
    /// Bytes.
    Bytes,
    /// Seconds; of a `_timestamp_seconds`, since 1970.
    Seconds,
}

/// A metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    /// Its name, without unit and `_total`.
    pub stem: &'static str,
    /// What kind of number it is.
    pub kind: Kind,
    /// In what it is counted.
    pub base: Base,
    /// Names of its labels.
    pub labels: &'static [&'static str],
    /// Only with `--metrics-peers`.
    pub of_peers: bool,
    /// One sentence.
    pub help: &'static str,
}

impl Metric {
    /// Its name as Prometheus stores it.
    pub fn name(&self) -> String {
        let unit = match self.base {
            Base::One => "",
            Base::Bytes => "_bytes",
            Base::Seconds => "_seconds",
        };
        let kind = match self.kind {
            Kind::Counter => "_total",
            Kind::Gauge => "",
            Kind::Info => "_info",
        };
        format!("{}{unit}{kind}", self.stem)
    }
}

macro_rules! metrics {
    ($($name:ident = $stem:literal, $kind:ident, $base:ident, [$($label:literal),*], $of_peers:literal, $help:literal;)+) => {
        $(
            #[doc = $help]
            pub(super) const $name: Metric = Metric {
                stem: $stem,
                kind: Kind::$kind,
                base: Base::$base,
                labels: &[$($label),*],
                of_peers: $of_peers,
                help: $help,
            };
        )+

        /// All of them, in the order of the page.
        pub const METRICS: &[Metric] = &[$($name),+];
    };
}

metrics! {
    BUILD = "flannel_build", Info, One, ["version"], false, "The version of the agent.";
    READY = "flannel_ready", Gauge, One, [], false, "1 while /readyz says so: pods of this node can be started, and reach others.";
    STORE_CONNECTED = "flannel_store_connected", Gauge, One, ["store"], false, "1 while the store of leases answers; forwarding goes on without it.";
    STORE_SINCE = "flannel_store_since_timestamp", Gauge, Seconds, ["store"], false, "Since when the store of leases answers, or does not.";
    STORE_HEARD = "flannel_store_heard_timestamp", Gauge, Seconds, ["store"], false, "When the store last said something of other nodes' leases, or that nothing is new: every minute (Kubernetes, etcd's v2 store) or ten (etcd); absent where leases are in a file.";
    LEASE_EXPIRY = "flannel_lease_expiry_timestamp", Gauge, Seconds, [], false, "When this node's lease ends unless it is renewed; absent where leases have no end.";
    LEASE_MENDED = "flannel_lease_restored", Counter, One, [], false, "How often others changed this node's lease in the store, and it was written again.";
    PROBED = "flannel_probed_peers", Gauge, One, [], false, "Peers that were asked for an echo within the last day (--peer-probes).";
    UNANSWERED = "flannel_probed_peers_unanswered", Gauge, One, [], false, "Of these, peers that did not answer the last time, through the overlay where there is one.";
    PROBE_RTT = "flannel_probe_round_trip_max", Gauge, Seconds, [], false, "The longest round trip to a peer that answered the last time; absent before the first.";
    BACKEND = "flannel_backend", Info, One, ["backend", "interface"], false, "The backend, and the external interface.";
    FAST_PATH = "flannel_fast_path", Info, One, ["asked", "granted", "attached_by", "xdp"], false, "How far packets may skip the host's stack.";
    FAST_PATH_LIMITED = "flannel_fast_path_limited", Gauge, One, [], false, "1 while less is done than --fast-path asks for, though the backend is one whose packets the programs can move.";
    FAST_PATH_HOLD = "flannel_fast_path_hold", Gauge, Seconds, [], false, "How long the programs would go on without an agent (--fast-path-hold); absent where that has no end.";
    SYNCED = "flannel_synced", Gauge, One, [], false, "1 once the leases have been read.";
    PEERS = "flannel_peers", Gauge, One, [], false, "Nodes whose leases are followed.";
    PEERS_PENDING = "flannel_peers_pending", Gauge, One, [], false, "Of these, nodes of which a change to the kernel failed: packets to them may be lost.";
    PEERS_ON_KERNEL = "flannel_peers_on_kernel", Gauge, One, [], false, "Of these, nodes whose packets the programs leave to the kernel path.";
    LEASES_SKIPPED = "flannel_leases_skipped", Gauge, One, [], false, "Leases that are not followed, and should be looked into.";
    CHANGES_PENDING = "flannel_changes_pending", Gauge, One, [], false, "Changes to the kernel that failed, and are tried again.";
    PASSES = "flannel_reconcile_passes", Counter, One, [], false, "Rounds of the reconciler that read the state of the kernel.";
    RESTORED = "flannel_objects_restored", Counter, One, [], false, "Objects in the kernel that somebody deleted or changed, and that were put back.";
    RULES_IN_PLACE = "flannel_rules_in_place", Gauge, One, ["kept_by"], false, "1 while the rules of this firewall are in place.";
    RULES_RESTORED = "flannel_rules_restored", Counter, One, ["kept_by"], false, "How often rules that somebody deleted or changed were put back.";
    PODS = "flannel_pods", Gauge, One, [], false, "Pods of this node that the programs know the place of.";
    FOREIGN_HOOKS = "flannel_foreign_hooks", Gauge, One, [], false, "Programs, filters and chains of others for which packets are left to the kernel path.";
    PROGRAMS = "flannel_programs_attached", Gauge, One, ["program"], false, "Hooks of this node that run our program.";
    PACKETS = "flannel_packets", Counter, One, ["direction", "path", "reason"], false, "Packets as on the wire, by direction, path and reason. Of the path note they are counted a second time.";
    PACKET_BYTES = "flannel_packet", Counter, Bytes, ["direction", "path", "reason"], false, "Bytes of those frames, with their Ethernet headers.";
    MAP_ENTRIES = "flannel_bpf_map_entries", Gauge, One, ["map"], false, "Entries in a map of the programs.";
    MAP_CAPACITY = "flannel_bpf_map_capacity", Gauge, One, ["map"], false, "Entries that it has room for.";
    CLOCK = "flannel_clock_synchronised", Gauge, One, [], false, "1 while the kernel is told that NTP or the like keeps the clock right. A hypervisor that does so does not tell. Absent under the systemd unit, whose ProtectClock refuses the question.";
    CLOCK_ERROR = "flannel_clock_error_max", Gauge, Seconds, [], false, "How far the clock is from the true time at most, as whoever keeps it reckons.";
    CPU = "process_cpu", Counter, Seconds, [], false, "CPU time of the agent.";
    MEMORY = "process_resident_memory", Gauge, Bytes, [], false, "Memory of the agent.";
    OPEN_FILES = "process_open_fds", Gauge, One, [], false, "Open files of the agent.";
    START = "process_start_time", Gauge, Seconds, [], false, "When the agent started, since 1970.";
    PEER = "flannel_peer", Info, One, ["node", "subnet", "public_ip", "way"], true, "A peer: its node, its pod subnet, the address it is reached at, and how.";
    PEER_PENDING = "flannel_peer_changes_pending", Gauge, One, ["subnet"], true, "Changes about this peer that failed, and are tried again; absent while there are none.";
    PEER_TUNNEL = "flannel_peer_tunnel_seen", Gauge, Seconds, ["public_ip", "direction"], true, "How long ago the kernel's own VXLAN packet was last seen to leave for this peer, or to be delivered from it.";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_as_prometheus_wants_them() {
        let mut names = BTreeSet::new();
        for metric in METRICS {
            let name = metric.name();
            assert!(name.starts_with("flannel_") || name.starts_with("process_"), "{name}");
            assert!(!metric.stem.ends_with("_total") && !metric.stem.ends_with("_info"), "{name}");
            assert!(metric.help.ends_with('.'), "{name}: {}", metric.help);
            assert!(names.insert(name.clone()), "{name} stands twice");
            assert_eq!(metric.of_peers, name.starts_with("flannel_peer_"), "{name}");
        }
    }
}
