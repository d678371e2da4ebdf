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

/// A network configuration that no agent can start with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadConfig {
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

/// JSON on one line, as a command takes it.
pub(super) fn in_line(json: &str) -> String {
    json.lines().map(str::trim).collect()
}

/// Says each change of the configuration, once: what differs from the one in force, and that it takes a restart; or
/// what is wrong with the new one.
pub(super) struct ConfigReport {
    /// Where it stands: a key, or a file.
    place: String,
    in_force: NetworkConfig,
    /// The text of the one in force, once it was seen.
    text: Option<String>,
    said: LastMessage,
}

impl ConfigReport {
    pub(super) fn new(place: String, in_force: NetworkConfig) -> Self {
        Self { place, in_force, text: None, said: LastMessage::default() }
    }

    /// This stands there now; `None` for nothing. The answer is what is wrong with it; `remedy` is told the text of the
    /// configuration in force, where that is known.
    pub(super) fn sees(
        &mut self,
        json: Option<&[u8]>,
        remedy: impl FnOnce(Option<&str>) -> String,
    ) -> Option<BadConfig> {
        let found = json.map_or(Found::Absent, |json| self.compare(json));
        self.report(&found);
        let place = &self.place;
        let what = match &found {
            Found::Same => {
                self.text = json.map(|json| String::from_utf8_lossy(json).into_owned());
                return None;
            }
            Found::Other { .. } => return None,
            Found::Invalid(error) => {
                format!("{place}: {error}; this node keeps the network config it was started with")
            }
            Found::Absent => format!(
                "{place}: the network config is gone; this node keeps the one it was started with, but no agent can start"
            ),
        };
        Some(BadConfig { what, remedy: remedy(self.text.as_deref()) })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_agent_can_start_with_is_told_with_what_was_there() {
        let text = "{\n  \"Network\": \"10.244.0.0/16\"\n}";
        let mut report = ConfigReport::new("/config".into(), NetworkConfig::parse(text.as_bytes()).unwrap());
        let mut sees = |json: Option<&str>| {
            let bad = report.sees(json.map(str::as_bytes), |text| text.map(in_line).unwrap_or_default());
            bad.map(|BadConfig { what, remedy }| format!("{what} -> {remedy}"))
        };
        let gone = "/config: the network config is gone; this node keeps the one it was started with, but no agent can \
                    start -> ";
        assert_eq!(sees(None).as_deref(), Some(gone));
        assert_eq!(sees(Some(text)), None);
        assert_eq!(sees(None), Some(format!(r#"{gone}{{"Network": "10.244.0.0/16"}}"#)));
        assert_eq!(sees(Some(r#"{"Network": "10.245.0.0/16"}"#)), None);
        let bad = sees(Some("{")).unwrap();
        assert!(bad.starts_with("/config: ") && bad.ends_with(r#"{"Network": "10.244.0.0/16"}"#), "{bad}");
    }
}
