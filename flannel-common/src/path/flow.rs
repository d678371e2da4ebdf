//! Learns flows for the gate: past the host's stack go only those that netfilter has accepted, both ways.
//!
//! A flow begins on the kernel path. Once connection tracking calls it established, a rule behind all filters marks its
//! packets ([`Marks::flow`](crate::mark::Marks::flow)); of a flow that netfilter translates the agent tells how
//! ([`super::translated`]). At the ends of the path [`take_note`] writes down that this direction was accepted, and for
//! how long that holds is [`Config::tcp_refresh`] or [`Config::udp_refresh`]. [`super::gate`] lets packets of such flows skip
//! the stack. A direction whose time is over takes the kernel path again, where its next accepted packet renews it:
//! that keeps connection tracking's own entry alive, and is when a changed policy bites.

use super::{
    Act, Note, Tables,
    acceptance::{NEVER, half, lifetime, renewed},
    act,
    end::End,
    fields,
    gate::is_refusal,
    host_mark, switched,
    tables::Clock,
    trail, translated,
    transport::{Transport, ends},
};
use crate::{
    family::{Family, IpHeader as _},
    layout::{FastPath, FlowProtocol, Translation},
    packet::{
        Arrival,
        headers::{ETHERNET_LEN, Ethernet, folded},
    },
    reason::{Direction, Reason},
};

/// Notes beside a packet that stays on the kernel path to be learned, whose header is at `offset`, what rules may change of
/// it.
#[inline(always)]
pub(super) fn begin_trail<F: Family, P: Act<F>>(
    packet: P,
    tables: &impl Tables<F>,
    way: Direction,
    verdict: &Result<P::Done, Reason>,
    offset: impl FnOnce() -> Option<usize>,
) {
    if let Err(reason) = verdict
        && (is_refusal(*reason) || matches!((way, reason), (Direction::Egress, Reason::NoRoute)))
        && let Some(offset) = offset()
        && let Some(ip) = F::Header::read(&packet, offset)
        && let Ok(transport) = Transport::at(&packet, offset + F::IP_LEN, ip.protocol())
    {
        let header = transport.header::<F>(way, &ip);
        let is_translated = matches!(way, Direction::Egress)
            && tables.config().is_some_and(|config| !config.network.contains(ip.destination()));
        // Of what leaves for elsewhere only UDP is asked about on its way out.
        let is_left_out = matches!(way, Direction::Egress)
            && matches!(reason, Reason::NoRoute)
            && !(is_translated && matches!(transport.protocol, FlowProtocol::Udp));
        if !is_left_out {
            packet.note_beside(if is_translated {
                trail::begins_translated(header)
            } else {
                trail::begins(header)
            });
        }
    }
}

/// Writes down what the packet, at the `end` of the kernel path, says about its flow, and takes away what is noted beside
/// it: nobody else knows it.
#[inline(always)]
pub(super) fn take_note<F: Family, P: Act<F>>(packet: P, tables: &impl Tables<F>, end: End, size: P::Size) {
    let arrival = packet.arrival();
    look(packet, tables, &arrival, end, size);
    if trail::is_ours(arrival.tc_index) {
        packet.note_beside(0);
    }
}

/// Writes down what there is about the flow of a packet that is at the `end` of the kernel path: tc egress on
/// flannel.<vni> or the external interface, or on the host side of a pod's veth. `None` when nothing was looked up.
///
/// Acceptance counts for its own direction only with a packet that has come in where the programs would have taken it from,
/// which noted its trail beside it, and that goes where they would have sent it. One that a rule has led over another pod
/// first, a firewall perhaps, comes from that pod's veth; one that a rule leads to another gateway leaves by that.
#[inline(always)]
fn look<F: Family, P: Act<F>>(
    packet: P,
    tables: &impl Tables<F>,
    arrival: &Arrival,
    end: End,
    size: P::Size,
) -> Option<()> {
    let way = end.way();
    let offset = end.ip_at::<F>(tables.carrier());
    let config = tables.config()?;
    if config.fast_path != FastPath::Flow || arrival.vlan_tagged {
        return None;
    }
    // A device of IP has no Ethernet header.
    if offset == ETHERNET_LEN && Ethernet::parse(packet.view(0)?).ethertype != F::ETHERTYPE {
        return None;
    }
    let ip = F::Header::read(&packet, offset)?;
    ip.check().ok()?;
    let (local, remote) = ends::<F>(way, &ip);
    let is_inside = config.network.contains(remote);
    if config.subnet.contains(remote) {
        return match end {
            End::Pod => switched::note(packet, tables, arrival, &config, &ip, size),
            End::Overlay | End::Underlay | End::Tunnel => None,
        };
    }
    if !is_inside && matches!(way, Direction::Egress) {
        return None;
    }
    let marks = tables.marks();
    // What comes from outside of the cluster. The answers of a Service do so only here: where netfilter marks them,
    // they come from a backend still.
    if !is_inside && arrival.mark & marks.flow == 0 {
        return None;
    }
    let pod = tables.pod(local)?;
    // Not another station's, to which a bridge has flooded it.
    if matches!(way, Direction::Ingress)
        && (pod.ifindex != arrival.ifindex || !Ethernet::parse(packet.view(0)?).is_to(&pod.mac))
    {
        return None;
    }
    let transport = Transport::at(&packet, offset + F::IP_LEN, ip.protocol()).ok()?;
    let mut flow = transport.flow::<F>(way, &ip);
    let mut is_to_be_asked = false;
    if matches!(way, Direction::Egress) {
        // Somebody else may reset it in its pod's name, who comes in elsewhere.
        let is_translated = trail::is_translated(arrival.tc_index);
        if is_translated | transport.resets() {
            match tables.translation(&flow) {
                Some(Translation { remote, remote_port, .. }) => {
                    (flow.remote, flow.remote_port) = (remote, remote_port);
                }
                None if !is_translated => {}
                // After its first answer there may be none by which to ask.
                None if matches!(transport.protocol, FlowProtocol::Udp) => is_to_be_asked = true,
                None => return None,
            }
        }
    } else if !is_inside {
        is_to_be_asked = tables.translation(&flow).is_none();
    }
    let known = tables.flow(&flow).unwrap_or(NEVER);
    // Whatever skipped the stack before: from here on netfilter decides about it anew.
    let left_to_kernel =
        matches!(way, Direction::Egress) && host_mark::is_heeded(arrival, marks, config.heeded);
    if (arrival.mark & marks.flow == 0) | left_to_kernel || transport.begins_or_ends() {
        if known.ifindex != NEVER.ifindex {
            // Of what was never fast connection tracking has seen each packet. A SYN that has come in elsewhere may be
            // anybody's, and does nothing; so may a reset, which cuts short what connection tracking knows.
            let was_fast = known.egress != 0 && known.ingress != 0;
            let is_broken_off = was_fast
                && (transport.resets() || (transport.breaks_off() && trail::is_ours(arrival.tc_index)));
            let note = if is_broken_off { Note::BrokenOff(flow) } else { Note::Forget(flow) };
            act::noted(packet, way, &note, size);
        }
    } else if trail::is_changed(arrival.tc_index, transport.header::<F>(way, &ip)) {
        act::noted(packet, way, &Note::Changed(flow), size);
    } else if is_to_be_asked {
        // The connection before it between the same ports may have left something behind: its last acknowledgement comes
        // after the packet that ends it.
        let begins = matches!(way, Direction::Ingress) && transport.begins();
        let known = if begins { NEVER } else { known };
        let note = translated::ask(way, flow, &known, &pod, tables.now())?;
        act::noted(packet, way, &note, size);
    } else {
        let lifetime = lifetime(&config, transport.protocol);
        // One hop more before routing.
        let seen = (fields::of(ip.class(), ip.hops().wrapping_add(1)), arrival.priority);
        let at = (pod.ifindex, folded(&pod.gateway_mac));
        let permit = renewed(way, &known, at, seen, lifetime, Clock::of(tables))?;
        let permit = if trail::is_ours(arrival.tc_index) { permit } else { half(way, permit, &known)? };
        // Each note by itself: in one place for either the flow would stand on a program's stack twice.
        if end.is_where_programs_send::<F>(&packet, tables, &config, remote)? {
            act::noted(packet, way, &Note::Permit(flow, permit), size);
        } else {
            act::noted(packet, way, &Note::Changed(flow), size);
        }
    }
    Some(())
}
