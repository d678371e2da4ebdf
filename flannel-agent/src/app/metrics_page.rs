//! The page of metrics, made of what the agent knows and of the maps.

use std::sync::Arc;

use tokio::task::spawn_blocking;

use crate::{
    bpf::Pins,
    cli::RunOptions,
    control::Standing,
    metrics::{self, MEDIA_TYPE},
    telemetry::http::MetricsPage,
};

/// Made anew for each scrape.
pub(super) fn metrics_page(standing: Standing, options: &RunOptions) -> MetricsPage {
    let (bpffs, of_peers) = (options.bpffs.clone(), options.metrics_peers);
    let make = move || {
        let (standing, bpffs) = (standing.clone(), bpffs.clone());
        Box::pin(async move {
            let snapshot = standing.snapshot().await;
            let peers = if of_peers { standing.peers().await.ok() } else { None };
            // Where another daemon has the programs, the maps are that one's.
            let has_programs =
                snapshot.fast_path.as_ref().is_some_and(|fast_path| fast_path.granted != "off");
            let text = spawn_blocking(move || {
                let pins = Pins::under(&bpffs).ok().filter(|_| has_programs);
                metrics::text(&snapshot, pins.as_ref(), peers.as_ref()).unwrap_or_default()
            });
            // It panics for no snapshot.
            text.await.unwrap_or_default()
        }) as _
    };
    MetricsPage { media_type: MEDIA_TYPE, make: Arc::new(make) }
}
