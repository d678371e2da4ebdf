//! The network configuration, and which of etcd's stores has it.

use std::sync::PoisonError;

use tracing::{debug, error, info, warn};

use super::{EtcdApi, EtcdError, EtcdStore, LastMessage, RETRY, entry::Listing, server::Server};
use crate::config::NetworkConfig;

const WHAT: &str = "read the network config";

/// What the v2 store said.
enum V2 {
    Config(Listing),
    /// It has none, as in these words.
    None(String),
}

impl EtcdStore {
    /// The network configuration. Waits for etcd, for the key, and for a valid value: asks every second, and
    /// logs each distinct reason to wait once.
    ///
    /// # Errors
    /// [`EtcdError::Config`] for the mistakes that end upstream's start, too.
    pub async fn wait_for_network_config(&self) -> Result<NetworkConfig, EtcdError> {
        let mut said = LastMessage::default();
        loop {
            match self.try_network_config().await {
                Ok(config) => {
                    info!(key = self.config_key(), %config, "network config");
                    debug!(?config, "the network config in full");
                    return Ok(config);
                }
                Err(EtcdError::Config { key, error }) if error.ends_the_start() => {
                    return Err(EtcdError::Config { key, error });
                }
                Err(problem) if said.is_news(&problem) => {
                    error!(key = self.config_key(), error = %problem, "no network config yet; trying again every second");
                }
                Err(_) => {}
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// The network configuration, asked for once. Where [`EtcdApi::Auto`] is given, this decides for one of the
    /// stores, as soon as one has a configuration.
    pub async fn try_network_config(&self) -> Result<NetworkConfig, EtcdError> {
        let key = self.config_key();
        let listing = match self.api() {
            EtcdApi::Auto => self.config_of_either(&key).await?,
            api => {
                let listing = self.server().read(WHAT, &key, false).await?;
                if listing.entries.is_empty() {
                    let flag = if api == EtcdApi::V2 { "v2" } else { "v3" };
                    return Err(
                        self.no_config(&key, format!("the {flag} store has no {key}, and no other is asked"))
                    );
                }
                listing
            }
        };
        let value = listing.entries.first().map(|entry| entry.value.as_slice()).unwrap_or_default();
        NetworkConfig::parse(value).map_err(|error| EtcdError::Config { key, error })
    }

    /// The one in use: what was given, else what was decided.
    pub(super) fn api(&self) -> EtcdApi {
        match self.given_api {
            EtcdApi::Auto => *self.decided.lock().unwrap_or_else(PoisonError::into_inner),
            given => given,
        }
    }

    fn decide(&self, api: EtcdApi) {
        *self.decided.lock().unwrap_or_else(PoisonError::into_inner) = api;
    }

    async fn config_of_either(&self, key: &str) -> Result<Listing, EtcdError> {
        let problem = match Server::V3(self.members.clone()).read(WHAT, key, false).await {
            Ok(listing) if !listing.entries.is_empty() => {
                info!(key, "leases are in etcd's v3 store: the network config is there");
                self.decide(EtcdApi::V3);
                return Ok(listing);
            }
            Ok(_) => None,
            // No release from 3 on lacks v3: one that does not answer by it now will, and then it counts.
            Err(problem @ EtcdError::Unreachable { .. }) => match self.v2.version().await {
                Some(version) if version.starts_with("2.") => {
                    info!(version, "this etcd has the v2 store only");
                    None
                }
                _ => {
                    self.trouble.send_replace(Some(problem.to_string()));
                    Some(problem)
                }
            },
            Err(problem) => Some(problem),
        };
        if let Some(problem) = problem {
            return Err(problem);
        }
        match self.config_of_v2(key).await {
            V2::Config(listing) => {
                warn!(
                    key,
                    "leases are in etcd's v2 store, as those of flannel 0.11 to 0.17: the network config is there, and \
                     the v3 store has none. Give --etcd-api=v2 to keep it so whatever the v3 store gets"
                );
                self.decide(EtcdApi::V2);
                Ok(listing)
            }
            V2::None(words) => Err(self.no_config(key, format!("the v3 store has no {key}, and {words}"))),
        }
    }

    async fn config_of_v2(&self, key: &str) -> V2 {
        let asked = self.v2.read(WHAT, key, false).await;
        // v3 answers: an etcd without v2 is as it should be.
        self.trouble.send_replace(None);
        match asked {
            Ok(listing) if !listing.entries.is_empty() => V2::Config(listing),
            Ok(_) => V2::None("neither has the v2 store".to_owned()),
            Err(problem) => V2::None(problem.to_string()),
        }
    }

    fn no_config(&self, key: &str, looked: String) -> EtcdError {
        let (put, mk) = self.ctl.for_config(key);
        EtcdError::NoConfig { looked, put, mk }
    }
}
