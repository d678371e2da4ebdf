//! The network configuration while the agent runs. It is applied at start only, as upstream's is: pods have
//! addresses of the network they were started in. A change is said, and nothing else is done.

use std::convert::Infallible;

use etcd_client::KeyValue;
use tracing::{info, warn};

use super::{
    EtcdStore, Said,
    follow::{Followed, Follower},
};
use crate::config::{ConfigError, NetworkConfig};

/// What stands in etcd, compared with what is in force.
#[derive(Clone, Debug, PartialEq)]
enum Found {
    Same,
    Other { changes: String },
    Invalid(ConfigError),
    Absent,
}

impl EtcdStore {
    /// Says each change of `<prefix>/config`, once: what differs from `in_force`, and that it takes a restart;
    /// or what is wrong with the new configuration. Goes on until dropped.
    pub async fn report_config_changes(&self, in_force: NetworkConfig) -> Infallible {
        let key = self.config_key();
        let mut follower = Follower::new(self.members.clone(), "the network config", key.clone(), false);
        let mut said = Said::default();
        loop {
            let found = match follower.next().await {
                Followed::All(all) | Followed::Anew(all) => {
                    all.first().map_or(Found::Absent, |kv| compare(&in_force, kv))
                }
                Followed::Put(kv) => compare(&in_force, &kv),
                Followed::Deleted { .. } => Found::Absent,
            };
            report(&key, &found, &mut said);
        }
    }
}

fn compare(in_force: &NetworkConfig, kv: &KeyValue) -> Found {
    match NetworkConfig::parse(kv.value()) {
        Ok(new) => match in_force.changes_to(&new) {
            changes if changes.is_empty() => Found::Same,
            changes => Found::Other { changes: changes.join(", ") },
        },
        Err(error) => Found::Invalid(error),
    }
}

fn report(key: &str, found: &Found, said: &mut Said) {
    match found {
        Found::Same if said.is_over() => {
            info!(key, "the network config is again the one this node runs with");
        }
        Found::Same => {}
        Found::Other { changes } if said.is_news(changes) => {
            warn!(
                key,
                changes,
                "the network config has changed; this node goes on with what it was started with. Restart the \
                 agents of all nodes to apply it, and the pods if the network or the lengths of subnets changed"
            );
        }
        Found::Invalid(error) if said.is_news(error) => {
            warn!(
                key,
                %error,
                "the network config has changed to one that cannot be used; this node goes on with what it was \
                 started with, but an agent that starts now waits. Mend it"
            );
        }
        Found::Absent if said.is_news(&"deleted") => {
            warn!(
                key,
                "the network config was deleted; this node goes on with what it was started with, but an agent \
                 that starts now waits. Write it again"
            );
        }
        Found::Other { .. } | Found::Invalid(_) | Found::Absent => {}
    }
}
