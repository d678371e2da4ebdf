//! `drift`: what differs between what the leases say, the kernel and the maps.

use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::{
    Defaults, Health, Place,
    look::Look,
    output::{Watch, run as run_inquiry, show, span, wrapped},
};
use crate::{
    control::snapshot::{self, Difference, Store},
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
    /// The store of leases, where it does not answer: what there should be is what it said last.
    stale: Option<Store>,
    /// What would have to be done.
    differences: Vec<Difference>,
}

/// Prints what differs; nothing when all is well.
///
/// # Errors
/// When it cannot be looked.
pub fn run(options: &DriftOptions, defaults: &Defaults) -> anyhow::Result<Health> {
    run_inquiry(show(
        options.at.output,
        options.watch,
        async || look(options, defaults).await,
        |report| render(report, snapshot::now()),
    ))
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
            // One of an earlier version does not say.
            let store = client.store().await.unwrap_or_default();
            let stale = store.filter(|store| store.trouble.is_some());
            // So the lease in the store is not what it should be, either, or was not a moment ago.
            let lease = client.snapshot().await?.lease;
            let contested = lease.and_then(|lease| lease.contested);
            drift.differences.extend(contested.map(|change| Difference { change, error: None }));
            let health = if drift.differences.is_empty() { Health::Good } else { Health::Wrong };
            Ok((Report { without_agent: None, stale, differences: drift.differences }, health))
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
            let differences = differences.collect();
            Ok((Report { without_agent: Some(why), stale: None, differences }, Health::Unseen))
        }
    }
}

/// What a store that does not answer means for what differs.
fn stale(store: &Store, now: u64) -> String {
    let Store { server, trouble, revision, heard, .. } = store;
    let revision = revision.as_ref().map_or_else(String::new, |revision| format!(", revision {revision}"));
    let ago = |at: &u64| format!(", heard {} ago", span(now.saturating_sub(*at)));
    let heard = heard.as_ref().map_or_else(String::new, ago);
    let why = trouble.as_deref().unwrap_or("it does not answer");
    format!(
        "Compared with the leases as {server} told them last{revision}{heard}; leases may have changed since: {why}"
    )
}

/// The lines, at the time `now`.
fn render(report: &Report, now: u64) -> String {
    let mut text = String::new();
    if let Some(store) = &report.stale {
        text.push_str(&wrapped(&stale(store, now), 0));
        text.push('\n');
    }
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
