//! The network configuration while the agent runs. It is applied at start only, as upstream's is: pods have
//! addresses of the network they were started in. A change is said, and nothing else is done.

use tracing::{info, warn};

use crate::{
    config::{ConfigError, NetworkConfig},
    telemetry::LastMessage,
};

/// What stands in the store, compared with what is in force.
#[derive(Clone, Debug, PartialEq)]
enum Found {
    Same,
    Other { changes: String },
    Invalid(ConfigError),
    Absent,
}

/// Says each change of the configuration, once: what differs from the one in force, and that it takes a restart; or
/// what is wrong with the new one.
#[derive(Debug)]
pub(super) struct ConfigReport {
    /// Where it stands: a key, or a file.
    place: String,
    in_force: NetworkConfig,
    said: LastMessage,
}

impl ConfigReport {
    pub(super) fn new(place: String, in_force: NetworkConfig) -> Self {
        Self { place, in_force, said: LastMessage::default() }
    }

    /// This stands there now; `None` for nothing.
    pub(super) fn sees(&mut self, json: Option<&[u8]>) {
        let found = json.map_or(Found::Absent, |json| self.compare(json));
        self.report(&found);
    }

    fn compare(&self, json: &[u8]) -> Found {
        match NetworkConfig::parse(json) {
            Ok(new) => match self.in_force.changes_to(&new) {
                changes if changes.is_empty() => Found::Same,
                changes => Found::Other { changes: changes.join(", ") },
            },
            Err(error) => Found::Invalid(error),
        }
    }

    fn report(&mut self, found: &Found) {
        let Self { place, said, .. } = self;
        match found {
            Found::Same if said.is_over() => {
                info!(place, "the network config is again the one this node runs with");
            }
            Found::Same => {}
            Found::Other { changes } if said.is_news(changes) => {
                warn!(
                    place,
                    changes,
                    "the network config has changed; this node keeps the one it was started with. Restart the agents \
                    of all nodes to apply it, and the pods if the network or the lengths of subnets changed"
                );
            }
            Found::Invalid(error) if said.is_news(error) => {
                warn!(
                    place,
                    %error,
                    "the network config has changed to one that cannot be used; this node keeps the one it was \
                    started with, but a starting agent fails. Correct it"
                );
            }
            Found::Absent if said.is_news("deleted") => {
                warn!(
                    place,
                    "the network config was deleted; this node keeps the one it was started with, but a starting \
                    agent fails. Write it again"
                );
            }
            Found::Other { .. } | Found::Invalid(_) | Found::Absent => {}
        }
    }
}
