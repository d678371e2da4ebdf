//! The network configuration in etcd while the agent runs.

use std::convert::Infallible;

use super::{EtcdStore, key_watch::KeyEvent};
use crate::{config::NetworkConfig, lease::config_report::ConfigReport};

impl EtcdStore {
    /// Says each change of `<prefix>/config`, once: what differs from `in_force`, and that it takes a restart;
    /// or what is wrong with the new configuration. Goes on until dropped.
    pub async fn watch_network_config(&self, in_force: NetworkConfig) -> Infallible {
        let key = self.config_key();
        let mut keys = self.follow("the network config", key.clone(), false);
        let mut report = ConfigReport::new(key, in_force);
        loop {
            match keys.next().await {
                KeyEvent::All(all) | KeyEvent::Anew(all) => {
                    report.sees(all.first().map(|entry| entry.value.as_slice()))
                }
                KeyEvent::Put(entry) => report.sees(Some(&entry.value)),
                KeyEvent::Deleted { .. } => report.sees(None),
            }
        }
    }
}
