//! Names that both sides, `bpftool` and the documentation use.

/// Version of the layout of every map in [`crate::layout`], and a directory of the pin path
/// (`<bpffs>/flannel/<version>/...`). Any change of a key, a value or a map's meaning raises it, so
/// that an old program and a new agent never read each other's bytes.
pub const LAYOUT_VERSION: &str = "v1";

/// Directory under the root of a bpffs that holds everything flannel-ebpf pins.
pub const PIN_DIRECTORY: &str = "flannel";

/// Map of pod subnet to peer: see [`crate::layout::SubnetV4`] and [`crate::layout::PeerV4`].
pub const ROUTES_V4: &str = "routes_v4";
/// Map of a peer's public address to its lease: see [`crate::layout::VtepV4`].
pub const VTEPS: &str = "vteps";
/// Map of a local pod's address to where it is: see [`crate::layout::PodV4`].
pub const PODS_V4: &str = "pods_v4";
/// One-element array: see [`crate::layout::Config`].
pub const CONFIG: &str = "config";
/// Per-CPU array of [`crate::layout::Counter`], indexed by [`crate::reason::slot`].
pub const COUNTERS: &str = "counters";

/// Every map the agent pins and a later agent adopts.
pub const PINNED_MAPS: [&str; 5] = [ROUTES_V4, VTEPS, PODS_V4, CONFIG, COUNTERS];

/// Entries that `routes_v4` and `vteps` hold: the number of peers of the largest cluster served.
pub const MAX_PEERS: u32 = 65_536;
/// Entries that `pods_v4` holds: local pods of one node.
pub const MAX_PODS: u32 = 4_096;

/// Mark (a bit of `skb->mark`) that [`FROM_POD`] sets on what must leave this node with the pod's own
/// address. A rule that stands before everybody's masquerade rules looks for it. kube-proxy has 0x4000
/// and 0x8000; what it marks 0x4000 is masqueraded though it have this bit, too.
pub const SNAT_EXEMPT_MARK: u32 = 0x2000;

/// tc ingress on the host side of a pod's veth: what a pod sends.
pub const FROM_POD: &str = "from_pod";
/// tc egress on flannel.<vni>: what the kernel routed into the overlay.
pub const TO_OVERLAY: &str = "to_overlay";
/// tc ingress on the external interface: what arrives from other nodes.
pub const FROM_UNDERLAY: &str = "from_underlay";
