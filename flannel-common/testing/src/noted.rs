//! What the programs write down about a packet.

use flannel_common::{
    family::{V4, V6},
    packet::{
        Arrival,
        headers::{ETHERTYPE_IPV4, Ethernet},
    },
    path::{Hook, Note, TunnelNote, UnderlayRoute, decide_all},
};

use super::{MemoryTables, interface};

/// The MAC of every next hop.
pub const NEXT_HOP_MAC: [u8; 6] = [0x02, 0, 0, 0, 0xaa, 0x02];

/// How the kernel sends to every next hop.
fn to_next_hop() -> UnderlayRoute {
    let stations = Ethernet::new(NEXT_HOP_MAC, interface::UNDERLAY_MAC, ETHERTYPE_IPV4);
    UnderlayRoute { stations, mtu: 1500 }
}

/// What the program at `hook` notes about the flow or the pod of `frame`.
pub fn note(hook: Hook, frame: &[u8], tables: &MemoryTables, arrival: &Arrival) -> Option<Note<V4>> {
    decide_all(hook, frame, tables, arrival, Some(to_next_hop())).v4.note
}

/// As [`note`], of an IPv6 packet.
pub fn note_v6(hook: Hook, frame: &[u8], tables: &MemoryTables, arrival: &Arrival) -> Option<Note<V6>> {
    decide_all(hook, frame, tables, arrival, Some(to_next_hop())).v6.note
}

/// What the program at `hook` notes about the tunnel that `frame` has taken, which no program has redirected. `route` is
/// how the kernel sends what is for the packet's outer destination.
pub fn note_tunnel(
    hook: Hook,
    frame: &[u8],
    tables: &MemoryTables,
    arrival: &Arrival,
    route: Option<UnderlayRoute>,
) -> Option<TunnelNote<V4>> {
    decide_all(hook, frame, tables, arrival, route).v4.tunnel
}

/// As [`note_tunnel`], of an IPv6 packet.
pub fn note_tunnel_v6(
    hook: Hook,
    frame: &[u8],
    tables: &MemoryTables,
    arrival: &Arrival,
    route: Option<UnderlayRoute>,
) -> Option<TunnelNote<V6>> {
    decide_all(hook, frame, tables, arrival, route).v6.tunnel
}
