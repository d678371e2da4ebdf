//! The maps for IPv4: what they should hold.

use std::net::{IpAddr, Ipv4Addr};

use flannel_common::layout::{Config, PeerV4, SubnetV4, VtepV4};
use ipnetwork::{IpNetwork, Ipv4Network};

use super::{
    BpfState, Inputs, LocalStack, VxlanDevice, exempt,
    programs::{Reach, prefix_lengths},
};

/// Plans the maps without `_v6` in their names, of the node that is `stack` in IPv4.
pub(super) fn fill(bpf: &mut BpfState, inputs: &Inputs<'_>, stack: &LocalStack, peers: &[Reach]) {
    let local = inputs.local;
    let (IpNetwork::V4(network), IpNetwork::V4(subnet), IpAddr::V4(address)) =
        (stack.network, stack.subnet, stack.address)
    else {
        return;
    };
    let device = stack.device.as_ref();
    let of_family = || {
        peers.iter().filter_map(|peer| match (peer.subnet, peer.public_ip) {
            (IpNetwork::V4(subnet), IpAddr::V4(public_ip)) => Some((subnet_key(subnet), peer, public_ip)),
            _ => None,
        })
    };
    bpf.peers = of_family().map(|(key, peer, to)| (key, peer_value(device, peer, to))).collect();
    let sources = of_family().filter(|(_, peer, _)| peer.is_source);
    bpf.vteps = sources.map(|(key, _, from)| (from.octets(), VtepV4 { subnet: key })).collect();
    let [tcp_refresh, udp_refresh] = local.flow_refresh.millis();
    bpf.config = Some(Config {
        fast_path: local.fast_path,
        vtep: address.octets(),
        port: device.map_or(0, |device| device.port.into()),
        vni: device.map_or(0, |device| device.vni),
        source_port_min: local.source_ports.start.into(),
        source_port_max: local.source_ports.end.into(),
        network: subnet_key(network),
        subnet: subnet_key(subnet),
        tcp_refresh,
        udp_refresh,
        overlay_ifindex: 0,
        prefix_lengths: prefix_lengths(peers),
        local_mac: device.map_or([0; 6], |device| device.mac.0),
        unknown_vtep: local.xdp.unknown_vtep,
        reserved: [0; 2],
    });
    let exempt = exempt::prefixes(stack, inputs.leases, inputs.exemptions);
    bpf.exempt.extend(exempt.into_iter().filter_map(|(prefix, why)| match prefix {
        IpNetwork::V4(prefix) => Some((subnet_key(prefix), why)),
        IpNetwork::V6(_) => None,
    }));
    if local.fast_path.finds_pods() {
        bpf.pods.extend(inputs.pods.places.iter().filter_map(|(address, place)| match address {
            IpAddr::V4(address) => Some((address.octets(), *place)),
            IpAddr::V6(_) => None,
        }));
    }
}

fn peer_value(device: Option<&VxlanDevice>, peer: &Reach, public_ip: Ipv4Addr) -> PeerV4 {
    let next_hop = match peer.hop.map(|hop| hop.address) {
        Some(IpAddr::V4(address)) => address.octets(),
        Some(IpAddr::V6(_)) | None => [0; 4],
    };
    PeerV4 {
        kind: peer.kind,
        vtep: public_ip.octets(),
        // The device has one VNI, and every flannel sends with its own: what a peer publishes is not used.
        vni: device.map_or(0, |device| device.vni),
        ifindex: peer.hop.map_or(0, |hop| hop.ifindex),
        next_hop,
        mtu: peer.hop.map_or(0, |hop| hop.mtu),
        vtep_mac: peer.vtep_mac.0,
        local_mac: device.map_or([0; 6], |device| device.mac.0),
        reserved: [0; 4],
    }
}

pub(super) fn subnet_key(subnet: Ipv4Network) -> SubnetV4 {
    SubnetV4::of(subnet.network().octets(), subnet.prefix().into())
}
