//! The packet in the kernel: bounds-checked access to its bytes, and the helpers that change it.
//!
//! A view of packet memory lives only while a decision is made; what
//! moves the packet comes after.
#![expect(unsafe_code, reason = "packet memory and kernel helpers are reached through raw pointers")]

mod fib;
mod redirect;
mod socket;
mod xdp;

pub(crate) use xdp::Frame;

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_CSUM_LEVEL_DEC, BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4,
        BPF_F_ADJ_ROOM_ENCAP_L4_UDP, BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_ADJ_ROOM_NO_CSUM_RESET,
        BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
    },
    bpf_f_adj_room_encap_l2,
    helpers::{
        bpf_check_mtu, bpf_csum_level, bpf_csum_update, bpf_l4_csum_replace, bpf_set_hash,
        bpf_skb_adjust_room, bpf_skb_pull_data,
    },
    programs::TcContext,
};
use flannel_common::{
    family::{Family, V4, V6},
    layout::{AddressV6, DECAPSULATED_FOR_LEN, DecapsulatedFor, FlowProtocol, PodPlace},
    map::{TRY_DECAP, TRY_ENCAP},
    packet::{
        Arrival, Fib, Packet,
        headers::{ENCAP_LEN, ETHERNET_LEN},
        ipv6::ETHERTYPE_IPV6,
    },
    path::{Rewrite, UnderlayRoute},
    reason::Reason,
};

use crate::{
    family::{AF_INET, AF_INET6, InKernel},
    size::Size,
};

/// include/uapi/linux/if_packet.h.
const PACKET_HOST: u32 = 0;
/// As `PACKET_HOST`.
const PACKET_OTHERHOST: u32 = 3;

/// Flags of encapsulation. `FIXED_GSO`: segments keep their payload size, the outer headers come on top.
/// `ENCAP_L2(14)`: the segmenter finds the inner Ethernet header 14 bytes before the inner IP header.
const ENCAP_FLAGS: u64 = BPF_F_ADJ_ROOM_FIXED_GSO as u64
    | BPF_F_ADJ_ROOM_NO_CSUM_RESET as u64
    | BPF_F_ADJ_ROOM_ENCAP_L4_UDP as u64
    | BPF_F_ADJ_ROOM_ENCAP_L2_ETH as u64
    | bpf_f_adj_room_encap_l2(ETHERNET_LEN as u64);

/// The same without an inner Ethernet header.
const ENCAP_UDP_FLAGS: u64 = BPF_F_ADJ_ROOM_FIXED_GSO as u64
    | BPF_F_ADJ_ROOM_NO_CSUM_RESET as u64
    | BPF_F_ADJ_ROOM_ENCAP_L4_UDP as u64;

/// The same without UDP: aggregates become such of IP in IP (SKB_GSO_IPXIP4).
const ENCAP_IP_FLAGS: u64 = BPF_F_ADJ_ROOM_FIXED_GSO as u64 | BPF_F_ADJ_ROOM_NO_CSUM_RESET as u64;

/// Flags of decapsulation. Without `FIXED_GSO` the kernel would add the removed bytes to the segment size,
/// and aggregates of small segments would be dropped.
const DECAP_FLAGS: u64 = BPF_F_ADJ_ROOM_FIXED_GSO as u64 | BPF_F_ADJ_ROOM_NO_CSUM_RESET as u64;

/// Decapsulation that clears an aggregate's tunnel GSO flags: `BPF_F_ADJ_ROOM_DECAP_L4_UDP` (include/uapi/linux/bpf.h),
/// younger than these bindings.
const DECAP_CLEAN_FLAGS: u64 = DECAP_FLAGS | 1 << 10;

/// A packet at a tc hook. A copy is the same packet.
#[derive(Clone, Copy)]
pub(crate) struct Skb {
    skb: *mut __sk_buff,
}

impl Skb {
    /// The packet of `ctx`.
    #[inline(always)]
    pub(crate) fn of(ctx: &TcContext) -> Self {
        Self { skb: ctx.skb.skb }
    }

    /// The kernel's context.
    #[inline(always)]
    pub(crate) fn raw(self) -> *mut __sk_buff {
        self.skb
    }

    /// Makes its first `linear` bytes, or all if it has fewer, directly readable.
    #[inline(always)]
    pub(crate) fn make_readable(&self, linear: u32) {
        if self.data() + linear as usize > self.data_end() {
            // SAFETY: `skb` is the live context. A failure (packet shorter, no memory) shows as a
            // failed read later.
            unsafe {
                let length = (*self.skb).len;
                bpf_skb_pull_data(self.skb, if linear < length { linear } else { length });
            }
        }
    }

    /// Tries the flags that the first word of the control block asks for; what the helper says.
    #[inline(always)]
    pub(crate) fn try_room(self) -> i32 {
        // SAFETY: a field of the live context, and the live context.
        unsafe {
            let (difference, flags) = match (*self.skb).cb[0] {
                TRY_ENCAP => (ENCAP_LEN as i32, ENCAP_FLAGS | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 as u64),
                TRY_DECAP => (-(ENCAP_LEN as i32), DECAP_FLAGS),
                _ => (-(ENCAP_LEN as i32), DECAP_CLEAN_FLAGS),
            };
            bpf_skb_adjust_room(self.skb, difference, BPF_ADJ_ROOM_MAC, flags) as i32
        }
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
                priority: (*self.skb).priority,
                tc_index: (*self.skb).tc_index as u16,
                vlan_tagged: (*self.skb).vlan_present != 0,
                for_other_station: (*self.skb).pkt_type == PACKET_OTHERHOST,
                from_socket: self.is_of_socket(),
            }
        }
    }

    /// Whether it is an IPv6 packet, by what the kernel says: no byte of it is read.
    #[inline(always)]
    pub(crate) fn is_ipv6(&self) -> bool {
        // SAFETY: a field of the live context.
        unsafe { (*self.skb).protocol == (ETHERTYPE_IPV6.to_be() as u32) }
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
    /// would take it; else one of ours, which the kernel then has too.
    #[inline(always)]
    pub(crate) fn flow_hash<F: InKernel>(&self) -> u32 {
        // SAFETY: a field of the live context.
        let known = unsafe { (*self.skb).hash };
        if known != 0 {
            return known;
        }
        let hash = F::flow_hash(self).unwrap_or(1);
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

    /// Gives the packet the `priority` that qdiscs go by.
    #[inline(always)]
    pub(crate) fn prioritize(&self, priority: u32) {
        // SAFETY: as in `mark`.
        unsafe { (*self.skb).priority = priority }
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
    pub(crate) fn make_room<F: InKernel>(&mut self) -> Option<()> {
        self.adjust_room(F::ENCAP_LEN as i32, ENCAP_FLAGS | F::ENCAP_FLAG)
    }

    /// The same for a packet that is carried in UDP without its Ethernet header.
    #[inline(always)]
    pub(crate) fn make_room_for_udp<F: InKernel>(&mut self, len: usize) -> Option<()> {
        self.adjust_room(len as i32, ENCAP_UDP_FLAGS | F::ENCAP_FLAG)
    }

    /// The same for a packet that is carried in IP without its Ethernet header.
    #[inline(always)]
    pub(crate) fn make_room_for_ip<F: InKernel>(&mut self, len: usize) -> Option<()> {
        self.adjust_room(len as i32, ENCAP_IP_FLAGS | F::ENCAP_FLAG)
    }

    /// Removes outer headers of `len` bytes, with one of UDP among them or not; `None`, and nothing changed, where the
    /// kernel refuses.
    #[inline(always)]
    pub(crate) fn remove_outer(&mut self, len: usize, has_udp: bool) -> Option<()> {
        self.adjust_room(-(len as i32), DECAP_FLAGS)?;
        // A checksum the NIC has verified was the outer packet's: one level less is the inner one's. IP alone has none.
        if has_udp {
            // SAFETY: `skb` is the live context; a packet without such a state is left as it is.
            unsafe { bpf_csum_level(self.skb, u64::from(BPF_CSUM_LEVEL_DEC)) };
        }
        Some(())
    }

    /// Brings the checksum of TCP or UDP up to what `rewrite` has changed of the packet, whose IP header stands at `offset`;
    /// `None` where the kernel refuses. Where the NIC is to make the checksum, or each segment of an aggregate gets its own,
    /// it stands for the addresses alone as yet: the kernel knows.
    #[inline(always)]
    pub(crate) fn update_checksum<F: Family>(&mut self, rewrite: &Rewrite<F>, offset: usize) -> Option<()> {
        let at = rewrite.checksum_at(offset) as u32;
        let of_udp = match rewrite.protocol {
            FlowProtocol::Tcp => 0,
            FlowProtocol::Udp => u64::from(BPF_F_MARK_MANGLED_0),
        };
        // Of no field of a size, by a difference in the order of memory.
        // SAFETY: `skb` is the live context; packet pointers are taken anew by every access.
        let replace = |difference: u16, flags: u64| unsafe {
            bpf_l4_csum_replace(self.skb, at, 0, u64::from(difference.to_be()), flags)
        };
        if replace(rewrite.addresses, of_udp | u64::from(BPF_F_PSEUDO_HDR)) != 0 {
            return None;
        }
        if replace(rewrite.ports, of_udp) == 0 { Some(()) } else { None }
    }

    /// Tells the kernel that what was written into the packet has added `sum`, big-endian, to the sum over all of it that a
    /// NIC, or the kernel itself, may have made.
    #[inline(always)]
    pub(crate) fn add_to_sum(&self, sum: u16) {
        // SAFETY: `skb` is the live context; a packet without such a sum is left as it is.
        unsafe { bpf_csum_update(self.skb, u32::from(sum.to_be())) };
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

    /// The pod for which XDP has decapsulated the packet; `None` if it has not.
    #[inline(always)]
    pub(crate) fn decapsulated_for(&self) -> Option<PodPlace> {
        // SAFETY: a field of the live context.
        let start = unsafe { (*self.skb).data_meta as usize };
        if start + DECAPSULATED_FOR_LEN > self.data() {
            return None;
        }
        // SAFETY: the bounds are checked; an array of bytes needs no alignment.
        DecapsulatedFor::read(unsafe { &*(start as *const [u8; DECAPSULATED_FOR_LEN]) })
    }

    /// How the kernel's route sends what is from `source` to `destination` out of this interface, and what it finds to
    /// be the next hop's MAC. `None` where there is no such way, or where the neighbour is not known.
    #[inline(always)]
    pub(crate) fn underlay_route<F: InKernel>(
        &self,
        source: F::Address,
        destination: F::Address,
    ) -> Option<UnderlayRoute> {
        fib::route::<F>(self, source, destination)
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
        fib::destination::<V4>(self.skb.cast(), ifindex, source, destination)
    }

    #[inline(always)]
    fn fib_v6(&self, ifindex: u32, source: AddressV6, destination: AddressV6) -> Fib {
        fib::destination::<V6>(self.skb.cast(), ifindex, source, destination)
    }
}
