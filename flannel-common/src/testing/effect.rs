//! What the programs do with a frame once it is decided, on bytes.

use std::vec::Vec;

use crate::{
    packet::{
        Packet as _,
        headers::{ENCAP_LEN, ETHERNET_LEN, ETHERTYPE_IPV4, Ethernet},
    },
    path::{Deliver, Encap, Forward, HEADERS_LEN},
};

/// `frame` with VXLAN pushed; `None` for a frame too short to have been decided about.
pub fn pushed(frame: &[u8], encap: &Encap, id: u16, flow_hash: u32) -> Option<Vec<u8>> {
    let mut out = encap.headers(id, flow_hash).to_vec();
    out.extend(frame.get(ETHERNET_LEN..)?);
    if let Some(forward) = encap.forward {
        rewrite(&mut out, HEADERS_LEN, forward)?;
    }
    Some(out)
}

/// `frame` with VXLAN popped, as the pod gets it; `None` for a frame too short to have been decided about.
pub fn popped(frame: &[u8], deliver: &Deliver) -> Option<Vec<u8>> {
    let mut out = frame.get(ENCAP_LEN..)?.to_vec();
    let Deliver { pod, forward } = deliver;
    let ethernet = Ethernet { destination: pod.mac, source: pod.gateway_mac, ethertype: ETHERTYPE_IPV4 };
    out.write(0, ethernet.bytes())?;
    rewrite(&mut out, ETHERNET_LEN, *forward)?;
    Some(out)
}

fn rewrite(frame: &mut [u8], ip: usize, Forward { tos, ttl, checksum }: Forward) -> Option<()> {
    frame.write(ip + 1, [tos])?;
    frame.write(ip + 8, [ttl])?;
    frame.write(ip + 10, checksum.to_be_bytes())
}
