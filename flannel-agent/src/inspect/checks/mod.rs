//! What is looked at beyond the agent's own objects: settings, rules, other networks' traces, room.
//!
//! [`Surroundings`] is read in one go; what follows from it is decided by pure functions.

use serde::Serialize;

mod causes;
mod filters;
mod first_at;
mod forwarded;
mod kernel_path;
mod nft;
mod peers;
mod routes;
mod rules;
mod surroundings;
mod this_node;
mod way;

pub use causes::{ENDED, Keeps, attribute};
pub use filters::Filters;
#[cfg(test)]
use forwarded::tests::both_ways;
pub use forwarded::{Alone, Base, Dropped, End, Fate, Passage};
pub use kernel_path::of_kernel_path;
pub use nft::Nft;
pub use peers::{Seen, of_leases, of_peer};
pub use routes::of_routes;
pub use rules::Firewall;
use rules::program_for;
pub use surroundings::Surroundings;
pub use this_node::of_node;
pub use way::hampers;

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
    /// The finding that is its cause: check and evidence.
    pub follows_from: Option<String>,
    /// What it keeps from working.
    #[serde(skip)]
    pub keeps: Option<Keeps>,
}

impl Finding {
    /// Something that is as it should be.
    pub fn ok(check: &'static str, evidence: impl Into<String>) -> Self {
        Self { severity: Severity::Ok, ..Self::warning(check, evidence, "") }
    }

    /// Something that may be in the way.
    pub fn warning(check: &'static str, evidence: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            severity: Severity::Warning,
            check,
            peer: None,
            evidence: evidence.into(),
            remedy: remedy.into(),
            follows_from: None,
            keeps: None,
        }
    }

    /// Something that is wrong.
    pub fn error(check: &'static str, evidence: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { severity: Severity::Error, ..Self::warning(check, evidence, remedy) }
    }

    /// The same, which keeps that from working.
    pub(super) fn keeping(self, what: Keeps) -> Self {
        Self { keeps: Some(what), ..self }
    }
}
