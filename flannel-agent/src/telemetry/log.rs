//! The log: one line on stderr per change of state.

use std::io::{self, IsTerminal as _};

use clap::ValueEnum;
use tracing_subscriber::{EnvFilter, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use super::flood::FloodGate;

/// How the log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// A line for people.
    #[default]
    Text,
    /// A JSON object a line.
    Json,
}

/// Starts logging to stderr. `verbosity` is that of `-v`: 0 and less for changes of state, 2 and more for
/// what led to them, 5 and more for everything, libraries included. `RUST_LOG` wins where it is set.
/// Of changes of state that repeat without end, most are left out.
pub fn init(verbosity: i32, format: LogFormat) {
    let default = match verbosity {
        // What fails at the API server is told by whoever asked.
        ..=1 => "info,kube_client=off",
        2..=4 => "info,flannel_agent=debug,kube_client=off",
        _ => "debug,flannel_agent=trace,h2=info,hyper=info,tower=info",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_target(false);
    // A second start in one process (tests) keeps the first one's.
    let _ = match format {
        LogFormat::Text => {
            log.with_ansi(io::stderr().is_terminal()).finish().with(FloodGate::default()).try_init()
        }
        LogFormat::Json => {
            let log = log.json().flatten_event(true).with_current_span(false).with_span_list(false);
            log.finish().with(FloodGate::default()).try_init()
        }
    };
}
