//! Whether the node is ready for pods.

use tokio::sync::watch;

/// Set once: when the rules are in place and the subnet file is written. Clones share it.
#[derive(Clone, Debug)]
pub struct Readiness(watch::Sender<bool>);

impl Readiness {
    /// Not ready yet.
    pub fn new() -> Self {
        Self(watch::Sender::new(false))
    }

    /// From now on, ready.
    pub fn set(&self) {
        self.0.send_replace(true);
    }

    /// Whether it is.
    pub fn is_set(&self) -> bool {
        *self.0.borrow()
    }
}

impl Default for Readiness {
    fn default() -> Self {
        Self::new()
    }
}
