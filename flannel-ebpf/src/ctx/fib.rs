//! What the kernel's routing does with a packet (bpf_fib_lookup).

use core::{
    ffi::c_void,
    mem::{offset_of, zeroed},
};

use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_FWD_DISABLED, BPF_FIB_LKUP_RET_NO_NEIGH,
        BPF_FIB_LKUP_RET_NOT_FWDED, BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LKUP_RET_UNSUPP_LWT,
        BPF_FIB_LOOKUP_OUTPUT, bpf_fib_lookup as Lookup,
    },
    helpers::bpf_fib_lookup,
};
use flannel_common::{
    packet::{
        Fib, Packet as _,
        headers::{Ethernet, PROTOCOL_UDP},
    },
    path::UnderlayRoute,
};

use super::Skb;
use crate::family::InKernel;

/// What routing does with a UDP packet that came by interface `ifindex`. `ctx` is the live context.
#[inline(always)]
pub(super) fn destination<F: InKernel>(
    ctx: *mut c_void,
    ifindex: u32,
    source: F::Address,
    destination: F::Address,
) -> Fib {
    let mut lookup = lookup::<F>(ifindex, source, destination);
    lookup.l4_protocol = PROTOCOL_UDP;
    // SAFETY: `ctx` is the live context of a program that may call this; `lookup` is initialised in full and outlives
    // the call.
    let answer = unsafe { bpf_fib_lookup(ctx, &raw mut lookup, size_of::<Lookup>() as i32, 0) };
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

/// As [`Skb::underlay_route`].
#[inline(always)]
pub(super) fn route<F: InKernel>(
    skb: &Skb,
    source: F::Address,
    destination: F::Address,
) -> Option<UnderlayRoute> {
    // SAFETY: a field of the live context.
    let mut lookup = lookup::<F>(unsafe { (*skb.skb).ifindex }, source, destination);
    // With a length the helper tells the route's MTU; one byte fits each.
    lookup.__bindgen_anon_1.tot_len = 1;
    let len = size_of::<Lookup>() as i32;
    // SAFETY: as in `destination`.
    let answer = unsafe { bpf_fib_lookup(skb.skb.cast(), &raw mut lookup, len, BPF_FIB_LOOKUP_OUTPUT) };
    match answer as u32 {
        BPF_FIB_LKUP_RET_SUCCESS => Some(UnderlayRoute {
            stations: Ethernet::of_words(macs(&lookup), F::ETHERTYPE),
            // SAFETY: the helper has written it, for a lookup with a length.
            mtu: u32::from(unsafe { lookup.__bindgen_anon_1.mtu_result }),
        }),
        // An interface that forwards nothing sends all the same; the helper says no more about it.
        BPF_FIB_LKUP_RET_FWD_DISABLED => {
            Some(UnderlayRoute { stations: Ethernet::parse(skb.view(0)?), mtu: u32::MAX })
        }
        _ => None,
    }
}

#[inline(always)]
fn lookup<F: InKernel>(ifindex: u32, source: F::Address, destination: F::Address) -> Lookup {
    // SAFETY: plain integers, for which zero is a value.
    let mut lookup: Lookup = unsafe { zeroed() };
    lookup.family = F::AF as u8;
    lookup.ifindex = ifindex;
    F::put_addresses(&mut lookup, source, destination);
    lookup
}

/// The MACs that a lookup has found, source first, as words: each read by itself, since LLVM would read them in pieces
/// that are not aligned.
#[inline(always)]
fn macs(lookup: &Lookup) -> [u32; 3] {
    const SOURCE: usize = offset_of!(Lookup, smac);
    const { assert!(SOURCE.is_multiple_of(4) && SOURCE + 12 == size_of::<Lookup>()) };
    let start = (&raw const *lookup).cast::<u32>();
    // SAFETY: the last three words of a struct that is aligned to words.
    [0, 1, 2].map(|word| unsafe { start.add(SOURCE / 4 + word).read_volatile() })
}
