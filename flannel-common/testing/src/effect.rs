//! What the programs do with a frame once it is decided, on bytes.

use flannel_common::{
    layout::PoppedFor,
    packet::{
        Packet as _,
        headers::{ENCAP_LEN, ETHERNET_LEN, Ethernet},
        ipv6,
    },
    path::{Deliver, Direct, Encap, HEADERS_AT, HEADERS_LEN, Routing, v6},
};

/// `frame` with VXLAN pushed; `None` for a frame too short to have been decided about.
pub fn pushed(frame: &[u8], encap: &Encap, id: u16, flow_hash: u32) -> Option<Vec<u8>> {
    // The kernel keeps the frame's MACs in front until the neighbour table has others.
    let mut out = frame.get(..HEADERS_AT)?.to_vec();
    out.extend(encap.headers(id, flow_hash));
    out.extend(frame.get(ETHERNET_LEN..)?);
    if let Some(forward) = encap.forward {
        forward.write(out.as_mut_slice(), HEADERS_AT + HEADERS_LEN)?;
    }
    Some(out)
}

/// `frame` as it leaves for a peer without a tunnel, but for its MACs, which the neighbour table gives; `None`
/// for a frame too short to have been decided about.
pub fn routed<A, F: Routing>(frame: &[u8], direct: &Direct<A, F>) -> Option<Vec<u8>> {
    let mut out = frame.to_vec();
    direct.forward.write(out.as_mut_slice(), ETHERNET_LEN)?;
    Some(out)
}

/// `frame` with VXLAN popped, as the pod gets it; `None` for a frame too short to have been decided about.
pub fn popped(frame: &[u8], deliver: &Deliver) -> Option<Vec<u8>> {
    handed(frame.get(ENCAP_LEN..)?, deliver)
}

/// `frame`, which has no outer headers, as the pod gets it; `None` for a frame too short to have been decided
/// about.
pub fn handed<F: Routing>(frame: &[u8], deliver: &Deliver<F>) -> Option<Vec<u8>> {
    let mut out = frame.to_vec();
    let Deliver { pod, forward, packet_len: _ } = deliver;
    let ethernet = Ethernet::new(pod.mac, pod.gateway_mac, F::ETHERTYPE);
    out.write(0, ethernet.bytes())?;
    forward.write(out.as_mut_slice(), ETHERNET_LEN)?;
    Some(out)
}

/// `frame` with VXLAN over IPv6 pushed; `None` as with [`pushed`].
pub fn pushed_v6(frame: &[u8], encap: &v6::Encap, flow_hash: u32) -> Option<Vec<u8>> {
    let mut out = frame.get(..v6::HEADERS_AT)?.to_vec();
    out.extend(encap.headers(flow_hash));
    out.extend(frame.get(ETHERNET_LEN..)?);
    if let Some(forward) = encap.forward {
        forward.write(out.as_mut_slice(), v6::HEADERS_AT + v6::HEADERS_LEN)?;
    }
    Some(out)
}

/// `frame` with VXLAN over IPv6 popped, as the pod gets it; `None` as with [`popped`].
pub fn popped_v6(frame: &[u8], deliver: &v6::Deliver) -> Option<Vec<u8>> {
    handed(frame.get(ipv6::ENCAP_LEN..)?, deliver)
}

/// `frame` as the VXLAN device gets it; `None` as with [`pushed`].
pub fn handed_over(frame: &[u8], to: &v6::HandOver) -> Option<Vec<u8>> {
    let mut out = frame.to_vec();
    out.write(0, to.ethernet.bytes())?;
    to.forward.write(out.as_mut_slice(), ETHERNET_LEN)?;
    Some(out)
}

/// `frame` with VXLAN popped by XDP, behind what that says about it; `None` for a frame too short to have been
/// decided about.
pub fn popped_early(frame: &[u8], deliver: &Deliver) -> Option<Vec<u8>> {
    let mut inner = popped(frame, deliver)?;
    // The stations are those of the underlay still.
    inner.write(0, frame.read::<ETHERNET_LEN>(0)?)?;
    let mut out = PoppedFor::to(&deliver.pod).bytes().to_vec();
    out.extend(inner);
    Some(out)
}
