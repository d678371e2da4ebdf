//! The maps, and the tables a decision looks into.
//!
//! One of the two files with `unsafe`. Values are copied out at once: a slot of a hash map may be
//! used anew while a reference to it lives.
#![expect(
    unsafe_code,
    reason = "values in maps are reached through raw pointers; statics are exported by name"
)]

use core::hint::black_box;

use aya_ebpf::{
    Global,
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, lpm_trie::Key},
    helpers::{bpf_get_smp_processor_id, bpf_ktime_get_coarse_ns},
    macros::btf_map,
};
use flannel_common::{
    family::V6,
    layout::{
        AddressV6, Config, ConfigV6, Counter, Exempt, FlowV4, FlowV6, Forwarder, Hold, PeerV4, PeerV6,
        Permit, PodPlace, SubnetV4, SubnetV6, Tunnel, VtepV4, VtepV6,
    },
    map::{MAX_EXEMPT, MAX_FLOWS, MAX_PEERS, MAX_PODS},
    mark::{self, Marks},
    path::{Note, Tables, TunnelNote},
    reason::{self, Direction, Reason},
};

use crate::ctx::Size;

/// `BPF_F_NO_PREALLOC` (include/uapi/linux/bpf.h): memory for the entries there are.
const NO_PREALLOC: usize = 1;

#[btf_map(name = "routes_v4")]
static ROUTES_V4: HashMap<SubnetV4, PeerV4, { MAX_PEERS as usize }, NO_PREALLOC> = HashMap::new();

#[btf_map(name = "vteps")]
static VTEPS: HashMap<[u8; 4], VtepV4, { MAX_PEERS as usize }, NO_PREALLOC> = HashMap::new();

#[btf_map(name = "pods_v4")]
static PODS_V4: HashMap<[u8; 4], PodPlace, { MAX_PODS as usize }, NO_PREALLOC> = HashMap::new();

#[btf_map(name = "snat_exempt_v4")]
static SNAT_EXEMPT_V4: LpmTrie<[u8; 4], Exempt, { MAX_EXEMPT as usize }, NO_PREALLOC> = LpmTrie::new();

#[btf_map(name = "flows_v4")]
static FLOWS_V4: LruHashMap<FlowV4, Permit, { MAX_FLOWS as usize }> = LruHashMap::new();

#[btf_map(name = "tunnels_v4")]
static TUNNELS_V4: HashMap<[u8; 4], Tunnel, { MAX_PEERS as usize }, NO_PREALLOC> = HashMap::new();

#[btf_map(name = "forwarders")]
static FORWARDERS: LruHashMap<u32, Forwarder, { MAX_PODS as usize }> = LruHashMap::new();

#[btf_map(name = "routes_v6")]
static ROUTES_V6: HashMap<SubnetV6, PeerV6, { MAX_PEERS as usize }, NO_PREALLOC> = HashMap::new();

#[btf_map(name = "vteps_v6")]
static VTEPS_V6: HashMap<AddressV6, VtepV6, { MAX_PEERS as usize }, NO_PREALLOC> = HashMap::new();

#[btf_map(name = "pods_v6")]
static PODS_V6: HashMap<AddressV6, PodPlace, { MAX_PODS as usize }, NO_PREALLOC> = HashMap::new();

#[btf_map(name = "snat_exempt_v6")]
static SNAT_EXEMPT_V6: LpmTrie<[u8; 16], Exempt, { MAX_EXEMPT as usize }, NO_PREALLOC> = LpmTrie::new();

#[btf_map(name = "flows_v6")]
static FLOWS_V6: LruHashMap<FlowV6, Permit, { MAX_FLOWS as usize }> = LruHashMap::new();

#[btf_map(name = "tunnels_v6")]
static TUNNELS_V6: HashMap<AddressV6, Tunnel, { MAX_PEERS as usize }, NO_PREALLOC> = HashMap::new();

#[btf_map(name = "config_v6")]
static CONFIG_V6: Array<ConfigV6, 1> = Array::new();

#[btf_map(name = "hold")]
static HOLD: Array<Hold, 1> = Array::new();

#[btf_map(name = "config")]
static CONFIG: Array<Config, 1> = Array::new();

#[btf_map(name = "counters")]
static COUNTERS: PerCpuArray<Counter, { reason::COUNTERS as usize }> = PerCpuArray::new();

// Constants to the verifier: the agent sets them before it loads the programs.
#[unsafe(no_mangle)]
static SNAT_EXEMPT_MARK: Global<u32> = Global::new(mark::SNAT_EXEMPT_MARK);

#[unsafe(no_mangle)]
static FLOW_MARK: Global<u32> = Global::new(mark::FLOW_MARK);

// The kernel lends GPL-only helpers (redirect_peer among them) to GPL-compatible programs.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// The maps as [`Tables`].
pub(crate) struct Maps;

impl Tables for Maps {
    #[inline(always)]
    fn config(&self) -> Option<Config> {
        let config = CONFIG.get(0).copied()?;
        // The kernel creates array entries zeroed; a range of ports that ends at 0 nobody writes.
        if config.source_port_max == 0 { None } else { Some(config) }
    }

    #[inline(always)]
    fn route_v4(&self, subnet: SubnetV4) -> Option<PeerV4> {
        // SAFETY: copied out at once. A value replaced meanwhile is freed only after a grace period.
        unsafe { ROUTES_V4.get(subnet).copied() }
    }

    #[inline(always)]
    fn vtep(&self, address: [u8; 4]) -> Option<VtepV4> {
        // SAFETY: as in `route_v4`.
        unsafe { VTEPS.get(address).copied() }
    }

    #[inline(always)]
    fn pod_v4(&self, address: [u8; 4]) -> Option<PodPlace> {
        // SAFETY: as in `route_v4`.
        unsafe { PODS_V4.get(address).copied() }
    }

    #[inline(always)]
    fn is_exempt_v4(&self, address: [u8; 4]) -> bool {
        SNAT_EXEMPT_V4.get(&Key::new(32, address)).is_some()
    }

    #[inline(always)]
    fn flow_v4(&self, flow: &FlowV4) -> Option<Permit> {
        // SAFETY: copied out at once. Memory of the map stays the map's: a slot that is given to another
        // flow at this very moment may cost, or give, one packet that flow's permission.
        unsafe { FLOWS_V4.get(flow).copied() }
    }

    #[inline(always)]
    fn tunnel_v4(&self, vtep: [u8; 4]) -> Option<Tunnel> {
        // SAFETY: as in `route_v4`.
        unsafe { TUNNELS_V4.get(vtep).copied() }
    }

    #[inline(always)]
    fn config_v6(&self) -> Option<ConfigV6> {
        let config = CONFIG_V6.get(0)?;
        // As with `config`. Looked at before it is copied: on a node without IPv6 that is all.
        if config.source_port_max == 0 { None } else { Some(*config) }
    }

    #[inline(always)]
    fn route_v6(&self, subnet: SubnetV6) -> Option<PeerV6> {
        // SAFETY: as in `route_v4`.
        unsafe { ROUTES_V6.get(subnet).copied() }
    }

    #[inline(always)]
    fn vtep_v6(&self, address: AddressV6) -> Option<VtepV6> {
        // SAFETY: as in `route_v4`.
        unsafe { VTEPS_V6.get(address).copied() }
    }

    #[inline(always)]
    fn pod_v6(&self, address: AddressV6) -> Option<PodPlace> {
        // SAFETY: as in `route_v4`.
        unsafe { PODS_V6.get(address).copied() }
    }

    #[inline(always)]
    fn is_exempt_v6(&self, address: AddressV6) -> bool {
        let key = InTrie { gap: 0, key: Key::new(128, address.octets) };
        // Not looked through, or LLVM would drop the gap.
        SNAT_EXEMPT_V6.get(&black_box(&key).key).is_some()
    }

    #[inline(always)]
    fn flow_v6(&self, flow: &FlowV6) -> Option<Permit> {
        // SAFETY: as in `flow_v4`.
        unsafe { FLOWS_V6.get(flow).copied() }
    }

    #[inline(always)]
    fn tunnel_v6(&self, vtep: AddressV6) -> Option<Tunnel> {
        // SAFETY: as in `route_v4`.
        unsafe { TUNNELS_V6.get(vtep).copied() }
    }

    #[inline(always)]
    fn forwarded(&self, ifindex: u32) -> u64 {
        // SAFETY: as in `flow_v4`: a slot given to another veth costs, or gives, one look.
        unsafe { FORWARDERS.get(ifindex) }.map_or(0, |forwarder| forwarder.seen)
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: the helper takes nothing and cannot fail.
        unsafe { bpf_ktime_get_coarse_ns() }
    }

    #[inline(always)]
    fn held_until(&self) -> u64 {
        HOLD.get(0).map_or(0, |hold| hold.until)
    }

    #[inline(always)]
    fn marks(&self) -> Marks {
        marks()
    }
}

/// The bits of packets' marks that are ours.
#[inline(always)]
pub(crate) fn marks() -> Marks {
    Marks { exempt: SNAT_EXEMPT_MARK.load(), flow: FLOW_MARK.load() }
}

/// A trie's key so placed on the stack that its address, which LLVM moves as two words, is aligned.
#[repr(C, align(8))]
struct InTrie {
    gap: u32,
    key: Key<[u8; 16]>,
}

/// As [`write_down`], about an IPv6 packet.
#[inline(always)]
pub(crate) fn write_down_v6(note: &Note<V6>) {
    let _ = match note {
        Note::Permit(flow, permit) => FLOWS_V6.insert(flow, permit, 0),
        Note::Forget(flow) | Note::Changed(flow) => FLOWS_V6.remove(flow),
        Note::Moved(address) => PODS_V6.remove(address),
        Note::Forwards { ifindex, seen } => FORWARDERS.insert(ifindex, Forwarder { seen: *seen }, 0),
    };
}

/// Writes down what is noted. As a whole, never through a reference: the slot might have become
/// another flow's meanwhile. A write that fails costs speed only: the flow stays on the kernel's path.
#[inline(always)]
pub(crate) fn write_down(note: &Note) {
    let _ = match note {
        Note::Permit(flow, permit) => FLOWS_V4.insert(flow, permit, 0),
        Note::Forget(flow) | Note::Changed(flow) => FLOWS_V4.remove(flow),
        Note::Moved(address) => PODS_V4.remove(address),
        Note::Forwards { ifindex, seen } => FORWARDERS.insert(ifindex, Forwarder { seen: *seen }, 0),
    };
}

/// Writes down what is noted about a peer, as a whole. A write that fails leaves the peer to the kernel's path.
#[inline(always)]
pub(crate) fn write_down_tunnel(note: &TunnelNote) {
    let _ = TUNNELS_V4.insert(note.vtep, note.tunnel, 0);
}

/// As [`write_down_tunnel`], about a peer known by its IPv6 address.
#[inline(always)]
pub(crate) fn write_down_tunnel_v6(note: &TunnelNote<AddressV6>) {
    let _ = TUNNELS_V6.insert(note.vtep, note.tunnel, 0);
}

/// The IP identification for the outer header of a packet that is about to be counted for `reason`: as many are used up
/// as the packet has segments, each of which gets the next (net/ipv4/af_inet.c, `inet_gso_segment`). None comes twice
/// within 65536 packets of a CPU; those of two CPUs run apart.
#[inline(always)]
pub(crate) fn next_id(direction: Direction, reason: Reason) -> u16 {
    // SAFETY: the slot is this CPU's own.
    let packets =
        COUNTERS.get_ptr(reason::slot(direction, reason)).map_or(0, |counter| unsafe { (*counter).packets });
    // SAFETY: the helper takes nothing and cannot fail.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    // The CPU's number in the upper byte, where the count gets to last.
    packets as u16 ^ (cpu as u16).swap_bytes()
}

/// Adds to the counter of `direction` and `reason` on this CPU.
#[inline(always)]
pub(crate) fn count(direction: Direction, reason: Reason, size: Size) {
    if let Some(counter) = COUNTERS.get_ptr_mut(reason::slot(direction, reason)) {
        // SAFETY: the slot is this CPU's own. A program that interrupts this one on the same CPU may
        // cost an increment, never memory.
        unsafe {
            (*counter).packets += u64::from(size.packets);
            (*counter).bytes += u64::from(size.bytes);
        }
    }
}
