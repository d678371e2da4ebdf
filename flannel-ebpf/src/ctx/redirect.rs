//! Where a packet goes next.
#![expect(unsafe_code, reason = "the kernel's helpers take raw pointers")]

use core::hint::black_box;

use aya_ebpf::{
    bindings::{BPF_F_INGRESS, bpf_redir_neigh, bpf_tunnel_key},
    helpers::{
        bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer, bpf_skb_change_type, bpf_skb_set_tunnel_key,
    },
};
use flannel_common::map::REDIRECTED;

use super::{PACKET_HOST, Skb};
use crate::family::InKernel;

/// A next hop so placed on the stack that its address, which LLVM moves as two words, is aligned.
#[repr(C, align(8))]
struct Placed {
    gap: u32,
    next_hop: bpf_redir_neigh,
}

impl Skb {
    /// Sends the packet out of `ifindex` as it is.
    #[inline(always)]
    pub(crate) fn redirect(&self, ifindex: u32) -> i32 {
        // SAFETY: the helper takes two integers.
        unsafe { bpf_redirect(ifindex, 0) as i32 }
    }

    /// Has the packet come in by `ifindex` as it is.
    #[inline(always)]
    pub(crate) fn redirect_in(&self, ifindex: u32) -> i32 {
        // SAFETY: the helper takes two integers.
        unsafe { bpf_redirect(ifindex, u64::from(BPF_F_INGRESS)) as i32 }
    }

    /// Sends the packet out of `ifindex` to the neighbour `next_hop`; the kernel's neighbour table
    /// gives the MACs, and queues the packet while it does not know them.
    #[inline(always)]
    pub(crate) fn redirect_neighbour<F: InKernel>(self, ifindex: u32, next_hop: F::Address) -> i32 {
        let next_hop = F::neighbour(next_hop);
        if F::WIDE_NEIGHBOUR {
            self.redirect_placed(ifindex, next_hop)
        } else {
            self.redirect_as_it_lies(ifindex, next_hop)
        }
    }

    #[inline(always)]
    fn redirect_as_it_lies(self, ifindex: u32, mut next_hop: bpf_redir_neigh) -> i32 {
        self.tell_redirected();
        // SAFETY: `next_hop` is initialised in full and outlives the call.
        unsafe {
            bpf_redirect_neigh(ifindex, &raw mut next_hop, size_of::<bpf_redir_neigh>() as i32, 0) as i32
        }
    }

    /// With the neighbour's address at a multiple of eight.
    #[inline(always)]
    fn redirect_placed(self, ifindex: u32, next_hop: bpf_redir_neigh) -> i32 {
        let mut placed = Placed { gap: 0, next_hop };
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

    /// Whether the packet was redirected by one of our programs. It is not so for whoever sees it next.
    #[inline(always)]
    pub(crate) fn take_redirected(&self) -> bool {
        let skb = self.skb;
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

    /// Hands the packet to the other end of veth `ifindex`, in the pod, without a pass through the queue.
    #[inline(always)]
    pub(crate) fn redirect_peer(&self, ifindex: u32) -> i32 {
        // SAFETY: the helper takes two integers.
        unsafe { bpf_redirect_peer(ifindex, 0) as i32 }
    }

    /// Makes the packet one for whoever receives it, by whatever MAC. To a veth's host side a frame from one pod to another
    /// is another station's, which IP drops; before Linux 6.16 the redirect itself does not change that.
    #[inline(always)]
    pub(crate) fn address_to_host(&self) {
        // SAFETY: `skb` is the live context.
        unsafe { bpf_skb_change_type(self.skb, PACKET_HOST) };
    }
}
