//! The network configuration in etcd while the agent runs.

use std::convert::Infallible;

use super::{EtcdApi, EtcdStore, ctl::EXAMPLE, key_watch::KeyEvent};
use crate::{
    config::NetworkConfig,
    lease::config_report::{ConfigReport, in_line},
};

impl EtcdStore {
    /// Says each change of `<prefix>/config`, once: what differs from `in_force`, and that it takes a restart;
    /// or what is wrong with the new configuration. Goes on until dropped.
    pub async fn watch_network_config(&self, in_force: NetworkConfig) -> Infallible {
        let key = self.config_key();
        let mut keys = self.follow("the network config", key.clone(), false);
        let mut report = ConfigReport::new(key.clone(), in_force);
        loop {
            let found = match keys.next().await {
                KeyEvent::All(all) | KeyEvent::Anew(all) => all.into_iter().next().map(|entry| entry.value),
                KeyEvent::Put(entry) => Some(entry.value),
                KeyEvent::Deleted { .. } => None,
            };
            let remedy = |text: Option<&str>| {
                let text = text.map_or_else(|| EXAMPLE.to_owned(), in_line);
                format!("write it by: {}", self.ctl.for_text(self.api() == EtcdApi::V2, &key, &text))
            };
            self.bad_config.send_replace(report.sees(found.as_deref(), remedy));
        }
    }
}
