//! Nodes as they are and as they change: a list, then watches from where it ended, each from where the last one
//! ended. What cannot be resumed is listed again.

use std::time::Duration;

use futures::{StreamExt as _, pin_mut};
use kube::core::WatchEvent;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout_at},
};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info, warn};

use super::{
    api::{ApiError, ApiServer, Freshness},
    record::NodeRecord,
};
use crate::{
    lease::{Heard, backoff::Backoff},
    telemetry::LastMessage,
};

/// What waits for the consumer. When it is this much, the server waits.
const QUEUE: usize = 64;
/// How long a watch lasts, in seconds; the server ends it. As upstream: they are not to end all at once.
const WATCH_SECONDS: std::ops::Range<u64> = 300..600;
/// A server that sends bookmarks does so every minute: after so long a silence it is another host, or none.
const SILENCE: Duration = Duration::from_secs(150);
/// After its end a watch should be over; so long after it, it is.
const LATE: Duration = Duration::from_secs(10);
/// A watch that ends sooner, with nothing said, is as good as none.
const SHORT: Duration = Duration::from_secs(2);

/// What became of the nodes.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum NodeEvent {
    /// All there are: what is absent is gone.
    All(Vec<NodeRecord>),
    /// The same, as the server's store has them after an interruption: it may have been restored from a backup, and what was
    /// known before may be newer than what holds now.
    Anew(Vec<NodeRecord>),
    /// One that is new or changed.
    Put(NodeRecord),
    /// One that is gone.
    Deleted(NodeRecord),
}

/// A task that follows nodes, until this is dropped.
pub(super) struct Nodes {
    followed: mpsc::Receiver<NodeEvent>,
    _task: AbortOnDropHandle<()>,
}

impl Nodes {
    /// Follows `what`, which is the nodes that `fields` selects, or all.
    pub(super) fn follow(api: ApiServer, what: &'static str, fields: Option<String>) -> Self {
        let (sender, followed) = mpsc::channel(QUEUE);
        let watcher = NodeWatcher {
            api,
            what,
            fields,
            sender,
            version: None,
            freshness: Freshness::Cached,
            bookmarks: false,
            backoff: Backoff::default(),
            said: LastMessage::default(),
        };
        Self { followed, _task: AbortOnDropHandle::new(tokio::spawn(watcher.run())) }
    }

    /// What happened next; the first is always [`NodeEvent::All`]. Cancel safe.
    pub(super) async fn next(&mut self) -> NodeEvent {
        match self.followed.recv().await {
            Some(followed) => followed,
            // The task only ends with us.
            None => std::future::pending().await,
        }
    }
}

/// Whether one version comes before another. They are to be compared as numbers where they are any (they are
/// revisions of etcd); where not, nothing is known.
pub(super) fn is_earlier(version: &str, than: &str) -> bool {
    match (version.parse::<u64>(), than.parse::<u64>()) {
        (Ok(this), Ok(that)) => this < that,
        _ => false,
    }
}

struct NodeWatcher {
    api: ApiServer,
    what: &'static str,
    fields: Option<String>,
    sender: mpsc::Sender<NodeEvent>,
    /// Where the next watch begins; `None` to list first.
    version: Option<String>,
    freshness: Freshness,
    /// The server sends bookmarks: its silence means something.
    bookmarks: bool,
    backoff: Backoff,
    said: LastMessage,
}

/// Why a round ended.
enum Interrupted {
    /// Nobody listens.
    Unheard,
    /// The watch came to its end.
    Over,
    Failed(ApiError),
}

impl From<ApiError> for Interrupted {
    fn from(error: ApiError) -> Self {
        Self::Failed(error)
    }
}

impl NodeWatcher {
    async fn run(mut self) {
        loop {
            match self.round().await {
                Interrupted::Unheard => return,
                Interrupted::Over => {}
                Interrupted::Failed(error) => {
                    if error.is_gone() {
                        // What the server remembered may have been older than what it has forgotten.
                        self.version = None;
                        self.freshness = Freshness::Latest;
                        info!(
                            what = self.what,
                            "the API server cannot resume the watch: reading everything again"
                        );
                    } else {
                        if self.fields.is_some() {
                            // One node costs little, and a store that was restored may have passed the version we know.
                            self.version = None;
                            self.freshness = Freshness::Latest;
                        }
                        self.api.trouble().has(self.what, &error);
                        if self.said.is_news(&error) {
                            warn!(
                                what = self.what, %error,
                                "watch interrupted; trying again. Known leases stay in force"
                            );
                        }
                    }
                    sleep(self.backoff.failed()).await;
                }
            }
        }
    }

    /// A list, if one is due, and a watch.
    async fn round(&mut self) -> Interrupted {
        match self.try_round().await {
            Ok(never) => match never {},
            Err(interrupted) => interrupted,
        }
    }

    async fn try_round(&mut self) -> Result<std::convert::Infallible, Interrupted> {
        let version = match self.version.clone() {
            Some(version) => version,
            None => {
                let listed = self.api.list(self.what, self.fields.as_deref(), self.freshness).await?;
                debug!(what = self.what, nodes = listed.nodes.len(), version = listed.version, "listed");
                self.send(match self.freshness {
                    Freshness::Cached => NodeEvent::All(listed.nodes),
                    Freshness::Latest => NodeEvent::Anew(listed.nodes),
                })
                .await?;
                self.at(&listed.version);
                listed.version
            }
        };
        let seconds = rand::random_range(WATCH_SECONDS);
        let opened = Instant::now();
        let stream = self.api.watch(self.what, self.fields.as_deref(), &version, seconds).await?;
        self.answered();
        pin_mut!(stream);
        let end = opened + Duration::from_secs(seconds) + LATE;
        let mut heard = false;
        loop {
            let silence = if self.bookmarks { end.min(Instant::now() + SILENCE) } else { end };
            let event = match timeout_at(silence, stream.next()).await {
                Ok(Some(event)) => event,
                Ok(None) if !heard && opened.elapsed() < SHORT => {
                    return Err(self.failed("the watch ended as soon as it began").into());
                }
                Ok(None) => return Err(Interrupted::Over),
                Err(_) => return Err(self.failed("the watch has fallen silent").into()),
            };
            match event {
                Ok(WatchEvent::Added(node) | WatchEvent::Modified(node) | WatchEvent::Deleted(node))
                    if node.name().is_empty() =>
                {
                    self.version = None;
                    return Err(self.failed("it sends a node without a name").into());
                }
                Ok(WatchEvent::Added(node) | WatchEvent::Modified(node)) => {
                    self.at(node.version());
                    self.send(NodeEvent::Put(node)).await?;
                }
                Ok(WatchEvent::Deleted(node)) => {
                    self.at(node.version());
                    self.send(NodeEvent::Deleted(node)).await?;
                }
                Ok(WatchEvent::Bookmark(mark)) => {
                    self.bookmarks = true;
                    let version = mark.metadata.resource_version;
                    if self.version.as_deref().is_some_and(|known| is_earlier(&version, known)) {
                        self.version = None;
                        self.freshness = Freshness::Latest;
                        let reason =
                            "it has gone back in time, as after a restore of its etcd: reading all again";
                        return Err(self.failed(reason).into());
                    }
                    self.at(&version);
                }
                Ok(WatchEvent::Error(status)) => return Err(ApiError::refused(self.what, &status).into()),
                Err(kube::Error::SerdeError(error)) => {
                    // What it said is lost.
                    self.version = None;
                    return Err(self.failed(&format!("it sends what cannot be read: {error}")).into());
                }
                Err(error) => return Err(ApiError::new(self.what, error).into()),
            }
            heard = true;
            self.backoff.succeeded();
        }
    }

    fn at(&mut self, version: &str) {
        if version.is_empty() {
            return;
        }
        self.version = Some(version.to_owned());
        // Of all nodes, not of our own alone.
        if self.fields.is_none() {
            self.api.heard().send_replace(Heard::now(version));
        }
    }

    fn failed(&self, reason: &str) -> ApiError {
        ApiError::unreachable(self.what, reason)
    }

    /// The server answers.
    fn answered(&mut self) {
        self.freshness = Freshness::Cached;
        self.api.trouble().is_over(self.what);
        if self.said.is_over() {
            info!(what = self.what, "the API server answers again");
        }
    }

    async fn send(&mut self, followed: NodeEvent) -> Result<(), Interrupted> {
        self.sender.send(followed).await.map_err(|_| Interrupted::Unheard)
    }
}

#[cfg(test)]
mod tests;
