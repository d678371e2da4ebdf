//! What XDP tells tc about a packet.

use bytemuck::{Pod, Zeroable};

use super::PodPlace;

/// What `xdp_underlay` leaves in front of a packet that it has decapsulated (`xdp_md.data_meta`), and
/// `from_underlay` finds there (`__sk_buff.data_meta`): where the packet goes.
///
/// 20 bytes: of what the kernel compares before it merges packets (`skb_metadata_differs`), it takes
/// multiples of 4 up to 32.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct DecapsulatedFor {
    magic: u32,
    /// Host side of the pod's veth.
    ifindex: u32,
    /// MAC of the pod.
    mac: [u8; 6],
    /// MAC of its gateway.
    gateway_mac: [u8; 6],
}

/// Bytes of a [`DecapsulatedFor`].
pub const DECAPSULATED_FOR_LEN: usize = size_of::<DecapsulatedFor>();

impl DecapsulatedFor {
    /// Tells ours from what another program may leave there.
    const MAGIC: u32 = u32::from_be_bytes(*b"flnl");

    /// To `pod`.
    #[inline(always)]
    pub const fn to(pod: &PodPlace) -> Self {
        Self { magic: Self::MAGIC, ifindex: pod.ifindex, mac: pod.mac, gateway_mac: pod.gateway_mac }
    }

    /// The bytes.
    #[inline(always)]
    pub const fn bytes(self) -> [u8; DECAPSULATED_FOR_LEN] {
        bytemuck::must_cast(self)
    }

    /// The pod that `bytes` name; `None` if they are not ours. The packet has been found to fit.
    #[inline(always)]
    pub fn read(bytes: &[u8; DECAPSULATED_FOR_LEN]) -> Option<PodPlace> {
        let Self { magic, ifindex, mac, gateway_mac } = bytemuck::must_cast(*bytes);
        if magic == Self::MAGIC { Some(PodPlace { ifindex, mtu: u32::MAX, mac, gateway_mac }) } else { None }
    }
}

super::assert_layout!(DecapsulatedFor, 20, 4);
