//! The flow gate: past the host's stack go only flows that netfilter has accepted, both ways.
//!
//! A flow begins on the kernel path. Once connection tracking calls it established, a rule behind all filters marks its
//! packets ([`Marks::flow`](crate::mark::Marks::flow)); of a flow that netfilter translates the agent tells how
//! ([`super::translated`]). At the ends of the path [`take_note`] writes down that this direction was accepted, and for
//! how long that holds is [`Config::tcp_refresh`] or [`Config::udp_refresh`]. [`admit`] lets packets of such flows skip
//! the stack. A direction whose time is over takes the kernel path again, where its next accepted packet renews it:
//! that keeps connection tracking's own entry alive, and is when a changed policy bites.

use super::{
    Act, Rewrite, Tables, act,
    end::End,
    fields, host_mark, switched,
    tables::Clock,
    trail, translated,
    transport::{Transport, ends},
};
use crate::{
    family::{Family, IpHeader as _},
    layout::{Config, FastPath, Flow, FlowProtocol, Permit, Translation},
    packet::{
        Arrival, Packet,
        headers::{ETHERNET_LEN, Ethernet, folded},
    },
    reason::{Direction, Reason},
};

const SECOND: u64 = 1_000_000_000;
const MILLISECOND: u64 = 1_000_000;

/// Acceptance is written down anew when it is so old, ns, or at half its time: rarely enough to cost nothing.
pub(super) const RENEW: u64 = SECOND;

/// For so long, ns, a direction stays accepted for packets with one DSCP and TTL, however many others come between:
/// that bounds how often it is written down anew.
const SETTLED: u64 = 20 * MILLISECOND;

/// Why [`admit`] leaves a packet to the kernel's path.
pub const REFUSALS: [Reason; 6] = [
    Reason::FlowUnknown,
    Reason::FlowHalf,
    Reason::FlowStale,
    Reason::FlowControl,
    Reason::FlowProtocol,
    Reason::FlowFields,
];

/// Whether `reason` is one of [`REFUSALS`].
#[inline(always)]
pub(super) const fn is_refusal(reason: Reason) -> bool {
    use Reason::{FlowControl, FlowFields, FlowHalf, FlowProtocol, FlowStale, FlowUnknown};
    matches!(reason, FlowUnknown | FlowHalf | FlowStale | FlowControl | FlowProtocol | FlowFields)
}

/// The value of a flow that the map does not have. No interface has index 0.
pub(super) const NEVER: Permit =
    Permit { egress: 0, ingress: 0, ifindex: 0, gateway: 0, sent: 0, received: 0, priority: 0, reserved: 0 };

/// When a direction was accepted that must not skip the stack, ns: before any agent has started.
pub const LONG_AGO: u64 = 1;

/// What to write down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note<F: Family> {
    /// Netfilter has accepted it: put this.
    Permit(Flow<F>, Permit),
    /// It begins anew, or ends, or is not accepted any more: delete it.
    Forget(Flow<F>),
    /// It skipped the stack, and is broken off: delete it, and tell the agent. Connection tracking, which has not seen
    /// how far it has come, does not know what to believe of a reset, and would take a new connection between the same
    /// ports for this one.
    BrokenOff(Flow<F>),
    /// Netfilter has accepted it, but its packets do not leave the kernel's path as they came ([`trail`]): delete it.
    Changed(Flow<F>),
    /// Netfilter has accepted it, but translates it: put this, by which it is known again.
    Candidate(Flow<F>, Permit),
    /// The same, and it lasts: put this, and ask the agent how it is translated.
    Ask(Flow<F>, Permit),
    /// A connection that is translated begins anew or ends: delete how, and that it was accepted.
    Untranslate(Flow<F>),
    /// Not of a flow: the address of a pod is announced from somewhere else ([`super::moved`]). Delete its place.
    Moved(F::Address),
    /// Not of a flow: the pod behind the veth forwards for others. Put that.
    Forwards {
        /// Host side of the pod's veth.
        ifindex: u32,
        /// When it was seen, ns on the clock of [`Permit`].
        seen: u64,
    },
}

impl<F: Family> Note<F> {
    /// What it is counted for.
    #[inline(always)]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Permit(..) => Reason::FlowLearned,
            Self::Forget(_) | Self::BrokenOff(_) | Self::Untranslate(_) => Reason::FlowForgotten,
            Self::Candidate(..) => Reason::FlowTranslated,
            Self::Ask(..) => Reason::FlowAsked,
            Self::Changed(_) => Reason::FlowChanged,
            Self::Moved(_) => Reason::PodMoved,
            Self::Forwards { .. } => Reason::ForwarderLearned,
        }
    }
}

/// A packet that asks to skip the host's stack.
#[derive(Clone, Copy)]
pub(super) struct Passage {
    /// Which way it travels.
    pub(super) way: Direction,
    /// Host side of the veth of the pod that it comes from, or is for.
    pub(super) ifindex: u32,
    /// The station that a pod's packet goes to, folded, or the other pod's veth ([`switched`]); none for those to a pod from
    /// elsewhere.
    pub(super) gateway: Option<u32>,
    /// Those of its [`fields`] that the kernel path would see.
    pub(super) fields: u32,
    /// The time.
    pub(super) clock: Clock,
}

/// Lets a packet of `flow` skip the host's stack, with [`Permit::priority`].
///
/// A direction needs acceptance of its own that still holds; of the other one it is enough that it was
/// accepted. A flow that only ever goes one way after its first answer would be slow for good otherwise, and
/// each of its own packets that renew it keeps connection tracking's entry alive for both ways.
///
/// # Errors
/// Why it may not.
#[inline(always)]
pub(super) fn admit<F: Family>(
    passage: &Passage,
    transport: &Transport,
    flow: &Flow<F>,
    tables: &impl Tables<F>,
    config: &Config<F>,
) -> Result<u32, Reason> {
    transport.check_control()?;
    let permit = tables.flow(flow).ok_or(Reason::FlowUnknown)?;
    check_permit(passage, &permit, lifetime(config, transport.protocol))?;
    Ok(permit.priority)
}

/// As [`admit`] a packet for a pod, of a flow that netfilter translates, too: then with how. Its header `ip`, without
/// options or extensions, stands at `offset`.
///
/// # Errors
/// Why it may not.
#[inline(always)]
pub(super) fn admit_to_pod<F: Family>(
    passage: &Passage,
    packet: &(impl Packet + ?Sized),
    offset: usize,
    tables: &impl Tables<F>,
    config: &Config<F>,
    ip: &F::Header,
) -> Result<Option<Rewrite<F>>, Reason> {
    let transport = Transport::at(packet, offset + F::IP_LEN, ip.protocol())?;
    transport.check_control()?;
    let lifetime = lifetime(config, transport.protocol);
    let flow = transport.flow::<F>(passage.way, ip);
    let refusal = match tables.flow(&flow) {
        None => Reason::FlowUnknown,
        Some(permit) => match check_permit(passage, &permit, lifetime) {
            Ok(()) => return Ok(None),
            Err(reason) => reason,
        },
    };
    // No flow is both: whoever puts a translation takes away what was known of the flow as it comes.
    let (rewrite, flow) = translated::to_pod(tables, ip, &transport, flow).ok_or(refusal)?;
    let permit = tables.flow(&flow).ok_or(Reason::FlowUnknown)?;
    check_permit(passage, &permit, lifetime)?;
    Ok(Some(rewrite))
}

/// Whether `permit` lets a packet skip the stack, where acceptance holds for `lifetime`, ns.
///
/// # Errors
/// Why it does not.
#[inline(always)]
fn check_permit(passage: &Passage, permit: &Permit, lifetime: u64) -> Result<(), Reason> {
    if permit.ifindex != passage.ifindex {
        return Err(Reason::FlowUnknown);
    }
    if let Some(gateway) = passage.gateway
        && permit.gateway != gateway
    {
        return Err(Reason::FlowUnknown);
    }
    if permit.egress == 0 || permit.ingress == 0 {
        return Err(Reason::FlowHalf);
    }
    let (stamp, accepted) = match passage.way {
        Direction::Egress => (permit.egress, permit.sent),
        Direction::Ingress => (permit.ingress, permit.received),
    };
    if !passage.clock.counts(stamp, lifetime) {
        return Err(Reason::FlowStale);
    }
    if !fields::hold(accepted, passage.fields) {
        return Err(Reason::FlowFields);
    }
    Ok(())
}

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

/// `known` after netfilter has accepted a packet that travels `way` now, where that holds for `lifetime`, ns; `None` while
/// what is known is recent enough. The packet is of the pod with that [`Permit::ifindex`] and [`Permit::gateway`], and has
/// those fields, and that `skb->priority`.
#[inline(always)]
pub(super) fn renewed(
    way: Direction,
    known: &Permit,
    (ifindex, gateway): (u32, u32),
    (of_packet, priority): (u32, u32),
    lifetime: u64,
    clock: Clock,
) -> Option<Permit> {
    // Another pod had this address, or this one another gateway: nothing is inherited.
    let same = known.ifindex == ifindex && known.gateway == gateway;
    let before = if same { *known } else { NEVER };
    let (stamp, accepted) = match way {
        Direction::Egress => (before.egress, before.sent),
        Direction::Ingress => (before.ingress, before.received),
    };
    let half = lifetime / 2;
    let mut now = (clock.now, of_packet);
    if clock.counts(stamp, if half < RENEW { half } else { RENEW }) {
        if fields::hold(accepted, of_packet) {
            return None;
        }
        if fields::are_alike(accepted, of_packet) {
            now = (stamp, accepted | of_packet);
        } else if clock.counts(stamp, SETTLED) {
            return None;
        }
    }
    Some(match way {
        Direction::Egress => Permit { egress: now.0, sent: now.1, priority, ifindex, gateway, ..before },
        Direction::Ingress => Permit { ingress: now.0, received: now.1, ifindex, gateway, ..before },
    })
}

/// `permit` for a packet that travels `way` and has come in where no program would have taken it from: the other direction
/// may go by it, its own takes the kernel path. `None` where `known` says as much.
#[inline(always)]
const fn half(way: Direction, permit: Permit, known: &Permit) -> Option<Permit> {
    let is_known = known.ifindex == permit.ifindex && known.gateway == permit.gateway;
    match way {
        Direction::Egress if is_known && known.egress != 0 => None,
        Direction::Ingress if is_known && known.ingress != 0 => None,
        Direction::Egress => Some(Permit { egress: LONG_AGO, ..permit }),
        Direction::Ingress => Some(Permit { ingress: LONG_AGO, ..permit }),
    }
}

/// How long ago `stamp` was, ns; longer than anything if never.
#[inline(always)]
pub(super) const fn age(now: u64, stamp: u64) -> u64 {
    if stamp == 0 { u64::MAX } else { now.saturating_sub(stamp) }
}

/// How long acceptance holds, ns.
#[inline(always)]
pub(super) const fn lifetime<F: Family>(config: &Config<F>, protocol: FlowProtocol) -> u64 {
    let refresh = match protocol {
        FlowProtocol::Tcp => config.tcp_refresh,
        FlowProtocol::Udp => config.udp_refresh,
    };
    refresh as u64 * MILLISECOND
}
