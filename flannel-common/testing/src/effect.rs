//! What the programs do with a frame once it is decided, on bytes.

use flannel_common::{
    family::{Family, Forward as _, V4},
    layout::DecapsulatedFor,
    packet::{
        Packet as _,
        headers::{ETHERNET_LEN, Ethernet},
    },
    path::{Carrier, Deliver, Direct, Encap, HEADERS_AT, HandOver, Rewrite},
};

/// `frame` encapsulated in VXLAN; `None` for a frame too short to have been decided about.
pub fn encapsulated<F: Family>(frame: &[u8], encap: &Encap<F>, id: u16, flow_hash: u32) -> Option<Vec<u8>> {
    // The kernel keeps the frame's MACs in front until the neighbour table has others.
    let mut out = frame.get(..HEADERS_AT)?.to_vec();
    out.resize(F::ENCAP_LEN + ETHERNET_LEN, 0);
    out.extend(frame.get(ETHERNET_LEN..)?);
    F::write_outer(encap, out.as_mut_slice(), id, flow_hash)?;
    if let Some(forward) = encap.forward {
        forward.write(out.as_mut_slice(), F::ENCAP_LEN + ETHERNET_LEN)?;
    }
    Some(out)
}

/// `frame` without its Ethernet header in IP; `None` as with [`encapsulated`].
pub fn encapsulated_in_ip<F: Family>(frame: &[u8], encap: &Encap<F>, id: u16) -> Option<Vec<u8>> {
    let inner = ETHERNET_LEN + Carrier::Ipip.overhead::<F>();
    let mut out = frame.get(..HEADERS_AT)?.to_vec();
    out.resize(inner, 0);
    out.extend(frame.get(ETHERNET_LEN..)?);
    F::write_outer_ipip(encap, out.as_mut_slice(), id)?;
    if let Some(forward) = encap.forward {
        forward.write(out.as_mut_slice(), inner)?;
    }
    Some(out)
}

/// `frame` as it leaves for a node without a tunnel, but for its MACs, which the neighbour table gives; `None`
/// for a frame too short to have been decided about.
pub fn sent_direct<F: Family>(frame: &[u8], direct: &Direct<F>) -> Option<Vec<u8>> {
    let mut out = frame.to_vec();
    direct.forward.write(out.as_mut_slice(), ETHERNET_LEN)?;
    Some(out)
}

/// `frame` decapsulated from VXLAN, as the pod gets it; `None` for a frame too short to have been decided about.
pub fn decapsulated<F: Family>(frame: &[u8], deliver: &Deliver<F>) -> Option<Vec<u8>> {
    decapsulated_from(Carrier::Vxlan, frame, deliver)
}

/// The same from what `carrier` says.
pub fn decapsulated_from<F: Family>(carrier: Carrier, frame: &[u8], deliver: &Deliver<F>) -> Option<Vec<u8>> {
    delivered(frame.get(carrier.overhead::<F>()..)?, deliver)
}

/// `frame`, which has no outer headers, as the pod gets it; `None` for a frame too short to have been decided
/// about.
pub fn delivered<F: Family>(frame: &[u8], deliver: &Deliver<F>) -> Option<Vec<u8>> {
    let mut out = frame.to_vec();
    let Deliver { pod, forward, packet_len: _ } = deliver;
    let ethernet = Ethernet::new(pod.mac, pod.gateway_mac, F::ETHERTYPE);
    out.write(0, ethernet.bytes())?;
    forward.write(out.as_mut_slice(), ETHERNET_LEN)?;
    Some(out)
}

/// `frame` as the VXLAN device gets it; `None` as with [`encapsulated`].
pub fn handed_over<F: Family>(frame: &[u8], to: &HandOver<F>) -> Option<Vec<u8>> {
    let mut out = frame.to_vec();
    out.write(0, to.ethernet.bytes())?;
    to.forward.write(out.as_mut_slice(), ETHERNET_LEN)?;
    Some(out)
}

/// `frame` translated, whose IP header stands at `offset` and whose checksum its sender has made; `None` for a frame too
/// short to have been decided about.
pub fn translated<F: Family>(mut frame: Vec<u8>, rewrite: &Rewrite<F>, offset: usize) -> Option<Vec<u8>> {
    rewrite.write(frame.as_mut_slice(), offset)?;
    let at = rewrite.checksum_at(offset);
    // A frame that ends before its checksum has none.
    if let Some(checksum) = frame.as_slice().read::<2>(at) {
        let checksum = rewrite.checksum(u16::from_be_bytes(checksum));
        frame.as_mut_slice().write(at, checksum.to_be_bytes())?;
    }
    Some(frame)
}

/// `frame` decapsulated by XDP, behind what that says about it; `None` for a frame too short to have been
/// decided about.
pub fn decapsulated_early(frame: &[u8], deliver: &Deliver<V4>) -> Option<Vec<u8>> {
    let mut inner = decapsulated(frame, deliver)?;
    // The stations are those of the underlay still.
    inner.write(0, frame.read::<ETHERNET_LEN>(0)?)?;
    let mut out = DecapsulatedFor::to(&deliver.pod).bytes().to_vec();
    out.extend(inner);
    Some(out)
}
