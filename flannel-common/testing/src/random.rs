//! Cases that are almost right: a valid packet with a field or two bent, and tables with an entry or two
//! changed, so that every branch of a decision is taken often.

use flannel_common::{
    family::V4,
    layout::{
        Exempt, FastPath, Flow, FlowProtocol, PREFIX_LENGTHS, Permit, RouteKind, SubnetV4, Tunnel,
        UnknownVtep, Vtep,
    },
    mark::FLOW_MARK,
    packet::{
        Arrival, Packet as _, checksum,
        headers::{ENCAP_LEN, ETHERNET_LEN, IPV4_LEN, Ipv4, PROTOCOL_TCP, PROTOCOL_UDP, folded},
    },
    path::{Hook, ecn, fields},
    reason::Direction,
};
use proptest::{collection::vec, prelude::*, sample::select};

use super::{ELSEWHERE, Frame, HERE, MemoryTables, NOW, THERE, TUNNEL, interface, seen_at};

/// Longest payload of a random packet: with all headers it still fits a page, the most that
/// BPF_PROG_TEST_RUN takes.
const MAX_PAYLOAD: usize = 2_000;

/// A packet at a hook, and the tables it meets.
#[derive(Clone, Debug)]
pub struct Case {
    /// Where it is seen.
    pub hook: Hook,
    /// The packet.
    pub frame: Vec<u8>,
    /// What the kernel knows of it beside its bytes.
    pub arrival: Arrival,
    /// The maps.
    pub tables: MemoryTables,
}

/// Cases of `hook`.
pub fn case(hook: Hook) -> impl Strategy<Value = Case> {
    let mode = prop_oneof![1 => Just(None), 2 => permit().prop_map(Some)];
    let frame = any::<bool>().prop_flat_map(move |direct| {
        let frame = prop_oneof![20 => almost_valid(hook, direct), 1 => arbitrary_bytes()];
        (frame, Just(direct))
    });
    (frame, arrival(hook), tables(), mode).prop_map(move |((frame, direct), arrival, mut tables, mode)| {
        if direct {
            let tunnels = tables.routes.values_mut().filter(|peer| peer.kind == RouteKind::Vxlan);
            tunnels.for_each(|peer| peer.kind = RouteKind::Direct);
        }
        if let Some(permit) = mode {
            tables.config.iter_mut().filter(|config| config.fast_path == FastPath::All).for_each(|config| {
                config.fast_path = FastPath::Flow;
            });
            // Most frames are of a flow that is known.
            let of = flow_of(hook, &frame).zip(permit).map(|((flow, fields), permit)| {
                let permit = accepted(permit, fields, arrival.mark);
                if is_switched(hook, &flow) { switched(&tables, flow, permit) } else { (flow, permit) }
            });
            tables.flows.extend(of);
        }
        Case { hook, frame, arrival, tables }
    })
}

/// What may stand in the map about a flow: often a permission that holds.
pub(super) fn permit() -> impl Strategy<Value = Option<Permit>> {
    const SECOND: u64 = 1_000_000_000;
    // Far from every limit, so that no test is so slow that it crosses one.
    let ages =
        || prop_oneof![4 => Just(Some(0)), 2 => select(&[3, 9, 21, 60][..]).prop_map(Some), 1 => Just(None)];
    let stamp = || ages().prop_map(|age| age.map_or(0, |age| NOW - age * SECOND));
    let ifindex = prop_oneof![8 => Just(interface::POD), 1 => Just(interface::OTHER_POD), 1 => Just(0)];
    let permit = (stamp(), stamp(), ifindex).prop_map(|(egress, ingress, ifindex)| Permit {
        egress,
        ingress,
        ifindex,
        gateway: folded(&HERE.gateway_mac()),
        ..Permit::default()
    });
    prop::option::weighted(0.9, permit)
}

/// `permit` for packets with `fields`, and for one of sixteen of any mark for others.
pub(super) fn accepted(permit: Permit, fields: u32, mark: u32) -> Permit {
    let fields = if mark & 0xf == 0xf { fields ^ 1 } else { fields };
    Permit { sent: fields, received: fields, ..permit }
}

/// What stands in the map for a packet with this TOS byte or traffic class and this TTL or hop limit at `hook`, whatever its
/// ECN.
pub(super) fn fields_of(hook: Hook, class: u8, hops: u8) -> u32 {
    let routed = matches!(hook, Hook::ToOverlay | Hook::ToUnderlay | Hook::ToPod);
    fields::of(class, hops.wrapping_add(routed.into())) | fields::ANY_ECN
}

/// The flow that `frame` belongs to at `hook`, if it is of one, however bent, and for which packets it may be accepted.
pub(super) fn flow_of(hook: Hook, frame: &[u8]) -> Option<(Flow<V4>, u32)> {
    let outer = Ipv4::parse(&frame.read(ETHERNET_LEN)?);
    let tunnelled = (hook == Hook::FromUnderlay || hook.is_xdp()) && outer.destination == HERE.vtep;
    let at = if tunnelled { ENCAP_LEN + ETHERNET_LEN } else { ETHERNET_LEN };
    let ip = Ipv4::parse(&frame.read(at)?);
    let protocol = match ip.protocol {
        PROTOCOL_TCP => FlowProtocol::Tcp,
        PROTOCOL_UDP => FlowProtocol::Udp,
        _ => return None,
    };
    let port = |at| frame.read(at).map(u16::from_be_bytes);
    let (source, destination) = (port(at + IPV4_LEN)?, port(at + IPV4_LEN + 2)?);
    let flow = match hook.direction() {
        Direction::Egress => Flow {
            local: ip.source,
            remote: ip.destination,
            local_port: source,
            remote_port: destination,
            protocol,
        },
        Direction::Ingress => Flow {
            local: ip.destination,
            remote: ip.source,
            local_port: destination,
            remote_port: source,
            protocol,
        },
    };
    // Between pods here nothing is routed.
    let hook = if is_switched(hook, &flow) { Hook::FromPod } else { hook };
    Some((flow, fields_of(hook, ip.tos, ip.ttl)))
}

/// Whether `flow` is one between two pods here.
fn is_switched(hook: Hook, flow: &Flow<V4>) -> bool {
    matches!(hook, Hook::FromPod | Hook::ToPod) && HERE.subnet.contains(flow.remote)
}

/// A flow between two pods here as it stands in the map, with `permit` for its veths, where those are known.
fn switched(tables: &MemoryTables, flow: Flow<V4>, permit: Permit) -> (Flow<V4>, Permit) {
    let veth = |address| tables.pods.get(address).map_or(0, |pod| pod.ifindex);
    let (own, other) = (veth(&flow.local), veth(&flow.remote));
    let Flow { local, remote, local_port, remote_port, protocol } = flow;
    let turned =
        Flow { local: remote, remote: local, local_port: remote_port, remote_port: local_port, protocol };
    let (flow, lower, higher) = if own < other { (flow, own, other) } else { (turned, other, own) };
    let ifindex = if permit.ifindex == interface::POD { lower } else { permit.ifindex };
    (flow, Permit { ifindex, gateway: higher, ..permit })
}

/// Any bytes at all.
pub fn arbitrary_bytes() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..200)
}

/// Any arrival at all.
pub fn any_arrival() -> impl Strategy<Value = Arrival> {
    let gso_size = prop_oneof![any::<u32>(), u32::MAX - 100..=u32::MAX];
    (any::<u32>(), gso_size, any::<[u32; 2]>(), any::<u16>(), any::<[bool; 3]>()).prop_map(
        |(ifindex, gso_size, [mark, priority], tc_index, [vlan_tagged, for_other_station, from_socket])| {
            Arrival {
                ifindex,
                gso_size,
                mark,
                priority,
                tc_index,
                vlan_tagged,
                for_other_station,
                from_socket,
            }
        },
    )
}

pub(super) fn arrival(hook: Hook) -> impl Strategy<Value = Arrival> {
    let natural = seen_at(hook);
    let ifindex = prop_oneof![12 => Just(natural.ifindex), 1 => select(&interface::ALL[..])];
    let gso_size = prop_oneof![8 => Just(0), 1 => 1_300..1_500u32, 1 => 1..=u32::from(u16::MAX)];
    let mark = prop_oneof![3 => Just(FLOW_MARK), 1 => Just(0), 1 => any::<u32>()];
    let tc_index =
        prop_oneof![3 => Just(0), 1 => any::<u16>(), 1 => any::<u16>().prop_map(|low| 0xd000 | low & 0xfff)];
    let rarely = || prop::bool::weighted(0.03);
    let priority = prop_oneof![20 => Just(0), 2 => 0..16u32, 1 => any::<u32>()];
    (ifindex, gso_size, mark, priority, tc_index, rarely(), rarely(), rarely()).prop_map(
        |(ifindex, gso_size, mark, priority, tc_index, vlan_tagged, for_other_station, forwarded)| Arrival {
            ifindex,
            gso_size,
            mark,
            priority,
            tc_index,
            vlan_tagged,
            for_other_station,
            from_socket: !forwarded,
        },
    )
}

/// Something done to a frame.
#[derive(Clone, Debug)]
pub(super) enum Bend {
    Byte(usize, u8),
    Bit(usize, u8),
    Truncate(usize),
    Extend(usize),
}

impl Bend {
    /// Something done to the first `len` bytes.
    pub(super) fn within(len: usize) -> impl Strategy<Value = Self> {
        prop_oneof![
            4 => (0..len, any::<u8>()).prop_map(|(offset, value)| Self::Byte(offset, value)),
            4 => (0..len, 0..8u8).prop_map(|(offset, bit)| Self::Bit(offset, bit)),
            1 => (0..len + 16).prop_map(Self::Truncate),
            1 => (1..20usize).prop_map(Self::Extend),
        ]
    }

    pub(super) fn apply(self, frame: &mut Vec<u8>) {
        match self {
            Self::Byte(offset, value) => {
                frame.write(offset, [value]);
            }
            Self::Bit(offset, bit) => {
                if let Some([byte]) = frame.read(offset) {
                    frame.write(offset, [byte ^ (1 << bit)]);
                }
            }
            Self::Truncate(len) => frame.truncate(len),
            Self::Extend(by) => frame.resize(frame.len() + by, 0),
        }
    }
}

fn almost_valid(hook: Hook, direct: bool) -> impl Strategy<Value = Vec<u8>> {
    // The last offset is the end of the inner TCP header behind all outer headers.
    let bends = prop_oneof![1 => Just(Vec::new()), 2 => vec(Bend::within(104), 1..3)];
    (valid(hook, direct), bends, any::<bool>()).prop_map(|(mut frame, bends, repair)| {
        for bend in bends {
            bend.apply(&mut frame);
        }
        // Otherwise most bends of an outer header would be no more than a wrong checksum.
        if repair && let Some(header) = frame.read(ETHERNET_LEN) {
            let ip = Ipv4::parse(&header);
            frame.write(ETHERNET_LEN + 10, checksum::of(&ip).to_be_bytes());
        }
        frame
    })
}

fn valid(hook: Hook, direct: bool) -> impl Strategy<Value = Vec<u8>> {
    let packets = (packet(hook), any::<u8>(), prop_oneof![4 => Just(64u8), 1 => 0..4u8], any::<u16>());
    packets.prop_map(move |(frame, tos, ttl, id)| {
        let frame = frame.ip(|ip| {
            ip.tos = tos;
            ip.ttl = ttl;
            ip.id = id;
        });
        let here = |address: [u8; 4]| HERE.subnet.contains(address).then(|| HERE.pod_mac(address[3]));
        match hook {
            Hook::FromPod => {
                let to = here(frame.ip.destination).unwrap_or(HERE.gateway_mac());
                frame.macs(to, HERE.pod_mac(2)).bytes()
            }
            Hook::ToOverlay => frame.macs(THERE.mac, HERE.mac).bytes(),
            Hook::FromOverlay => frame.macs(HERE.mac, THERE.mac).bytes(),
            Hook::ToPod => {
                let from = here(frame.ip.source).unwrap_or(HERE.gateway_mac());
                frame.macs(HERE.pod_mac(2), from).bytes()
            }
            Hook::ToUnderlay if id & 1 == 0 => frame.macs(THERE.mac, interface::UNDERLAY_MAC).bytes(),
            // As the kernel's device makes it; sometimes with a mark that it would not make.
            Hook::ToUnderlay => {
                let inner = frame.macs(THERE.mac, HERE.mac).bytes();
                let tos = if id & 6 == 0 { tos } else { ecn::encapsulate(tos) };
                Frame::vxlan(HERE.vtep, THERE.vtep, &inner).ip(|ip| ip.tos = tos).bytes()
            }
            Hook::FromUnderlay if direct => frame.bytes(),
            Hook::FromUnderlay | Hook::XdpUnderlay | Hook::XdpGeneric => {
                let inner = frame.macs(HERE.mac, THERE.mac).bytes();
                // Any mark, which most inner marks combine with.
                Frame::vxlan(THERE.vtep, HERE.vtep, &inner).ip(|ip| ip.tos = tos.rotate_left(3)).bytes()
            }
        }
    })
}

/// Between a pod here and a pod there, or another one here.
fn packet(hook: Hook) -> impl Strategy<Value = Frame> {
    let here = prop_oneof![8 => Just(HERE.pod(2)), 1 => (1..8u8).prop_map(|number| HERE.pod(number))];
    let there = prop_oneof![
        8 => (1..255u8).prop_map(|number| THERE.pod(number)),
        2 => (1..16u8).prop_map(|number| match number {
            ..8 => ELSEWHERE.pod(number),
            _ => HERE.pod(2 + number % 4),
        }),
        1 => any::<[u8; 4]>(),
    ];
    let len = prop_oneof![4 => 0..200usize, 1 => 1_350..1_460usize, 1 => 500..600usize, 1 => 0..MAX_PAYLOAD];
    let any_protocol = prop_oneof![Just(1u8), Just(132u8), any::<u8>()];
    let flags = prop_oneof![3 => Just(0x10u8), 1 => any::<u8>()];
    (here, there, len, 0..3u8, 0..=10usize, any_protocol, flags).prop_map(
        move |(here, there, len, kind, words, protocol, flags)| {
            let (source, destination) =
                if hook.direction() == Direction::Ingress { (there, here) } else { (here, there) };
            match kind {
                0 => Frame::udp(source, destination, len),
                1 => Frame::tcp(source, destination, words * 4, len).tcp_flags(flags),
                _ => Frame::ipv4(source, destination, protocol, vec![0x5a; len]),
            }
        },
    )
}

/// Something the agent might have written differently.
#[derive(Clone, Debug)]
enum Change {
    NoConfig,
    NoRoutes,
    NoVteps,
    NoPods,
    Kind(RouteKind),
    Mtu(u32),
    Vni(u32),
    PeerMac([u8; 6]),
    LocalMac([u8; 6]),
    Pod(u8, u32),
    SourceSubnet(SubnetV4),
    OwnSubnet(u32),
    Network(u32),
    SourcePorts(u16, u16),
    Leases([u8; PREFIX_LENGTHS], [u8; 4]),
    FastPath(FastPath),
    /// Of TCP, ms; that of UDP is half of it.
    FlowRefresh(u32),
    /// What was noted before counts no more.
    Since(u64),
    UnknownVtep(UnknownVtep),
    Exempt(Vec<SubnetV4>),
    Tunnel(Option<Tunnel>),
}

impl Change {
    fn any() -> impl Strategy<Value = Self> {
        let length = || 8..=32u32;
        let lengths = [0..=32u8, 0..=32u8, 0..=32u8, 0..=32u8].prop_map(|mut lengths| {
            lengths.sort_unstable_by(|a, b| b.cmp(a));
            lengths
        });
        prop_oneof![
            1 => Just(Self::NoConfig),
            1 => Just(Self::NoRoutes),
            1 => Just(Self::NoVteps),
            1 => Just(Self::NoPods),
            2 => select(&[RouteKind::Kernel, RouteKind::Direct][..]).prop_map(Self::Kind),
            2 => (68..2_200u32).prop_map(Self::Mtu),
            2 => (0..1u32 << 24).prop_map(Self::Vni),
            1 => any::<[u8; 6]>().prop_map(Self::PeerMac),
            1 => any::<[u8; 6]>().prop_map(Self::LocalMac),
            3 => (1..8u8, select(&[
                interface::POD, interface::OTHER_POD, interface::SMALL_POD, interface::GONE,
            ][..])).prop_map(|(number, ifindex)| Self::Pod(number, ifindex)),
            1 => length().prop_map(|length| Self::SourceSubnet(SubnetV4::of(THERE.pod(2), length))),
            1 => length().prop_map(Self::OwnSubnet),
            1 => length().prop_map(Self::Network),
            2 => (any::<u16>(), any::<u16>()).prop_map(|(a, b)| Self::SourcePorts(a, b)),
            2 => select(&[FastPath::Off, FastPath::Overlay][..]).prop_map(Self::FastPath),
            1 => select(&[0, 12_000, 3_600_000][..]).prop_map(Self::FlowRefresh),
            2 => select(&[5, 30][..]).prop_map(|age| Self::Since(NOW - age * 1_000_000_000)),
            3 => select(&[UnknownVtep::Count, UnknownVtep::Drop][..]).prop_map(Self::UnknownVtep),
            4 => vec(exempt(), 0..4).prop_map(Self::Exempt),
            4 => tunnel().prop_map(Self::Tunnel),
            4 => (lengths, any::<[u8; 4]>()).prop_map(|(lengths, vtep)| Self::Leases(lengths, vtep)),
        ]
    }

    fn apply(self, tables: &mut MemoryTables) {
        let MemoryTables {
            config,
            routes,
            vteps,
            pods,
            exempt,
            flows: _,
            translations: _,
            forwarders: _,
            tunnels,
            v6: _,
            since,
            now: _,
            held_until: _,
            marks: _,
            carrier: _,
        } = tables;
        match self {
            Self::NoConfig => *config = None,
            Self::NoRoutes => routes.clear(),
            Self::NoVteps => vteps.clear(),
            Self::NoPods => pods.clear(),
            Self::Kind(kind) => routes.values_mut().for_each(|peer| peer.kind = kind),
            Self::Mtu(mtu) => routes.values_mut().for_each(|peer| peer.mtu = mtu),
            Self::Vni(vni) => {
                routes.values_mut().for_each(|peer| peer.vni = vni);
                config.iter_mut().for_each(|config| config.vni = vni);
            }
            Self::PeerMac(mac) => routes.values_mut().for_each(|peer| peer.vtep_mac = mac),
            Self::LocalMac(mac) => config.iter_mut().for_each(|config| config.local_mac = mac),
            Self::Pod(number, ifindex) => {
                pods.entry(HERE.pod(number)).and_modify(|pod| pod.ifindex = ifindex);
            }
            Self::SourceSubnet(subnet) => {
                vteps.insert(THERE.vtep, Vtep { subnet });
            }
            Self::OwnSubnet(length) => {
                config.iter_mut().for_each(|config| config.subnet = SubnetV4::of(HERE.pod(2), length));
            }
            Self::Network(length) => {
                config.iter_mut().for_each(|config| config.network = SubnetV4::of(HERE.pod(2), length));
            }
            Self::SourcePorts(a, b) => config.iter_mut().for_each(|config| {
                config.source_port_min = u32::from(a.min(b));
                config.source_port_max = u32::from(a.max(b));
            }),
            Self::FastPath(fast_path) => config.iter_mut().for_each(|config| config.fast_path = fast_path),
            Self::FlowRefresh(refresh) => {
                config.iter_mut().for_each(|config| {
                    (config.tcp_refresh, config.udp_refresh) = (refresh, refresh / 2);
                });
            }
            Self::Since(at) => *since = at,
            Self::UnknownVtep(unknown) => {
                config.iter_mut().for_each(|config| config.unknown_vtep = unknown);
            }
            Self::Exempt(prefixes) => {
                exempt.extend(prefixes.into_iter().map(|prefix| (prefix, Exempt::User)));
            }
            Self::Tunnel(tunnel) => {
                tunnels.clear();
                tunnels.extend(tunnel.map(|tunnel| (THERE.vtep, tunnel)));
            }
            Self::Leases(lengths, vtep) => {
                tunnels.insert(vtep, TUNNEL);
                config.iter_mut().for_each(|config| config.prefix_lengths = lengths);
                for length in lengths.into_iter().filter(|length| *length != 0) {
                    let mut peer = HERE.peer(&THERE);
                    peer.vtep = vtep;
                    peer.vni = u32::from(length);
                    routes.insert(SubnetV4::of(THERE.pod(2), u32::from(length)), peer);
                }
            }
        }
    }
}

/// What may have been seen of the kernel's path to a peer.
pub(super) fn tunnel() -> impl Strategy<Value = Option<Tunnel>> {
    // Far from every limit, as with flows.
    let stamp = || prop_oneof![4 => Just(0), 2 => select(&[9, 60][..])];
    let stamp = move || {
        prop::option::weighted(0.9, stamp()).prop_map(|age| age.map_or(0, |age| NOW - age * 1_000_000_000))
    };
    let mtu = prop_oneof![3 => Just(1500), 1 => 68..2_200u32];
    let tunnel = (stamp(), stamp(), mtu, 1..=255u32).prop_map(|(egress, ingress, mtu, ttl)| Tunnel {
        egress,
        ingress,
        differs: 0,
        mtu,
        ttl,
    });
    prop::option::weighted(0.9, tunnel)
}

/// A prefix that holds a pod, here or there, or anything at all.
fn exempt() -> impl Strategy<Value = SubnetV4> {
    let address = prop_oneof![Just(HERE.pod(2)), Just(THERE.pod(9)), any::<[u8; 4]>()];
    (address, 0..=32u32).prop_map(|(address, length)| SubnetV4::of(address, length))
}

/// Tables of [`HERE`] in a cluster with [`THERE`], changed a little.
fn tables() -> impl Strategy<Value = MemoryTables> {
    let changes = prop_oneof![2 => Just(Vec::new()), 3 => vec(Change::any(), 1..4)];
    (changes, any::<bool>()).prop_map(|(changes, cluster)| {
        let mut tables = HERE.tables(&[THERE]);
        if cluster {
            tables.exempt.insert(HERE.config().network, Exempt::Cluster);
        }
        for change in changes {
            change.apply(&mut tables);
        }
        tables
    })
}
