//! What etcd's v2 API answers.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, StatusCode};
use serde::Deserialize;

use super::super::entry::{End, Entry};
use crate::values::shorten;

/// Key not found.
pub(super) const NOT_FOUND: u32 = 100;
/// `prevIndex` or `prevValue` is not what stands there.
pub(super) const COMPARE_FAILED: u32 = 101;
/// `prevExist=false`, and it exists.
pub(super) const EXISTS: u32 = 105;
/// The history does not reach back to `waitIndex`.
pub(super) const INDEX_CLEARED: u32 = 401;

/// Where the store was when it answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// `X-Etcd-Index`.
    pub(super) index: i64,
    /// `X-Etcd-Cluster-Id`.
    pub(super) cluster: u64,
}

impl Place {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        Self {
            index: text("x-etcd-index").and_then(|text| text.parse().ok()).unwrap_or(0),
            cluster: text("x-etcd-cluster-id")
                .and_then(|text| u64::from_str_radix(text, 16).ok())
                .unwrap_or(0),
        }
    }
}

/// A node of the tree of keys, a directory or not.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Node {
    key: String,
    value: String,
    pub(super) dir: bool,
    nodes: Vec<Node>,
    #[serde(rename = "modifiedIndex")]
    pub(super) modified_index: i64,
    #[serde(rename = "createdIndex")]
    created_index: i64,
    ttl: Option<i64>,
}

impl Node {
    /// All keys below it, or itself. `now` is from before the request.
    pub(super) fn entries(self, now: SystemTime, rooted: bool, all: &mut Vec<Entry>) {
        if self.dir {
            self.nodes.into_iter().for_each(|node| node.entries(now, rooted, all));
        } else {
            all.push(self.entry(now, rooted));
        }
    }

    pub(super) fn entry(self, now: SystemTime, rooted: bool) -> Entry {
        let end = self.ttl.map(|ttl| Duration::from_secs(ttl.try_into().unwrap_or(0)));
        Entry {
            key: self.name(rooted),
            value: self.value.into_bytes(),
            revision: self.modified_index,
            created: self.created_index,
            end: end.and_then(|left| now.checked_add(left)).map_or(End::Never, End::At),
        }
    }

    /// The key as `--etcd-prefix` has it: here all begin with a slash.
    pub(super) fn name(&self, rooted: bool) -> Vec<u8> {
        let key = self.key.as_str();
        if rooted { key } else { key.strip_prefix('/').unwrap_or(key) }.as_bytes().to_vec()
    }
}

/// A read, a write, or an event.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Done {
    pub(super) action: String,
    pub(super) node: Node,
}

/// What etcd does not do.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Fault {
    #[serde(rename = "errorCode")]
    code: u32,
    message: String,
    cause: String,
}

/// An answer that counts.
#[derive(Debug)]
pub(super) enum Answer {
    Done(Place, Done),
    /// One of the codes above.
    Not(Place, u32),
}

/// An answer that does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unanswered {
    /// There is no v2 API at that address.
    NoV2,
    /// Another member may do better.
    Member(String),
    /// All members would say the same.
    Refused(String),
}

/// Reads an answer of any form.
pub(super) fn read(status: StatusCode, place: Place, body: &[u8]) -> Result<Answer, Unanswered> {
    if status.is_success() {
        return serde_json::from_slice(body).map(|done| Answer::Done(place, done)).map_err(|error| {
            Unanswered::Member(format!("the answer is not etcd's ({error}): {}", text_of(body)))
        });
    }
    let fault: Fault = serde_json::from_slice(body).unwrap_or_default();
    match fault.code {
        NOT_FOUND | COMPARE_FAILED | EXISTS | INDEX_CLEARED => return Ok(Answer::Not(place, fault.code)),
        // Raft's: the members agree on nothing at this moment.
        300..=399 => return Err(Unanswered::Member(said(&fault))),
        1.. => return Err(Unanswered::Refused(said(&fault))),
        0 => {}
    }
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            let words = if fault.message.is_empty() { text_of(body) } else { fault.message };
            Err(Unanswered::Refused(format!("{words} ({status})")))
        }
        StatusCode::NOT_FOUND => Err(Unanswered::NoV2),
        _ => Err(Unanswered::Member(format!("{status}: {}", text_of(body)))),
    }
}

fn said(fault: &Fault) -> String {
    format!("{} ({}: {})", fault.message, fault.code, shorten(&fault.cause, 200))
}

fn text_of(body: &[u8]) -> String {
    shorten(String::from_utf8_lossy(body).trim(), 200)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn answers_as_etcd_gives_them() {
        let place = Place { index: 7, cluster: 1 };
        let of =
            |status: u16, body: &str| read(StatusCode::from_u16(status).unwrap(), place, body.as_bytes());
        for (status, code) in [(404, NOT_FOUND), (412, COMPARE_FAILED), (412, EXISTS), (400, INDEX_CLEARED)] {
            let body = format!(r#"{{"errorCode":{code},"message":"m","cause":"c","index":7}}"#);
            assert!(matches!(of(status, &body), Ok(Answer::Not(at, is)) if at == place && is == code));
        }
        assert_eq!(of(404, "404 page not found\n").unwrap_err(), Unanswered::NoV2);
        assert!(matches!(
            of(401, r#"{"message":"Insufficient credentials"}"#),
            Err(Unanswered::Refused(words)) if words.contains("Insufficient credentials")
        ));
        assert!(matches!(of(500, r#"{"errorCode":300,"message":"Raft"}"#), Err(Unanswered::Member(_))));
        assert!(matches!(
            of(403, r#"{"errorCode":102,"message":"Not a file"}"#),
            Err(Unanswered::Refused(_))
        ));
        assert!(matches!(of(503, "busy"), Err(Unanswered::Member(_))));
        assert!(matches!(of(200, "<html>"), Err(Unanswered::Member(_))));
    }

    #[test]
    fn directories_are_read_through() {
        let json = r#"{"action":"get","node":{"key":"/n/subnets","dir":true,"nodes":[
            {"key":"/n/subnets/a","value":"1","modifiedIndex":5,"createdIndex":4,"ttl":9,"expiration":"x"},
            {"key":"/n/subnets/d","dir":true,"nodes":[{"key":"/n/subnets/d/b","value":"2"}]}]}}"#;
        let Ok(Answer::Done(_, done)) = read(StatusCode::OK, Place::default(), json.as_bytes()) else {
            panic!()
        };
        let mut all = Vec::new();
        let now = SystemTime::UNIX_EPOCH;
        done.node.entries(now, false, &mut all);
        let names: Vec<_> =
            all.iter().map(|entry| String::from_utf8_lossy(&entry.key).into_owned()).collect();
        assert_eq!(names, ["n/subnets/a", "n/subnets/d/b"]);
        assert_eq!(all[0].end, End::At(now + Duration::from_secs(9)));
        assert_eq!((all[0].revision, all[0].created, all[1].end), (5, 4, End::Never));
    }

    proptest! {
        #[test]
        fn never_panics(status in 100u16..1000, body in "\\PC{0,60}|[{}\\[\\]\":,a-z0-9-]{0,60}", ttl in any::<i64>()) {
            let status = StatusCode::from_u16(status).unwrap();
            let _ = read(status, Place::default(), body.as_bytes());
            let json = format!(r#"{{"node":{{"key":"{}","ttl":{ttl}}}}}"#, "x");
            if let Ok(Answer::Done(_, done)) = read(StatusCode::OK, Place::default(), json.as_bytes()) {
                done.node.entry(SystemTime::now(), true);
            }
        }
    }
}
