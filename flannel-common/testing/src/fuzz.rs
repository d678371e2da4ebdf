//! Any bytes as a packet at a hook: what a fuzzer of the decisions runs.
//!
//! An input is the hook, the tables, what routing says, the arrival and the frame, in this order:
//!
//! ```text
//! hook (1)  tables (1)  routing (1)  ifindex (4)  gso size (4)  mark (4)  priority (4)  tc_index (2)  flags (1)  frame
//! ```
//!
//! The tables are those that the fixtures meet, by number, and those of a node of the udp backend and of the ipip backend. So
//! every fixture is a seed, and what is found changes a packet or what it meets.

#![expect(
    clippy::expect_used,
    reason = "what is expected is a promise: a fuzzer is to find where it is broken"
)]

use std::{collections::BTreeMap, sync::LazyLock};

use flannel_common::{
    family::Family,
    layout::{AddressV6, Route, RouteKind},
    packet::{
        Arrival, Fib, Packet, checksum,
        headers::{ETHERNET_LEN, Ethernet, Ipv4},
    },
    path::{Carrier, Deliver, Encap, Hook, Move, UnderlayRoute, Verdict, decide_all},
};

use super::{
    Frame, HERE, MemoryTables, THERE, decapsulated_early, decapsulated_from, delivered, encapsulated,
    encapsulated_in_ip, fixtures, handed_over, interface, seen_at, sent_direct,
};

/// Bytes in front of the frame.
const HEAD: usize = 22;
/// UDP port of the udp backend.
const UDP_PORT: u16 = 8285;

/// A packet, the tables it meets, and what routing does with it.
struct Input<'a> {
    hook: Hook,
    tables: &'static MemoryTables,
    arrival: Arrival,
    frame: Routed<'a>,
}

/// A frame, and what routing does with it.
struct Routed<'a>(&'a [u8], Fib);

impl Packet for Routed<'_> {
    fn len(&self) -> u32 {
        Packet::len(self.0)
    }

    fn view<const N: usize>(&self, offset: usize) -> Option<&[u8; N]> {
        self.0.view(offset)
    }

    fn write<const N: usize>(&mut self, _: usize, _: [u8; N]) -> Option<()> {
        None
    }

    fn fib_v4(&self, _: u32, _: [u8; 4], _: [u8; 4]) -> Fib {
        self.1
    }

    fn fib_v6(&self, _: u32, _: AddressV6, _: AddressV6) -> Fib {
        self.1
    }
}

/// Tables that inputs name by their number: none twice.
static TABLES: LazyLock<Vec<MemoryTables>> = LazyLock::new(|| {
    let mut all: Vec<MemoryTables> = Vec::new();
    for fixture in Hook::ALL.into_iter().flat_map(fixtures::of) {
        if !all.contains(&fixture.tables) {
            all.push(fixture.tables);
        }
    }
    all.push(of_udp(HERE.tables(&[THERE])));
    all.push(HERE.tables(&[THERE]).of_ipip());
    all
});

/// The same nodes with the udp backend.
fn of_udp(mut tables: MemoryTables) -> MemoryTables {
    tables.carrier = Carrier::Udp;
    if let Some(config) = &mut tables.config {
        (config.port, config.vni, config.local_mac) = (UDP_PORT.into(), 0, [0; 6]);
        (config.source_port_min, config.source_port_max) = (UDP_PORT.into(), u32::from(UDP_PORT) + 1);
    }
    for route in tables.routes.values_mut() {
        (route.kind, route.vtep_mac, route.local_mac) = (RouteKind::Udp, [0; 6], [0; 6]);
    }
    tables
}

impl<'a> Input<'a> {
    /// `None` of bytes that end before the frame.
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (head, frame) = bytes.split_first_chunk::<HEAD>()?;
        let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let flag = |bit: u8| head[21] & bit != 0;
        let fib = [Fib::Unknown, Fib::Local, Fib::Forwarded][usize::from(head[2]) % 3];
        Some(Self {
            hook: Hook::ALL[usize::from(head[0]) % Hook::ALL.len()],
            tables: &TABLES[usize::from(head[1]) % TABLES.len()],
            arrival: Arrival {
                ifindex: word(3),
                gso_size: word(7),
                mark: word(11),
                priority: word(15),
                tc_index: u16::from_le_bytes([head[19], head[20]]),
                vlan_tagged: flag(1),
                for_other_station: flag(2),
                from_socket: flag(4),
            },
            frame: Routed(frame, fib),
        })
    }

    /// The bytes of a packet with routing unknown.
    fn bytes(hook: Hook, tables: &MemoryTables, arrival: &Arrival, frame: &[u8]) -> Vec<u8> {
        let number = |found: Option<usize>| found.and_then(|at| u8::try_from(at).ok()).unwrap_or_default();
        let mut bytes = vec![
            number(Hook::ALL.iter().position(|other| *other == hook)),
            number(TABLES.iter().position(|other| other == tables)),
            0,
        ];
        for word in [arrival.ifindex, arrival.gso_size, arrival.mark, arrival.priority] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(arrival.tc_index.to_le_bytes());
        let flags = [(arrival.vlan_tagged, 1), (arrival.for_other_station, 2), (arrival.from_socket, 4)];
        bytes.push(flags.into_iter().filter(|(set, _)| *set).map(|(_, bit)| bit).sum());
        bytes.extend(frame);
        bytes
    }
}

/// The fixtures as inputs, and packets of the udp and the ipip backend.
pub fn decision_seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = Hook::ALL
        .into_iter()
        .flat_map(fixtures::of)
        .map(|fixture| Input::bytes(fixture.hook, &fixture.tables, &fixture.arrival, &fixture.frame))
        .collect();
    let tables = of_udp(HERE.tables(&[THERE]));
    let inner = Frame::tcp(THERE.pod(2), HERE.pod(2), 0, 100).bytes();
    let udp = [&UDP_PORT.to_be_bytes()[..], &UDP_PORT.to_be_bytes(), &148u16.to_be_bytes(), &[0x12, 0x34]];
    let datagram = [&udp.concat()[..], &inner[ETHERNET_LEN..]].concat();
    let outer = Frame::ipv4(THERE.vtep, HERE.vtep, 17, datagram).bytes();
    let sent =
        Frame::tcp(HERE.pod(2), THERE.pod(2), 0, 100).macs(HERE.gateway_mac(), HERE.pod_mac(2)).bytes();
    for (hook, frame) in [
        (Hook::FromPod, &sent[..]),
        (Hook::FromUnderlay, &outer),
        (Hook::ToOverlay, &sent[ETHERNET_LEN..]),
        (Hook::FromOverlay, &inner[ETHERNET_LEN..]),
    ] {
        seeds.push(Input::bytes(hook, &tables, &seen_at(hook), frame));
    }
    let tables = HERE.tables(&[THERE]).of_ipip();
    let outer = Frame::ipip(THERE.vtep, HERE.vtep, &inner[ETHERNET_LEN..]).bytes();
    let left = Frame::ipip(HERE.vtep, THERE.vtep, &sent[ETHERNET_LEN..]).bytes();
    for (hook, frame) in [
        (Hook::FromPod, &sent[..]),
        (Hook::FromUnderlay, &outer),
        (Hook::ToUnderlay, &left),
        (Hook::FromOverlay, &inner[ETHERNET_LEN..]),
    ] {
        seeds.push(Input::bytes(hook, &tables, &seen_at(hook), frame));
    }
    seeds
}

/// Decides about the packet that `bytes` are, and holds the decision to what is true of every one.
///
/// # Panics
/// The decision breaks a promise: it gives a reason that its hook cannot give, depends on something else than its input,
/// lets out a wrong outer header, a packet that does not fit, or gives a packet to somebody who is no pod of this node.
pub fn decision(bytes: &[u8]) {
    let Some(Input { hook, tables, arrival, frame }) = Input::parse(bytes) else { return };
    let route = UnderlayRoute { stations: Ethernet::parse(&[0; ETHERNET_LEN]), mtu: 1500 };
    let route = (arrival.priority & 1 == 1).then_some(route);
    let decision = decide_all(hook, &frame, tables, &arrival, route);
    assert_eq!(decide_all(hook, &frame, tables, &arrival, route), decision, "decided in two ways");
    if let Some(reason) = decision.verdict.reason() {
        assert!(fixtures::decided(hook).contains(&reason), "{} gives {reason:?}", hook.program());
    }
    let mut noted = tables.clone();
    decision.v4.note.iter().for_each(|note| noted.write_down(note));
    decision.v6.note.iter().for_each(|note| noted.write_down_v6(note));
    let frame = frame.0;
    match decision.verdict {
        Verdict::V4(how, _) => {
            if let (Move::Encapsulate(encap), Carrier::Vxlan | Carrier::Ipip) = (&how, tables.carrier) {
                let out = leaves(tables.carrier, frame, encap, arrival.gso_size);
                let outer = Ipv4::parse(out[ETHERNET_LEN..].first_chunk().expect("an outer header"));
                assert_eq!(checksum::sum(&outer), 0xffff, "the outer header's checksum");
                let config = tables.config.expect("nothing is encapsulated without");
                assert_eq!((outer.source, outer.destination), (config.vtep, encap.route.vtep));
            }
            is_sound(tables, frame, &how, &tables.routes, arrival.gso_size);
        }
        Verdict::V6(how, _) => is_sound(tables, frame, &how, &tables.v6.routes, arrival.gso_size),
        Verdict::DecapsulateEarly(deliver, _) => {
            is_for_a_pod(tables, &deliver);
            decapsulated_early(frame, &deliver).expect("a packet with its headers");
        }
        Verdict::Switch(to, _) => {
            let mut pods = tables.pods.values().chain(tables.v6.pods.values());
            assert!(pods.any(|pod| *pod == to.pod), "to {}, which is no pod of this node", to.pod.ifindex);
            assert!(to.pod.ifindex != arrival.ifindex, "back to where it came from");
            assert_eq!(frame[..6], to.pod.mac);
        }
        Verdict::LeaveDecapsulated(device, _) => {
            let devices =
                [tables.config.map(|it| it.overlay_ifindex), tables.v6.config.map(|it| it.overlay_ifindex)];
            assert!(device != 0 && devices.contains(&Some(device)), "{device} is no VXLAN device of ours");
        }
        Verdict::Pass
        | Verdict::Kernel(_)
        | Verdict::Exempt(_)
        | Verdict::Checked(_)
        | Verdict::Seen(_)
        | Verdict::Drop(_) => {}
    }
}

fn is_sound<F: Family>(
    tables: &MemoryTables,
    frame: &[u8],
    how: &Move<F>,
    routes: &BTreeMap<impl Ord, Route<F>>,
    gso_size: u32,
) {
    // What a device without Ethernet has sent or received stands without.
    let carrier = tables.carrier;
    let is_vxlan = carrier == Carrier::Vxlan;
    match how {
        Move::Encapsulate(encap) => {
            assert!(routes.values().any(|route| *route == encap.route), "to no peer");
            if carrier != Carrier::Udp {
                leaves(carrier, frame, encap, gso_size);
            }
        }
        Move::HandOver(to) => {
            assert_eq!(handed_over(frame, to).expect("a packet with its header").len(), frame.len());
        }
        Move::SendDirect(direct) => {
            assert_eq!(sent_direct(frame, direct).expect("a packet with its header").len(), frame.len());
        }
        Move::Decapsulate(deliver) => {
            is_for_a_pod(tables, deliver);
            if carrier != Carrier::Udp {
                arrives(decapsulated_from(carrier, frame, deliver), deliver);
            }
        }
        Move::Deliver(deliver) => {
            is_for_a_pod(tables, deliver);
            if is_vxlan {
                arrives(delivered(frame, deliver), deliver);
            }
        }
    }
}

/// The frame that leaves; what is no aggregate fits the way it takes.
fn leaves<F: Family>(carrier: Carrier, frame: &[u8], encap: &Encap<F>, gso_size: u32) -> Vec<u8> {
    let out = match carrier {
        Carrier::Ipip => encapsulated_in_ip(frame, encap, 1),
        Carrier::Vxlan | Carrier::Udp => encapsulated(frame, encap, 1, 2),
    };
    let out = out.expect("a packet with its headers");
    assert_eq!(out.len(), frame.len() + carrier.overhead::<F>());
    let packet = carrier.overhead::<F>() + usize::from(encap.frame_len) - ETHERNET_LEN;
    assert!(
        gso_size != 0 || packet <= encap.route.mtu as usize,
        "{packet} bytes on a way of {}",
        encap.route.mtu
    );
    out
}

fn arrives<F: Family>(out: Option<Vec<u8>>, deliver: &Deliver<F>) {
    let out = out.expect("a packet with its headers");
    assert_eq!(&out[..6], &deliver.pod.mac);
}

fn is_for_a_pod<F: Family>(tables: &MemoryTables, deliver: &Deliver<F>) {
    let mut pods = tables.pods.values().chain(tables.v6.pods.values());
    assert!(pods.any(|pod| *pod == deliver.pod), "to {}, which is no pod of this node", deliver.pod.ifindex);
    assert!(deliver.pod.ifindex != interface::UNDERLAY, "back to where it came from");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_seed_keeps_the_promises_and_stays_what_it_was() {
        assert!(TABLES.len() < 256, "{} tables: their number no longer fits a byte", TABLES.len());
        let seeds = decision_seeds();
        for seed in &seeds {
            decision(seed);
            let input = Input::parse(seed).unwrap();
            assert_eq!(Input::bytes(input.hook, input.tables, &input.arrival, input.frame.0), *seed);
        }
        assert!(seeds.len() > 100, "{}", seeds.len());
    }

    #[test]
    fn bytes_that_are_cut_anywhere_are_taken() {
        for seed in decision_seeds().iter().step_by(7) {
            (0..seed.len()).for_each(|len| decision(&seed[..len]));
        }
    }
}
