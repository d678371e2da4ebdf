//! Following keys through everything that happens to etcd: restarts, partitions, compaction, a store
//! restored from a backup.

use std::{collections::VecDeque, sync::Arc};

use etcd_client::{GetOptions, SortOrder, SortTarget, WatchOptions, WatchResponse, WatchStream};
use tokio::{sync::watch, time::Instant};
use tracing::{debug, info};

use super::{
    EtcdError, MAX_MESSAGE,
    entry::{Entry, Listing},
    get,
    known::{COMPARED, Known},
    members::{MemberId, Members, reason},
    pace::Pace,
};
use crate::lease::Heard;

/// What happened to the keys.
pub(super) enum KeyEvent {
    /// All there is. The first of all, and after a gap that cannot be bridged.
    All(Vec<Entry>),
    /// All there is in a store that is not, or not yet again, the one it was: emptied, or restored from a backup.
    Anew(Vec<Entry>),
    /// A key was written.
    Put(Entry),
    /// A key was deleted.
    Deleted {
        key: Vec<u8>,
        /// When.
        revision: i64,
    },
}

/// Follows a key, or all that begin with it.
pub(super) struct KeyWatch {
    members: Arc<Members>,
    moves: watch::Receiver<u64>,
    /// What is followed, for logs.
    what: &'static str,
    key: Vec<u8>,
    prefix: bool,
    /// How far we are; nothing before the first list.
    position: Option<Position>,
    /// All keys have to be read: the history from our position on cannot be had, or is another.
    list: bool,
    /// The keys at our position.
    known: Known,
    stream: Option<Opened>,
    /// Since the watch was interrupted, nothing has shown that the store is still the one it was.
    doubtful: bool,
    ready: VecDeque<KeyEvent>,
    pace: Pace,
    /// What is read next is another store, or an older state of it.
    anew: bool,
    /// Who is told how far we are.
    heard: Option<watch::Sender<Heard>>,
}

/// How far we are: all is known up to `revision` of the store of `cluster`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Position {
    revision: i64,
    cluster: u64,
}

/// A watch that was begun.
struct Opened {
    stream: WatchStream,
    member: MemberId,
    at: Instant,
    /// What was known then: events up to it are told again, see [`KeyWatch::open`].
    known: i64,
    /// The member has said that it watches.
    created: bool,
}

/// Why a watch ended.
enum Broken {
    /// It can go on from where it was.
    Interrupted(String),
    /// It cannot.
    Gap(String),
}

impl KeyWatch {
    pub(super) fn new(members: Arc<Members>, what: &'static str, key: String, prefix: bool) -> Self {
        let moves = members.moves();
        Self {
            members,
            moves,
            what,
            key: key.into_bytes(),
            prefix,
            position: None,
            list: false,
            known: Known::default(),
            stream: None,
            doubtful: false,
            ready: VecDeque::new(),
            pace: Pace::new(),
            anew: false,
            heard: None,
        }
    }

    /// Tells how far it is.
    pub(super) fn telling(self, heard: watch::Sender<Heard>) -> Self {
        Self { heard: Some(heard), ..self }
    }

    fn reached(&mut self, revision: i64, cluster: u64) {
        self.position = Some(Position { revision, cluster });
        if let Some(heard) = &self.heard {
            heard.send_replace(Heard::now(revision));
        }
    }

    /// Waits for the next happening. Cancel safe: whatever was begun is begun again, nothing is lost.
    pub(super) async fn next(&mut self) -> KeyEvent {
        loop {
            if let Some(ready) = self.ready.pop_front() {
                return ready;
            }
            self.pace.wait().await;
            let Some(Position { revision, cluster }) = self.position.filter(|_| !self.list) else {
                match self.list().await {
                    Ok(all) if std::mem::take(&mut self.anew) => return KeyEvent::Anew(all),
                    Ok(all) => return KeyEvent::All(all),
                    Err(problem) => {
                        self.pace.back_off(self.what, &problem.to_string());
                        continue;
                    }
                }
            };
            let Some(Opened { stream, member, at, known, created }) = &mut self.stream else {
                match self.open(revision).await {
                    Ok(stream) => self.stream = Some(stream),
                    Err(problem) => self.interrupted(revision, &problem),
                }
                continue;
            };
            if *created && self.doubtful {
                // Not before the watch is there: a store that is replaced afterwards ends it.
                match self.is_the_same(revision, cluster).await {
                    Ok(true) => {
                        self.doubtful = false;
                        self.reached(revision, cluster);
                        self.resumed(revision);
                    }
                    Ok(false) => {
                        self.anew = true;
                        self.gap(revision, "this is another store than it was, or an older state of it");
                    }
                    Err(problem) => self.interrupted(revision, &problem),
                }
                continue;
            }
            let (member, opened, known) = (*member, *at, *known);
            let message = tokio::select! {
                message = stream.message() => message,
                Ok(()) = self.moves.changed() => {
                    self.stream = None;
                    self.doubtful = true;
                    continue;
                }
            };
            let result = match message {
                Ok(Some(response)) => self.take(&response, (known, revision), cluster),
                Ok(None) => Err(Broken::Interrupted("the member closed the watch".to_owned())),
                Err(error) => Err(judge(&reason(&error))),
            };
            let Err(broken) = result else { continue };
            self.stream = None;
            self.doubtful = true;
            self.pace.held(opened.elapsed());
            match broken {
                Broken::Interrupted(why) => {
                    let endpoint = self.members.endpoint(member);
                    self.members.failed(member).await;
                    self.pace.back_off(self.what, &format!("{endpoint}: {why}"));
                }
                Broken::Gap(why) => self.gap(revision, &why),
            }
        }
    }

    fn resumed(&mut self, revision: i64) {
        if self.pace.is_over() {
            info!(what = self.what, revision, "watch resumed");
        }
    }

    fn gap(&mut self, revision: i64, why: &str) {
        info!(what = self.what, revision, why, "cannot resume the watch; reading everything again");
        self.stream = None;
        self.list = true;
        self.pace.gap();
    }

    async fn list(&mut self) -> Result<Vec<Entry>, EtcdError> {
        let (response, _) = get(&self.members, "list what is watched", &self.key, self.prefix).await?;
        let Listing { revision, cluster, entries } = Listing::from(&response);
        self.anew |= self.position.is_some_and(|before| {
            cluster != before.cluster
                || revision < before.revision
                || self.known.contradicted(before.revision, &entries)
        });
        self.known.all(&entries);
        (self.list, self.doubtful) = (false, false);
        self.reached(revision, cluster);
        debug!(what = self.what, revision, keys = entries.len(), "read everything");
        Ok(entries)
    }

    /// Whether the store was at `revision` what is known of it. Where it cannot tell, because that is compacted, all
    /// has to be read, which tells more.
    async fn is_the_same(&self, revision: i64, cluster: u64) -> Result<bool, EtcdError> {
        let options = GetOptions::new()
            .with_revision(revision.max(1))
            .with_keys_only()
            .with_limit(COMPARED as i64)
            .with_sort(SortTarget::Mod, SortOrder::Descend);
        let options = if self.prefix { options.with_prefix() } else { options };
        let ask = |mut client: etcd_client::Client| {
            let (key, options) = (self.key.clone(), options.clone());
            async move { client.get(key, Some(options)).await }
        };
        match self.members.call("read what was known", ask).await {
            Ok((response, _)) => {
                let count = usize::try_from(response.count()).unwrap_or(0);
                let found = Listing::from(&response);
                Ok(found.cluster == cluster && self.known.agree(count, &found.entries))
            }
            Err(EtcdError::Refused { reason, .. }) if reason.contains("is a future revision") => Ok(false),
            Err(problem) => Err(problem),
        }
    }

    /// Begins a watch at the last revision that is known instead of the next. etcd as it was until 2025 drops a
    /// deletion from the history when it is compacted at the very revision of the deletion, and a watch that
    /// begins there is told neither of the deletion nor of the compaction. One that begins before it is.
    async fn open(&self, revision: i64) -> Result<Opened, EtcdError> {
        // Progress reports move our position on while nothing happens to our keys; else a reconnect after a
        // quiet day would find its position compacted.
        let options = WatchOptions::new().with_start_revision(revision.max(1)).with_progress_notify();
        let options = if self.prefix { options.with_prefix() } else { options };
        let ask = |client: etcd_client::Client| {
            let (key, options) = (self.key.clone(), options.clone());
            let mut watch = client.watch_client().max_decoding_message_size(MAX_MESSAGE);
            async move { watch.watch(key, Some(options)).await }
        };
        let (stream, member) = self.members.call("watch", ask).await?;
        Ok(Opened { stream, member, at: Instant::now(), known: revision, created: false })
    }

    /// Takes over what a watch response tells.
    fn take(
        &mut self,
        response: &WatchResponse,
        (known, revision): (i64, i64),
        cluster: u64,
    ) -> Result<(), Broken> {
        let (store, of) = response.header().map_or((0, cluster), |h| (h.revision(), h.cluster_id()));
        if response.compact_revision() != 0 {
            return Err(Broken::Gap(format!(
                "history up to revision {} is compacted",
                response.compact_revision()
            )));
        }
        if response.canceled() {
            return Err(judge(response.cancel_reason()));
        }
        if of != cluster {
            return Err(Broken::Gap("it is another cluster now".to_owned()));
        }
        if response.created() {
            if let Some(opened) = &mut self.stream {
                opened.created = true;
            }
            // A member may be behind the others for a while, which is no harm; or the store may have gone back.
            self.doubtful |= store < revision;
            if !self.doubtful {
                self.resumed(revision);
            }
            return Ok(());
        }
        // Events may come in several responses that all carry the revision of the store, so only the events
        // themselves say how far we are.
        let mut reached = if response.events().is_empty() { store } else { revision };
        let events = response.events().iter().filter_map(|event| event.kv());
        for kv in events.filter(|kv| kv.mod_revision() > known) {
            reached = reached.max(kv.mod_revision());
            // A deletion has the version 0; a write at least 1.
            self.ready.push_back(match kv.version() {
                0 => {
                    self.known.deleted(kv.key());
                    KeyEvent::Deleted { key: kv.key().to_vec(), revision: kv.mod_revision() }
                }
                _ => {
                    let entry = Entry::from(kv);
                    self.known.put(&entry);
                    KeyEvent::Put(entry)
                }
            });
        }
        self.reached(reached.max(revision), cluster);
        Ok(())
    }

    fn interrupted(&mut self, revision: i64, problem: &EtcdError) {
        self.doubtful = true;
        self.stream = None;
        match problem {
            EtcdError::Refused { reason, .. } if matches!(judge(reason), Broken::Gap(_)) => {
                self.gap(revision, reason);
            }
            _ => self.pace.back_off(self.what, &problem.to_string()),
        }
    }
}

fn judge(reason: &str) -> Broken {
    match reason.contains("required revision has been compacted") {
        true => Broken::Gap(reason.to_owned()),
        false if reason.is_empty() => Broken::Interrupted("the member ended the watch".to_owned()),
        false => Broken::Interrupted(reason.to_owned()),
    }
}
