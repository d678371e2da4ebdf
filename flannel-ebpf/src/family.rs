//! What the kernel's helpers and the maps want to know of a family.

use aya_ebpf::bindings::{
    BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6, bpf_fib_lookup as FibLookup, bpf_redir_neigh,
    bpf_redir_neigh__bindgen_ty_1,
};
use flannel_common::{
    family::{Family, V4, V6},
    layout::AddressV6,
    path::{Note, TunnelNote},
};

use crate::{
    ctx::Skb,
    maps::{self, FLOWS_V4, FLOWS_V6, PODS_V4, PODS_V6, TUNNELS_V4, TUNNELS_V6},
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

    /// Sends the packet out of `ifindex` to the neighbour `next_hop`.
    fn redirect_neighbour(skb: Skb, ifindex: u32, next_hop: Self::Address) -> i32;

    /// Writes down what is noted. As a whole, never through a reference: the slot might have become
    /// another flow's meanwhile. A write that fails costs speed only: the flow stays on the kernel path.
    fn write_down(note: &Note<Self>);

    /// Writes down what is noted about the tunnel to a node, as a whole. A write that fails leaves the node to the kernel
    /// path.
    fn write_down_tunnel(note: &TunnelNote<Self>);
}

impl InKernel for V4 {
    const AF: u32 = AF_INET;
    const ENCAP_FLAG: u64 = BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 as u64;

    #[inline(always)]
    fn put_addresses(lookup: &mut FibLookup, source: [u8; 4], destination: [u8; 4]) {
        lookup.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(source);
        lookup.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(destination);
    }

    #[inline(always)]
    fn redirect_neighbour(skb: Skb, ifindex: u32, next_hop: [u8; 4]) -> i32 {
        skb.redirect_neighbour(ifindex, neighbour(AF_INET, [u32::from_ne_bytes(next_hop), 0, 0, 0]))
    }

    #[inline(always)]
    fn write_down(note: &Note<Self>) {
        let _ = match note {
            Note::Permit(flow, permit) => FLOWS_V4.insert(flow, permit, 0),
            Note::Forget(flow) | Note::Changed(flow) => FLOWS_V4.remove(flow),
            Note::Moved(address) => PODS_V4.remove(address),
            Note::Forwards { ifindex, seen } => maps::write_down_forwarder(*ifindex, *seen),
        };
    }

    #[inline(always)]
    fn write_down_tunnel(note: &TunnelNote<Self>) {
        let _ = TUNNELS_V4.insert(note.vtep, note.tunnel, 0);
    }
}

impl InKernel for V6 {
    const AF: u32 = AF_INET6;
    const ENCAP_FLAG: u64 = BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 as u64;

    #[inline(always)]
    fn put_addresses(lookup: &mut FibLookup, source: AddressV6, destination: AddressV6) {
        lookup.__bindgen_anon_3.ipv6_src = words(source);
        lookup.__bindgen_anon_4.ipv6_dst = words(destination);
    }

    #[inline(always)]
    fn redirect_neighbour(skb: Skb, ifindex: u32, next_hop: AddressV6) -> i32 {
        skb.redirect_placed_neighbour(ifindex, neighbour(AF_INET6, words(next_hop)))
    }

    #[inline(always)]
    fn write_down(note: &Note<Self>) {
        let _ = match note {
            Note::Permit(flow, permit) => FLOWS_V6.insert(flow, permit, 0),
            Note::Forget(flow) | Note::Changed(flow) => FLOWS_V6.remove(flow),
            Note::Moved(address) => PODS_V6.remove(address),
            Note::Forwards { ifindex, seen } => maps::write_down_forwarder(*ifindex, *seen),
        };
    }

    #[inline(always)]
    fn write_down_tunnel(note: &TunnelNote<Self>) {
        let _ = TUNNELS_V6.insert(note.vtep, note.tunnel, 0);
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
