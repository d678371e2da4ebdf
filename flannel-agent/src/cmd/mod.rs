//! Subcommands.

pub mod bpf;
pub mod explain;

/// A command that cannot look at what it is asked about; one that looks, and finds something wrong, is no error.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct CannotLook(pub anyhow::Error);

impl CannotLook {
    /// Exit status of such a command.
    pub const STATUS: u8 = 2;
}
