//! `drift`: what differs between what the leases say, the kernel and the maps.

use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::{
    Defaults, Health, Place,
    look::Look,
    output::{Watch, run as run_inquiry, show, wrapped},
};
use crate::{
    control::snapshot::Difference,
    inspect::peers::{State, join},
};

/// Options of `drift`.
#[derive(Debug, Args)]
pub struct DriftOptions {
    /// Which agent.
    #[command(flatten)]
    pub at: Place,
    /// Whether to go on.
    #[command(flatten)]
    pub watch: Watch,
}

/// What was found.
#[derive(Debug, Serialize)]
struct Report {
    /// Why the agent did not say, if it did not.
    without_agent: Option<String>,
    /// What would have to be done.
    differences: Vec<Difference>,
}

/// Prints what differs; nothing when all is well.
///
/// # Errors
/// When it cannot be looked.
pub fn run(options: &DriftOptions, defaults: &Defaults) -> anyhow::Result<Health> {
    run_inquiry(show(options.at.output, options.watch, async || look(options, defaults).await, render))
}

async fn look(options: &DriftOptions, defaults: &Defaults) -> anyhow::Result<(Report, Health)> {
    let client = options.at.client(defaults);
    match client.drift().await {
        Ok(mut drift) => {
            // What the agent is about to do is no drift: what is still there a moment later is.
            if drift.differences.iter().any(|difference| difference.error.is_none()) {
                tokio::time::sleep(Duration::from_millis(300)).await;
                let again = client.drift().await?;
                drift
                    .differences
                    .retain(|before| again.differences.iter().any(|now| now.change == before.change));
                drift.error = again.error;
            }
            if let Some(error) = drift.error {
                anyhow::bail!("the agent cannot compare: {error}");
            }
            let health = if drift.differences.is_empty() { Health::Good } else { Health::Wrong };
            Ok((Report { without_agent: None, differences: drift.differences }, health))
        }
        Err(error) => {
            // It is not asked again: whoever waited for an answer in vain waits no second time.
            let why = error.to_string();
            let found = Look::with(Err(error), &options.at, defaults, false).await?;
            let rows = join(None, None, &found.kernel, found.maps.as_ref());
            let differing = rows.iter().filter(|row| row.state != State::InPlace);
            let differences = differing.flat_map(|row| {
                row.differences
                    .iter()
                    .map(|text| Difference { change: format!("peer {}: {text}", row.subnet), error: None })
            });
            Ok((Report { without_agent: Some(why), differences: differences.collect() }, Health::Unseen))
        }
    }
}

fn render(report: &Report) -> String {
    let mut text = String::new();
    if let Some(why) = &report.without_agent {
        text.push_str(&wrapped(&format!("{why}. What kernel and maps hold is compared with each other:"), 0));
        text.push('\n');
    }
    for Difference { change, error } in &report.differences {
        let why = error.as_ref().map_or(String::new(), |error| format!(" (failed: {error})"));
        text.push_str(&wrapped(&format!("{change}{why}"), 4));
        text.push('\n');
    }
    text
}
