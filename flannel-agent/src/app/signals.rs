//! The signals that end the agent.

use std::sync::Arc;

use tokio::{
    select,
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tracing::{info, warn};

use crate::telemetry::systemd::ServiceManager;

/// Becomes true with the first signal to stop. A second one ends the process at once.
pub(super) fn on_signal(service: Arc<ServiceManager>) -> anyhow::Result<watch::Receiver<bool>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // What supervisord sends some programs, and would end us with a core.
    let mut quit = signal(SignalKind::quit())?;
    let (stop, stopped) = watch::channel(false);
    let mut next = async move || {
        select! {
            _ = terminate.recv() => ("SIGTERM", SignalKind::terminate()),
            _ = interrupt.recv() => ("SIGINT", SignalKind::interrupt()),
            _ = quit.recv() => ("SIGQUIT", SignalKind::quit()),
        }
    };
    // Ends with the runtime.
    tokio::spawn(async move {
        let (name, _) = next().await;
        info!(signal = name, "stopping; the dataplane stays in place");
        service.stopping();
        stop.send_replace(true);
        let (name, kind) = next().await;
        warn!(signal = name, "second signal: ending at once");
        // As a shell tells of a process that a signal ended.
        std::process::exit(128 + kind.as_raw_value());
    });
    Ok(stopped)
}
