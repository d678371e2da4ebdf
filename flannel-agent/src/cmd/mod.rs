//! Subcommands.

use std::process::ExitCode;

pub mod bpf;
pub mod bugreport;
pub mod check;
pub mod drift;
pub mod etcd_migrate;
pub mod explain;
mod look;
pub mod monitor;
mod output;
pub mod peers;
mod place;
pub mod status;
pub mod top;
pub mod trace;
mod trace_session;
mod value;

pub use output::Format;
pub use place::{Defaults, Place};

/// What a look at the node came to: the exit status of the commands that look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    /// Nothing is wrong: 0.
    Good,
    /// Something is wrong: 1.
    Wrong,
    /// There is no agent, or it cannot be looked: 2.
    Unseen,
}

impl Health {
    /// Of a look in which the agent was heard, or not, and something was found wrong, or nothing.
    fn of(heard: bool, wrong: bool) -> Self {
        match (heard, wrong) {
            (false, _) => Self::Unseen,
            (true, true) => Self::Wrong,
            (true, false) => Self::Good,
        }
    }
}

impl From<Health> for ExitCode {
    fn from(health: Health) -> Self {
        Self::from(match health {
            Health::Good => 0,
            Health::Wrong => 1,
            Health::Unseen => 2,
        })
    }
}

/// A command that cannot look at what it is asked about; one that looks, and finds something wrong, is no error.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct CannotLook(pub anyhow::Error);

impl CannotLook {
    /// Exit status of such a command.
    pub const STATUS: u8 = 2;
}
