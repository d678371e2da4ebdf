//! The maps for IPv6: what they should hold, and the steps that lead there.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv6Addr},
};

use flannel_common::layout::{AddressV6, ConfigV6, Exempt, PeerKind, PeerV6, PodPlace, SubnetV6, VtepV6};
use ipnetwork::{IpNetwork, Ipv6Network};

use super::{
    Change, Inputs, LocalStack, VxlanDevice,
    delta::{gone, news},
    exempt,
    programs::{Reach, prefix_lengths},
};
use crate::values::Family;

/// The maps with `_v6` in their names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BpfStateV6 {
    /// Map `config_v6`.
    pub config: Option<ConfigV6>,
    /// Map `routes_v6`.
    pub peers: BTreeMap<SubnetV6, PeerV6>,
    /// Map `vteps_v6`.
    pub vteps: BTreeMap<AddressV6, VtepV6>,
    /// Map `pods_v6`.
    pub pods: BTreeMap<AddressV6, PodPlace>,
    /// Map `snat_exempt_v6`.
    pub exempt: BTreeMap<SubnetV6, Exempt>,
}

/// An entry of one of these maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryV6 {
    /// The only one of `config_v6`.
    Config(ConfigV6),
    /// Of `routes_v6`.
    Peer(SubnetV6, PeerV6),
    /// Of `vteps_v6`.
    Vtep(AddressV6, VtepV6),
    /// Of `pods_v6`.
    Pod(AddressV6, PodPlace),
    /// Of `snat_exempt_v6`.
    Exempt(SubnetV6, Exempt),
}

/// The key of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeyV6 {
    /// The only one of `config_v6`.
    Config,
    /// Of `routes_v6`.
    Peer(SubnetV6),
    /// Of `vteps_v6`.
    Vtep(AddressV6),
    /// Of `pods_v6`.
    Pod(AddressV6),
    /// Of `snat_exempt_v6`.
    Exempt(SubnetV6),
}

impl EntryV6 {
    /// Its key.
    pub const fn key(&self) -> KeyV6 {
        match *self {
            Self::Config(_) => KeyV6::Config,
            Self::Peer(subnet, _) => KeyV6::Peer(subnet),
            Self::Vtep(address, _) => KeyV6::Vtep(address),
            Self::Pod(address, _) => KeyV6::Pod(address),
            Self::Exempt(prefix, _) => KeyV6::Exempt(prefix),
        }
    }
}

impl BpfStateV6 {
    /// Adds or replaces an entry.
    pub fn put(&mut self, entry: EntryV6) {
        match entry {
            EntryV6::Config(config) => self.config = Some(config),
            EntryV6::Peer(subnet, peer) => drop(self.peers.insert(subnet, peer)),
            EntryV6::Vtep(address, vtep) => drop(self.vteps.insert(address, vtep)),
            EntryV6::Pod(address, pod) => drop(self.pods.insert(address, pod)),
            EntryV6::Exempt(prefix, why) => drop(self.exempt.insert(prefix, why)),
        }
    }

    /// Removes an entry, if it is there.
    pub fn remove(&mut self, key: &KeyV6) {
        match key {
            KeyV6::Config => self.config = None,
            KeyV6::Peer(subnet) => drop(self.peers.remove(subnet)),
            KeyV6::Vtep(address) => drop(self.vteps.remove(address)),
            KeyV6::Pod(address) => drop(self.pods.remove(address)),
            KeyV6::Exempt(prefix) => drop(self.exempt.remove(prefix)),
        }
    }
}

/// What leads from `observed` to `desired`, new entries first, in the order in which the programs need them.
pub(super) fn puts(desired: &BpfStateV6, observed: &BpfStateV6) -> Vec<Change> {
    let mut entries = Vec::new();
    entries.extend(news(&desired.peers, &observed.peers).map(|(key, peer)| EntryV6::Peer(*key, *peer)));
    entries.extend(news(&desired.vteps, &observed.vteps).map(|(key, vtep)| EntryV6::Vtep(*key, *vtep)));
    entries.extend(news(&desired.pods, &observed.pods).map(|(key, pod)| EntryV6::Pod(*key, *pod)));
    entries.extend(news(&desired.exempt, &observed.exempt).map(|(key, why)| EntryV6::Exempt(*key, *why)));
    entries.extend(desired.config.filter(|_| desired.config != observed.config).map(EntryV6::Config));
    entries.into_iter().map(Change::PutV6).collect()
}

/// The entries that go, the other way round.
pub(super) fn deletes(desired: &BpfStateV6, observed: &BpfStateV6) -> Vec<Change> {
    let mut keys = Vec::new();
    keys.extend(gone(&desired.exempt, &observed.exempt).map(|(key, _)| KeyV6::Exempt(*key)));
    keys.extend(gone(&desired.pods, &observed.pods).map(|(key, _)| KeyV6::Pod(*key)));
    keys.extend(gone(&desired.vteps, &observed.vteps).map(|(key, _)| KeyV6::Vtep(*key)));
    keys.extend(gone(&desired.peers, &observed.peers).map(|(key, _)| KeyV6::Peer(*key)));
    keys.extend(observed.config.filter(|_| desired.config.is_none()).map(|_| KeyV6::Config));
    keys.into_iter().map(Change::DeleteV6).collect()
}

/// What the maps should hold on the node that is `stack` in IPv6.
pub(super) fn maps(inputs: &Inputs<'_>, stack: &LocalStack, peers: &[Reach]) -> BpfStateV6 {
    let local = inputs.local;
    let mut bpf = BpfStateV6::default();
    let (IpNetwork::V6(network), IpNetwork::V6(subnet), IpAddr::V6(address)) =
        (stack.network, stack.subnet, stack.address)
    else {
        return bpf;
    };
    let device = stack.device.as_ref();
    for peer in peers {
        let (IpNetwork::V6(subnet), IpAddr::V6(public_ip)) = (peer.subnet, peer.public_ip) else { continue };
        let key = subnet_key(subnet);
        bpf.peers.insert(key, peer_value(device, peer, public_ip));
        if peer.is_source {
            bpf.vteps.insert(address_key(public_ip), VtepV6 { subnet: key });
        }
    }
    let [tcp_refresh, udp_refresh] = local.flow_refresh.millis();
    bpf.config = Some(ConfigV6 {
        fast_path: local.fast_path,
        port: device.map_or(0, |device| device.port.into()),
        vtep: address_key(address),
        network: subnet_key(network),
        subnet: subnet_key(subnet),
        vni: device.map_or(0, |device| device.vni),
        tcp_refresh,
        udp_refresh,
        source_port_min: local.source_ports.start.into(),
        source_port_max: local.source_ports.end.into(),
        overlay_ifindex: device.and(inputs.overlays.get(&Family::V6).copied()).unwrap_or(0),
        prefix_lengths: prefix_lengths(peers),
        local_mac: device.map_or([0; 6], |device| device.mac.0),
        unknown_vtep: local.xdp.unknown_vtep,
        reserved: [0; 2],
    });
    let exempt = exempt::prefixes(stack, inputs.leases, inputs.exemptions);
    bpf.exempt.extend(exempt.into_iter().filter_map(|(prefix, why)| match prefix {
        IpNetwork::V6(prefix) => Some((subnet_key(prefix), why)),
        IpNetwork::V4(_) => None,
    }));
    if local.fast_path.finds_pods() {
        bpf.pods.extend(inputs.pods.places.iter().filter_map(|(address, place)| match address {
            IpAddr::V6(address) => Some((address_key(*address), *place)),
            IpAddr::V4(_) => None,
        }));
    }
    bpf
}

fn peer_value(device: Option<&VxlanDevice>, peer: &Reach, public_ip: Ipv6Addr) -> PeerV6 {
    let next_hop = match peer.hop.map(|hop| hop.address) {
        Some(IpAddr::V6(address)) => address_key(address),
        Some(IpAddr::V4(_)) | None => AddressV6::new([0; 16]),
    };
    PeerV6 {
        kind: peer.kind,
        // The device has one VNI, and every flannel sends with its own: what a peer publishes is not used.
        vni: device.map_or(0, |device| device.vni),
        vtep: address_key(public_ip),
        next_hop,
        ifindex: peer.hop.map_or(0, |hop| hop.ifindex),
        mtu: peer.hop.map_or(0, |hop| hop.mtu),
        vtep_mac: peer.vtep_mac.0,
        local_mac: device.map_or([0; 6], |device| device.mac.0),
        reserved: [0; 4],
    }
}

fn address_key(address: Ipv6Addr) -> AddressV6 {
    AddressV6::new(address.octets())
}

fn subnet_key(subnet: Ipv6Network) -> SubnetV6 {
    SubnetV6::of(address_key(subnet.network()), subnet.prefix().into())
}

struct Cidr<'a>(&'a SubnetV6);

impl fmt::Display for Cidr<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", text(&self.0.network), self.0.prefix_len)
    }
}

fn text(address: &AddressV6) -> Ipv6Addr {
    Ipv6Addr::from(address.octets)
}

/// As [`Change`]'s, of putting it.
impl fmt::Display for EntryV6 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(config) => {
                write!(f, "configure the programs for fast path {} of IPv6", config.fast_path.label())
            }
            Self::Peer(subnet, peer) => match peer.kind {
                PeerKind::Kernel => write!(f, "leave packets for {} to the kernel", Cidr(subnet)),
                PeerKind::Direct => {
                    write!(f, "send packets for {} straight to {}", Cidr(subnet), text(&peer.vtep))
                }
                PeerKind::Vxlan => write!(
                    f,
                    "send packets for {} to {} by interface {}, next hop {}, MTU {}",
                    Cidr(subnet),
                    text(&peer.vtep),
                    peer.ifindex,
                    text(&peer.next_hop),
                    peer.mtu
                ),
            },
            Self::Vtep(address, vtep) => {
                write!(f, "accept packets of {} from {}", Cidr(&vtep.subnet), text(address))
            }
            Self::Pod(address, pod) => {
                write!(f, "hand packets for pod {} to interface {}", text(address), pod.ifindex)
            }
            Self::Exempt(prefix, why) => {
                write!(f, "let pods keep their address towards {}, {}", Cidr(prefix), why.sentence())
            }
        }
    }
}

/// As [`Change`]'s, of deleting its entry.
impl fmt::Display for KeyV6 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config => f.write_str("let the programs touch no IPv6 packet"),
            Self::Peer(subnet) => write!(f, "forget where {} is", Cidr(subnet)),
            Self::Vtep(address) => write!(f, "accept no packets from {}", text(address)),
            Self::Pod(address) => write!(f, "forget pod {}", text(address)),
            Self::Exempt(prefix) => {
                write!(f, "no longer let pods keep their address towards {}", Cidr(prefix))
            }
        }
    }
}
