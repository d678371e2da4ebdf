//! The maps, and the tables a decision looks into.
//!
//! Values are copied out at once: a slot of a hash map may be
//! used anew while a reference to it lives.
#![expect(
    unsafe_code,
    reason = "values in maps are reached through raw pointers; statics are exported by name"
)]

use core::hint::black_box;

use aya_ebpf::{
    Global,
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, lpm_trie::Key},
    helpers::{bpf_get_smp_processor_id, bpf_ktime_get_coarse_ns},
    macros::btf_map,
};
use flannel_common::{
    family::{V4, V6},
    layout::{
        AddressV6, Config, Counter, Exempt, Flow, Forwarder, Hold, Permit, PodPlace, Route, Subnet,
        Translation, Tunnel, Vtep,
    },
    map::{ASKED_BYTES, BROKEN_OFF_BYTES, MAX_EXEMPT, MAX_FLOWS, MAX_PEERS, MAX_PODS, MAX_TRANSLATIONS},
    mark::{self, Marks},
    path::{Carrier, NodeTables, Tables},
    reason::{self, Direction, Reason},
};

use crate::{size::Size, trace};

/// `BPF_F_NO_PREALLOC` (include/uapi/linux/bpf.h): memory for the entries there are.
const NO_PREALLOC: usize = 1;

#[btf_map(name = "routes_v4")]
static ROUTES_V4: HashMap<Subnet<V4>, Route<V4>, { MAX_PEERS as usize }, NO_PREALLOC> = HashMap::new();

#[btf_map(name = "vteps_v4")]
static VTEPS_V4: HashMap<[u8; 4], Vtep<V4>, { MAX_PEERS as usize }, NO_PREALLOC> = HashMap::new();

#[btf_map(name = "pods_v4")]
pub(crate) static PODS_V4: HashMap<[u8; 4], PodPlace, { MAX_PODS as usize }, NO_PREALLOC> = HashMap::new();

#[btf_map(name = "snat_exempt_v4")]
static SNAT_EXEMPT_V4: LpmTrie<[u8; 4], Exempt, { MAX_EXEMPT as usize }, NO_PREALLOC> = LpmTrie::new();

#[btf_map(name = "flows_v4")]
pub(crate) static FLOWS_V4: LruHashMap<Flow<V4>, Permit, { MAX_FLOWS as usize }> = LruHashMap::new();

#[btf_map(name = "translations_v4")]
pub(crate) static TRANSLATIONS_V4: HashMap<
    Flow<V4>,
    Translation<V4>,
    { MAX_TRANSLATIONS as usize },
    NO_PREALLOC,
> = HashMap::new();

#[btf_map(name = "asked_v4")]
pub(crate) static ASKED_V4: RingBuf<Flow<V4>, { ASKED_BYTES as usize }> = RingBuf::new();

#[btf_map(name = "broken_off_v4")]
pub(crate) static BROKEN_OFF_V4: RingBuf<Flow<V4>, { BROKEN_OFF_BYTES as usize }> = RingBuf::new();

#[btf_map(name = "tunnels_v4")]
pub(crate) static TUNNELS_V4: HashMap<[u8; 4], Tunnel, { MAX_PEERS as usize }, NO_PREALLOC> = HashMap::new();

#[btf_map(name = "forwarders")]
static FORWARDERS: LruHashMap<u32, Forwarder, { MAX_PODS as usize }> = LruHashMap::new();

#[btf_map(name = "routes_v6")]
static ROUTES_V6: HashMap<Subnet<V6>, Route<V6>, { MAX_PEERS as usize }, NO_PREALLOC> = HashMap::new();

#[btf_map(name = "vteps_v6")]
static VTEPS_V6: HashMap<AddressV6, Vtep<V6>, { MAX_PEERS as usize }, NO_PREALLOC> = HashMap::new();

#[btf_map(name = "pods_v6")]
pub(crate) static PODS_V6: HashMap<AddressV6, PodPlace, { MAX_PODS as usize }, NO_PREALLOC> = HashMap::new();

#[btf_map(name = "snat_exempt_v6")]
static SNAT_EXEMPT_V6: LpmTrie<[u8; 16], Exempt, { MAX_EXEMPT as usize }, NO_PREALLOC> = LpmTrie::new();

#[btf_map(name = "flows_v6")]
pub(crate) static FLOWS_V6: LruHashMap<Flow<V6>, Permit, { MAX_FLOWS as usize }> = LruHashMap::new();

#[btf_map(name = "translations_v6")]
pub(crate) static TRANSLATIONS_V6: HashMap<
    Flow<V6>,
    Translation<V6>,
    { MAX_TRANSLATIONS as usize },
    NO_PREALLOC,
> = HashMap::new();

#[btf_map(name = "asked_v6")]
pub(crate) static ASKED_V6: RingBuf<Flow<V6>, { ASKED_BYTES as usize }> = RingBuf::new();

#[btf_map(name = "broken_off_v6")]
pub(crate) static BROKEN_OFF_V6: RingBuf<Flow<V6>, { BROKEN_OFF_BYTES as usize }> = RingBuf::new();

#[btf_map(name = "tunnels_v6")]
pub(crate) static TUNNELS_V6: HashMap<AddressV6, Tunnel, { MAX_PEERS as usize }, NO_PREALLOC> =
    HashMap::new();

#[btf_map(name = "config_v6")]
static CONFIG_V6: Array<Config<V6>, 1> = Array::new();

#[btf_map(name = "hold")]
static HOLD: Array<Hold, 1> = Array::new();

#[btf_map(name = "config_v4")]
static CONFIG_V4: Array<Config<V4>, 1> = Array::new();

#[btf_map(name = "counters")]
static COUNTERS: PerCpuArray<Counter, { reason::COUNTERS as usize }> = PerCpuArray::new();

// Constants to the verifier: the agent sets them before it loads the programs.
#[unsafe(no_mangle)]
static SNAT_EXEMPT_MARK: Global<u32> = Global::new(mark::SNAT_EXEMPT_MARK);

#[unsafe(no_mangle)]
static FLOW_MARK: Global<u32> = Global::new(mark::FLOW_MARK);

#[unsafe(no_mangle)]
static CARRIER: Global<u32> = Global::new(Carrier::Vxlan.number());

// The kernel lends GPL-only helpers (redirect_peer among them) to GPL-compatible programs.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// The maps as [`Tables`].
pub(crate) struct Maps;

impl NodeTables for Maps {
    #[inline(always)]
    fn forwarded(&self, ifindex: u32) -> u64 {
        // SAFETY: as with flows: a slot given to another veth costs, or gives, one look.
        unsafe { FORWARDERS.get(ifindex) }.map_or(0, |forwarder| forwarder.seen)
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: the helper takes nothing and cannot fail.
        unsafe { bpf_ktime_get_coarse_ns() }
    }

    #[inline(always)]
    fn held(&self) -> Hold {
        HOLD.get(0).map_or(Hold { until: 0, since: 0 }, |hold| *hold)
    }

    #[inline(always)]
    fn marks(&self) -> Marks {
        marks()
    }

    #[inline(always)]
    fn carrier(&self) -> Carrier {
        carrier()
    }
}

/// The maps of a family as [`Tables`].
macro_rules! tables {
    (
        $family:ident, $address:ty: $config:ident, $routes:ident, $vteps:ident, $pods:ident, $flows:ident,
        $translations:ident, $tunnels:ident, $is_exempt:ident
    ) => {
        impl Tables<$family> for Maps {
            #[inline(always)]
            fn config(&self) -> Option<Config<$family>> {
                let config = $config.get(0)?;
                // The kernel creates array entries zeroed; a range of ports that ends at 0 nobody writes. Looked at
                // before it is copied: on a node without this family that is all.
                if config.source_port_max == 0 { None } else { Some(*config) }
            }

            #[inline(always)]
            fn route(&self, subnet: Subnet<$family>) -> Option<Route<$family>> {
                // SAFETY: copied out at once. A value replaced meanwhile is freed only after a grace period.
                unsafe { $routes.get(subnet).copied() }
            }

            #[inline(always)]
            fn vtep(&self, address: $address) -> Option<Vtep<$family>> {
                // SAFETY: as in `route`.
                unsafe { $vteps.get(address).copied() }
            }

            #[inline(always)]
            fn pod(&self, address: $address) -> Option<PodPlace> {
                // SAFETY: as in `route`.
                unsafe { $pods.get(address).copied() }
            }

            #[inline(always)]
            fn is_exempt(&self, address: $address) -> bool {
                $is_exempt(address)
            }

            #[inline(always)]
            fn flow(&self, flow: &Flow<$family>) -> Option<Permit> {
                // SAFETY: copied out at once. Memory of the map stays the map's: a slot that is given to another
                // flow at this very moment may cost, or give, one packet that flow's permission.
                unsafe { $flows.get(flow).copied() }
            }

            #[inline(always)]
            fn translation(&self, flow: &Flow<$family>) -> Option<Translation<$family>> {
                // SAFETY: as in `flow`; and what the agent puts in another's place it puts for a flow that begins, whose
                // packets do not skip the stack yet.
                unsafe { $translations.get(flow).copied() }
            }

            #[inline(always)]
            fn tunnel(&self, vtep: $address) -> Option<Tunnel> {
                // SAFETY: as in `route`.
                unsafe { $tunnels.get(vtep).copied() }
            }
        }
    };
}

tables!(V4, [u8; 4]: CONFIG_V4, ROUTES_V4, VTEPS_V4, PODS_V4, FLOWS_V4, TRANSLATIONS_V4, TUNNELS_V4, is_exempt_v4);
tables!(V6, AddressV6: CONFIG_V6, ROUTES_V6, VTEPS_V6, PODS_V6, FLOWS_V6, TRANSLATIONS_V6, TUNNELS_V6, is_exempt_v6);

#[inline(always)]
fn is_exempt_v4(address: [u8; 4]) -> bool {
    SNAT_EXEMPT_V4.get(&Key::new(32, address)).is_some()
}

#[inline(always)]
fn is_exempt_v6(address: AddressV6) -> bool {
    let key = InTrie { gap: 0, key: Key::new(128, address.octets) };
    // Not looked through, or LLVM would drop the gap.
    SNAT_EXEMPT_V6.get(&black_box(&key).key).is_some()
}

/// The bits of packets' marks that are ours.
#[inline(always)]
pub(crate) fn marks() -> Marks {
    Marks { exempt: SNAT_EXEMPT_MARK.load(), flow: FLOW_MARK.load() }
}

/// What carries packets to other nodes.
#[inline(always)]
pub(crate) fn carrier() -> Carrier {
    Carrier::of_number(CARRIER.load())
}

/// A trie's key so placed on the stack that its address, which LLVM moves as two words, is aligned.
#[repr(C, align(8))]
struct InTrie {
    gap: u32,
    key: Key<[u8; 16]>,
}

/// Writes down when the pod behind veth `ifindex` was seen to forward.
#[inline(always)]
pub(crate) fn write_down_forwarder(ifindex: u32, seen: u64) -> Result<(), i32> {
    FORWARDERS.insert(ifindex, Forwarder { seen }, 0)
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
    trace::counted(reason, size);
    if let Some(counter) = COUNTERS.get_ptr_mut(reason::slot(direction, reason)) {
        // SAFETY: the slot is this CPU's own. A program that interrupts this one on the same CPU may
        // cost an increment, never memory.
        unsafe {
            (*counter).packets += u64::from(size.packets);
            (*counter).bytes += u64::from(size.bytes);
        }
    }
}
