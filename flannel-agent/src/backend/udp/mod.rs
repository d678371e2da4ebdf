//! `udp`: packets as they are in UDP, carried by the agent itself.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex, PoisonError},
};

use flannel_common::path::Carrier;
use futures::future::BoxFuture;
use ipnetwork::{IpNetwork, Ipv4Network};
use tracing::warn;

use super::{
    AnyBackend, AnyObject, Backend, BackendError, Candidate, CarryingDevice, ExternalInterface, FollowedPeer,
    ObjectDriver, ObjectId, Objects, OptionError, OptionValue, Options, PeerRoute, Registered, Skip, Stacks,
    Stage, Start,
    kind::{Kind, Support},
};
use crate::{
    netlink::{Link, LinkKind},
    values::{Family, gojson::Object},
};

mod driver;

/// Its line in the table.
pub(super) const KIND: Kind = Kind {
    name: "udp",
    what: "UDP, one datagram a packet, by the agent itself; IPv4 only; what a configuration without `Backend` means",
    support: Support::Built(|object| Ok(Arc::new(UdpOptions::parse(object)?))),
};

/// The port upstream's nodes use.
const PORT: u16 = 8285;
/// Outer IPv4 and UDP headers, bytes.
const OVERHEAD: u32 = 28;

/// Options of the udp backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpOptions {
    /// UDP port of every node, host order; 8285 unless given.
    pub port: u16,
}

impl UdpOptions {
    fn parse(object: &Object<'_>) -> Result<Self, OptionError> {
        let port: u64 = object.get("Port", "a whole number, not negative")?.unwrap_or(PORT.into());
        match u16::try_from(port) {
            Ok(port) if port != 0 => Ok(Self { port }),
            _ => Err(OptionError::Value {
                field: "Backend.Port",
                value: port.to_string(),
                problem: "is not a UDP port: use 1 to 65535, the same on all nodes",
            }),
        }
    }
}

impl Options for UdpOptions {
    fn kind(&self) -> &'static str {
        KIND.name
    }

    fn values(&self) -> Vec<OptionValue> {
        vec![OptionValue::of("Backend.Port", self.port)]
    }

    fn adopt<'a>(&'a self, start: Start<'a>) -> BoxFuture<'a, Result<AnyBackend, BackendError>> {
        Box::pin(async move {
            let has = |family| start.networks.iter().any(|network| Family::of_network(*network) == family);
            if !has(Family::V4) {
                let text = "Backend.Type: \"udp\" carries IPv4 only, and the network has none: set EnableIPv4 to true, or \
                            use \"vxlan\"";
                return Err(BackendError::Other(text.to_owned()));
            }
            if has(Family::V6) {
                warn!(
                    "the udp backend carries IPv4 only, as upstream's: pods' IPv6 packets do not reach other nodes; use \
                     the vxlan backend"
                );
            }
            let unfinished = passes_unfinished(&start.netlink.links().await?, &start.external.name);
            Ok(AnyBackend::new(Udp { unfinished, ..Udp::new(*self) }))
        })
    }
}

/// A tunnel that the agent serves.
#[derive(Clone, Debug)]
pub struct Udp {
    options: UdpOptions,
    /// The external interface hands packets to the other node as they are: with sums that a card would make, and as
    /// aggregates that a card would cut.
    unfinished: bool,
    /// The name of the device while it is there.
    device: DeviceName,
}

/// The name of the device, which its driver writes.
type DeviceName = Arc<Mutex<Option<String>>>;

impl Udp {
    /// With its options, and without a device.
    pub fn new(options: UdpOptions) -> Self {
        Self { options, unfinished: false, device: DeviceName::default() }
    }
}

/// Whether the interface `name`, or one that it stands on or has as a port, hands packets over as they are. A bridge finishes
/// what is encapsulated, whatever its ports could do: its driver sets no `hw_enc_features` (net/bridge/br_device.c).
fn passes_unfinished(links: &[Link], name: &str) -> bool {
    let Some(external) = links.iter().find(|link| link.name == name) else { return false };
    let mut carrying = vec![external];
    let mut at = 0;
    while let Some(link) = carrying.get(at).copied() {
        at += 1;
        if link.kind.passes_unfinished() {
            return true;
        }
        let is_below = |below: &&Link| {
            link.lower == Some(below.index)
                || (below.master == Some(link.index) && link.kind != LinkKind::Bridge)
        };
        let new = links
            .iter()
            .filter(is_below)
            .filter(|below| carrying.iter().all(|known| known.index != below.index));
        carrying.extend(new.collect::<Vec<_>>());
    }
    false
}

impl Backend for Udp {
    fn options(&self) -> &dyn Options {
        &self.options
    }

    /// Upstream's leases name no type.
    fn published(&self) -> &'static str {
        ""
    }

    /// Upstream's udp sends to every node that has a lease.
    fn follows(&self, _: &str) -> bool {
        true
    }

    fn judge(&self, candidate: &Candidate<'_>) -> Result<PeerRoute, Skip> {
        match candidate.family {
            Family::V4 => Ok(PeerRoute::Objects),
            family @ Family::V6 => Err(Skip::NotCarried(family)),
        }
    }

    fn mtu(&self, family: Family, external: &ExternalInterface) -> u32 {
        match family {
            Family::V4 => external.mtu.saturating_sub(OVERHEAD),
            Family::V6 => external.mtu,
        }
    }

    fn kernel_only(&self) -> Option<&'static str> {
        self.unfinished.then_some(
            "the external interface is an end of a veth pair, a macvlan or an ipvlan, or stands on one, which hands packets over \
             unfinished: a socket of the udp backend could not take what the programs put into UDP, so that the agent carries \
             all packets",
        )
    }

    fn own_carrier(&self) -> Option<Carrier> {
        self.udp_port().map(|_| Carrier::Udp)
    }

    fn udp_port(&self) -> Option<u16> {
        Some(self.options.port).filter(|_| !self.unfinished)
    }

    fn tunnel_device(&self) -> Option<String> {
        self.device.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn carrying_devices(&self, external: &ExternalInterface, stacks: &Stacks) -> Vec<CarryingDevice> {
        let Some((name, stack)) = self.tunnel_device().zip(stacks.get(&Family::V4)) else {
            return Vec::new();
        };
        vec![CarryingDevice {
            name,
            port: Some(self.options.port),
            mtu: self.mtu(Family::V4, external),
            networks: vec![stack.network],
        }]
    }

    fn has_objects(&self) -> bool {
        true
    }

    fn objects(&self, external: &ExternalInterface, stacks: &Stacks) -> Objects {
        let Some(stack) = stacks.get(&Family::V4) else { return Objects::new() };
        let (IpAddr::V4(address), IpAddr::V4(local)) = (stack.subnet.network(), stack.address) else {
            return Objects::new();
        };
        let device = TunDevice {
            address: address.into(),
            mtu: self.mtu(Family::V4, external),
            local,
            port: self.options.port,
        };
        let id = |stage| ObjectId { stage, network: stack.network };
        Objects::from([
            (id(Stage::Device), AnyObject::new(device)),
            (id(Stage::Route), AnyObject::new(NetworkRoute(stack.network))),
        ])
    }

    fn peer_objects(&self, _: &Stacks, peer: &FollowedPeer<'_>) -> Objects {
        let node = peer.attrs.public_ip;
        let of_subnet = |subnet: &IpNetwork| match subnet {
            IpNetwork::V4(v4) => {
                let id = ObjectId { stage: Stage::Peer, network: *subnet };
                Some((id, AnyObject::new(Destination { subnet: *v4, node })))
            }
            IpNetwork::V6(_) => None,
        };
        peer.subnets.iter().filter_map(of_subnet).collect()
    }

    fn driver(&self, _: &Registered) -> Result<Option<Box<dyn ObjectDriver>>, BackendError> {
        Ok(Some(Box::new(driver::Driver::open(self.device.clone())?)))
    }
}

/// The device and the socket beneath it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct TunDevice {
    /// Its only address: the first of our subnet, of 32 bits.
    address: Ipv4Network,
    /// Largest packet, bytes.
    mtu: u32,
    /// Our address on the underlay.
    local: Ipv4Addr,
    /// UDP port, host order.
    port: u16,
}

impl fmt::Display for TunDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, mtu, local, port } = self;
        write!(f, "the TUN device ({address}, MTU {mtu}, served at {local}:{port})")
    }
}

/// The route of the whole network over the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct NetworkRoute(IpNetwork);

impl fmt::Display for NetworkRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the route of {} over the TUN device", self.0)
    }
}

/// Where packets for a subnet are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Destination {
    subnet: Ipv4Network,
    node: Ipv4Addr,
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sending packets for {} to {}", self.subnet, self.node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(json: &str) -> Result<UdpOptions, String> {
        UdpOptions::parse(&Object::parse("Backend.", json).unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn the_port_is_upstreams_unless_given() {
        assert_eq!(options("{}").unwrap().port, 8285);
        assert_eq!(options(r#"{"Port":9000}"#).unwrap().port, 9000);
        for wrong in ["0", "65536"] {
            let error = options(&format!(r#"{{"Port":{wrong}}}"#)).unwrap_err();
            assert!(
                error.starts_with(&format!("Backend.Port: {wrong} is not a UDP port: use 1 to 65535")),
                "{error}"
            );
        }
    }

    #[test]
    fn what_passes_packets_unfinished_is_seen_below_too() {
        let link = |index, name: &str, kind| Link::plain(index, name, kind, 1500);
        let on = |lower, link: Link| Link { lower: Some(lower), ..link };
        let port = |master, link: Link| Link { master: Some(master), ..link };
        let veth = || on(99, link(2, "veth", LinkKind::Veth));
        let links = [
            link(1, "card", LinkKind::Other),
            veth(),
            link(3, "macvlan", LinkKind::Sharing),
            on(1, link(4, "vlan-of-card", LinkKind::Other)),
            on(2, link(5, "vlan-of-veth", LinkKind::Other)),
            link(6, "bond", LinkKind::Other),
            port(6, on(98, link(7, "of-bond", LinkKind::Veth))),
            link(8, "bridge", LinkKind::Bridge),
            port(8, on(97, link(9, "of-bridge", LinkKind::Veth))),
        ];
        let passing: Vec<_> = links
            .iter()
            .map(|link| link.name.as_str())
            .filter(|name| passes_unfinished(&links, name))
            .collect();
        assert_eq!(passing, ["veth", "macvlan", "vlan-of-veth", "bond", "of-bond", "of-bridge"]);
    }

    #[test]
    fn the_lease_says_the_address_alone_and_pods_get_28_bytes_less() {
        let udp = Udp::new(UdpOptions { port: 8285 });
        let external = ExternalInterface::eth0(2, 1500, 1);
        let public = external.addresses().map(|(_, address)| address).collect();
        assert_eq!(udp.attrs(public).to_json(), r#"{"PublicIP":"192.0.2.1","PublicIPv6":null}"#);
        assert_eq!(udp.mtu(Family::V4, &external), 1472);
        assert!(udp.follows("vxlan") && udp.follows(""));
    }
}
