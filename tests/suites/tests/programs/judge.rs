//! Whether a program did what was decided.

use anyhow::{Result, ensure};
use flannel_common::{
    family::{Family, V4, V6},
    packet::{
        Arrival, Packet as _,
        headers::{ENCAP_LEN, ETHERNET_LEN, Ethernet, IPV4_LEN},
        ipv6::{self, ETHERTYPE_IPV6, IPV6_LEN, Ipv6},
    },
    path::{Carrier, Encap, Hook, Move, Note, UnderlayRoute, Verdict, decide_all, left},
    reason::Reason,
};
use flannel_common_testing::{
    MemoryTables, decapsulated_early, decapsulated_from, delivered, encapsulated, encapsulated_in_ip,
    handed_over, sent_direct, translated, transport_checksum,
};

use crate::loaded::{Counted, MARK, Outcome};

/// include/uapi/linux/pkt_cls.h
const TC_ACT_UNSPEC: i32 = -1;
const TC_ACT_SHOT: i32 = 2;
const TC_ACT_REDIRECT: i32 = 7;
/// include/uapi/linux/bpf.h
const XDP_DROP: i32 = 1;
const XDP_PASS: i32 = 2;

const ID: usize = ETHERNET_LEN + 4;
const SOURCE_PORT: usize = ETHERNET_LEN + IPV4_LEN;
const SOURCE_PORT_V6: usize = ETHERNET_LEN + IPV6_LEN;

/// Refuses an outcome that is not what `verdict` says of `frame`: action, mark, every byte, the flows known, and
/// exactly one counter for the packet, and one for the note, raised by `segments` packets and the length that the frame
/// came with.
pub(crate) fn check(
    hook: Hook,
    frame: &[u8],
    arrival: &Arrival,
    segments: u32,
    (tables, note, note_v6): (&MemoryTables, Option<&Note<V4>>, Option<&Note<V6>>),
    verdict: &Verdict,
    outcome: &Outcome,
) -> Result<()> {
    let unchanged = || Some(frame.to_vec());
    let pass = if hook.is_xdp() { XDP_PASS } else { TC_ACT_UNSPEC };
    let (action, reason, expected) = match verdict {
        Verdict::Pass => (pass, None, unchanged()),
        Verdict::Kernel(reason) | Verdict::Exempt(reason) | Verdict::Checked(reason) => {
            (TC_ACT_UNSPEC, Some(*reason), unchanged())
        }
        Verdict::LeaveDecapsulated(_, reason) => {
            let len = if is_ipv6(frame) { ipv6::ENCAP_LEN } else { ENCAP_LEN };
            (TC_ACT_REDIRECT, Some(*reason), frame.get(len..).map(<[u8]>::to_vec))
        }
        Verdict::V4(Move::Encapsulate(encap), reason) => {
            let sent = match tables.carrier {
                Carrier::Ipip => pushed_in_ip(outcome, frame, encap),
                Carrier::Vxlan | Carrier::Udp => pushed_like(outcome, frame, encap),
            };
            (TC_ACT_REDIRECT, Some(*reason), sent)
        }
        Verdict::V6(Move::Encapsulate(encap), reason) => {
            (TC_ACT_REDIRECT, Some(*reason), pushed_like_v6(outcome, frame, encap))
        }
        Verdict::V4(how, reason) => (TC_ACT_REDIRECT, Some(*reason), moved(tables.carrier, frame, how)),
        Verdict::V6(how, reason) => (TC_ACT_REDIRECT, Some(*reason), moved(tables.carrier, frame, how)),
        Verdict::DecapsulateEarly(deliver, reason) => {
            (XDP_PASS, Some(*reason), decapsulated_early(frame, deliver))
        }
        Verdict::Switch(_, reason) => (TC_ACT_REDIRECT, Some(*reason), unchanged()),
        Verdict::Seen(reason) => (XDP_PASS, Some(*reason), unchanged()),
        Verdict::Drop(reason) => {
            (if hook.is_xdp() { XDP_DROP } else { TC_ACT_SHOT }, Some(*reason), unchanged())
        }
    };
    let decision = decide_all(hook, frame, tables, arrival, None);
    let expected = match (action, expected) {
        (TC_ACT_REDIRECT, Some(expected)) => {
            let inner = |len: usize| len + ETHERNET_LEN;
            let at = match verdict {
                Verdict::V4(Move::Encapsulate(..), ..) => inner(tables.carrier.overhead::<V4>()),
                Verdict::V6(Move::Encapsulate(..), ..) => inner(ipv6::ENCAP_LEN),
                _ => ETHERNET_LEN,
            };
            match (&decision.v4.rewrite, &decision.v6.rewrite) {
                (Some(rewrite), _) => translated(expected, rewrite, at),
                (_, Some(rewrite)) => translated(expected, rewrite, at),
                _ => Some(expected),
            }
        }
        (_, expected) => expected,
    };
    let size = (u64::from(segments.max(1)), frame.len() as u64);
    let noted = note.map(Note::reason).or(note_v6.map(Note::reason));
    let decision = decide_all(hook, frame, tables, arrival, as_taken(frame));
    let (tunnel, tunnel_v6) = (decision.v4.tunnel, decision.v6.tunnel);
    let known = [tunnel.map(|note| note.reason), tunnel_v6.map(|note| note.reason)];
    let reasons = reason.into_iter().chain(noted).chain(known.into_iter().flatten());
    let counted: Counted = reasons.map(|reason| ((hook.direction(), reason), size)).collect();
    ensure!(outcome.counted == counted, "counted {:?}, not {counted:?}", outcome.counted);
    let mut flows = tables.clone();
    note.iter().for_each(|note| flows.write_down(note));
    ensure!(outcome.flows == flows.flows, "flows {:?}, not {:?}", outcome.flows, flows.flows);
    note_v6.iter().for_each(|note| flows.write_down_v6(note));
    ensure!(outcome.flows_v6 == flows.v6.flows, "flows {:?}, not {:?}", outcome.flows_v6, flows.v6.flows);
    let translations = (&flows.translations, &flows.v6.translations);
    let found = (&outcome.translations.0, &outcome.translations.1);
    ensure!(found == translations, "translations {found:?}, not {translations:?}");
    let mut tunnels = tables.tunnels.clone();
    tunnels.extend(tunnel.map(|note| (note.vtep, note.tunnel)));
    ensure!(outcome.tunnels == tunnels, "tunnels {:?}, not {tunnels:?}", outcome.tunnels);
    let mut tunnels = tables.v6.tunnels.clone();
    tunnels.extend(tunnel_v6.map(|note| (note.vtep, note.tunnel)));
    ensure!(outcome.tunnels_v6 == tunnels, "tunnels {:?}, not {tunnels:?}", outcome.tunnels_v6);
    let pods = (flows.pods, flows.v6.pods);
    ensure!(outcome.pods == pods, "pods {:?}, not {pods:?}", outcome.pods);
    let marks = tables.marks;
    let mark = MARK | arrival.mark;
    let mark = match verdict {
        Verdict::Exempt(_) => mark | marks.exempt,
        Verdict::V6(Move::HandOver(..), ..) => marks.handed_over(mark),
        Verdict::Checked(_) => mark | marks.flow,
        Verdict::LeaveDecapsulated(..) => mark & !marks.flow,
        // Their way ends here, whatever becomes of the packet.
        _ if hook == Hook::FromOverlay => mark & !marks.flow,
        _ if matches!(hook, Hook::ToOverlay | Hook::ToPod | Hook::ToUnderlay) => mark & !marks.both(),
        _ => mark,
    };
    ensure!(outcome.mark == mark, "mark {:#x}, not {mark:#x}", outcome.mark);
    if action == TC_ACT_REDIRECT {
        let priority = decision.priority.unwrap_or(arrival.priority);
        ensure!(outcome.priority == priority, "priority {}, not {priority}", outcome.priority);
    }
    ensure!(outcome.action == action, "action {}, not {action}", outcome.action);
    ensure!(
        expected.as_ref() == Some(&outcome.frame),
        "the frame became\n{:02x?}\nnot\n{:02x?}",
        outcome.frame,
        expected.unwrap_or_default(),
    );
    Ok(())
}

fn is_ipv6(frame: &[u8]) -> bool {
    frame.read(0).is_some_and(|bytes| Ethernet::parse(&bytes).ethertype == ETHERTYPE_IPV6)
}

/// `frame` as it goes on, where nothing in front of it is random.
fn moved<F: Family>(carrier: Carrier, frame: &[u8], how: &Move<F>) -> Option<Vec<u8>> {
    match how {
        Move::Encapsulate(_) => None,
        Move::HandOver(to) => handed_over(frame, to),
        Move::SendDirect(direct) => sent_direct(frame, direct),
        Move::Decapsulate(deliver) => decapsulated_from(carrier, frame, deliver),
        Move::Deliver(deliver) => delivered(frame, deliver),
    }
}

/// The kernel's route for `frame` in a sandbox, where no interface forwards: it is taken for the one that the frame has
/// taken.
pub(crate) fn as_taken(frame: &[u8]) -> Option<UnderlayRoute> {
    frame.read(0).map(|bytes| UnderlayRoute { stations: Ethernet::parse(&bytes), mtu: u32::MAX })
}

/// `frame` encapsulated with the identification and the source port of `outcome`, which are random and
/// from the kernel's secret; `None` for a port outside the range.
fn pushed_like(outcome: &Outcome, frame: &[u8], encap: &Encap<V4>) -> Option<Vec<u8>> {
    let id = u16::from_be_bytes(outcome.frame.read(ID)?);
    let port = source_port(outcome)?;
    let (min, max) = encap.source_ports;
    let inside = (min..max).contains(&u32::from(port)) || (min >= max && u32::from(port) == min);
    let mut expected = encapsulated(frame, encap, id, 0)?;
    expected.write(SOURCE_PORT, port.to_be_bytes())?;
    inside.then_some(expected)
}

/// `frame` in IP with the identification of `outcome`.
fn pushed_in_ip(outcome: &Outcome, frame: &[u8], encap: &Encap<V4>) -> Option<Vec<u8>> {
    encapsulated_in_ip(frame, encap, u16::from_be_bytes(outcome.frame.read(ID)?))
}

/// As [`pushed_like`], over IPv6; and the outer checksum is held against the sum over every byte of the datagram,
/// where the inner packet's is right.
fn pushed_like_v6(outcome: &Outcome, frame: &[u8], encap: &Encap<V6>) -> Option<Vec<u8>> {
    let port = u16::from_be_bytes(outcome.frame.read(SOURCE_PORT_V6)?);
    let (min, max) = encap.source_ports;
    // The port of any hash is one the checksum can be made for anew: what the program wrote has both.
    let mut expected = encapsulated(frame, encap, 0, 0)?;
    let differs = i64::from(port) - i64::from(u16::from_be_bytes(expected.read(SOURCE_PORT_V6)?));
    expected.write(SOURCE_PORT_V6, port.to_be_bytes())?;
    let sum = i64::from(!u16::from_be_bytes(expected.read(SOURCE_PORT_V6 + 6)?)) + differs;
    let sum = match !(sum.rem_euclid(0xffff) as u16) {
        0 => 0xffff,
        sum => sum,
    };
    let written = u16::from_be_bytes(outcome.frame.read(SOURCE_PORT_V6 + 6)?);
    // In one's complement 0 is written in two ways.
    expected.write(
        SOURCE_PORT_V6 + 6,
        if written % 0xffff == sum % 0xffff { written } else { sum }.to_be_bytes(),
    )?;
    let valid = |at: usize, frame: &[u8]| {
        let ip = Ipv6::parse(&frame.read(at)?);
        let payload = frame.get(at + IPV6_LEN..)?;
        // The sum over a right datagram is all ones.
        Some(matches!(transport_checksum(&ip, payload), 0 | 0xffff))
    };
    let inner = valid(ipv6::ENCAP_LEN + ETHERNET_LEN, &outcome.frame)?;
    let outer = valid(ETHERNET_LEN, &outcome.frame)?;
    let inside = (min..max).contains(&u32::from(port)) || (min >= max && u32::from(port) == min);
    (inside && (outer || !inner)).then_some(expected)
}

/// The UDP source port of what the program sent.
pub(crate) fn source_port(outcome: &Outcome) -> Option<u16> {
    outcome.frame.read(SOURCE_PORT).map(u16::from_be_bytes)
}

/// What the program makes of a decision, where the kernel's helpers have the last word about it:
/// `mtu_of` says how large a packet an interface takes, if it exists.
pub(crate) fn in_kernel(
    hook: Hook,
    verdict: Verdict,
    frame: &[u8],
    tables: &MemoryTables,
    gso_size: u32,
    mtu_of: impl Fn(u32) -> Option<u32>,
) -> Verdict {
    // In BPF_PROG_TEST_RUN there is a segment size but no kind of GSO: adjust_room refuses.
    let refused = gso_size != 0;
    let changes_length =
        matches!(verdict, Verdict::V4(Move::Decapsulate(_), _) | Verdict::V6(Move::Decapsulate(_), _));
    match (verdict, verdict.pod().map(|(pod, len)| (len, mtu_of(pod.ifindex)))) {
        (_, None) => {}
        (Verdict::DecapsulateEarly(..), Some((len, mtu))) => {
            return if mtu.is_some_and(|mtu| len <= mtu) { verdict } else { Verdict::Pass };
        }
        (_, Some((_, None))) => return left(hook, frame, tables, Reason::PodGone),
        (_, Some((len, Some(mtu)))) if len > mtu => return left(hook, frame, tables, Reason::TooBig),
        (_, Some(_)) if refused && changes_length => return Verdict::Kernel(Reason::Refused),
        (_, Some(_)) => return verdict,
    }
    match verdict {
        Verdict::V6(Move::HandOver(to), _) if mtu_of(to.ifindex).is_none() => {
            left(hook, frame, tables, Reason::Ipv6Aggregate)
        }
        Verdict::V4(Move::Encapsulate(..), ..) if refused => left(hook, frame, tables, Reason::Refused),
        _ => verdict,
    }
}
