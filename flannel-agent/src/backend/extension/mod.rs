//! `extension`: the operator's commands, run for each peer.

use std::{collections::BTreeMap, fmt, sync::Arc};

use futures::future::{BoxFuture, ready};
use ipnetwork::IpNetwork;
use tracing::warn;

use super::{
    AnyBackend, AnyObject, Backend, BackendError, Candidate, FollowedPeer, ObjectDriver, ObjectId, Objects,
    OptionError, OptionValue, Options, PeerRoute, Registered, Skip, Stacks, Stage, Start,
    kind::{Kind, Support},
};
use crate::{
    values::{Family, gojson::Object},
    wire::{LeaseAttrs, NodeAddress, RawJson},
};
use command::Command;

mod command;

/// Its line in the table.
pub(super) const KIND: Kind = Kind {
    name: "extension",
    what: "your own commands, run for each peer",
    support: Support::Built(|object| Ok(Arc::new(ExtensionOptions::parse(object)?))),
};

/// So often a command that removes a peer is tried.
const REMOVALS: u32 = 3;

/// Options of the extension backend: commands, each of which may be absent.
#[derive(Clone, Debug)]
struct ExtensionOptions {
    /// Run before there is a lease; what it writes is the lease's data.
    before: Option<Command>,
    /// Run when there is a lease.
    after: Option<Command>,
    /// Run for each peer.
    add: Option<Command>,
    /// Run for each peer that is no more.
    remove: Option<Command>,
    /// What `Shell` says.
    shell: Option<bool>,
}

impl ExtensionOptions {
    fn parse(object: &Object<'_>) -> Result<Self, OptionError> {
        let shell = object.get("Shell", "true or false")?;
        let command = |option| -> Result<Option<Command>, OptionError> {
            let text: Option<String> = object.get(option, "a command, as a string")?;
            Ok(text.filter(|text| !text.trim().is_empty()).map(|text| Command { option, text, shell }))
        };
        Ok(Self {
            before: command("PreStartupCommand")?,
            after: command("PostStartupCommand")?,
            add: command("SubnetAddCommand")?,
            remove: command("SubnetRemoveCommand")?,
            shell,
        })
    }
}

impl Options for ExtensionOptions {
    fn kind(&self) -> &'static str {
        KIND.name
    }

    fn values(&self) -> Vec<OptionValue> {
        let text = |command: &Option<Command>| {
            command.as_ref().map_or_else(|| "none".to_owned(), |command| format!("{:?}", command.text))
        };
        vec![
            OptionValue::of("Backend.PreStartupCommand", text(&self.before)),
            OptionValue::of("Backend.PostStartupCommand", text(&self.after)),
            OptionValue::of("Backend.SubnetAddCommand", text(&self.add)),
            OptionValue::of("Backend.SubnetRemoveCommand", text(&self.remove)),
            OptionValue::unless_unset("Backend.Shell", self.shell),
        ]
    }

    fn adopt<'a>(&'a self, _: Start<'a>) -> BoxFuture<'a, Result<AnyBackend, BackendError>> {
        Box::pin(async move {
            let data = match &self.before {
                Some(command) => Some(command.run(&[], "").await?),
                None => None,
            };
            Ok(AnyBackend::new(Extension { options: self.clone(), data }))
        })
    }
}

/// The commands, on this node.
#[derive(Debug)]
struct Extension {
    options: ExtensionOptions,
    /// What the first command wrote.
    data: Option<String>,
}

/// The text that a lease has as data; empty where it has none.
fn data_of(attrs: &LeaseAttrs) -> Result<String, String> {
    let Some(data) = &attrs.backend_data else { return Ok(String::new()) };
    serde_json::from_str(data.as_str()).map_err(|_| {
        format!("BackendData: expected a string, found {}", crate::values::shorten(data.as_str(), 60))
    })
}

impl Backend for Extension {
    fn options(&self) -> &dyn Options {
        &self.options
    }

    fn attrs(&self, address: NodeAddress) -> LeaseAttrs {
        let json = self.data.as_ref().and_then(|data| serde_json::to_string(data).ok());
        let backend_data = json.and_then(|json| RawJson::parse(&json).ok());
        LeaseAttrs { backend_data, ..LeaseAttrs::plain(address, KIND.name) }
    }

    fn judge(&self, candidate: &Candidate<'_>) -> Result<PeerRoute, Skip> {
        data_of(candidate.attrs).map(|_| PeerRoute::Objects).map_err(Skip::Unreadable)
    }

    fn kernel_only(&self) -> Option<&'static str> {
        Some("packets travel as the commands of the extension backend have it")
    }

    /// What the commands make is as host-gw's.
    fn replaces_routes(&self) -> bool {
        false
    }

    fn has_objects(&self) -> bool {
        true
    }

    fn peer_objects(&self, _: &Stacks, peer: &FollowedPeer<'_>) -> Objects {
        let of = |family| peer.subnets.iter().copied().find(|subnet| Family::of_network(*subnet) == family);
        let (v4, v6) = (of(Family::V4), of(Family::V6));
        let address = |family| peer.attrs.address(family).filter(|address| !address.is_unspecified());
        let object = v4.or(v6).and_then(|network| {
            let variables = [
                ("SUBNET", v4.map(|subnet| subnet.to_string())),
                ("IPV6SUBNET", v6.map(|subnet| subnet.to_string())),
                ("PUBLIC_IP", address(Family::V4).map(|address| address.to_string())),
                ("PUBLIC_IPV6", address(Family::V6).map(|address| address.to_string())),
            ];
            let variables = variables.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
            let peer = ExtensionPeer { network, variables, data: data_of(peer.attrs).ok()? };
            Some((ObjectId { stage: Stage::Peer, network }, AnyObject::new(peer)))
        });
        object.into_iter().collect()
    }

    fn driver(&self, _: &Registered) -> Result<Option<Box<dyn ObjectDriver>>, BackendError> {
        let ExtensionOptions { add, remove, .. } = self.options.clone();
        Ok(Some(Box::new(Driver { add, remove, added: Objects::new(), removals: BTreeMap::new() })))
    }

    fn register<'a>(&'a self, node: &'a Registered) -> BoxFuture<'a, Result<(), BackendError>> {
        let Some(command) = &self.options.after else { return Box::pin(ready(Ok(()))) };
        let mut variables = Vec::new();
        for (network, subnet) in &node.subnets {
            match Family::of_network(*network) {
                Family::V4 => {
                    variables.extend([("NETWORK", network.to_string()), ("SUBNET", subnet.to_string())]);
                }
                Family::V6 => {
                    variables
                        .extend([("IPV6_NETWORK", network.to_string()), ("IPV6SUBNET", subnet.to_string())]);
                }
            }
        }
        variables.extend(node.public.v4.map(|address| ("PUBLIC_IP", address.to_string())));
        variables.extend(node.public.v6.map(|address| ("PUBLIC_IPV6", address.to_string())));
        Box::pin(async move { command.run(&variables, "").await.map(drop) })
    }
}

/// A peer for which the command has been run.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ExtensionPeer {
    /// Its first subnet.
    network: IpNetwork,
    /// What the command is told.
    variables: Vec<(&'static str, String)>,
    /// What the command reads.
    data: String,
}

impl fmt::Display for ExtensionPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the peer of {} by command", self.network)
    }
}

/// Runs the commands, and knows for which peers it has. Nothing tells what an earlier process ran: each is added again, as
/// by upstream.
struct Driver {
    add: Option<Command>,
    remove: Option<Command>,
    added: Objects,
    /// How often removing a peer has failed.
    removals: BTreeMap<ObjectId, u32>,
}

impl Driver {
    async fn remove(&mut self, peer: &ExtensionPeer) -> Result<(), BackendError> {
        match &self.remove {
            Some(command) => command.run(&peer.variables, &peer.data).await.map(drop),
            None => Ok(()),
        }
    }
}

impl ObjectDriver for Driver {
    fn observe(&mut self) -> BoxFuture<'_, Result<Objects, BackendError>> {
        Box::pin(ready(Ok(self.added.clone())))
    }

    fn put<'a>(&'a mut self, id: ObjectId, object: &'a AnyObject) -> BoxFuture<'a, Result<(), BackendError>> {
        Box::pin(async move {
            let Some(peer) = object.get::<ExtensionPeer>() else { return Ok(()) };
            // One that has changed is another one.
            if let Some(before) = self.added.remove(&id)
                && let Some(before) = before.get::<ExtensionPeer>()
                && let Err(error) = self.remove(before).await
            {
                warn!(%error, subnet = %peer.network, "the peer has changed, and what it was cannot be removed");
            }
            if let Some(command) = &self.add {
                command.run(&peer.variables, &peer.data).await?;
            }
            self.added.insert(id, object.clone());
            Ok(())
        })
    }

    fn delete<'a>(
        &'a mut self,
        id: ObjectId,
        object: &'a AnyObject,
    ) -> BoxFuture<'a, Result<(), BackendError>> {
        Box::pin(async move {
            if let Some(peer) = object.get::<ExtensionPeer>()
                && let Err(error) = self.remove(peer).await
            {
                let failed = self.removals.entry(id).or_default();
                *failed += 1;
                if *failed < REMOVALS {
                    return Err(error);
                }
                warn!(%error, subnet = %peer.network, "the peer cannot be removed: it is left as it is");
            }
            self.removals.remove(&id);
            self.added.remove(&id);
            Ok(())
        })
    }
}
