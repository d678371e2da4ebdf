//! What the kernel's helpers want to know of a family.

use aya_ebpf::bindings::{
    BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6, bpf_fib_lookup as FibLookup, bpf_redir_neigh,
    bpf_redir_neigh__bindgen_ty_1,
};
use flannel_common::{
    family::{Family, V4, V6},
    layout::AddressV6,
};

/// `AF_INET`, include/linux/socket.h.
pub(crate) const AF_INET: u32 = 2;
/// As `AF_INET`.
pub(crate) const AF_INET6: u32 = 10;

/// A family as the kernel has it.
pub(crate) trait InKernel: Family {
    /// Address family.
    const AF: u32;
    /// Flag of `bpf_skb_adjust_room` for an outer header of this family.
    const ENCAP_FLAG: u64;

    /// Puts the addresses into a lookup of a route.
    fn put_addresses(lookup: &mut FibLookup, source: Self::Address, destination: Self::Address);

    /// Whether the 16 bytes of a neighbour's address are read eight at a time, and must stand where that is allowed.
    const WIDE_NEIGHBOUR: bool;

    /// A neighbour by its address.
    fn neighbour(address: Self::Address) -> bpf_redir_neigh;
}

impl InKernel for V4 {
    const AF: u32 = AF_INET;
    const ENCAP_FLAG: u64 = BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 as u64;
    const WIDE_NEIGHBOUR: bool = false;

    #[inline(always)]
    fn put_addresses(lookup: &mut FibLookup, source: [u8; 4], destination: [u8; 4]) {
        lookup.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(source);
        lookup.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(destination);
    }

    #[inline(always)]
    fn neighbour(address: [u8; 4]) -> bpf_redir_neigh {
        neighbour(AF_INET, [u32::from_ne_bytes(address), 0, 0, 0])
    }
}

impl InKernel for V6 {
    const AF: u32 = AF_INET6;
    const ENCAP_FLAG: u64 = BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 as u64;
    const WIDE_NEIGHBOUR: bool = true;

    #[inline(always)]
    fn put_addresses(lookup: &mut FibLookup, source: AddressV6, destination: AddressV6) {
        lookup.__bindgen_anon_3.ipv6_src = words(source);
        lookup.__bindgen_anon_4.ipv6_dst = words(destination);
    }

    #[inline(always)]
    fn neighbour(address: AddressV6) -> bpf_redir_neigh {
        neighbour(AF_INET6, words(address))
    }
}

#[inline(always)]
const fn neighbour(family: u32, address: [u32; 4]) -> bpf_redir_neigh {
    bpf_redir_neigh {
        nh_family: family,
        __bindgen_anon_1: bpf_redir_neigh__bindgen_ty_1 { ipv6_nh: address },
    }
}

#[inline(always)]
fn words(address: AddressV6) -> [u32; 4] {
    // The bytes of each word in the order of memory, whatever that is.
    let split = |half: u64| {
        let [a, b, c, d, e, f, g, h] = half.to_ne_bytes();
        [u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h])]
    };
    let [[a, b], [c, d]] = address.halves().map(split);
    [a, b, c, d]
}
