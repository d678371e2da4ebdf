//! Following keys by long polling, through all that happens to etcd. etcd remembers its last thousand events, of all
//! keys there are: whoever was away for longer reads everything again.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use http_body_util::{BodyExt as _, Limited};
use tokio::{sync::watch, time::timeout};
use tracing::{debug, info};

use super::{
    Members,
    answer::{self, Answer, Done, INDEX_CLEARED, Place, Unanswered},
    connection::NoAnswer,
    get,
};
use crate::lease::{
    Heard,
    etcd::{ANSWER, MAX_MESSAGE, advice::advice, key_watch::KeyEvent, known::Known, pace::Pace},
};

/// The longest poll: a member that vanished is noticed after it, and the index we wait for keeps up with a store that
/// others write to. Up to a quarter less, so that nodes do not all come back at once.
const POLL: Duration = Duration::from_secs(60);

/// Follows a key, or all below it.
pub(in super::super) struct KeyPoll {
    members: Arc<Members>,
    moves: watch::Receiver<u64>,
    /// What is followed, for logs.
    what: &'static str,
    key: String,
    below: bool,
    /// How far we are; nothing before the first list.
    position: Option<Place>,
    /// All keys have to be read.
    list: bool,
    ready: VecDeque<KeyEvent>,
    pace: Pace,
    /// Who is told how far we are.
    heard: Option<watch::Sender<Heard>>,
    /// The keys at our position.
    keys: Known,
}

/// Why a poll ended without an event.
enum Ended {
    /// Nothing happened up to this index.
    Quiet(i64),
    /// Nobody answers any more.
    Interrupted(String),
    /// It cannot go on from where it was.
    Gap(String),
}

impl KeyPoll {
    pub(in super::super) fn new(members: Arc<Members>, what: &'static str, key: String, below: bool) -> Self {
        let moves = members.moves.subscribe();
        Self {
            members,
            moves,
            what,
            key,
            below,
            position: None,
            list: false,
            ready: VecDeque::new(),
            pace: Pace::new(),
            heard: None,
            keys: Known::default(),
        }
    }

    /// Tells how far it is.
    pub(in super::super) fn telling(self, heard: watch::Sender<Heard>) -> Self {
        Self { heard: Some(heard), ..self }
    }

    fn reached(&mut self, place: Place) {
        self.position = Some(place);
        if let Some(heard) = &self.heard {
            heard.send_replace(Heard::now(place.index));
        }
    }

    /// Waits for the next happening. Cancel safe: whatever was begun is begun again, nothing is lost.
    pub(in super::super) async fn next(&mut self) -> KeyEvent {
        loop {
            if let Some(ready) = self.ready.pop_front() {
                return ready;
            }
            self.pace.wait().await;
            let Some(known) = self.position.filter(|_| !self.list) else {
                match self.members.read_from("list what is watched", &self.key, self.below).await {
                    Ok((listing, _)) => {
                        let place = Place { index: listing.revision, cluster: listing.cluster };
                        let anew = self.position.is_some_and(|before| {
                            place.cluster != before.cluster
                                || place.index < before.index
                                || self.keys.contradicted(before.index, &listing.entries)
                        });
                        self.keys.all(&listing.entries);
                        self.list = false;
                        self.reached(place);
                        debug!(
                            what = self.what,
                            index = place.index,
                            keys = listing.entries.len(),
                            "read everything"
                        );
                        return match anew {
                            true => KeyEvent::Anew(listing.entries),
                            false => KeyEvent::All(listing.entries),
                        };
                    }
                    Err(problem) => {
                        self.pace.back_off(self.what, &problem.to_string());
                        continue;
                    }
                }
            };
            let mut moves = self.moves.clone();
            let ended = tokio::select! {
                ended = self.poll(known) => ended,
                Ok(()) = moves.changed() => {
                    self.moves.mark_unchanged();
                    self.list = true;
                    continue;
                }
            };
            match ended {
                Ok(done) => {
                    self.pace.went_well();
                    self.take(done, known);
                }
                Err(Ended::Quiet(index)) => {
                    self.pace.went_well();
                    self.reached(Place { index: index.max(known.index), ..known });
                    self.ask_majority().await;
                }
                Err(Ended::Interrupted(why)) => {
                    // Another store may be there when there is one again, and its index may have passed ours.
                    self.list = true;
                    self.pace.back_off(self.what, &why);
                }
                Err(Ended::Gap(why)) => self.gap(known, &why),
            }
        }
    }

    /// Has the member that is asked show that it is one of a majority, else another is asked from now on: a poll of
    /// one that is cut off from the others would be quiet for ever. One of our watches is enough for that.
    async fn ask_majority(&mut self) {
        if !self.below {
            return;
        }
        // A key that nobody has makes for the shortest answer.
        let nothing = format!("{}/_", self.key);
        if let Err(problem) = self.members.read("ask whether etcd has a leader", &nothing, false).await {
            self.pace.back_off(self.what, &problem.to_string());
        }
    }

    /// Waits for one event after `known`, at the member that answered last.
    async fn poll(&mut self, known: Place) -> Result<Done, Ended> {
        let members = self.members.clone();
        let id = super::MemberId(members.current.load(std::sync::atomic::Ordering::Relaxed));
        let Some(member) = members.all.get(id.0) else {
            return Err(Ended::Interrupted("there is no member to ask".to_owned()));
        };
        let failed = async |why: String| {
            members.failed(id).await;
            let why = format!(
                "{}: {why}; {}",
                member.endpoint,
                advice(&member.endpoint, member.have_certificate, &why)
            );
            members.show(Some(format!("etcd does not answer to \"watch\": {why}")));
            Ended::Interrupted(why)
        };
        let recursive = if self.below { "&recursive=true" } else { "" };
        let ask =
            get(&self.key, &format!("?wait=true{recursive}&waitIndex={}", known.index.saturating_add(1)));
        // etcd sends the head of the answer at once.
        let sent = timeout(ANSWER, member.send(&ask)).await.unwrap_or(Err(NoAnswer::Silent(ANSWER)));
        let (answer, connection) = match sent {
            Ok(sent) => sent,
            Err(error) => return Err(failed(error.to_string()).await),
        };
        let (parts, body) = answer.into_parts();
        let place = Place::of(&parts.headers);
        if parts.status.is_success() {
            if place.cluster != known.cluster {
                return Err(Ended::Gap("it is another cluster now".to_owned()));
            }
            if place.index < known.index {
                return Err(Ended::Gap(format!("the store went back to index {}", place.index)));
            }
            members.show(None);
            if self.pace.is_over() {
                info!(what = self.what, index = known.index, "watch resumed");
            }
        }
        let whole = Limited::new(body, MAX_MESSAGE).collect();
        let body = match timeout(POLL.mul_f64(rand::random_range(0.75..=1.0)), whole).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) => return Err(failed(error.to_string()).await),
            // What is not there by now was not there when the poll began.
            Err(_) => return Err(Ended::Quiet(place.index)),
        };
        if parts.status.is_success() && body.is_empty() {
            return Err(failed("the member closed the watch".to_owned()).await);
        }
        match answer::read(parts.status, place, &body) {
            Ok(Answer::Done(_, done)) => {
                member.keep(connection).await;
                Ok(done)
            }
            Ok(Answer::Not(_, INDEX_CLEARED)) => {
                Err(Ended::Gap("the events after it are cleared from etcd's history".to_owned()))
            }
            Ok(Answer::Not(_, code)) => Err(failed(format!("error {code}")).await),
            Err(Unanswered::NoV2) => Err(failed("serves no v2 store".to_owned()).await),
            Err(Unanswered::Member(why) | Unanswered::Refused(why)) => Err(failed(why).await),
        }
    }

    /// Takes over one event.
    fn take(&mut self, done: Done, known: Place) {
        let Done { action, node } = done;
        let revision = node.modified_index;
        if node.dir || revision <= known.index {
            // Of a directory all that was in it is concerned.
            self.gap(known, &format!("{action} of a directory, or an event out of order"));
            return;
        }
        self.reached(Place { index: revision, ..known });
        let rooted = self.members.rooted;
        self.ready.push_back(match action.as_str() {
            "delete" | "expire" | "compareAndDelete" => {
                let key = node.name(rooted);
                self.keys.deleted(&key);
                KeyEvent::Deleted { key, revision }
            }
            _ => {
                let entry = node.entry(std::time::SystemTime::now(), rooted);
                self.keys.put(&entry);
                KeyEvent::Put(entry)
            }
        });
    }

    fn gap(&mut self, known: Place, why: &str) {
        info!(
            what = self.what,
            index = known.index,
            why,
            "cannot resume the watch; reading everything again"
        );
        self.list = true;
        self.pace.gap();
    }
}
