//! How long flows may skip the host's stack unseen.

use std::time::Duration;

/// How long netfilter's acceptance of a flow holds; in the programs' maps in whole milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowRefresh {
    /// Of TCP.
    pub tcp: Duration,
    /// Of UDP.
    pub udp: Duration,
}

impl FlowRefresh {
    /// One length for both.
    pub const fn of(length: Duration) -> Self {
        Self { tcp: length, udp: length }
    }

    /// As the programs have it: TCP's and UDP's, ms.
    pub(crate) fn millis(self) -> [u32; 2] {
        [self.tcp, self.udp].map(|length| u32::try_from(length.as_millis()).unwrap_or(u32::MAX))
    }
}
