//! `wireguard`: encrypted, over a device of each family, or over one for both.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use futures::future::{BoxFuture, ready};
use ipnetwork::IpNetwork;
use tracing::warn;

use super::{
    AnyBackend, AnyObject, Backend, BackendError, Candidate, CarryingDevice, ExternalInterface, FollowedPeer,
    ObjectDriver, ObjectId, Objects, OptionError, OptionValue, Options, PeerRoute, Registered, Skip, Stacks,
    Stage, Start,
    device::Device,
    kind::{Kind, Support},
};
use crate::{
    netlink::{Netlink, Tunnel, wireguard::Key},
    values::{Family, gojson::Object},
    wire::{LeaseAttrs, NodeAddress, RawJson},
};
use driver::{Driver, WgDevice, WgPeer, WgRoute};
use keys::PrivateKey;

mod driver;
mod keys;
#[cfg(test)]
mod tests;

/// Its line in the table.
pub(super) const KIND: Kind = Kind {
    name: "wireguard",
    what: "WireGuard, encrypted",
    support: Support::Built(|object| Ok(Arc::new(WireguardOptions::parse(object)?))),
};

/// Outer IPv6 header, UDP, and what WireGuard adds, bytes: upstream reckons with it over IPv4, too.
const OVERHEAD: u32 = 80;
/// The smallest MTU of the underlay: that of IPv4 (RFC 791) is left.
const MIN_MTU: u64 = 80 + 68;

/// Which devices there are, and over which family of the underlay packets travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// A device of each family, over the underlay of that family.
    Separate,
    /// One device, over whichever family is likely to reach the peer.
    Auto,
    /// One device, over IPv4.
    Ipv4,
    /// One device, over IPv6.
    Ipv6,
}

impl Mode {
    const ALL: [(&str, Self); 4] =
        [("separate", Self::Separate), ("auto", Self::Auto), ("ipv4", Self::Ipv4), ("ipv6", Self::Ipv6)];

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, mode)| *mode == self).map_or("", |(name, _)| name)
    }

    /// The device that carries packets of a family.
    fn device(self, family: Family) -> &'static str {
        match (self, family) {
            (Self::Separate, Family::V6) => "flannel-wg-v6",
            _ => "flannel-wg",
        }
    }
}

/// Options of the wireguard backend.
#[derive(Clone)]
struct WireguardOptions {
    /// UDP port of the device, host order.
    port: u16,
    /// The same of the second device, with [`Mode::Separate`].
    port_v6: u16,
    /// MTU of the underlay in bytes; `None` (not given, or 0) is that of the external interface.
    mtu: Option<u32>,
    /// A secret that all nodes have, besides their keys; zero for none.
    preshared_key: Key,
    /// Seconds between packets that keep a NAT open; 0 for none.
    keepalive: u16,
    mode: Mode,
}

/// Without the secret.
impl std::fmt::Debug for WireguardOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.values().fmt(f)
    }
}

impl WireguardOptions {
    fn parse(object: &Object<'_>) -> Result<Self, OptionError> {
        let refuse = |field, value: String, problem| OptionError::Value { field, value, problem };
        let number = |name| object.get::<u64>(name, "a whole number, not negative");
        let port = |name, field, default: u16| match number(name)? {
            None => Ok(default),
            Some(port) => match u16::try_from(port) {
                Ok(port) if port != 0 => Ok(port),
                _ => Err(refuse(field, port.to_string(), "is not a UDP port: use 1 to 65535")),
            },
        };
        let text = |name| object.get::<String>(name, "a string");
        let psk = text("PSK")?.unwrap_or_default();
        let preshared_key = match psk.as_str() {
            "" => Some([0; 32]),
            psk => keys::key(psk),
        };
        let Some(preshared_key) = preshared_key else {
            let problem = "is no key: write 32 bytes in base64, as `wg genpsk` makes them";
            return Err(refuse("Backend.PSK", "(a secret)".to_owned(), problem));
        };
        let keepalive = number("PersistentKeepaliveInterval")?.unwrap_or(0);
        let Ok(keepalive) = u16::try_from(keepalive) else {
            let problem = "is no interval in seconds: use 1 to 65535, or 0 for none";
            return Err(refuse("Backend.PersistentKeepaliveInterval", keepalive.to_string(), problem));
        };
        let mtu = number("MTU")?.unwrap_or(0);
        if mtu != 0 && !(MIN_MTU..=65535).contains(&mtu) {
            let problem =
                "is not an MTU of the underlay: use 148 to 65535, or 0 for that of the external interface";
            return Err(refuse("Backend.MTU", mtu.to_string(), problem));
        }
        let name = text("Mode")?.unwrap_or_else(|| "separate".to_owned());
        let Some((_, mode)) = Mode::ALL.into_iter().find(|(known, _)| *known == name) else {
            let problem = "no valid Mode configured: use \"separate\", \"auto\", \"ipv4\" or \"ipv6\"";
            return Err(refuse("Backend.Mode", format!("\"{name}\":"), problem));
        };
        Ok(Self {
            port: port("ListenPort", "Backend.ListenPort", 51820)?,
            port_v6: port("ListenPortV6", "Backend.ListenPortV6", 51821)?,
            mtu: u32::try_from(mtu).ok().filter(|mtu| *mtu != 0),
            preshared_key,
            keepalive,
            mode,
        })
    }

    /// The port of the device that carries packets of a family.
    fn port(&self, family: Family) -> u16 {
        match (self.mode, family) {
            (Mode::Separate, Family::V6) => self.port_v6,
            _ => self.port,
        }
    }
}

impl Options for WireguardOptions {
    fn kind(&self) -> &'static str {
        KIND.name
    }

    fn values(&self) -> Vec<OptionValue> {
        let psk = match self.preshared_key == [0; 32] {
            true => OptionValue::of("Backend.PSK", "none"),
            false => OptionValue::secret("Backend.PSK", keys::text(&self.preshared_key)),
        };
        vec![
            OptionValue::of("Backend.ListenPort", self.port),
            OptionValue::of("Backend.ListenPortV6", self.port_v6),
            OptionValue::unless_unset("Backend.MTU", self.mtu),
            psk,
            OptionValue::of("Backend.PersistentKeepaliveInterval", self.keepalive),
            OptionValue::of("Backend.Mode", self.mode.name()),
        ]
    }

    fn adopt<'a>(&'a self, start: Start<'a>) -> BoxFuture<'a, Result<AnyBackend, BackendError>> {
        if let Some(mtu) = self.mtu.filter(|mtu| *mtu > start.external.mtu) {
            warn!(
                configured = mtu,
                interface = start.external.name,
                mtu = start.external.mtu,
                "Backend.MTU is larger than the external interface allows: using the MTU of the interface"
            );
        }
        let families = start.networks.iter().map(|network| Family::of_network(*network)).collect();
        let backend = PrivateKey::of_node().map(|private_key| {
            AnyBackend::new(Wireguard {
                options: self.clone(),
                private_key,
                families,
                own: start.external.addresses().map(|(_, address)| address).collect(),
            })
        });
        Box::pin(ready(backend))
    }
}

/// WireGuard, on this node.
#[derive(Debug)]
struct Wireguard {
    options: WireguardOptions,
    private_key: PrivateKey,
    /// Those of the cluster's networks.
    families: BTreeSet<Family>,
    /// Our addresses on the external interface.
    own: NodeAddress,
}

/// What a lease says of its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct WireguardData {
    public_key: Key,
    /// 0 where it does not say, as before flannel 0.26.6: then it is the one that we listen at.
    port: u16,
}

impl WireguardData {
    fn read(attrs: &LeaseAttrs, family: Family) -> Result<Self, String> {
        let (field, path, data) = match family {
            Family::V4 => ("BackendData", "BackendData.", &attrs.backend_data),
            Family::V6 => ("BackendV6Data", "BackendV6Data.", &attrs.backend_v6_data),
        };
        let data = data.as_ref().ok_or_else(|| format!("{field}: absent; the wireguard backend needs it"))?;
        let text = data.as_str();
        let object = Object::parse(path, text)
            .map_err(|_| Object::default().refuse(field, "an object", text).to_string())?;
        let public_key = object.get_with("PublicKey", "a key of WireGuard: 32 bytes in base64", keys::key);
        let public_key = public_key.map_err(|error| error.to_string())?;
        let port = object.get("Port", "a UDP port").map_err(|error| error.to_string())?.unwrap_or(0);
        let public_key = public_key.ok_or_else(|| format!("{path}PublicKey: absent; peers need it"))?;
        Ok(Self { public_key, port })
    }

    fn written(self) -> Option<RawJson> {
        let Self { public_key, port } = self;
        RawJson::parse(&format!(r#"{{"PublicKey":"{}","Port":{port}}}"#, keys::text(&public_key))).ok()
    }
}

impl Wireguard {
    fn data(&self, family: Family) -> Option<RawJson> {
        let data = WireguardData { public_key: self.private_key.public(), port: self.options.port(family) };
        data.written().filter(|_| self.families.contains(&family))
    }

    /// Where the peer of a lease is reached by packets of `family`.
    fn endpoint(&self, attrs: &LeaseAttrs, family: Family) -> Option<SocketAddr> {
        let v4 = attrs.address(Family::V4).filter(|address| !address.is_unspecified());
        let v6 = attrs.address(Family::V6);
        let address = match self.options.mode {
            Mode::Separate => attrs.address(family),
            Mode::Ipv4 => v4,
            Mode::Ipv6 => v6,
            Mode::Auto => likely(v4, v6, &self.own),
        }?;
        // A device for both families has one port, whichever data names it.
        let published = match self.options.mode {
            Mode::Separate => WireguardData::read(attrs, family),
            _ => WireguardData::read(attrs, Family::V4).or_else(|_| WireguardData::read(attrs, Family::V6)),
        };
        let port = published.ok().map(|data| data.port).filter(|port| *port != 0);
        Some(SocketAddr::new(address, port.unwrap_or_else(|| self.options.port(family))))
    }

    /// The devices, and the networks that each carries.
    fn devices(&self, networks: impl IntoIterator<Item = IpNetwork>) -> BTreeMap<String, Vec<IpNetwork>> {
        let mut devices = BTreeMap::<String, Vec<IpNetwork>>::new();
        for network in networks {
            let name = self.options.mode.device(Family::of_network(network));
            devices.entry(name.to_owned()).or_default().push(network);
        }
        devices
    }
}

/// The address by which a peer is likely to be reached: by upstream's rule, IPv4 where it is public, else IPv6 where both
/// ends are, else IPv4.
fn likely(v4: Option<IpAddr>, v6: Option<IpAddr>, own: &NodeAddress) -> Option<IpAddr> {
    let is_private = |address: &IpAddr| match address {
        IpAddr::V4(v4) => v4.is_private(),
        IpAddr::V6(v6) => v6.is_unique_local(),
    };
    let (Some(four), Some(six)) = (v4, v6) else { return v4.or(v6) };
    if !is_private(&four) && own.v4.is_some() {
        return Some(four);
    }
    let ours = own.of(Family::V6);
    match !is_private(&six) && ours.is_some_and(|ours| !is_private(&ours)) {
        true => Some(six),
        false => Some(four),
    }
}

impl Backend for Wireguard {
    fn options(&self) -> &dyn Options {
        &self.options
    }

    fn attrs(&self, address: NodeAddress) -> LeaseAttrs {
        LeaseAttrs {
            backend_data: self.data(Family::V4),
            backend_v6_data: self.data(Family::V6),
            ..LeaseAttrs::plain(address, KIND.name)
        }
    }

    fn judge(&self, candidate: &Candidate<'_>) -> Result<PeerRoute, Skip> {
        let Candidate { family, attrs, .. } = *candidate;
        let data = WireguardData::read(attrs, family).map_err(Skip::Unreadable)?;
        if data.public_key == self.private_key.public() {
            return Err(Skip::Unreadable(
                "its public key is our own: each node needs a key of its own".to_owned(),
            ));
        }
        let over = if self.options.mode == Mode::Ipv6 { Family::V6 } else { Family::V4 };
        self.endpoint(attrs, family).ok_or(Skip::NoAddress(over))?;
        Ok(PeerRoute::Objects)
    }

    fn mtu(&self, _: Family, external: &ExternalInterface) -> u32 {
        self.options.mtu.map_or(external.mtu, |mtu| mtu.min(external.mtu)).saturating_sub(OVERHEAD)
    }

    fn kernel_only(&self) -> Option<&'static str> {
        Some("the kernel alone encrypts")
    }

    fn carrying_devices(&self, external: &ExternalInterface, stacks: &Stacks) -> Vec<CarryingDevice> {
        let device = |(name, networks): (String, Vec<IpNetwork>)| {
            let port = networks.first().map(|first| self.options.port(Family::of_network(*first)));
            CarryingDevice { name, port, mtu: self.mtu(Family::V4, external), networks }
        };
        self.devices(stacks.values().map(|stack| stack.network)).into_iter().map(device).collect()
    }

    fn has_objects(&self) -> bool {
        true
    }

    fn objects(&self, external: &ExternalInterface, stacks: &Stacks) -> Objects {
        let mut objects = Objects::new();
        for (name, networks) in self.devices(stacks.values().map(|stack| stack.network)) {
            let Some(first) = networks.first().copied() else { continue };
            let carried = stacks.values().filter(|stack| networks.contains(&stack.network));
            let device = Device {
                name: name.clone(),
                tunnel: Tunnel::Wireguard,
                mtu: self.mtu(Family::V4, external),
                addresses: carried.map(|stack| stack.subnet.network().into()).collect(),
            };
            let port = self.options.port(Family::of_network(first));
            let device = WgDevice { device, public_key: self.private_key.public(), port };
            objects.insert(ObjectId { stage: Stage::Device, network: first }, AnyObject::new(device));
            for network in networks {
                let route = WgRoute { device: name.clone(), network };
                objects.insert(ObjectId { stage: Stage::Route, network }, AnyObject::new(route));
            }
        }
        objects
    }

    fn peer_objects(&self, _: &Stacks, peer: &FollowedPeer<'_>) -> Objects {
        let object = |subnet: &IpNetwork| {
            let family = Family::of_network(*subnet);
            let data = WireguardData::read(peer.attrs, family).ok()?;
            let peer = WgPeer {
                device: self.options.mode.device(family).to_owned(),
                subnet: *subnet,
                public_key: data.public_key,
                endpoint: self.endpoint(peer.attrs, family),
                preshared_key: self.options.preshared_key,
                keepalive: self.options.keepalive,
            };
            Some((ObjectId { stage: Stage::Peer, network: *subnet }, AnyObject::new(peer)))
        };
        peer.subnets.iter().filter_map(object).collect()
    }

    fn driver(&self, node: &Registered) -> Result<Option<Box<dyn ObjectDriver>>, BackendError> {
        Ok(Some(Box::new(Driver {
            netlink: Netlink::open()?,
            wireguard: None,
            private_key: self.private_key.clone(),
            spare: (self.options.mode != Mode::Separate).then_some(Mode::Separate.device(Family::V6)),
            devices: self.devices(node.subnets.iter().map(|(network, _)| *network)),
            put: BTreeMap::new(),
        })))
    }
}
