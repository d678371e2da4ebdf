//! `ipsec`: ESP between nodes, with keys that strongSwan's charon negotiates.
//!
//! The kernel's policies are ours, the security associations charon's. Packets are routed as any others, and the policies
//! decide: so a route that leads to pods of other nodes by the external interface, as a default route, is needed.

use std::{collections::BTreeMap, fmt, net::Ipv4Addr, sync::Arc};

use futures::future::{BoxFuture, ready};
use ipnetwork::{IpNetwork, Ipv4Network};

use super::{
    AnyBackend, AnyObject, Backend, BackendError, Candidate, ExternalInterface, FollowedPeer, ObjectDriver,
    ObjectId, Objects, OptionError, OptionValue, Options, PeerRoute, Registered, Skip, Stacks, Stage, Start,
    Unusable,
    kind::{Kind, Support},
};
use crate::{
    netlink::xfrm::{self, Direction, TunnelPolicy},
    values::{Family, gojson::Object},
};
use charon::Connection;

mod charon;

/// Its line in the table.
pub(super) const KIND: Kind = Kind {
    name: "ipsec",
    what: "IPsec, encrypted, by strongSwan; IPv4",
    support: Support::Built(|object| Ok(Arc::new(IpsecOptions::parse(object)?))),
};

/// Upstream's number of policies and security associations.
const REQID: u32 = 11;
/// What upstream takes off the MTU: outer header, ESP, padding and checksum; and the UDP header of `UDPEncap`.
const OVERHEAD: u32 = 77;
const UDP_OVERHEAD: u32 = 8;
/// Upstream's shortest secret, characters.
const SHORTEST_PSK: usize = 96;
/// Upstream's algorithms.
const ESP_PROPOSAL: &str = "aes128gcm16-sha256-prfsha256-ecp256";

/// Options of the ipsec backend.
#[derive(Clone)]
struct IpsecOptions {
    /// ESP is in UDP, also where there is no NAT.
    udp_encap: bool,
    esp_proposal: String,
    /// The secret that all nodes have.
    psk: String,
}

/// Without the secret.
impl fmt::Debug for IpsecOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.values().fmt(f)
    }
}

impl IpsecOptions {
    fn parse(object: &Object<'_>) -> Result<Self, OptionError> {
        let psk: String = object.get("PSK", "a string")?.unwrap_or_default();
        if psk.len() < SHORTEST_PSK {
            return Err(OptionError::Value {
                field: "Backend.PSK",
                value: format!("config error, password is too short: {} characters", psk.len()),
                problem: "instead of 96 or more; `openssl rand -hex 48` makes one",
            });
        }
        let esp_proposal: Option<String> =
            object.get("ESPProposal", "a proposal of strongSwan, as a string")?;
        Ok(Self {
            udp_encap: object.get("UDPEncap", "true or false")?.unwrap_or(false),
            esp_proposal: esp_proposal
                .filter(|text| !text.is_empty())
                .unwrap_or_else(|| ESP_PROPOSAL.to_owned()),
            psk,
        })
    }

    fn overhead(&self) -> u32 {
        OVERHEAD + if self.udp_encap { UDP_OVERHEAD } else { 0 }
    }
}

impl Options for IpsecOptions {
    fn kind(&self) -> &'static str {
        KIND.name
    }

    fn values(&self) -> Vec<OptionValue> {
        vec![
            OptionValue::of("Backend.UDPEncap", self.udp_encap),
            OptionValue::of("Backend.ESPProposal", &self.esp_proposal),
            OptionValue::secret("Backend.PSK", self.psk.as_str()),
        ]
    }

    fn check_over_ipv6(&self) -> Result<(), OptionError> {
        Err(OptionError::Value {
            field: "Backend.Type",
            value: "\"ipsec\"".to_owned(),
            problem: "carries IPv4 only: set EnableIPv6 to false, or use the wireguard backend",
        })
    }

    fn adopt<'a>(&'a self, _: Start<'a>) -> BoxFuture<'a, Result<AnyBackend, BackendError>> {
        Box::pin(ready(charon::check().map(|()| AnyBackend::new(Ipsec(self.clone())))))
    }
}

/// IPsec, on this node.
#[derive(Debug)]
struct Ipsec(IpsecOptions);

impl Backend for Ipsec {
    fn options(&self) -> &dyn Options {
        &self.0
    }

    fn judge(&self, _: &Candidate<'_>) -> Result<PeerRoute, Skip> {
        Ok(PeerRoute::Objects)
    }

    fn mtu(&self, _: Family, external: &ExternalInterface) -> u32 {
        external.mtu.saturating_sub(self.0.overhead())
    }

    fn check_interface(&self, external: &ExternalInterface) -> Result<(), Unusable> {
        match external.mtu > self.0.overhead() {
            true => Ok(()),
            false => Err(Unusable::NoRoom {
                interface: external.name.clone(),
                mtu: external.mtu,
                backend: KIND.name,
            }),
        }
    }

    fn kernel_only(&self) -> Option<&'static str> {
        Some("the kernel alone encrypts")
    }

    fn has_objects(&self) -> bool {
        true
    }

    fn objects(&self, _: &ExternalInterface, stacks: &Stacks) -> Objects {
        let daemon = stacks
            .get(&Family::V4)
            .map(|stack| (ObjectId { stage: Stage::Device, network: stack.network }, AnyObject::new(Daemon)));
        daemon.into_iter().collect()
    }

    fn peer_objects(&self, stacks: &Stacks, peer: &FollowedPeer<'_>) -> Objects {
        let mut objects = Objects::new();
        let Some(stack) = stacks.get(&Family::V4) else { return objects };
        let (IpNetwork::V4(own), Some(local)) = (stack.subnet, xfrm::v4(stack.public_ip)) else {
            return objects;
        };
        for subnet in peer.subnets.iter().filter_map(|subnet| match subnet {
            IpNetwork::V4(subnet) => Some(*subnet),
            IpNetwork::V6(_) => None,
        }) {
            let remote = peer.attrs.public_ip;
            let connection = Connection {
                local,
                remote,
                local_subnet: own,
                remote_subnet: subnet,
                reqid: REQID,
                encap: self.0.udp_encap,
                esp_proposal: self.0.esp_proposal.clone(),
            };
            let connection = Negotiated { name: connection.name(), connection: Some(connection) };
            let policies = Policies { local, remote, own, subnet, complete: true };
            let id = |stage| ObjectId { stage, network: subnet.into() };
            objects.insert(id(Stage::Peer), AnyObject::new(connection));
            objects.insert(id(Stage::Route), AnyObject::new(policies));
        }
        objects
    }

    fn driver(&self, node: &Registered) -> Result<Option<Box<dyn ObjectDriver>>, BackendError> {
        let of_v4 = node.subnets.iter().find(|(network, _)| network.is_ipv4()).copied();
        Ok(of_v4.map(|(network, own)| {
            let psk = self.0.psk.clone();
            Box::new(Driver { psk, network, own, loaded: BTreeMap::new() }) as Box<dyn ObjectDriver>
        }))
    }
}

/// charon, which listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Daemon;

impl fmt::Display for Daemon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the IKE daemon charon")
    }
}

/// A connection that charon has, with its keys.
#[derive(Clone, PartialEq, Eq)]
struct Negotiated {
    name: String,
    /// As it was loaded; `None` of one that another process has loaded, of which nobody tells all of it.
    connection: Option<Connection>,
}

impl fmt::Debug for Negotiated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Negotiated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IKE connection {}", self.name)
    }
}

/// The policies of one peer, in all directions.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Policies {
    local: Ipv4Addr,
    remote: Ipv4Addr,
    own: Ipv4Network,
    subnet: Ipv4Network,
    /// None of them is missing.
    complete: bool,
}

impl fmt::Display for Policies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IPsec policies between {} and {} at {}", self.own, self.subnet, self.remote)
    }
}

impl Policies {
    fn each(&self) -> [TunnelPolicy; 3] {
        [Direction::Out, Direction::In, Direction::Forward].map(|direction| {
            let (source, destination, from, to) = match direction {
                Direction::Out => (self.own, self.subnet, self.local, self.remote),
                Direction::In | Direction::Forward => (self.subnet, self.own, self.remote, self.local),
            };
            TunnelPolicy { direction, source, destination, from, to, reqid: REQID }
        })
    }
}

/// Charon, the connections between our subnet and others, and the policies for them.
struct Driver {
    psk: String,
    network: IpNetwork,
    own: IpNetwork,
    /// What this process has loaded into charon.
    loaded: BTreeMap<String, Connection>,
}

impl Driver {
    async fn look(&mut self) -> Result<Objects, BackendError> {
        let mut objects = Objects::new();
        let mut policies = BTreeMap::<Ipv4Network, Vec<TunnelPolicy>>::new();
        for policy in xfrm::tunnel_policies(REQID).await? {
            if let Some(subnet) = xfrm::peer_of(&policy, self.own) {
                policies.entry(subnet).or_default().push(policy);
            }
        }
        for (subnet, found) in policies {
            let Some(policies) = self.policies(subnet, &found) else { continue };
            let id = ObjectId { stage: Stage::Route, network: subnet.into() };
            objects.insert(id, AnyObject::new(policies));
        }
        // Without it there is nothing that it has.
        let Ok(mut client) = charon::connect().await else { return Ok(objects) };
        objects.insert(ObjectId { stage: Stage::Device, network: self.network }, AnyObject::new(Daemon));
        let keys = charon::keys(&mut client).await?;
        for name in charon::connections(&mut client).await? {
            let Some((local, local_subnet, remote_subnet, remote)) = charon::parts(&name) else { continue };
            if IpNetwork::V4(local_subnet) != self.own {
                continue;
            }
            let has_keys = [local, remote].iter().all(|node| keys.contains(&charon::key_id(*node)));
            let connection = self.loaded.get(&name).filter(|_| has_keys).cloned();
            let id = ObjectId { stage: Stage::Peer, network: remote_subnet.into() };
            objects.insert(id, AnyObject::new(Negotiated { name, connection }));
        }
        Ok(objects)
    }

    /// What the policies of one peer are.
    fn policies(&self, subnet: Ipv4Network, found: &[TunnelPolicy]) -> Option<Policies> {
        let IpNetwork::V4(own) = self.own else { return None };
        let first = found.first()?;
        let (local, remote) = match first.direction {
            Direction::Out => (first.from, first.to),
            Direction::In | Direction::Forward => (first.to, first.from),
        };
        let policies = Policies { local, remote, own, subnet, complete: true };
        let complete = policies.each().iter().all(|wanted| found.contains(wanted));
        Some(Policies { complete, ..policies })
    }

    async fn put_connection(&mut self, id: ObjectId, wanted: &Negotiated) -> Result<(), BackendError> {
        let Some(connection) = &wanted.connection else { return Ok(()) };
        let mut client = charon::connect().await?;
        // Of a peer that moved, what led to where it was.
        for name in charon::connections(&mut client).await? {
            let same = charon::parts(&name).is_some_and(|(_, own, subnet, _)| {
                IpNetwork::V4(own) == self.own && IpNetwork::V4(subnet) == id.network
            });
            if same && name != wanted.name {
                charon::unload(&mut client, &name).await?;
                self.loaded.remove(&name);
            }
        }
        charon::load(&mut client, connection, &self.psk).await?;
        self.loaded.insert(wanted.name.clone(), connection.clone());
        Ok(())
    }
}

impl ObjectDriver for Driver {
    fn observe(&mut self) -> BoxFuture<'_, Result<Objects, BackendError>> {
        Box::pin(self.look())
    }

    fn put<'a>(&'a mut self, id: ObjectId, object: &'a AnyObject) -> BoxFuture<'a, Result<(), BackendError>> {
        Box::pin(async move {
            if object.get::<Daemon>().is_some() {
                self.loaded.clear();
                charon::start().await?;
            }
            if let Some(connection) = object.get::<Negotiated>() {
                self.put_connection(id, connection).await?;
            }
            if let Some(policies) = object.get::<Policies>() {
                for policy in policies.each() {
                    xfrm::put_policy(&policy).await?;
                }
            }
            Ok(())
        })
    }

    /// Charon itself stays: whoever else uses it may need it.
    fn delete<'a>(
        &'a mut self,
        _: ObjectId,
        object: &'a AnyObject,
    ) -> BoxFuture<'a, Result<(), BackendError>> {
        Box::pin(async move {
            if let Some(Negotiated { name, .. }) = object.get::<Negotiated>() {
                charon::unload(&mut charon::connect().await?, name).await?;
                self.loaded.remove(name);
            }
            if let Some(policies) = object.get::<Policies>() {
                for policy in policies.each() {
                    xfrm::delete_policy(&policy).await?;
                }
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(json: &str) -> Result<IpsecOptions, String> {
        IpsecOptions::parse(&Object::parse("Backend.", json).unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn options_have_upstreams_defaults_and_hide_the_secret() {
        let psk = "x".repeat(96);
        let given = options(&format!(r#"{{"PSK":"{psk}"}}"#)).unwrap();
        let shown = format!("{given:?}");
        assert!(!shown.contains(&psk), "{shown}");
        assert!(shown.contains("UDPEncap: false") && shown.contains(ESP_PROPOSAL), "{shown}");
        assert_eq!((given.overhead(), IpsecOptions { udp_encap: true, ..given }.overhead()), (77, 85));
        let error = options(r#"{"PSK":"letmein"}"#).unwrap_err();
        assert!(
            error.contains("password is too short: 7 characters") && !error.contains("letmein"),
            "{error}"
        );
    }
}
