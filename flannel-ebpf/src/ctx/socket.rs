//! The sockets of pods (bpf_skc_lookup_tcp).

use aya_ebpf::{
    bindings::bpf_sock_tuple,
    helpers::{bpf_sk_release, bpf_skc_lookup_tcp},
};
use flannel_common::packet::{Packet as _, headers::ETHERNET_LEN};

use super::Skb;

/// Lengths of the two parts of `struct bpf_sock_tuple` (include/uapi/linux/bpf.h), bytes.
const LENGTH_V4: usize = 12;
const LENGTH_V6: usize = 36;

impl Skb {
    /// The state of the socket that the packet asks about ([`flannel_common::map::SOCKET_STATE`]); 0 where there is none.
    #[inline(always)]
    pub(crate) fn socket_state(self) -> i32 {
        if let Some(tuple) = self.view::<LENGTH_V6>(ETHERNET_LEN) {
            return self.state(tuple);
        }
        match self.view::<LENGTH_V4>(ETHERNET_LEN) {
            Some(tuple) => self.state(tuple),
            None => 0,
        }
    }

    #[inline(always)]
    fn state<const N: usize>(self, tuple: &[u8; N]) -> i32 {
        let tuple = tuple.as_ptr().cast::<bpf_sock_tuple>().cast_mut();
        // SAFETY: the live context, a field of it, and `N` bytes of the packet, which the helper only reads. A socket that
        // it finds is ours until it is released.
        unsafe {
            let namespace = (*self.skb).cb[0] as u64;
            let socket = bpf_skc_lookup_tcp(self.skb.cast(), tuple, N as u32, namespace, 0);
            if socket.is_null() {
                return 0;
            }
            let state = (*socket).state;
            bpf_sk_release(socket.cast());
            state as i32
        }
    }
}
