//! The composition root.

use crate::cli::RunOptions;

/// Runs the agent.
///
/// # Errors
/// What stopped it.
pub fn run(_options: RunOptions) -> anyhow::Result<()> {
    Ok(())
}
