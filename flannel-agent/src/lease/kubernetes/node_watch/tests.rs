use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use futures::{StreamExt as _, stream};
use http_body_util::{BodyExt as _, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Bytes, Frame};
use kube::client::Body;
use serde_json::{Value, json};

use super::*;

/// What the server does next, whatever it is asked.
enum Answer {
    /// A whole answer.
    Json(u16, Value),
    /// A watch, line by line.
    Watch(Vec<Line>),
}

enum Line {
    Event(&'static str, Value),
    Raw(&'static str),
    /// Nothing, for so many seconds.
    Silence(u64),
}

/// An API server that follows a script. When it is at its end, it says nothing more.
#[derive(Clone, Default)]
struct Server {
    script: Arc<Mutex<VecDeque<Answer>>>,
    /// Paths and queries, `timeoutSeconds` left out.
    asked: Arc<Mutex<Vec<String>>>,
}

type Sent = UnsyncBoxBody<Bytes, std::io::Error>;

impl Server {
    fn new(script: impl IntoIterator<Item = Answer>) -> Self {
        Self { script: Arc::new(Mutex::new(script.into_iter().collect())), asked: Arc::default() }
    }

    fn follow(&self) -> (Nodes, ApiServer) {
        let server = self.clone();
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let server = server.clone();
            async move { server.answer(request.uri().to_string()).await }
        });
        let api = ApiServer::new(kube::Client::new(service, "default"));
        (Nodes::follow(api.clone(), "the nodes", None), api)
    }

    async fn answer(&self, asked: String) -> Result<http::Response<Sent>, std::io::Error> {
        let kept = asked.split('&').filter(|part| !part.starts_with("timeoutSeconds")).collect::<Vec<_>>();
        self.asked.lock().unwrap().push(kept.join("&"));
        let answer = self.script.lock().unwrap().pop_front();
        match answer {
            None => std::future::pending().await,
            Some(Answer::Json(status, value)) => {
                let body = http_body_util::Full::new(Bytes::from(value.to_string()));
                Ok(response(status, body.map_err(|never| match never {}).boxed_unsync()))
            }
            Some(Answer::Watch(lines)) => {
                let frames = stream::iter(lines).then(|line| async move {
                    let text = match line {
                        Line::Event(kind, object) => format!("{}\n", json!({"type": kind, "object": object})),
                        Line::Raw(text) => format!("{text}\n"),
                        Line::Silence(seconds) => {
                            sleep(Duration::from_secs(seconds)).await;
                            String::new()
                        }
                    };
                    Ok::<_, std::io::Error>(Frame::data(Bytes::from(text)))
                });
                Ok(response(200, StreamBody::new(frames.boxed()).boxed_unsync()))
            }
        }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

fn response(status: u16, body: Sent) -> http::Response<Sent> {
    http::Response::builder().status(status).body(body).unwrap()
}

fn node(name: &str, version: u64) -> Value {
    json!({"metadata": {"name": name, "uid": name, "resourceVersion": version.to_string()}, "spec": {"podCIDR": "10.0.1.0/24"}})
}

fn list(version: u64, nodes: &[Value]) -> Answer {
    Answer::Json(200, json!({"metadata": {"resourceVersion": version.to_string()}, "items": nodes}))
}

fn refused(code: u16, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": message, "reason": "X"})
}

fn names(followed: &NodeEvent) -> String {
    match followed {
        NodeEvent::All(all) | NodeEvent::Anew(all) => {
            format!("={}", all.iter().map(NodeRecord::name).collect::<Vec<_>>().join(" "))
        }
        NodeEvent::Put(node) => format!("+{}", node.name()),
        NodeEvent::Deleted(node) => format!("-{}", node.name()),
    }
}

const LIST: &str = "/api/v1/nodes?limit=500&resourceVersion=0";
const LATEST: &str = "/api/v1/nodes?limit=500";

fn watched(version: u64) -> String {
    format!("/api/v1/nodes?allowWatchBookmarks=true&resourceVersion={version}&watch=true")
}

#[tokio::test(start_paused = true)]
async fn a_list_and_watches_that_resume_at_the_last_bookmark() {
    let server = Server::new([
        list(5, &[node("a", 3), node("b", 4)]),
        Answer::Watch(vec![
            Line::Event("MODIFIED", node("a", 6)),
            Line::Event("DELETED", node("b", 7)),
            Line::Event(
                "BOOKMARK",
                json!({"kind": "Node", "apiVersion": "v1", "metadata": {"resourceVersion": "90"}}),
            ),
            Line::Silence(100),
        ]),
        Answer::Watch(vec![Line::Event("ADDED", node("c", 91))]),
    ]);
    let (mut nodes, _api) = server.follow();
    let mut seen = Vec::new();
    for _ in 0..4 {
        seen.push(names(&nodes.next().await));
    }
    assert_eq!(seen, ["=a b", "+a", "-b", "+c"]);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(server.asked(), [LIST.to_owned(), watched(5), watched(90), watched(91)]);
}

#[tokio::test(start_paused = true)]
async fn long_lists_come_in_pages() {
    let page = |token: &str, version: &str, name: &str| {
        Answer::Json(
            200,
            json!({"metadata": {"resourceVersion": version, "continue": token}, "items": [node(name, 1)]}),
        )
    };
    let server = Server::new([page("a+b=", "", "a"), page("", "8", "b")]);
    let (mut nodes, _api) = server.follow();
    assert_eq!(names(&nodes.next().await), "=a b");
    sleep(Duration::from_secs(1)).await;
    assert_eq!(server.asked(), [LIST.to_owned(), format!("{LATEST}&continue=a%2Bb%3D"), watched(8)]);
}

/// 410 comes in three ways: as an event, as the answer to a watch, and for a page of a list.
#[tokio::test(start_paused = true)]
async fn what_is_forgotten_is_listed_again_from_the_store() {
    let server = Server::new([
        list(5, &[node("a", 3)]),
        Answer::Watch(vec![Line::Event("ERROR", refused(410, "too old resource version"))]),
        list(50, &[node("b", 40)]),
        Answer::Json(410, refused(410, "too old resource version")),
        Answer::Json(410, refused(410, "the provided continue parameter is too old")),
        list(60, &[node("c", 55)]),
    ]);
    let (mut nodes, api) = server.follow();
    for whole in ["=a", "=b", "=c"] {
        assert_eq!(names(&nodes.next().await), whole);
    }
    sleep(Duration::from_secs(1)).await;
    let asked =
        [LIST.to_owned(), watched(5), LATEST.into(), watched(50), LATEST.into(), LATEST.into(), watched(60)];
    assert_eq!(server.asked(), asked);
    assert_eq!(*api.trouble().shown().borrow(), None, "nothing an operator must know");
}

#[tokio::test(start_paused = true)]
async fn refusals_and_failures_are_shown_until_they_end() {
    let server = Server::new([
        Answer::Json(401, refused(401, "Unauthorized")),
        Answer::Json(403, refused(403, "nodes is forbidden")),
        Answer::Json(500, json!("no status at all")),
        Answer::Json(200, json!(["garbage"])),
        list(5, &[node("a", 3)]),
        Answer::Json(503, refused(503, "shutting down")),
        Answer::Watch(vec![Line::Event("ADDED", node("b", 6)), Line::Silence(100)]),
    ]);
    let (mut nodes, api) = server.follow();
    let mut shown = api.trouble().shown();
    let mut told = Vec::new();
    let first = loop {
        tokio::select! {
            followed = nodes.next() => break followed,
            _ = shown.changed() => told.extend(shown.borrow_and_update().clone()),
        }
    };
    assert_eq!(names(&first), "=a");
    assert!(told[0].contains("Unauthorized (status 401)") && told[0].contains("credentials"), "{told:?}");
    assert!(told[1].contains("cluster role") && told[2].contains("500"), "{told:?}");
    assert_eq!(names(&nodes.next().await), "+b");
    assert_eq!(*shown.borrow_and_update(), None);
    assert_eq!(
        server.asked().last(),
        Some(&watched(5)),
        "a failure of the server is no reason to list again"
    );
}

#[tokio::test(start_paused = true)]
async fn garbage_in_a_watch_is_not_passed_over() {
    let server = Server::new([
        list(5, &[node("a", 3)]),
        Answer::Watch(vec![
            Line::Raw(r#"{"type":"MODIFIED","object":{"metadata":[]}}"#),
            Line::Silence(1000),
        ]),
        list(9, &[node("b", 8)]),
        Answer::Watch(vec![Line::Raw("\u{0}garbage"), Line::Silence(1000)]),
        list(12, &[node("c", 11)]),
    ]);
    let (mut nodes, _api) = server.follow();
    for whole in ["=a", "=b", "=c"] {
        assert_eq!(names(&nodes.next().await), whole);
    }
}

#[test]
fn versions_are_compared_as_numbers() {
    assert!(is_earlier("9", "10") && !is_earlier("10", "10") && !is_earlier("10", "9"));
    assert!(!is_earlier("a", "b"));
}

/// After a restore of its etcd a server counts from where the backup was, and what happened since is no event.
#[tokio::test(start_paused = true)]
async fn a_server_that_has_gone_back_in_time_is_read_again() {
    let bookmark = json!({"kind": "Node", "apiVersion": "v1", "metadata": {"resourceVersion": "40"}});
    let server = Server::new([
        list(50, &[node("a", 45)]),
        Answer::Watch(vec![Line::Event("BOOKMARK", bookmark), Line::Silence(1000)]),
        list(41, &[node("b", 39)]),
    ]);
    let (mut nodes, _api) = server.follow();
    assert_eq!(names(&nodes.next().await), "=a");
    assert_eq!(names(&nodes.next().await), "=b");
    sleep(Duration::from_secs(1)).await;
    assert_eq!(server.asked(), [LIST.to_owned(), watched(50), LATEST.to_owned(), watched(41)]);
}

#[tokio::test(start_paused = true)]
async fn a_silent_watch_is_given_up() {
    let server = Server::new([
        list(5, &[node("a", 3)]),
        Answer::Watch(vec![
            Line::Event(
                "BOOKMARK",
                json!({"kind": "Node", "apiVersion": "v1", "metadata": {"resourceVersion": "9"}}),
            ),
            Line::Silence(100_000),
        ]),
        Answer::Watch(vec![Line::Event("ADDED", node("b", 10)), Line::Silence(100_000)]),
    ]);
    let (mut nodes, api) = server.follow();
    assert_eq!(names(&nodes.next().await), "=a");
    let begun = Instant::now();
    assert_eq!(names(&nodes.next().await), "+b");
    let waited = begun.elapsed();
    assert!(waited >= SILENCE && waited < SILENCE + Duration::from_secs(5), "{waited:?}");
    assert_eq!(*api.trouble().shown().borrow(), None);
}

#[tokio::test(start_paused = true)]
async fn a_watch_without_bookmarks_ends_soon_after_its_time() {
    let server = Server::new([
        list(5, &[node("a", 3)]),
        Answer::Watch(vec![Line::Silence(100_000)]),
        Answer::Watch(vec![Line::Event("ADDED", node("b", 10)), Line::Silence(100_000)]),
    ]);
    let (mut nodes, _api) = server.follow();
    assert_eq!(names(&nodes.next().await), "=a");
    let begun = Instant::now();
    assert_eq!(names(&nodes.next().await), "+b");
    let longest = Duration::from_secs(WATCH_SECONDS.end) + LATE + Duration::from_secs(5);
    assert!(begun.elapsed() >= Duration::from_secs(WATCH_SECONDS.start) && begun.elapsed() <= longest);
}

/// A server that ends each watch at once is not asked without pause.
#[tokio::test(start_paused = true)]
async fn watches_that_end_at_once_are_not_begun_at_once() {
    let empty = (0..1000).map(|_| Answer::Watch(Vec::new()));
    let server = Server::new([list(5, &[node("a", 3)])].into_iter().chain(empty));
    let (mut nodes, _api) = server.follow();
    assert_eq!(names(&nodes.next().await), "=a");
    sleep(Duration::from_secs(60)).await;
    let asked = server.asked().len();
    assert!((5..40).contains(&asked), "{asked} requests in a minute");
}
