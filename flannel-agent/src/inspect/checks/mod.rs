//! What is looked at beyond the agent's own objects: settings, rules, other networks' traces, room.
//!
//! [`Surroundings`] is read in one go; what follows from it is decided by pure functions.

use serde::Serialize;

mod forwarded;
mod nft;
mod peers;
mod routes;
mod rules;
mod surroundings;
mod this_node;

#[cfg(test)]
use forwarded::tests::both_ways;
pub use forwarded::{Base, Dropped, End, Passage};
pub use nft::Nft;
pub use peers::{Seen, of_peer};
pub use routes::of_routes;
pub use rules::Firewall;
pub use surroundings::Surroundings;
pub use this_node::of_node;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// It may be meant, and may be in the way.
    Warning,
    /// Packets are lost, or pods cannot start.
    Error,
}

impl Severity {
    /// As tables have it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// What a check found: one line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What was looked at, in one word or two.
    pub check: &'static str,
    /// The peer it is about.
    pub peer: Option<String>,
    /// What was found.
    pub evidence: String,
    /// What to do; empty where nothing is to be done.
    pub remedy: String,
}

impl Finding {
    pub(super) fn ok(check: &'static str, evidence: impl Into<String>) -> Self {
        Self { severity: Severity::Ok, check, peer: None, evidence: evidence.into(), remedy: String::new() }
    }

    pub(super) fn warning(
        check: &'static str,
        evidence: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        let (evidence, remedy) = (evidence.into(), remedy.into());
        Self { severity: Severity::Warning, check, peer: None, evidence, remedy }
    }

    pub(super) fn error(check: &'static str, evidence: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { severity: Severity::Error, ..Self::warning(check, evidence, remedy) }
    }
}
