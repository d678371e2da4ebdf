//! etcd's v2 API, which flannel 0.11 to 0.17 keep their leases in: HTTP and JSON, a time to live with each key, long
//! polling in place of a watch.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, SystemTime},
};

use futures::{StreamExt as _, stream::FuturesUnordered};
use http::Method;
use http_body_util::{BodyExt as _, Limited};
use tokio::{sync::watch, time::timeout};

use self::{
    answer::{Answer, Place, Unanswered},
    connection::{Ask, NoAnswer},
};
use super::{ANSWER, EtcdError, MAX_MESSAGE, RETRY, advice::advice, entry::Listing, seen::Seen};
pub(super) use connection::Member;
pub(super) use poll::KeyPoll;

mod answer;
mod connection;
mod poll;

/// The members, and the one that answered last.
pub(super) struct Members {
    all: Vec<Member>,
    current: AtomicUsize,
    /// Why the last request failed, if it did.
    trouble: watch::Sender<Option<String>>,
    /// Changes when polls are to be begun anew.
    moves: watch::Sender<u64>,
    /// Whether `--etcd-prefix` begins with a slash, as every key does here.
    rooted: bool,
}

/// Which member answered.
#[derive(Clone, Copy, Debug)]
struct MemberId(usize);

/// How a write ended.
pub(super) enum Written {
    /// As asked, at this index.
    Done { revision: i64 },
    /// Something else stands there, or nothing.
    Otherwise,
}

impl Members {
    /// Nodes begin with different members, so that they spread over them.
    pub(super) fn new(all: Vec<Member>, prefix: &str, trouble: watch::Sender<Option<String>>) -> Self {
        let current = AtomicUsize::new(rand::random_range(0..all.len().max(1)));
        Self { all, current, trouble, moves: watch::Sender::new(0), rooted: prefix.starts_with('/') }
    }

    /// Our address is another: what is connected from the old one is given up instead of waited for.
    pub(super) async fn moved(&self) {
        for member in &self.all {
            member.drop_idle().await;
        }
        self.moves.send_modify(|moves| *moves += 1);
    }

    /// Reads a key, or all below it, as a majority of the members has them.
    pub(super) async fn read(
        &self,
        what: &'static str,
        key: &str,
        below: bool,
    ) -> Result<Listing, EtcdError> {
        self.read_from(what, key, below).await.map(|(listing, _)| listing)
    }

    async fn read_from(
        &self,
        what: &'static str,
        key: &str,
        below: bool,
    ) -> Result<(Listing, MemberId), EtcdError> {
        let query = if below { "?quorum=true&recursive=true" } else { "?quorum=true" };
        // Reckoned from before the request: never later than etcd has it.
        let now = SystemTime::now();
        let (answer, id) = self.call(what, &get(key, query)).await?;
        let (place, entries) = match answer {
            Answer::Done(place, done) => {
                let mut entries = Vec::new();
                if done.node.dir == below {
                    done.node.entries(now, self.rooted, &mut entries);
                }
                (place, entries)
            }
            Answer::Not(place, _) => (place, Vec::new()),
        };
        Ok((Listing { revision: place.index, cluster: place.cluster, entries }, id))
    }

    /// Writes `value` where `seen` is what stands there, to live for `ttl`; `None` for without end.
    pub(super) async fn write(
        &self,
        what: &'static str,
        key: &str,
        value: &str,
        seen: &Seen,
        ttl: Option<Duration>,
    ) -> Result<Written, EtcdError> {
        let mut form = format!("value={}", escaped(value, b""));
        if let Some(ttl) = ttl {
            form.push_str(&format!("&ttl={}", ttl.as_secs().max(1)));
        }
        match seen.revision {
            0 => form.push_str("&prevExist=false"),
            revision => form.push_str(&format!("&prevExist=true&prevIndex={revision}{}", was(seen))),
        }
        let ask = Ask { method: Method::PUT, path: path(key), form };
        match self.call(what, &ask).await?.0 {
            Answer::Done(_, done) => Ok(Written::Done { revision: done.node.modified_index }),
            Answer::Not(..) => Ok(Written::Otherwise),
        }
    }

    /// Deletes a key, if nobody has written to it since; the index of that, if it did.
    pub(super) async fn delete(
        &self,
        what: &'static str,
        key: &str,
        seen: &Seen,
    ) -> Result<Option<i64>, EtcdError> {
        if seen.revision == 0 {
            // Nothing of ours is there; and to etcd an index of 0 is no condition.
            return Ok(None);
        }
        let path = format!("{}?prevIndex={}{}", path(key), seen.revision, was(seen));
        let (answer, _) = self.call(what, &Ask { method: Method::DELETE, path, form: String::new() }).await?;
        Ok(match answer {
            Answer::Done(_, done) => Some(done.node.modified_index),
            Answer::Not(..) => None,
        })
    }

    /// The release of etcd, `2.3.8`, as the first member tells it that does so at once.
    pub(super) async fn version(&self) -> Option<String> {
        let ask = Ask { method: Method::GET, path: "/version".to_owned(), form: String::new() };
        let asked = self.all.iter().map(|member| whole(member, &ask));
        let mut answers: FuturesUnordered<_> = asked.collect();
        let first = async {
            while let Some(answer) = answers.next().await {
                let Ok((_, body)) = answer else { continue };
                let answer: Option<serde_json::Value> = serde_json::from_slice(&body).ok();
                let version = answer.as_ref().and_then(|answer| answer.get("etcdserver")?.as_str());
                if let Some(version) = version {
                    return Some(version.to_owned());
                }
            }
            None
        };
        timeout(RETRY, first).await.ok().flatten()
    }

    /// Asks the members one after the other, beginning with the one that answered last, until one answers or refuses.
    async fn call(&self, what: &'static str, ask: &Ask) -> Result<(Answer, MemberId), EtcdError> {
        let result = self.ask_all(what, ask).await;
        self.show(result.as_ref().err().map(EtcdError::to_string));
        result
    }

    /// Shows why the last request failed, if it did.
    fn show(&self, trouble: Option<String>) {
        self.trouble.send_if_modified(|now| {
            let changed = *now != trouble;
            *now = trouble;
            changed
        });
    }

    async fn ask_all(&self, what: &'static str, ask: &Ask) -> Result<(Answer, MemberId), EtcdError> {
        let mut failed = Vec::new();
        let mut without = None;
        let first = self.current.load(Ordering::Relaxed);
        for offset in 0..self.all.len() {
            let id = MemberId((first + offset) % self.all.len());
            let Some(member) = self.all.get(id.0) else { continue };
            let answered = timeout(ANSWER, whole(member, ask)).await;
            let answer = match answered.unwrap_or(Err(NoAnswer::Silent(ANSWER))) {
                Ok((parts, body)) => answer::read(parts.status, Place::of(&parts.headers), &body),
                Err(error) => Err(Unanswered::Member(error.to_string())),
            };
            match answer {
                Ok(answer) => {
                    self.current.store(id.0, Ordering::Relaxed);
                    return Ok((answer, id));
                }
                Err(Unanswered::Refused(reason)) => {
                    let advice = advice(&member.endpoint, member.have_certificate, &reason);
                    let endpoint = member.endpoint.to_string();
                    return Err(EtcdError::Refused { what, endpoint, reason, advice });
                }
                Err(Unanswered::NoV2) => {
                    without.get_or_insert(id);
                    failed.push(format!("{}: serves no v2 store", member.endpoint));
                }
                Err(Unanswered::Member(reason)) => {
                    let advice = advice(&member.endpoint, member.have_certificate, &reason);
                    member.drop_idle().await;
                    failed.push(format!("{}: {reason}; {advice}", member.endpoint));
                }
            }
        }
        if let Some(id) = without {
            // It runs, and nobody else did better.
            return Err(EtcdError::NoV2 { endpoint: self.endpoint(id) });
        }
        // In the order of the flag, so that the same state is the same message wherever the round began.
        failed.sort();
        Err(EtcdError::Unreachable { what, tried: failed.join(" | ") })
    }

    /// A poll of this member ended: another member is asked next.
    async fn failed(&self, MemberId(id): MemberId) {
        if let Some(member) = self.all.get(id) {
            member.drop_idle().await;
        }
        let next = (id + 1) % self.all.len().max(1);
        let _ = self.current.compare_exchange(id, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The endpoint of a member, for logs.
    fn endpoint(&self, MemberId(id): MemberId) -> String {
        self.all.get(id).map(|member| member.endpoint.to_string()).unwrap_or_default()
    }
}

/// One request and all of its answer.
async fn whole(member: &Member, ask: &Ask) -> Result<(http::response::Parts, hyper::body::Bytes), NoAnswer> {
    let (answer, connection) = member.send(ask).await?;
    let (parts, body) = answer.into_parts();
    let body = Limited::new(body, MAX_MESSAGE).collect().await;
    let body = body.map_err(|e| NoAnswer::Unfit(e.to_string()))?.to_bytes();
    member.keep(connection).await;
    Ok((parts, body))
}

fn get(key: &str, query: &str) -> Ask {
    Ask { method: Method::GET, path: format!("{}{query}", path(key)), form: String::new() }
}

/// The condition that the value is what it was: the index alone does not tell one store from another put in its place.
/// An empty one cannot be asked for.
fn was(seen: &Seen) -> String {
    match std::str::from_utf8(&seen.value) {
        Ok("") | Err(_) => String::new(),
        Ok(value) => format!("&prevValue={}", escaped(value, b"")),
    }
}

fn path(key: &str) -> String {
    format!("/v2/keys/{}", escaped(key.trim_start_matches('/'), b"/"))
}

/// `text` for a URL or a form, but for what nobody mistakes and what is `plain` here.
fn escaped(text: &str, plain: &[u8]) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            byte if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || plain.contains(&byte) => {
                escaped.push(char::from(byte));
            }
            byte => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_in_urls() {
        assert_eq!(
            path("/n/subnets/10.3.1.0-24&fd00::-64"),
            "/v2/keys/n/subnets/10.3.1.0-24%26fd00%3A%3A-64"
        );
        assert_eq!(path("my net/config"), "/v2/keys/my%20net/config");
        assert_eq!(escaped(r#"{"a":"ä+b"}"#, b""), "%7B%22a%22%3A%22%C3%A4%2Bb%22%7D");
    }
}
