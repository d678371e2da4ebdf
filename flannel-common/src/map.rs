//! Names that both sides, `bpftool` and the documentation use.

/// Version of the layout of every map in [`crate::layout`], and a directory of the pin path
/// (`<bpffs>/flannel/<version>/...`). Any change of a key, a value or a map's meaning raises it, so
/// that an old program and a new agent never read each other's bytes.
pub const LAYOUT_VERSION: &str = "v4";

/// Directory under the root of a bpffs that holds everything flannel-ebpf pins.
pub const PIN_DIRECTORY: &str = "flannel";

/// Map of pod subnet to peer: see [`crate::layout::SubnetV4`] and [`crate::layout::Route`].
pub const ROUTES_V4: &str = "routes_v4";
/// Map of a peer's public address to its lease: see [`crate::layout::Vtep`].
pub const VTEPS_V4: &str = "vteps_v4";
/// Map of a local pod's address to where it is: see [`crate::layout::PodPlace`].
pub const PODS_V4: &str = "pods_v4";
/// Trie of prefixes pods reach with their own address: see [`crate::layout::Exempt`].
pub const SNAT_EXEMPT_V4: &str = "snat_exempt_v4";
/// Map of the flows that netfilter has accepted: see [`crate::layout::Flow`] and
/// [`crate::layout::Permit`]. The programs write it; the agent only removes what belongs to nobody.
pub const FLOWS_V4: &str = "flows_v4";
/// Map of the flows that netfilter translates to how it does: see [`crate::layout::Flow`] and
/// [`crate::layout::Translation`]. The agent writes it; the programs only remove what begins anew.
pub const TRANSLATIONS_V4: &str = "translations_v4";
/// Map of a peer's public address to what the kernel's path through the tunnel does: see [`crate::layout::Tunnel`]. The
/// programs write it; the agent only removes what belongs to nobody.
pub const TUNNELS_V4: &str = "tunnels_v4";
/// Map of pod subnet to peer: see [`crate::layout::SubnetV6`] and [`crate::layout::Route`].
pub const ROUTES_V6: &str = "routes_v6";
/// Map of a peer's public IPv6 address to its lease: see [`crate::layout::Vtep`].
pub const VTEPS_V6: &str = "vteps_v6";
/// Map of a local pod's IPv6 address to where it is: see [`crate::layout::PodPlace`].
pub const PODS_V6: &str = "pods_v6";
/// Trie of IPv6 prefixes pods reach with their own address: see [`crate::layout::Exempt`].
pub const SNAT_EXEMPT_V6: &str = "snat_exempt_v6";
/// Map of the IPv6 flows that netfilter has accepted: see [`crate::layout::Flow`] and
/// [`crate::layout::Permit`].
pub const FLOWS_V6: &str = "flows_v6";
/// As [`TRANSLATIONS_V4`], of IPv6 flows.
pub const TRANSLATIONS_V6: &str = "translations_v6";
/// As [`TUNNELS_V4`], of peers' public IPv6 addresses.
pub const TUNNELS_V6: &str = "tunnels_v6";
/// One-element array: see [`crate::layout::Config`].
pub const CONFIG_V6: &str = "config_v6";
/// Map of the pods that forward for others, by the index of their veth: see [`crate::layout::Forwarder`]. The
/// programs write it.
pub const FORWARDERS: &str = "forwarders";
/// One-element array: see [`crate::layout::Config`].
pub const CONFIG_V4: &str = "config_v4";
/// One-element array: see [`crate::layout::Hold`].
pub const HOLD: &str = "hold";
/// Per-CPU array of [`crate::layout::Counter`], indexed by [`crate::reason::slot`].
pub const COUNTERS: &str = "counters";

/// Ring buffer of [`crate::layout::Flow`]: the IPv4 flows about which the programs ask the agent how netfilter translates
/// them. Not pinned: who has loaded the programs answers them.
pub const ASKED_V4: &str = "asked_v4";
/// As [`ASKED_V4`], of IPv6 flows.
pub const ASKED_V6: &str = "asked_v6";
/// Ring buffer of [`crate::layout::Flow`]: the IPv4 flows that skipped the stack and were broken off. Connection tracking,
/// which has not seen how far they had come, does not believe a reset of them. Not pinned, as [`ASKED_V4`].
pub const BROKEN_OFF_V4: &str = "broken_off_v4";
/// As [`BROKEN_OFF_V4`], of IPv6 flows.
pub const BROKEN_OFF_V6: &str = "broken_off_v6";
/// Of the traced programs alone, not pinned: what is wanted. See [`crate::layout::trace`].
pub const TRACE_FILTER: &str = "trace_filter";
/// As [`TRACE_FILTER`]: packets at hooks, in the order of each CPU.
pub const TRACE_RING: &str = "trace_ring";
/// As [`TRACE_FILTER`]: packets and bytes by [`crate::layout::trace::TraceKey`].
pub const TRACE_SUMS: &str = "trace_sums";
/// As [`TRACE_FILTER`]: what was not written down.
pub const TRACE_STATE: &str = "trace_state";

/// Every map the agent pins and a later agent adopts.
pub const PINNED_MAPS: [&str; 19] = [
    ROUTES_V4,
    VTEPS_V4,
    PODS_V4,
    SNAT_EXEMPT_V4,
    FLOWS_V4,
    TRANSLATIONS_V4,
    TUNNELS_V4,
    FORWARDERS,
    CONFIG_V4,
    HOLD,
    COUNTERS,
    ROUTES_V6,
    VTEPS_V6,
    PODS_V6,
    SNAT_EXEMPT_V6,
    FLOWS_V6,
    TRANSLATIONS_V6,
    TUNNELS_V6,
    CONFIG_V6,
];

/// Entries that `routes_v4`, `vteps_v4` and their IPv6 twins hold: the number of peers of the largest cluster served.
pub const MAX_PEERS: u32 = 65_536;
/// Entries that `pods_v4` and `pods_v6` hold: local pods of one node.
pub const MAX_PODS: u32 = 4_096;
/// Entries that `snat_exempt_v4` and `snat_exempt_v6` hold: the cluster's network, nodes, and what the operator names.
pub const MAX_EXEMPT: u32 = 65_536;
/// Entries that `flows_v4` and `flows_v6` hold unless `--flow-table-size` says otherwise, some 7 and 8 MB of the
/// kernel's memory: a quarter of what conntrack tracks by default on a node of 1 GB and more. Beyond, the flows longest
/// unused are forgotten, and take the kernel path until they are learned anew.
pub const MAX_FLOWS: u32 = 65_536;

/// Entries that `translations_v4` and `translations_v6` hold, two for each flow.
pub const MAX_TRANSLATIONS: u32 = 32_768;
/// Bytes of `asked_v4` and `asked_v6`: a power of two, and a multiple of any page.
pub const ASKED_BYTES: u32 = 65_536;
/// Bytes of `broken_off_v4` and `broken_off_v6`, as of [`ASKED_BYTES`]: room for two thousand flows of IPv4, and one
/// thousand of IPv6.
pub const BROKEN_OFF_BYTES: u32 = 65_536;

/// Constant of the programs that the agent sets: [`crate::mark::Marks::exempt`].
pub const SNAT_EXEMPT_MARK_CONSTANT: &str = "SNAT_EXEMPT_MARK";
/// Constant of the programs that the agent sets: [`crate::mark::Marks::flow`].
pub const FLOW_MARK_CONSTANT: &str = "FLOW_MARK";

/// Constant of the programs that the agent sets: [`crate::path::Carrier::number`].
pub const CARRIER_CONSTANT: &str = "CARRIER";

/// Value of `skb->tc_index` on what a program redirects to the external interface, which tells it from what the kernel's
/// own path sends. Only programs of tc read that field; `to_underlay` sets it to zero.
pub const REDIRECTED: u16 = 0xf1a7;

/// Never attached: lets the agent try, before it relies on them, what the kernel makes of the flags that the other
/// programs give `bpf_skb_adjust_room`. The first word of the packet's control block says which, the result is the
/// helper's.
pub const TRY_ROOM: &str = "try_room";
/// For [`TRY_ROOM`]: room for VXLAN.
pub const TRY_ENCAP: u32 = 0;
/// For [`TRY_ROOM`]: without VXLAN.
pub const TRY_DECAP: u32 = 1;
/// For [`TRY_ROOM`]: the same with `BPF_F_ADJ_ROOM_DECAP_L4_UDP`, which clears an aggregate's tunnel GSO flags.
pub const TRY_DECAP_CLEAN: u32 = 2;

/// Never attached: tells the agent what state the TCP socket of a connection is in, in a pod's network namespace. The packet
/// is an Ethernet header without meaning, and the connection as packets come to that socket (`struct bpf_sock_tuple`); the
/// first word of its control block is the number of the namespace in this one. The result is the state, 0 where there is no
/// socket.
pub const SOCKET_STATE: &str = "socket_state";

/// Filter of the agent's socket that hears which entries connection tracking forgets: forgets the flow of each at once
/// ([`crate::path::forgotten`]), and lets the agent know of those that are translated.
pub const FORGOTTEN: &str = "forgotten";

/// tc ingress on the host side of a pod's veth: what a pod sends.
pub const FROM_POD: &str = "from_pod";
/// tc egress on flannel.<vni>: what the kernel routed into the overlay.
pub const TO_OVERLAY: &str = "to_overlay";
/// tc egress on the host side of a pod's veth: what the kernel path brings a pod.
pub const TO_POD: &str = "to_pod";
/// tc ingress on flannel.<vni>: what the kernel has decapsulated.
pub const FROM_OVERLAY: &str = "from_overlay";
/// tc ingress on the external interface: what arrives from other nodes.
pub const FROM_UNDERLAY: &str = "from_underlay";
/// tc egress on the external interface: what the kernel routes to other nodes without a tunnel.
pub const TO_UNDERLAY: &str = "to_underlay";
/// XDP in the driver of the external interface: what arrives from other nodes, before the kernel has made a
/// packet of it.
pub const XDP_UNDERLAY: &str = "xdp_underlay";
/// Generic XDP on the external interface: what the kernel has made a packet of already.
pub const XDP_GENERIC: &str = "xdp_generic";
