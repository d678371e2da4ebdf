//! The packet in the kernel: bounds-checked access to its bytes, and the helpers that change it.
//!
//! One of the two files with `unsafe`. A view of packet memory lives only while a decision is made; what
//! moves the packet comes after.
#![expect(unsafe_code, reason = "packet memory and kernel helpers are reached through raw pointers")]

mod fib;
mod xdp;

pub(crate) use xdp::XdpFrame;

use core::{ffi::c_void, hint::black_box, mem::offset_of};

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_CSUM_LEVEL_DEC, BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4,
        BPF_F_ADJ_ROOM_ENCAP_L3_IPV6, BPF_F_ADJ_ROOM_ENCAP_L4_UDP, BPF_F_ADJ_ROOM_FIXED_GSO,
        BPF_F_ADJ_ROOM_NO_CSUM_RESET, BPF_FIB_LKUP_RET_FWD_DISABLED, BPF_FIB_LKUP_RET_SUCCESS,
        BPF_FIB_LOOKUP_OUTPUT, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, bpf_fib_lookup as FibLookup,
        bpf_redir_neigh, bpf_redir_neigh__bindgen_ty_1, bpf_tunnel_key,
    },
    bpf_f_adj_room_encap_l2,
    helpers::{
        bpf_check_mtu, bpf_csum_level, bpf_fib_lookup, bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer,
        bpf_set_hash, bpf_skb_adjust_room, bpf_skb_pull_data, bpf_skb_set_tunnel_key,
    },
    programs::TcContext,
};
use flannel_common::{
    layout::{AddressV6, POPPED_FOR_LEN, PodPlace, PoppedFor},
    map::{REDIRECTED, TRY_POP, TRY_PUSH},
    packet::{
        Arrival, Fib, Packet,
        headers::{ENCAP_LEN, ETHERNET_LEN, ETHERTYPE_IPV4, Ethernet},
        ipv6::{self, ETHERTYPE_IPV6},
    },
    path::UnderlayRoute,
    reason::Reason,
};

/// `AF_INET`, include/linux/socket.h.
const AF_INET: u32 = 2;
/// As `AF_INET`.
const AF_INET6: u32 = 10;
/// include/uapi/linux/if_packet.h.
const PACKET_OTHERHOST: u32 = 3;

/// Flags of the push. `FIXED_GSO`: segments keep their payload size, the outer headers come on top.
/// `ENCAP_L2(14)`: the segmenter finds the inner Ethernet header 14 bytes before the inner IP header.
const PUSH_FLAGS: u64 = BPF_F_ADJ_ROOM_FIXED_GSO as u64
    | BPF_F_ADJ_ROOM_NO_CSUM_RESET as u64
    | BPF_F_ADJ_ROOM_ENCAP_L4_UDP as u64
    | BPF_F_ADJ_ROOM_ENCAP_L2_ETH as u64
    | bpf_f_adj_room_encap_l2(ETHERNET_LEN as u64);

/// Flags of the pop. Without `FIXED_GSO` the kernel would add the popped bytes to the segment size,
/// and aggregates of small segments would be dropped.
const POP_FLAGS: u64 = BPF_F_ADJ_ROOM_FIXED_GSO as u64 | BPF_F_ADJ_ROOM_NO_CSUM_RESET as u64;

/// The pop that frees an aggregate of its tunnel's marks: `BPF_F_ADJ_ROOM_DECAP_L4_UDP` (include/uapi/linux/bpf.h),
/// younger than these bindings.
const POP_CLEAN_FLAGS: u64 = POP_FLAGS | 1 << 10;

/// Tries the flags that the first word of the control block asks for; what the helper says.
#[inline(always)]
pub(crate) fn try_room(ctx: &TcContext) -> i32 {
    let skb = ctx.skb.skb;
    // SAFETY: a field of the live context, and the live context.
    unsafe {
        let (difference, flags) = match (*skb).cb[0] {
            TRY_PUSH => (ENCAP_LEN as i32, PUSH_FLAGS | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 as u64),
            TRY_POP => (-(ENCAP_LEN as i32), POP_FLAGS),
            _ => (-(ENCAP_LEN as i32), POP_CLEAN_FLAGS),
        };
        bpf_skb_adjust_room(skb, difference, BPF_ADJ_ROOM_MAC, flags) as i32
    }
}

/// Where a packet is sent on the link of an interface.
pub(crate) trait NextHop: Copy {
    /// Sends it there.
    fn redirect(self, skb: Skb, ifindex: u32) -> i32;
}

impl NextHop for [u8; 4] {
    #[inline(always)]
    fn redirect(self, skb: Skb, ifindex: u32) -> i32 {
        skb.redirect_neighbour(ifindex, self)
    }
}

impl NextHop for AddressV6 {
    #[inline(always)]
    fn redirect(self, skb: Skb, ifindex: u32) -> i32 {
        skb.redirect_neighbour_v6(ifindex, self)
    }
}

/// A packet at a tc hook. A copy is the same packet.
#[derive(Clone, Copy)]
pub(crate) struct Skb {
    skb: *mut __sk_buff,
}

/// A next hop so placed on the stack that its address, which LLVM moves as two words, is aligned.
#[repr(C, align(8))]
struct Placed {
    gap: u32,
    next_hop: bpf_redir_neigh,
}

#[inline(always)]
const fn redir_neigh(family: u32, address: [u32; 4]) -> bpf_redir_neigh {
    bpf_redir_neigh {
        nh_family: family,
        __bindgen_anon_1: bpf_redir_neigh__bindgen_ty_1 { ipv6_nh: address },
    }
}

/// How much a packet counts for.
#[derive(Clone, Copy)]
pub(crate) struct Size {
    /// Packets on the wire: the segments of a GSO aggregate, 1 otherwise.
    pub(crate) packets: u32,
    /// Length of the frame.
    pub(crate) bytes: u32,
}

impl Skb {
    /// The packet of `ctx`, its first `linear` bytes (or all, if it has fewer) made directly readable.
    #[inline(always)]
    pub(crate) fn of(ctx: &TcContext, linear: u32) -> Self {
        let skb = Self { skb: ctx.skb.skb };
        if skb.data() + linear as usize > skb.data_end() {
            // SAFETY: `skb` is the live context. A failure (packet shorter, no memory) shows as a
            // failed read later.
            unsafe {
                let length = (*skb.skb).len;
                bpf_skb_pull_data(skb.skb, if linear < length { linear } else { length });
            }
        }
        skb
    }

    /// The mark of the packet of `ctx`.
    #[inline(always)]
    pub(crate) fn mark_of(ctx: &TcContext) -> u32 {
        // SAFETY: a field of the live context.
        unsafe { (*ctx.skb.skb).mark }
    }

    /// What the kernel knows of the packet beside its bytes.
    #[inline(always)]
    pub(crate) fn arrival(&self) -> Arrival {
        // SAFETY: fields of the live context; the verifier rewrites each load to the sk_buff's own field.
        unsafe {
            Arrival {
                ifindex: (*self.skb).ifindex,
                gso_size: (*self.skb).gso_size,
                mark: (*self.skb).mark,
                tc_index: (*self.skb).tc_index as u16,
                vlan_tagged: (*self.skb).vlan_present != 0,
                for_other_station: (*self.skb).pkt_type == PACKET_OTHERHOST,
                from_socket: self.is_of_socket(),
            }
        }
    }

    /// Whether `ctx` is an IPv6 packet, by what the kernel says: no byte of it is read.
    #[inline(always)]
    pub(crate) fn is_ipv6(ctx: &TcContext) -> bool {
        // SAFETY: a field of the live context.
        unsafe { (*ctx.skb.skb).protocol == (ETHERTYPE_IPV6.to_be() as u32) }
    }

    /// Whether the packet belongs to a socket of IPv4 or IPv6. What arrives for forwarding is taken from its socket
    /// (net/ipv4/ip_input.c, `ip_rcv_core`), while the way from a pod to its veth leaves it there (net/core/skbuff.c,
    /// `skb_scrub_packet`); what a virtual machine or a raw packet socket sends is of no address family of ours.
    #[inline(always)]
    fn is_of_socket(&self) -> bool {
        // SAFETY: a field of the live context; the verifier makes sure that it is not followed before the check.
        unsafe {
            let socket = (*self.skb).__bindgen_anon_2.sk;
            !socket.is_null() && matches!((*socket).family, AF_INET | AF_INET6)
        }
    }

    /// Clears `bits` in the packet's mark; the others stay.
    #[inline(always)]
    pub(crate) fn unmark(&self, bits: u32) {
        // SAFETY: as in `set_mark`.
        let mark = unsafe { (*self.skb).mark };
        // Most packets have none of them.
        if mark & bits != 0 {
            self.set_mark(mark & !bits);
        }
    }

    /// Gives the packet `mark` for the one it has.
    #[inline(always)]
    pub(crate) fn set_mark(&self, mark: u32) {
        // SAFETY: a field of the live context that programs of this kind may write.
        unsafe { (*self.skb).mark = mark }
    }

    /// How much the packet counts for.
    #[inline(always)]
    pub(crate) fn size(&self) -> Size {
        // SAFETY: as in `arrival`.
        let segments = unsafe { (*self.skb).gso_segs };
        Size { packets: if segments > 1 { segments } else { 1 }, bytes: self.len() }
    }

    /// The hash of the packet's flow that the kernel has, from the packet's socket or from the NIC, as its own device
    /// would take it; else the one that `of_flow` gives, which the kernel then has too.
    #[inline(always)]
    pub(crate) fn flow_hash(&self, of_flow: impl FnOnce(&Self) -> Option<u32>) -> u32 {
        // SAFETY: a field of the live context.
        let known = unsafe { (*self.skb).hash };
        if known != 0 {
            return known;
        }
        let hash = of_flow(self).unwrap_or(1);
        // SAFETY: `skb` is the live context.
        unsafe { bpf_set_hash(self.skb, hash) };
        hash
    }

    /// Sets `bits` in the packet's mark; the others stay.
    #[inline(always)]
    pub(crate) fn mark(&self, bits: u32) {
        // SAFETY: a field of the live context that programs of this kind may write.
        unsafe { (*self.skb).mark |= bits }
    }

    /// Notes beside the packet what rules may change of it.
    #[inline(always)]
    pub(crate) fn note_beside(&self, note: u16) {
        // SAFETY: as in `mark`.
        unsafe { (*self.skb).tc_index = u32::from(note) }
    }

    /// Makes room for the outer headers behind the first 14 bytes; `None`, and nothing changed, where
    /// the kernel refuses.
    #[inline(always)]
    pub(crate) fn push_vxlan(&mut self) -> Option<()> {
        self.adjust_room(ENCAP_LEN as i32, PUSH_FLAGS | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 as u64)
    }

    /// As `push_vxlan`, for outer headers over IPv6.
    #[inline(always)]
    pub(crate) fn push_vxlan_v6(&mut self) -> Option<()> {
        self.adjust_room(ipv6::ENCAP_LEN as i32, PUSH_FLAGS | BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 as u64)
    }

    /// Removes the outer headers; `None`, and nothing changed, where the kernel refuses.
    #[inline(always)]
    pub(crate) fn pop_vxlan(&mut self) -> Option<()> {
        self.pop(ENCAP_LEN)
    }

    /// As `pop_vxlan`, of outer headers over IPv6.
    #[inline(always)]
    pub(crate) fn pop_vxlan_v6(&mut self) -> Option<()> {
        self.pop(ipv6::ENCAP_LEN)
    }

    #[inline(always)]
    fn pop(&mut self, len: usize) -> Option<()> {
        self.adjust_room(-(len as i32), POP_FLAGS)?;
        // A checksum the NIC has verified was the outer packet's: one level less is the inner one's.
        // SAFETY: `skb` is the live context; a packet without such a state is left as it is.
        unsafe { bpf_csum_level(self.skb, u64::from(BPF_CSUM_LEVEL_DEC)) };
        Some(())
    }

    #[inline(always)]
    fn adjust_room(&mut self, difference: i32, flags: u64) -> Option<()> {
        // SAFETY: `skb` is the live context; packet pointers are taken anew by every access.
        let result = unsafe { bpf_skb_adjust_room(self.skb, difference, BPF_ADJ_ROOM_MAC, flags) };
        if result == 0 { Some(()) } else { None }
    }

    /// Whether an IP packet of `packet_len` bytes fits interface `ifindex`, and that exists.
    #[inline(always)]
    pub(crate) fn fits(&self, ifindex: u32, packet_len: u32) -> Result<(), Reason> {
        fits(self.skb.cast(), ifindex, packet_len)
    }

    /// The pod for which XDP has popped the packet; `None` if it has not.
    #[inline(always)]
    pub(crate) fn popped_for(&self) -> Option<PodPlace> {
        // SAFETY: a field of the live context.
        let start = unsafe { (*self.skb).data_meta as usize };
        if start + POPPED_FOR_LEN > self.data() {
            return None;
        }
        // SAFETY: the bounds are checked; an array of bytes needs no alignment.
        PoppedFor::read(unsafe { &*(start as *const [u8; POPPED_FOR_LEN]) })
    }

    /// Sends the packet out of `ifindex` as it is.
    #[inline(always)]
    pub(crate) fn redirect(&self, ifindex: u32) -> i32 {
        // SAFETY: the helper takes two integers.
        unsafe { bpf_redirect(ifindex, 0) as i32 }
    }

    /// Sends the packet out of `ifindex` to the neighbour `next_hop`; the kernel's neighbour table
    /// gives the MACs, and queues the packet while it does not know them.
    #[inline(always)]
    pub(crate) fn redirect_neighbour(&self, ifindex: u32, next_hop: [u8; 4]) -> i32 {
        let [a, b, c, d] = next_hop;
        let mut next_hop = redir_neigh(AF_INET, [u32::from_ne_bytes([a, b, c, d]), 0, 0, 0]);
        self.tell_redirected();
        // SAFETY: `next_hop` is initialised in full and outlives the call.
        unsafe {
            bpf_redirect_neigh(ifindex, &raw mut next_hop, size_of::<bpf_redir_neigh>() as i32, 0) as i32
        }
    }

    /// As `redirect_neighbour`, to a neighbour known by its IPv6 address.
    #[inline(always)]
    pub(crate) fn redirect_neighbour_v6(&self, ifindex: u32, next_hop: AddressV6) -> i32 {
        let words = |half: u64| {
            let [a, b, c, d, e, f, g, h] = half.to_ne_bytes();
            [u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h])]
        };
        let [[a, b], [c, d]] = next_hop.halves().map(words);
        let mut placed = Placed { gap: 0, next_hop: redir_neigh(AF_INET6, [a, b, c, d]) };
        self.tell_redirected();
        // Not looked through, or LLVM would drop the gap.
        let next_hop = &raw mut black_box(&mut placed).next_hop;
        // SAFETY: `next_hop` is initialised in full and outlives the call.
        unsafe { bpf_redirect_neigh(ifindex, next_hop, size_of::<bpf_redir_neigh>() as i32, 0) as i32 }
    }

    /// Tells `to_underlay` that this packet is not the kernel's own.
    #[inline(always)]
    fn tell_redirected(&self) {
        // SAFETY: a field of the live context that programs of this kind may write.
        unsafe { (*self.skb).tc_index = u32::from(REDIRECTED) }
    }

    /// Whether the packet of `ctx` was redirected by one of our programs. It is not so for whoever sees it next.
    #[inline(always)]
    pub(crate) fn take_redirected(ctx: &TcContext) -> bool {
        let skb = ctx.skb.skb;
        // SAFETY: a field of the live context that programs of this kind may write.
        unsafe {
            if (*skb).tc_index != u32::from(REDIRECTED) {
                return false;
            }
            (*skb).tc_index = 0;
        }
        true
    }

    /// Takes from the packet the route by which the kernel has brought it here.
    ///
    /// While a neighbour is being resolved, packets for it wait; then each is sent by what its own route says is its
    /// neighbour (net/core/neighbour.c, `__neigh_update`). For a packet that goes another way now that would be the
    /// wrong one, and the wrong MAC. The helper puts a route in its place that names no neighbour, and that every
    /// interface but a tunnel in metadata mode ignores.
    #[inline(always)]
    pub(crate) fn drop_route(&self) {
        // SAFETY: a struct of integers.
        let mut key: bpf_tunnel_key = unsafe { core::mem::zeroed() };
        // SAFETY: `skb` is the live context, the key of integers is initialised and outlives the call.
        unsafe { bpf_skb_set_tunnel_key(self.skb, &raw mut key, size_of::<bpf_tunnel_key>() as u32, 0) };
    }

    /// How the kernel's route sends what is from `source` to `destination` out of this interface, and what it finds to
    /// be the next hop's MAC. `None` where there is no such way, or where the neighbour is not known.
    #[inline(always)]
    pub(crate) fn underlay_route(&self, source: [u8; 4], destination: [u8; 4]) -> Option<UnderlayRoute> {
        // SAFETY: a struct of integers.
        let mut lookup: FibLookup = unsafe { core::mem::zeroed() };
        lookup.family = AF_INET as u8;
        lookup.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(source);
        lookup.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(destination);
        self.route(lookup, ETHERTYPE_IPV4)
    }

    /// As `underlay_route`, between IPv6 addresses.
    #[inline(always)]
    pub(crate) fn underlay_route_v6(
        &self,
        source: AddressV6,
        destination: AddressV6,
    ) -> Option<UnderlayRoute> {
        let words = |address: AddressV6| -> [u32; 4] {
            let [a, b] = address.halves();
            [a as u32, (a >> 32) as u32, b as u32, (b >> 32) as u32]
        };
        // SAFETY: a struct of integers.
        let mut lookup: FibLookup = unsafe { core::mem::zeroed() };
        lookup.family = AF_INET6 as u8;
        lookup.__bindgen_anon_3.ipv6_src = words(source);
        lookup.__bindgen_anon_4.ipv6_dst = words(destination);
        self.route(lookup, ETHERTYPE_IPV6)
    }

    #[inline(always)]
    fn route(&self, mut lookup: FibLookup, ethertype: u16) -> Option<UnderlayRoute> {
        // With a length the helper tells the route's MTU; one byte fits each.
        lookup.__bindgen_anon_1.tot_len = 1;
        // SAFETY: fields of the live context; the helper writes the lookup, which is initialised.
        unsafe {
            lookup.ifindex = (*self.skb).ifindex;
            let len = size_of::<FibLookup>() as i32;
            match bpf_fib_lookup(self.skb.cast(), &raw mut lookup, len, BPF_FIB_LOOKUP_OUTPUT) as u32 {
                BPF_FIB_LKUP_RET_SUCCESS => Some(UnderlayRoute {
                    stations: Ethernet::of_words(macs(&lookup), ethertype),
                    mtu: u32::from(lookup.__bindgen_anon_1.mtu_result),
                }),
                // An interface that forwards nothing sends all the same; the helper says no more about it.
                BPF_FIB_LKUP_RET_FWD_DISABLED => {
                    Some(UnderlayRoute { stations: Ethernet::parse(self.view(0)?), mtu: u32::MAX })
                }
                _ => None,
            }
        }
    }

    /// Hands the packet to the other end of veth `ifindex`, in the pod, without a pass through the queue.
    #[inline(always)]
    pub(crate) fn redirect_peer(&self, ifindex: u32) -> i32 {
        // SAFETY: the helper takes two integers.
        unsafe { bpf_redirect_peer(ifindex, 0) as i32 }
    }

    #[inline(always)]
    fn data(&self) -> usize {
        // SAFETY: fields of the live context.
        unsafe { (*self.skb).data as usize }
    }

    #[inline(always)]
    fn data_end(&self) -> usize {
        // SAFETY: fields of the live context.
        unsafe { (*self.skb).data_end as usize }
    }

    /// The address of `N` bytes at `offset`, if the directly readable part of the packet has them.
    #[inline(always)]
    fn at<const N: usize>(&self, offset: usize) -> Option<*mut [u8; N]> {
        let start = self.data() + offset;
        if start + N > self.data_end() { None } else { Some(start as *mut [u8; N]) }
    }
}

/// The MACs that a lookup has found, source first, as words: each read by itself, since LLVM would read them in pieces
/// that are not aligned.
#[inline(always)]
fn macs(lookup: &FibLookup) -> [u32; 3] {
    const SOURCE: usize = offset_of!(FibLookup, smac);
    const { assert!(SOURCE.is_multiple_of(4) && SOURCE + 12 == size_of::<FibLookup>()) };
    let start = (&raw const *lookup).cast::<u32>();
    // SAFETY: the last three words of a struct that is aligned to words.
    [0, 1, 2].map(|word| unsafe { start.add(SOURCE / 4 + word).read_volatile() })
}

/// Whether an IP packet of `packet_len` bytes, or with 0 that of `ctx` itself, fits interface `ifindex`, and that
/// exists.
#[inline(always)]
fn fits(ctx: *mut c_void, ifindex: u32, packet_len: u32) -> Result<(), Reason> {
    // In: the length to check in place of the packet's. Out: the MTU, to which an aggregate is not held by the
    // helper.
    let mut mtu = packet_len;
    // SAFETY: `ctx` is the live context of a program that may call this, `mtu` outlives the call.
    match unsafe { bpf_check_mtu(ctx, ifindex, &raw mut mtu, 0, 0) } {
        0 if packet_len <= mtu => Ok(()),
        0.. => Err(Reason::TooBig),
        _ => Err(Reason::PodGone),
    }
}

impl Packet for Skb {
    #[inline(always)]
    fn len(&self) -> u32 {
        // SAFETY: a field of the live context.
        unsafe { (*self.skb).len }
    }

    #[inline(always)]
    fn view<const N: usize>(&self, offset: usize) -> Option<&[u8; N]> {
        // SAFETY: `at` has checked the bounds; an array of bytes needs no alignment. The decision that
        // borrows `self` is over before its verdict is carried out on a copy.
        self.at(offset).map(|bytes| unsafe { &*bytes })
    }

    #[inline(always)]
    fn write<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> Option<()> {
        // SAFETY: as in `view`; the program holds the packet exclusively (the verifier's prologue
        // unclones it).
        self.at(offset).map(|place| unsafe { place.write(bytes) })
    }

    #[inline(always)]
    fn fib_v4(&self, ifindex: u32, source: [u8; 4], destination: [u8; 4]) -> Fib {
        fib::v4(self.skb.cast(), ifindex, source, destination)
    }

    #[inline(always)]
    fn fib_v6(&self, ifindex: u32, source: AddressV6, destination: AddressV6) -> Fib {
        fib::v6(self.skb.cast(), ifindex, source, destination)
    }
}
