//! Whether the loop goes round.

use tokio::sync::{mpsc, oneshot};

/// Asks the loop for a sign of life.
#[derive(Clone, Debug)]
pub struct Pulse(mpsc::Sender<oneshot::Sender<()>>);

/// The loop's end of it.
#[derive(Debug)]
pub(crate) struct Heart {
    asked: mpsc::Receiver<oneshot::Sender<()>>,
    pulse: Pulse,
}

impl Pulse {
    /// Returns when the loop has come round to answer; not while it hangs, nor when it has ended.
    pub async fn beat(&self) {
        let (answer, answered) = oneshot::channel();
        if self.0.send(answer).await.is_err() || answered.await.is_err() {
            std::future::pending().await
        }
    }
}

impl Heart {
    pub(crate) fn new() -> Self {
        let (ask, asked) = mpsc::channel(1);
        Self { asked, pulse: Pulse(ask) }
    }

    pub(crate) fn pulse(&self) -> Pulse {
        self.pulse.clone()
    }

    /// Waits to be asked, and answers. Cancel safe.
    pub(crate) async fn beat(&mut self) {
        if let Some(answer) = self.asked.recv().await {
            // Whoever asked may be gone.
            let _ = answer.send(());
        }
    }
}
