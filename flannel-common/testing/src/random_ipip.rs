//! The same cases with the ipip backend.

use flannel_common::{
    layout::Permit,
    packet::{
        Packet as _, checksum,
        headers::{ENCAP_LEN, ETHERNET_LEN, IPV4_LEN, Ipv4, PROTOCOL_IPIP, PROTOCOL_UDP},
    },
    path::{DONT_FRAGMENT, Hook},
};
use proptest::prelude::*;

use super::random::{Case, accepted, case, flow_of};

/// Cases of `hook` with the ipip backend: what is in VXLAN in others is in IP in them.
pub fn case_ipip(hook: Hook) -> impl Strategy<Value = Case> {
    (case(hook), prop_oneof![8 => Just((true, true)), 1 => any::<(bool, bool)>()]).prop_map(
        |(case, (inherits, unfragmented))| {
            let Case { hook, frame, arrival, tables } = case;
            let mut tables = tables.of_ipip();
            let Some(frame) = out_of_vxlan(hook, &frame, inherits, unfragmented) else {
                return Case { hook, frame, arrival, tables };
            };
            if hook == Hook::ToUnderlay {
                // The flow is that of the packet inside.
                let inner = [&frame[..ETHERNET_LEN], &frame[ETHERNET_LEN + IPV4_LEN..]].concat();
                let permits: Vec<Permit> = tables.flows.values().copied().collect();
                let of = flow_of(hook, &inner).into_iter().zip(permits);
                let flows = of.map(|((flow, fields), permit)| (flow, accepted(permit, fields, arrival.mark)));
                tables.flows = flows.collect();
            }
            Case { hook, frame, arrival, tables }
        },
    )
}

/// What is in VXLAN in `frame` in IP, with the TTL of the inner header or that of the outer one, and "don't fragment" or not.
/// `None` of one that is not in VXLAN, or too short.
fn out_of_vxlan(hook: Hook, frame: &[u8], inherits: bool, unfragmented: bool) -> Option<Vec<u8>> {
    const INNER: usize = ENCAP_LEN + ETHERNET_LEN;
    let mut outer = Ipv4::parse(&frame.read(ETHERNET_LEN)?);
    let inner = Ipv4::parse(&frame.read(INNER)?);
    let port: [u8; 2] = frame.read(ETHERNET_LEN + IPV4_LEN + 2)?;
    let may_be = matches!(hook, Hook::FromUnderlay | Hook::ToUnderlay);
    if !may_be || outer.protocol != PROTOCOL_UDP || u16::from_be_bytes(port) != 8472 {
        return None;
    }
    let is_right = checksum::sum(&outer) == 0xffff;
    outer.protocol = PROTOCOL_IPIP;
    outer.total_len = outer.total_len.wrapping_sub((INNER - ETHERNET_LEN - IPV4_LEN) as u16);
    if hook == Hook::ToUnderlay {
        outer.ttl = if inherits { inner.ttl } else { outer.ttl };
        outer.fragment = if unfragmented { DONT_FRAGMENT } else { outer.fragment };
    }
    if is_right {
        outer.checksum = checksum::of(&outer);
    }
    Some([&frame[..ETHERNET_LEN], &outer.bytes(), &frame[INNER..]].concat())
}
