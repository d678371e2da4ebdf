//! What the kernel's routing does with a packet (bpf_fib_lookup).

use core::{ffi::c_void, mem::zeroed};

use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_NOT_FWDED,
        BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LKUP_RET_UNSUPP_LWT, bpf_fib_lookup as Lookup,
    },
    helpers::bpf_fib_lookup,
};
use flannel_common::{
    layout::AddressV6,
    packet::{Fib, headers::PROTOCOL_UDP},
};

use super::{AF_INET, AF_INET6};

/// As [`flannel_common::packet::Packet::fib_v4`], of a UDP packet. `ctx` is the live context.
#[inline(always)]
pub(super) fn v4(ctx: *mut c_void, ifindex: u32, source: [u8; 4], destination: [u8; 4]) -> Fib {
    let mut lookup = lookup(AF_INET, ifindex);
    lookup.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(source);
    lookup.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(destination);
    ask(ctx, &mut lookup)
}

/// As [`v4`], with IPv6.
#[inline(always)]
pub(super) fn v6(ctx: *mut c_void, ifindex: u32, source: AddressV6, destination: AddressV6) -> Fib {
    let mut lookup = lookup(AF_INET6, ifindex);
    lookup.__bindgen_anon_3.ipv6_src = words(source);
    lookup.__bindgen_anon_4.ipv6_dst = words(destination);
    ask(ctx, &mut lookup)
}

#[inline(always)]
fn lookup(family: u32, ifindex: u32) -> Lookup {
    // SAFETY: plain integers, for which zero is a value.
    let mut lookup: Lookup = unsafe { zeroed() };
    lookup.family = family as u8;
    lookup.l4_protocol = PROTOCOL_UDP;
    lookup.ifindex = ifindex;
    lookup
}

#[inline(always)]
fn ask(ctx: *mut c_void, lookup: &mut Lookup) -> Fib {
    // SAFETY: `ctx` is the live context of a program that may call this; `lookup` is initialised in full and outlives
    // the call.
    let answer = unsafe { bpf_fib_lookup(ctx, lookup, size_of::<Lookup>() as i32, 0) };
    match answer as u32 {
        BPF_FIB_LKUP_RET_SUCCESS
        | BPF_FIB_LKUP_RET_NO_NEIGH
        | BPF_FIB_LKUP_RET_FRAG_NEEDED
        | BPF_FIB_LKUP_RET_UNSUPP_LWT => Fib::Forwarded,
        // No unicast route to elsewhere: an address of this node, or one of several nodes.
        BPF_FIB_LKUP_RET_NOT_FWDED => Fib::Local,
        _ => Fib::Unknown,
    }
}

#[inline(always)]
fn words(address: AddressV6) -> [u32; 4] {
    let [a, b] = address.halves();
    // The bytes of each word in the order of memory, whatever that is.
    let split = |half: u64| {
        let [a, b, c, d, e, f, g, h] = half.to_ne_bytes();
        [u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h])]
    };
    let [[a, b], [c, d]] = [split(a), split(b)];
    [a, b, c, d]
}
