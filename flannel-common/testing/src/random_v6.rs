//! IPv6 cases that are almost right, as those of IPv4.

use flannel_common::{
    family::V6,
    layout::{
        AddressV6, Exempt, FastPath, Flow, FlowProtocol, PREFIX_LENGTHS, RouteKind, SubnetV6, UnknownVtep,
        Vtep,
    },
    packet::{
        Packet as _,
        headers::{ETHERNET_LEN, PROTOCOL_TCP, PROTOCOL_UDP},
        ipv6::{ENCAP_LEN, IPV6_LEN, Ipv6},
    },
    path::Hook,
    reason::Direction,
};
use proptest::{collection::vec, prelude::*, sample::select};

use super::{
    ELSEWHERE, FrameV6, HERE, MemoryTables, NOW, THERE, interface,
    random::{Bend, Case, accepted, arrival, fields_of, permit},
};

/// Longest payload of a random packet: with all headers it still fits a page.
const MAX_PAYLOAD: usize = 1_900;

/// IPv6 cases of `hook`.
pub fn case_v6(hook: Hook) -> impl Strategy<Value = Case> {
    let mode = prop_oneof![1 => Just(None), 2 => permit().prop_map(Some)];
    let handed_over = prop::bool::weighted(0.1);
    let frame = any::<bool>().prop_flat_map(move |direct| (almost_valid(hook, direct), Just(direct)));
    (frame, arrival(hook), tables(), mode, handed_over).prop_map(
        move |((frame, direct), mut arrival, mut tables, mode, handed_over)| {
            if direct {
                let tunnels = tables.v6.routes.values_mut().filter(|peer| peer.kind == RouteKind::Vxlan);
                tunnels.for_each(|peer| peer.kind = RouteKind::Direct);
            }
            if let Some(permit) = mode {
                let config = tables.v6.config.iter_mut();
                config.filter(|config| config.fast_path == FastPath::All).for_each(|config| {
                    config.fast_path = FastPath::Flow;
                });
                let of = flow_of(hook, &frame).zip(permit);
                tables.v6.flows.extend(
                    of.map(|((flow, fields), permit)| (flow, accepted(permit, fields, arrival.mark))),
                );
            }
            if hook == Hook::ToOverlay {
                let marks = tables.marks;
                arrival.mark = match handed_over {
                    true => marks.handed_over(arrival.mark),
                    false => arrival.mark | marks.exempt,
                };
            }
            Case { hook, frame, arrival, tables }
        },
    )
}

/// The flow that `frame` belongs to at `hook`, if it is of one, however bent, and for which packets it may be accepted.
fn flow_of(hook: Hook, frame: &[u8]) -> Option<(Flow<V6>, u32)> {
    let outer = Ipv6::parse(&frame.read(ETHERNET_LEN)?);
    let arrives = hook == Hook::FromUnderlay || hook.is_xdp();
    let tunnelled = arrives && outer.destination == HERE.vtep_v6();
    let at = if tunnelled { ENCAP_LEN + ETHERNET_LEN } else { ETHERNET_LEN };
    let ip = Ipv6::parse(&frame.read(at)?);
    let protocol = match ip.next_header {
        PROTOCOL_TCP => FlowProtocol::Tcp,
        PROTOCOL_UDP => FlowProtocol::Udp,
        _ => return None,
    };
    let port = |at| frame.read(at).map(u16::from_be_bytes);
    let (source, destination) = (port(at + IPV6_LEN)?, port(at + IPV6_LEN + 2)?);
    let (local, remote, local_port, remote_port) = match hook.direction() {
        Direction::Egress => (ip.source, ip.destination, source, destination),
        Direction::Ingress => (ip.destination, ip.source, destination, source),
    };
    let flow = Flow { local, remote, local_port, remote_port, protocol };
    Some((flow, fields_of(hook, ip.traffic_class(), ip.hop_limit)))
}

fn almost_valid(hook: Hook, direct: bool) -> impl Strategy<Value = Vec<u8>> {
    // The last offset is the end of the inner TCP header behind all outer headers.
    let bends = prop_oneof![1 => Just(Vec::new()), 2 => vec(Bend::within(144), 1..3)];
    (valid(hook, direct), bends).prop_map(|(mut frame, bends)| {
        bends.into_iter().for_each(|bend| bend.apply(&mut frame));
        frame
    })
}

fn valid(hook: Hook, direct: bool) -> impl Strategy<Value = Vec<u8>> {
    let hops = prop_oneof![4 => Just(64u8), 1 => 0..4u8];
    let kind = select(&[0u8, 43, 44, 60, 51][..]);
    let extensions = prop_oneof![2 => Just(Vec::new()), 1 => vec((kind, 0..3u8), 1..8)];
    let outer = (0..1u32 << 20, any::<bool>(), extensions);
    (packet(hook), any::<u8>(), hops, outer).prop_map(move |(frame, class, hop_limit, outer)| {
        let (label, unknown, extensions) = outer;
        let frame = frame.class(class).ip(|ip| {
            ip.hop_limit = hop_limit;
            ip.class = ip.class & !0xf_ffff | label;
        });
        match hook {
            Hook::FromPod => frame.macs(HERE.gateway_mac(), HERE.pod_mac(2)).bytes(),
            Hook::ToOverlay => frame.macs(THERE.mac_v6(), HERE.mac_v6()).bytes(),
            Hook::FromOverlay => frame.macs(HERE.mac_v6(), THERE.mac_v6()).bytes(),
            Hook::ToUnderlay => frame.macs(THERE.mac_v6(), interface::UNDERLAY_MAC).bytes(),
            Hook::FromUnderlay if direct => frame.bytes(),
            Hook::ToPod => frame.macs(HERE.pod_mac(2), HERE.gateway_mac()).bytes(),
            Hook::FromUnderlay => {
                let inner = frame.macs(HERE.mac_v6(), THERE.mac_v6()).bytes();
                // Any mark, which most inner marks combine with.
                let outer = FrameV6::vxlan(THERE.vtep_v6(), HERE.vtep_v6(), &inner);
                outer.class(class.rotate_left(3)).bytes()
            }
            Hook::XdpUnderlay | Hook::XdpGeneric => {
                let inner = frame.macs(HERE.mac_v6(), THERE.mac_v6()).bytes();
                let sender = if unknown { ELSEWHERE } else { THERE };
                FrameV6::vxlan(sender.vtep_v6(), HERE.vtep_v6(), &inner).extended(&extensions).bytes()
            }
        }
    })
}

fn any_address() -> impl Strategy<Value = AddressV6> {
    any::<[u8; 16]>().prop_map(AddressV6::new)
}

/// Between a pod here and a pod there.
fn packet(hook: Hook) -> impl Strategy<Value = FrameV6> {
    let here = prop_oneof![8 => Just(HERE.pod_v6(2)), 1 => (1..8u8).prop_map(|number| HERE.pod_v6(number))];
    let there = prop_oneof![
        8 => (1..255u8).prop_map(|number| THERE.pod_v6(number)),
        1 => (1..8u8).prop_map(|number| ELSEWHERE.pod_v6(number)),
        1 => any_address(),
    ];
    let len = prop_oneof![4 => 0..200usize, 1 => 1_310..1_420usize, 1 => 480..580usize, 1 => 0..MAX_PAYLOAD];
    let any_protocol = prop_oneof![Just(132u8), Just(44u8), any::<u8>()];
    let flags = prop_oneof![3 => Just(0x10u8), 1 => any::<u8>()];
    (here, there, len, 0..5u8, 0..=10usize, any_protocol, flags).prop_map(
        move |(here, there, len, kind, words, protocol, flags)| {
            let (source, destination) =
                if hook.direction() == Direction::Ingress { (there, here) } else { (here, there) };
            match kind {
                0 | 1 => FrameV6::udp(source, destination, len),
                2 => FrameV6::tcp(source, destination, words * 4, len).tcp_flags(flags),
                3 => FrameV6::echo(source, destination, len),
                _ => FrameV6::new(source, destination, protocol, vec![0x5a; len]),
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
    Macs([u8; 6], [u8; 6]),
    Pod(u8, u32),
    SourceSubnet(u32),
    OwnSubnet(u32),
    Network(u32),
    Overlay(u32),
    FastPath(FastPath),
    FlowRefresh(u32),
    /// What was noted before counts no more.
    Since(u64),
    UnknownVtep(UnknownVtep),
    Exempt(Vec<SubnetV6>),
    Leases([u8; PREFIX_LENGTHS], AddressV6),
}

impl Change {
    fn any() -> impl Strategy<Value = Self> {
        let length = || 0..=128u32;
        let lengths = [0..=128u8, 0..=128u8, 0..=128u8, 0..=128u8].prop_map(|mut lengths| {
            lengths.sort_unstable_by(|a, b| b.cmp(a));
            lengths
        });
        let pods = [interface::POD, interface::OTHER_POD, interface::SMALL_POD, interface::GONE];
        let address = prop_oneof![Just(HERE.pod_v6(2)), Just(THERE.pod_v6(9)), any_address()];
        let exempt = (address, 0..=128u32).prop_map(|(address, length)| SubnetV6::of(address, length));
        prop_oneof![
            1 => Just(Self::NoConfig),
            1 => Just(Self::NoRoutes),
            1 => Just(Self::NoVteps),
            1 => Just(Self::NoPods),
            2 => select(&[RouteKind::Kernel, RouteKind::Direct][..]).prop_map(Self::Kind),
            2 => (68..2_200u32).prop_map(Self::Mtu),
            2 => (0..1u32 << 24).prop_map(Self::Vni),
            1 => any::<([u8; 6], [u8; 6])>().prop_map(|(theirs, ours)| Self::Macs(theirs, ours)),
            3 => (1..8u8, select(pods.to_vec())).prop_map(|(number, ifindex)| Self::Pod(number, ifindex)),
            1 => length().prop_map(Self::SourceSubnet),
            1 => length().prop_map(Self::OwnSubnet),
            1 => length().prop_map(Self::Network),
            2 => select(&[0, interface::OVERLAY, interface::GONE][..]).prop_map(Self::Overlay),
            2 => select(&[FastPath::Off, FastPath::Overlay][..]).prop_map(Self::FastPath),
            1 => select(&[0, 12_000, 3_600_000][..]).prop_map(Self::FlowRefresh),
            2 => select(&[5, 30][..]).prop_map(|age| Self::Since(NOW - age * 1_000_000_000)),
            3 => select(&[UnknownVtep::Count, UnknownVtep::Drop][..]).prop_map(Self::UnknownVtep),
            4 => vec(exempt, 0..4).prop_map(Self::Exempt),
            4 => (lengths, any_address()).prop_map(|(lengths, vtep)| Self::Leases(lengths, vtep)),
        ]
    }

    fn apply(self, tables: &mut MemoryTables) {
        let v6 = &mut tables.v6;
        let Some(config) = &mut v6.config else { return };
        match self {
            Self::NoConfig => v6.config = None,
            Self::NoRoutes => v6.routes.clear(),
            Self::NoVteps => v6.vteps.clear(),
            Self::NoPods => v6.pods.clear(),
            Self::Kind(kind) => v6.routes.values_mut().for_each(|peer| peer.kind = kind),
            Self::Mtu(mtu) => v6.routes.values_mut().for_each(|peer| peer.mtu = mtu),
            Self::Vni(vni) => {
                v6.routes.values_mut().for_each(|peer| peer.vni = vni);
                config.vni = vni;
            }
            Self::Macs(theirs, ours) => {
                v6.routes.values_mut().for_each(|peer| peer.vtep_mac = theirs);
                config.local_mac = ours;
            }
            Self::Pod(number, ifindex) => {
                v6.pods.entry(HERE.pod_v6(number)).and_modify(|pod| pod.ifindex = ifindex);
            }
            Self::SourceSubnet(length) => {
                v6.vteps.insert(THERE.vtep_v6(), Vtep { subnet: SubnetV6::of(THERE.pod_v6(2), length) });
            }
            Self::OwnSubnet(length) => config.subnet = SubnetV6::of(HERE.pod_v6(2), length),
            Self::Network(length) => config.network = SubnetV6::of(HERE.pod_v6(2), length),
            Self::Overlay(ifindex) => config.overlay_ifindex = ifindex,
            Self::FastPath(fast_path) => config.fast_path = fast_path,
            Self::FlowRefresh(refresh) => (config.tcp_refresh, config.udp_refresh) = (refresh, refresh / 2),
            Self::Since(at) => tables.since = at,
            Self::UnknownVtep(unknown) => config.unknown_vtep = unknown,
            Self::Exempt(prefixes) => {
                v6.exempt.extend(prefixes.into_iter().map(|prefix| (prefix, Exempt::User)));
            }
            Self::Leases(lengths, vtep) => {
                config.prefix_lengths = lengths;
                for length in lengths.into_iter().filter(|length| *length != 0) {
                    let mut peer = HERE.peer_v6(&THERE);
                    peer.vtep = vtep;
                    peer.vni = u32::from(length);
                    v6.routes.insert(SubnetV6::of(THERE.pod_v6(2), u32::from(length)), peer);
                }
            }
        }
    }
}

/// Tables of [`HERE`] in a cluster with [`THERE`], changed a little.
fn tables() -> impl Strategy<Value = MemoryTables> {
    let changes = prop_oneof![2 => Just(Vec::new()), 3 => vec(Change::any(), 1..4)];
    (changes, any::<bool>()).prop_map(|(changes, cluster)| {
        let mut tables = HERE.dual_tables(&[THERE]);
        if cluster {
            tables.v6.exempt.insert(HERE.config_v6().network, Exempt::Cluster);
        }
        changes.into_iter().for_each(|change| change.apply(&mut tables));
        tables
    })
}
