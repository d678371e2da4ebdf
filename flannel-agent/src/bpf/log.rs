//! What the programs log.

use std::time::Duration;

use aya::Ebpf;
use aya_log::EbpfLogger;
use tracing::warn;

const LOG_PERIOD: Duration = Duration::from_millis(100);

/// How much the programs say in the agent's log; the verifier removes what is below the level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogLevel {
    /// Nothing.
    #[default]
    Off,
    /// Spoofed or refused packets.
    Warn,
    /// Every packet: for looking into a test, never for a busy node.
    Debug,
}

impl LogLevel {
    /// As aya-log numbers levels.
    pub(super) const fn number(self) -> u8 {
        match self {
            Self::Off => 0,
            Self::Warn => 2,
            Self::Debug => 4,
        }
    }
}

/// Forwards what the programs log to `tracing`, for as long as the runtime lives.
pub(super) fn forward(ebpf: &mut Ebpf, level: LogLevel) {
    if level == LogLevel::Off {
        return;
    }
    match EbpfLogger::init(ebpf) {
        Ok(logger) => {
            tokio::spawn(drain(logger));
        }
        Err(error) => warn!(%error, "the programs' log cannot be read"),
    }
}

/// Reads the programs' log, ten times a second: it is for rare events and for debugging.
async fn drain(mut logger: EbpfLogger<&'static dyn ::log::Log>) {
    let mut tick = tokio::time::interval(LOG_PERIOD);
    loop {
        tick.tick().await;
        logger.flush();
    }
}
