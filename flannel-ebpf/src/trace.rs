//! The programs that tell of packets: in an object of their own, which takes the place of the others only while somebody
//! looks.
//!
//! Around each entry point the packet is looked at before anything happens to it, and written down after; in between
//! [`counted`] hears what it is counted for. What is known of the packet meanwhile is in one slot of each CPU: no program
//! of ours runs inside of another.
#![expect(
    unsafe_code,
    reason = "packets are copied by the kernel's helpers, and slots of maps are reached through raw pointers"
)]

use core::hint::black_box;

use aya_ebpf::{
    bindings::{__sk_buff, xdp_md},
    btf_maps::{Array, LruPerCpuHashMap, PerCpuArray, RingBuf},
    helpers::{
        bpf_get_smp_processor_id, bpf_ktime_get_ns, bpf_skb_load_bytes, bpf_xdp_get_buff_len,
        bpf_xdp_load_bytes,
    },
    macros::btf_map,
};
use flannel_common::{
    layout::{
        Counter,
        trace::{
            NO_REASON, ReasonBits, TRACE_DATA, TRACE_OFF, TRACE_REASONS, TRACE_RECORDS, TRACE_TOTALS,
            TraceFilter, TraceKey, TraceRecord, TraceState,
        },
    },
    packet::{
        headers::{ENCAP_LEN, ETHERNET_LEN, ETHERTYPE_IPV4, IPV4_LEN, PROTOCOL_TCP, PROTOCOL_UDP},
        ipv6::{self, ETHERTYPE_IPV6, IPV6_LEN},
    },
    path::Hook,
    reason::{Class, Reason},
};

use crate::size::Size;

#[btf_map(name = "trace_filter")]
static FILTER: Array<TraceFilter, 1> = Array::new();

#[btf_map(name = "trace_ring")]
static RING: RingBuf<TraceRecord, { 1 << 20 }> = RingBuf::new();

#[btf_map(name = "trace_sums")]
static SUMS: LruPerCpuHashMap<TraceKey, Counter, 16_384> = LruPerCpuHashMap::new();

#[btf_map(name = "trace_state")]
static STATE: PerCpuArray<TraceState, 1> = PerCpuArray::new();

#[btf_map(name = "trace_now")]
static NOW: PerCpuArray<TraceRecord, 1> = PerCpuArray::new();

/// What happens at a hook of tc.
///
/// What tells is in functions of its own, called before and after: beside what `$run` needs, the stack, whose limit is for
/// all functions that are called one in the other, has no room for it. A macro, as in [`untraced`](../untraced.rs).
macro_rules! of_tc {
    ($ctx:expr, $hook:ident, $run:path) => {{
        #[inline(never)]
        fn apart(packet: $crate::ctx::Skb) -> i32 {
            $run(packet, &$crate::maps::Maps)
        }
        let packet = $crate::ctx::Skb::of($ctx);
        $crate::trace::begin_tc(packet.raw(), flannel_common::path::Hook::$hook as u32);
        let action = apart(packet);
        $crate::trace::end_tc(packet.raw(), action);
        action
    }};
}
pub(crate) use of_tc;

/// What happens at a hook of XDP.
macro_rules! of_xdp {
    ($ctx:expr, $hook:ident, $run:path) => {{
        #[inline(never)]
        fn apart(frame: $crate::ctx::Frame) -> u32 {
            $run(frame, &$crate::maps::Maps)
        }
        $crate::trace::begin_xdp($ctx.ctx, flannel_common::path::Hook::$hook as u32);
        let action = apart($crate::ctx::Frame::of($ctx));
        $crate::trace::end(action as i32, 0);
        action
    }};
}
pub(crate) use of_xdp;

/// [`end`] of a packet at a hook of tc.
#[inline(always)]
pub(crate) fn end_tc(skb: *mut __sk_buff, action: i32) {
    // SAFETY: a field of the live context.
    end(action, unsafe { (*skb).mark });
}

#[inline(never)]
pub(crate) fn begin_tc(skb: *mut __sk_buff, hook: u32) {
    // SAFETY: fields of the live context.
    let (len, mark, ifindex, gso_size, gso_segs) =
        unsafe { ((*skb).len, (*skb).mark, (*skb).ifindex, (*skb).gso_size, (*skb).gso_segs) };
    let wanted = begin(hook, len, |to, len| {
        // SAFETY: `to` has room for the bytes; the context is live.
        unsafe { bpf_skb_load_bytes(skb.cast(), 0, to.cast(), len) == 0 }
    });
    if wanted && let Some(now) = now() {
        now.mark = mark;
        now.ifindex = ifindex;
        now.gso_size = gso_size;
        now.segments = if gso_segs > 1 { gso_segs } else { 1 };
    }
}

#[inline(never)]
pub(crate) fn begin_xdp(md: *mut xdp_md, hook: u32) {
    // SAFETY: the live context, and a field of it.
    let (len, ifindex) = unsafe { (bpf_xdp_get_buff_len(md) as u32, (*md).ingress_ifindex) };
    let wanted = begin(hook, len, |to, len| {
        // SAFETY: as in `begin_tc`.
        unsafe { bpf_xdp_load_bytes(md, 0, to.cast(), len) == 0 }
    });
    if wanted && let Some(now) = now() {
        now.ifindex = ifindex;
        now.segments = 1;
    }
}

/// This CPU's slot.
#[inline(always)]
fn now() -> Option<&'static mut TraceRecord> {
    // SAFETY: the slot is this CPU's own, and no program of ours interrupts another.
    NOW.get_ptr_mut(0).map(|now| unsafe { &mut *now })
}

/// Whether the packet is wanted: then what it is stands in the slot.
#[inline(always)]
fn begin(hook: u32, len: u32, load: impl FnOnce(*mut u8, u32) -> bool) -> bool {
    let Some(now) = now() else { return false };
    now.live = 0;
    let Some(filter) = FILTER.get(0) else { return false };
    if filter.mode == TRACE_OFF || filter.hooks >> (hook & 31) & 1 == 0 {
        return false;
    }
    // The bounds are the verifier's to see, too.
    let take = black_box(len);
    let take = if take > TRACE_DATA as u32 { TRACE_DATA as u32 } else { take };
    if take == 0 || !load(now.data.as_mut_ptr().cast(), take) {
        return false;
    }
    now.captured = take;
    now.len = len;
    now.mark = 0;
    now.gso_size = 0;
    now.counted = 0;
    now.tunnelled = 0;
    now.ports = [0; 2];
    now.reasons = [0; TRACE_REASONS];
    now.key = TraceKey { hook, reason: NO_REASON, ..TraceKey::default() };
    read_headers(now, filter, hook);
    if !fits(now, filter) {
        return false;
    }
    now.live = 1;
    true
}

/// Reads addresses and ports, of the inner packet where there is one.
#[inline(always)]
fn read_headers(now: &mut TraceRecord, filter: &TraceFilter, hook: u32) {
    const INNER_V4: usize = ENCAP_LEN + ETHERNET_LEN;
    const INNER_V6: usize = ipv6::ENCAP_LEN + ETHERNET_LEN;
    const UNDERLAY: u32 = 1 << Hook::FromUnderlay as u32
        | 1 << Hook::ToUnderlay as u32
        | 1 << Hook::XdpUnderlay as u32
        | 1 << Hook::XdpGeneric as u32;
    if !read_ip::<ETHERNET_LEN>(now) {
        return;
    }
    let may_be_tunnelled = UNDERLAY >> (hook & 31) & 1 == 1;
    if may_be_tunnelled
        && filter.vxlan_port != 0
        && now.key.protocol == PROTOCOL_UDP as u32
        && now.ports[1] as u32 == filter.vxlan_port
    {
        let inner = if now.key.family == 4 { read_ip::<INNER_V4>(now) } else { read_ip::<INNER_V6>(now) };
        if inner {
            now.tunnelled = 1;
        }
    }
}

/// Reads the IP header at `AT`, behind an Ethernet header. Whether there is one.
#[inline(always)]
fn read_ip<const AT: usize>(now: &mut TraceRecord) -> bool {
    let data = now.data.as_flattened();
    let word = |at: usize| u32::from_ne_bytes([data[at], data[at + 1], data[at + 2], data[at + 3]]);
    let long = |at: usize| word(at) as u64 | (word(at + 4) as u64) << 32;
    let ethertype = u16::from_be_bytes([data[AT - 2], data[AT - 1]]);
    let key = match ethertype {
        // In the first four bytes, whatever the order of bytes in a word.
        ETHERTYPE_IPV4 => {
            let first = |word: u32| {
                let [a, b, c, d] = word.to_ne_bytes();
                u64::from_ne_bytes([a, b, c, d, 0, 0, 0, 0])
            };
            TraceKey {
                source: [first(word(AT + 12)), 0],
                destination: [first(word(AT + 16)), 0],
                family: 4,
                protocol: data[AT + 9] as u32,
                ..now.key
            }
        }
        ETHERTYPE_IPV6 => TraceKey {
            source: [long(AT + 8), long(AT + 16)],
            destination: [long(AT + 24), long(AT + 32)],
            family: 6,
            protocol: data[AT + 6] as u32,
            ..now.key
        },
        _ => return false,
    };
    let has_ports = key.protocol == PROTOCOL_TCP as u32 || key.protocol == PROTOCOL_UDP as u32;
    let port = |at: usize| u16::from_be_bytes([data[at], data[at + 1]]);
    let ports = match (has_ports, key.family) {
        (false, _) => [0; 2],
        (true, 4) => [port(AT + IPV4_LEN), port(AT + IPV4_LEN + 2)],
        (true, _) => [port(AT + IPV6_LEN), port(AT + IPV6_LEN + 2)],
    };
    now.key = key;
    now.ports = ports;
    true
}

#[inline(always)]
fn fits(now: &TraceRecord, filter: &TraceFilter) -> bool {
    let key = &now.key;
    let [a, b] = &filter.ends;
    let port = filter.port;
    (filter.family == 0 || filter.family == key.family)
        && (filter.protocol == 0 || filter.protocol == key.protocol)
        && (port == 0 || port == now.ports[0] as u32 || port == now.ports[1] as u32)
        && ((a.holds(&key.source) && b.holds(&key.destination))
            || (b.holds(&key.source) && a.holds(&key.destination)))
}

/// The packet of the slot is counted.
#[inline(always)]
pub(crate) fn counted(reason: Reason, size: Size) {
    let Some(now) = now() else { return };
    if now.live == 0 {
        return;
    }
    let at = now.counted as usize;
    if at < TRACE_REASONS {
        now.reasons[at] = reason as u8;
        now.counted += 1;
    }
    if !matches!(reason.class(), Class::Note) || now.key.reason == NO_REASON {
        now.key.reason = reason as u32;
    }
    let Some(filter) = FILTER.get(0) else { return };
    if filter.mode == TRACE_TOTALS {
        add(&now.key, size);
    }
}

#[inline(always)]
fn add(key: &TraceKey, size: Size) {
    let (packets, bytes) = (size.packets as u64, size.bytes as u64);
    match SUMS.get_ptr_mut(key) {
        // SAFETY: the slot is this CPU's own.
        Some(sum) => unsafe {
            (*sum).packets += packets;
            (*sum).bytes += bytes;
        },
        None => {
            // One that finds no room is not added up: the oldest go first.
            let _ = SUMS.insert(key, Counter { packets, bytes }, 0);
        }
    }
}

/// The program has answered with `action`.
#[inline(never)]
pub(crate) fn end(action: i32, mark: u32) {
    let Some(now) = now() else { return };
    if now.live == 0 {
        return;
    }
    now.live = 0;
    let Some(filter) = FILTER.get(0) else { return };
    if filter.mode != TRACE_RECORDS || !is_of_reason(now, filter.reasons) {
        return;
    }
    let Some(state) = STATE.get_ptr_mut(0) else { return };
    // SAFETY: the slot is this CPU's own. The helpers take nothing and cannot fail.
    let (state, time, cpu) = unsafe { (&mut *state, bpf_ktime_get_ns(), bpf_get_smp_processor_id()) };
    if filter.every > 1 {
        state.seen += 1;
        if state.seen < filter.every {
            return;
        }
        state.seen = 0;
    }
    if filter.rate != 0 {
        let second = time / 1_000_000_000;
        if state.second != second {
            state.second = second;
            state.sent = 0;
        }
        if state.sent >= filter.rate {
            state.limited += 1;
            return;
        }
        state.sent += 1;
    }
    now.time = time;
    now.cpu = cpu;
    now.action = action;
    now.mark_after = mark;
    let record: &TraceRecord = now;
    if RING.output(record, 0).is_err() {
        state.lost += 1;
    }
}

/// Whether the packet is counted for one of `wanted`.
#[inline(always)]
fn is_of_reason(now: &TraceRecord, wanted: ReasonBits) -> bool {
    if wanted.is_empty() {
        return true;
    }
    let mut counted = ReasonBits::default();
    let mut at = 0;
    while at < TRACE_REASONS {
        if at < now.counted as usize {
            counted = counted.with(now.reasons[at]);
        }
        at += 1;
    }
    counted.meets(wanted)
}
