//! The log: one line on stderr per change of state.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::EnvFilter;

/// Starts logging to stderr. `verbosity` is that of `-v`: 0 for changes of state, 2 and more for what
/// led to them, 5 and more for everything, libraries included. `RUST_LOG` wins where it is set.
pub fn init(verbosity: u8) {
    let default = match verbosity {
        0 | 1 => "info",
        2..=4 => "info,flannel_agent=debug",
        _ => "debug,flannel_agent=trace,h2=info,hyper=info,tower=info",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    // A second start in one process (tests) keeps the first one's.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .try_init();
}
