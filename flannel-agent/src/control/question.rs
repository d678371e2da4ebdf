//! What the reconciler is asked, in its own loop: it alone knows what is planned.

use std::time::Duration;

use ipnetwork::IpNetwork;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::snapshot::{Dataplane, Drift, Peer, Peers, TraceMaps};

/// How long an answer may take: a pass over a large cluster takes a second.
const PATIENCE: Duration = Duration::from_secs(5);

/// A question, with where to send the answer.
#[derive(Debug)]
pub enum Question {
    /// How does the dataplane stand?
    Dataplane(oneshot::Sender<Dataplane>),
    /// Who are the peers?
    Peers(oneshot::Sender<Peers>),
    /// Who are these peers, and some others, so many at most, chosen by chance?
    Sample(Vec<IpNetwork>, usize, oneshot::Sender<Vec<Peer>>),
    /// What differs between plan and kernel?
    Drift(oneshot::Sender<Drift>),
    /// May this process look at packets, for some seconds more?
    Trace(u32, oneshot::Sender<Result<Option<TraceMaps>, String>>),
}

/// Asks. Clones ask the same.
#[derive(Clone, Debug)]
pub struct Questions(mpsc::Sender<Question>);

/// The end that answers.
#[derive(Debug)]
pub struct Questioned {
    asked: mpsc::Receiver<Question>,
    questions: Questions,
}

/// No answer came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    /// The loop is busy, or hangs.
    #[error("the reconciler has not answered for {} s: it is busy or hangs", PATIENCE.as_secs())]
    Late,
    /// It has ended.
    #[error("the reconciler has ended")]
    Ended,
}

impl Questions {
    /// Asks `question`, which takes where to answer to.
    ///
    /// # Errors
    /// When no answer comes within five seconds.
    pub(super) async fn ask<T>(
        &self,
        question: impl FnOnce(oneshot::Sender<T>) -> Question,
    ) -> Result<T, NoAnswer> {
        let asking = async {
            let (answer, answered) = oneshot::channel();
            self.0.send(question(answer)).await.map_err(|_| NoAnswer::Ended)?;
            answered.await.map_err(|_| NoAnswer::Ended)
        };
        timeout(PATIENCE, asking).await.unwrap_or(Err(NoAnswer::Late))
    }
}

impl Questioned {
    /// Nobody has asked yet.
    pub(crate) fn new() -> Self {
        let (ask, asked) = mpsc::channel(1);
        Self { asked, questions: Questions(ask) }
    }

    /// For asking.
    pub(crate) fn questions(&self) -> Questions {
        self.questions.clone()
    }

    /// Waits for a question. Cancel safe.
    pub(crate) async fn next(&mut self) -> Question {
        match self.asked.recv().await {
            Some(question) => question,
            // We hold an end of it ourselves.
            None => std::future::pending().await,
        }
    }
}
