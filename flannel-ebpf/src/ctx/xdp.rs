//! The frame before the kernel has made a packet of it.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::xdp_md,
    helpers::{bpf_xdp_adjust_head, bpf_xdp_adjust_meta, bpf_xdp_get_buff_len},
    programs::XdpContext,
};
use flannel_common::{
    family::{V4, V6},
    layout::{AddressV6, DECAPSULATED_FOR_LEN, DecapsulatedFor},
    packet::{Arrival, Fib, Packet, headers::ENCAP_LEN},
    reason::Reason,
};

use super::{fib, fits};
use crate::size::Size;

/// A frame at the XDP hook, in one buffer or several. A copy is the same frame.
#[derive(Clone, Copy)]
pub(crate) struct Frame {
    md: *mut xdp_md,
}

impl Frame {
    /// The frame of `ctx`.
    #[inline(always)]
    pub(crate) fn of(ctx: &XdpContext) -> Self {
        Self { md: ctx.ctx }
    }

    /// What is known of it: no VLAN tag that the card has removed, no aggregate, and not whether it is for
    /// us. tc looks at that once more.
    #[inline(always)]
    pub(crate) fn arrival(&self) -> Arrival {
        // SAFETY: a field of the live context.
        Arrival { ifindex: unsafe { (*self.md).ingress_ifindex }, ..Arrival::default() }
    }

    /// How much it counts for.
    #[inline(always)]
    pub(crate) fn size(&self) -> Size {
        Size { packets: 1, bytes: self.len() }
    }

    /// Whether an IP packet of `packet_len` bytes fits interface `ifindex`, and that exists.
    #[inline(always)]
    pub(crate) fn fits(&self, ifindex: u32, packet_len: u32) -> Result<(), Reason> {
        fits(self.md.cast::<c_void>(), ifindex, packet_len)
    }

    /// Puts `decapsulated_for` in front of the frame; `None`, and nothing changed, where the driver has no room for it.
    #[inline(always)]
    pub(crate) fn prepend(&mut self, decapsulated_for: DecapsulatedFor) -> Option<()> {
        // SAFETY: `md` is the live context; its pointers are taken anew below.
        if unsafe { bpf_xdp_adjust_meta(self.md, -(DECAPSULATED_FOR_LEN as i32)) } != 0 {
            return None;
        }
        // SAFETY: fields of the live context.
        let (start, end) = unsafe { ((*self.md).data_meta as usize, (*self.md).data as usize) };
        if start + DECAPSULATED_FOR_LEN > end {
            return None;
        }
        // SAFETY: the bounds are checked; an array of bytes needs no alignment.
        unsafe { (start as *mut [u8; DECAPSULATED_FOR_LEN]).write(decapsulated_for.bytes()) };
        Some(())
    }

    /// Takes back what `prepend` has put.
    #[inline(always)]
    pub(crate) fn take_back(&mut self) {
        // SAFETY: `md` is the live context. It cannot fail for what was added before.
        unsafe { bpf_xdp_adjust_meta(self.md, DECAPSULATED_FOR_LEN as i32) };
    }

    /// Removes the outer headers; `None`, and nothing changed, where the kernel refuses.
    #[inline(always)]
    pub(crate) fn remove_outer(&mut self) -> Option<()> {
        // SAFETY: `md` is the live context; its pointers are taken anew by every access. What stands in front
        // of the frame moves with it.
        if unsafe { bpf_xdp_adjust_head(self.md, ENCAP_LEN as i32) } == 0 { Some(()) } else { None }
    }

    /// The address of `N` bytes at `offset`, if the first buffer has them.
    #[inline(always)]
    fn at<const N: usize>(&self, offset: usize) -> Option<*mut [u8; N]> {
        // SAFETY: fields of the live context.
        let (data, end) = unsafe { ((*self.md).data as usize, (*self.md).data_end as usize) };
        let start = data + offset;
        if start + N > end { None } else { Some(start as *mut [u8; N]) }
    }
}

impl Packet for Frame {
    #[inline(always)]
    fn len(&self) -> u32 {
        // SAFETY: the helper reads the live context.
        unsafe { bpf_xdp_get_buff_len(self.md) as u32 }
    }

    #[inline(always)]
    fn view<const N: usize>(&self, offset: usize) -> Option<&[u8; N]> {
        // SAFETY: `at` has checked the bounds; an array of bytes needs no alignment. The decision that
        // borrows `self` is over before its verdict is carried out on a copy.
        self.at(offset).map(|bytes| unsafe { &*bytes })
    }

    #[inline(always)]
    fn write<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> Option<()> {
        // SAFETY: as in `view`; the program holds the frame exclusively.
        self.at(offset).map(|place| unsafe { place.write(bytes) })
    }

    #[inline(always)]
    fn fib_v4(&self, ifindex: u32, source: [u8; 4], destination: [u8; 4]) -> Fib {
        fib::destination::<V4>(self.md.cast(), ifindex, source, destination)
    }

    #[inline(always)]
    fn fib_v6(&self, ifindex: u32, source: AddressV6, destination: AddressV6) -> Fib {
        fib::destination::<V6>(self.md.cast(), ifindex, source, destination)
    }
}
