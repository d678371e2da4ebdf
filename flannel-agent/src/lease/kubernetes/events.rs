//! What an operator should look into, as Events of our Node: `kubectl describe node` shows them.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::{
    sync::{OnceCell, mpsc, oneshot},
    time::{Instant, timeout},
};
use tracing::{debug, info};

use super::api::{ApiError, ApiServer};
use crate::{lease::Notice, values::shorten};

/// NodeEvents that wait to be sent. More are dropped: the log has them.
const QUEUE: usize = 16;
/// The same is not said again for so long.
const AGAIN: Duration = Duration::from_secs(600);
/// So many in that time, whatever they say.
const MOST: usize = 10;
/// For the API server to take one.
const SEND: Duration = Duration::from_secs(10);
/// Longest note an Event takes, in bytes, less room for a character cut.
const LONGEST: usize = 1000;

/// Sends notices in the background, for as long as the runtime lives. Clones share it.
#[derive(Clone)]
pub(super) struct NodeEvents {
    queue: mpsc::Sender<Message>,
}

enum Message {
    Notice(Notice),
    /// Answered when all before it is sent.
    Flush(oneshot::Sender<()>),
}

impl NodeEvents {
    /// Notices about the node of `name`, which may become known later: until then they are dropped.
    pub(super) fn start(api: ApiServer, name: Arc<OnceCell<String>>) -> Self {
        let (queue, messages) = mpsc::channel(QUEUE);
        tokio::spawn(send(api, name, messages));
        Self { queue }
    }

    /// Does not wait.
    pub(super) fn tell(&self, notice: Notice) {
        if self.queue.try_send(Message::Notice(notice)).is_err() {
            debug!("too many Events at once");
        }
    }

    /// Waits until what was told is sent, but not longer than `patience`.
    pub(super) async fn flush(&self, patience: Duration) {
        let (done, is_done) = oneshot::channel();
        let flush = async {
            if self.queue.send(Message::Flush(done)).await.is_ok() {
                let _ = is_done.await;
            }
        };
        let _ = timeout(patience, flush).await;
    }
}

async fn send(api: ApiServer, name: Arc<OnceCell<String>>, mut messages: mpsc::Receiver<Message>) {
    let reporter = Reporter { controller: "flannel".to_owned(), instance: name.get().cloned() };
    let recorder = Recorder::new(api.client(), reporter);
    let mut recent = Recent::default();
    let mut refused = false;
    while let Some(message) = messages.recv().await {
        let notice = match message {
            Message::Notice(notice) => notice,
            Message::Flush(done) => {
                let _ = done.send(());
                continue;
            }
        };
        let Some(node) = name.get() else { continue };
        if !recent.admits(&notice, Instant::now()) {
            continue;
        }
        let event = Event {
            type_: if notice.reason == Notice::OVER { EventType::Normal } else { EventType::Warning },
            reason: notice.reason.to_owned(),
            note: Some(note(&notice.text)),
            action: "Run".to_owned(),
            secondary: None,
        };
        // As kubelet refers to its node: an Event's object is found by what stands for its uid. A Node has no
        // namespace, but API servers before 1.22 want the Event's there.
        let about = ObjectReference {
            namespace: Some("default".to_owned()),
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(node.clone()),
            uid: Some(node.clone()),
            ..ObjectReference::default()
        };
        let problem = match timeout(SEND, recorder.publish(&event, &about)).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(ApiError::new("write an Event", error)),
            Err(_) => Some(ApiError::unreachable("write an Event", "no answer")),
        };
        match problem {
            Some(error) if !std::mem::replace(&mut refused, true) => {
                info!(
                    %error,
                    "cannot write Events: only the log has the reports. To get Events, let the cluster role of our \
                    account create and patch events of events.k8s.io in namespace default"
                );
            }
            Some(_) => {}
            None => refused = false,
        }
    }
}

fn note(text: &str) -> String {
    let mut characters = LONGEST;
    loop {
        let shortened = shorten(text, characters);
        if shortened.len() <= LONGEST + 3 {
            return shortened;
        }
        characters /= 2;
    }
}

/// What was sent lately.
#[derive(Debug, Default)]
struct Recent(VecDeque<(Instant, Notice)>);

impl Recent {
    /// Whether to send `notice`; if so, it counts as sent.
    fn admits(&mut self, notice: &Notice, now: Instant) -> bool {
        while self.0.front().is_some_and(|(at, _)| now.duration_since(*at) >= AGAIN) {
            self.0.pop_front();
        }
        let admitted = self.0.len() < MOST && !self.0.iter().any(|(_, sent)| sent == notice);
        if admitted {
            self.0.push_back((now, notice.clone()));
        }
        admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notice(text: &str) -> Notice {
        Notice { reason: "KernelPath", text: text.to_owned() }
    }

    #[test]
    fn the_same_is_said_once_in_a_while_and_never_too_much() {
        let mut recent = Recent::default();
        let start = Instant::now();
        assert!(recent.admits(&notice("a"), start));
        assert!(!recent.admits(&notice("a"), start + AGAIN / 2));
        let others = (0..100).filter(|n| recent.admits(&notice(&n.to_string()), start + AGAIN / 2)).count();
        assert_eq!(others, MOST - 1);
        assert!(recent.admits(&notice("a"), start + AGAIN));
    }

    #[test]
    fn notes_fit_an_event() {
        assert_eq!(note("short"), "short");
        for long in ["x".repeat(5000), "ä".repeat(5000), "🦀".repeat(5000)] {
            let note = note(&long);
            assert!(note.len() <= 1024 && note.len() > 400, "{}", note.len());
        }
    }
}
