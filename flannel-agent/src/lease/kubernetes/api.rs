//! Requests to the API server, and what its failures mean.

use std::{error::Error as _, time::Duration};

use futures::Stream;
use http::{Request, header::CONTENT_TYPE};
use kube::{Client, core::WatchEvent};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::{sync::watch, time::timeout};

use super::{decode::decode, record::NodeRecord, trouble::Trouble};
use crate::{lease::Heard, values::shorten};

/// For an answer: the list of thousands of nodes is some tens of megabytes.
const ANSWER: Duration = Duration::from_secs(60);
/// Nodes in one answer, as upstream asks. A server that answers from its cache sends all.
const PAGE: usize = 500;
/// Longest message of a server's in ours, in characters: it may be a page for a browser.
const SHOWN: usize = 300;

/// A request that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// The server answered, with an error.
    #[error("the API server refuses to {what}: {status}{}", .advice.map_or(String::new(), |advice| format!("; {advice}")))]
    Refused {
        /// What was asked.
        what: String,
        /// HTTP status, 0 where the server gave none.
        code: u16,
        /// The status and what the server said.
        status: String,
        /// What to do about it.
        advice: Option<&'static str>,
    },
    /// It did not answer, or not in a way that can be read.
    #[error("the API server does not answer to \"{what}\": {reason}; {advice}")]
    Unreachable {
        /// What was asked.
        what: String,
        /// What happened instead.
        reason: String,
        /// What to do about it.
        advice: &'static str,
    },
}

impl ApiError {
    pub(super) fn new(what: &str, error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::refused(what, &status),
            error => Self::unreachable(what, &chain(&error)),
        }
    }

    pub(super) fn refused(what: &str, status: &kube::core::Status) -> Self {
        let advice = match status.code {
            401 => Some(
                "it does not know who we are: give the pod a service account, or a kubeconfig file with credentials \
                 that have not expired",
            ),
            403 => Some(
                "let the cluster role of our account get pods, list and watch nodes, and patch nodes/status, as \
                 flannel's manifest does",
            ),
            _ => None,
        };
        let message = shorten(&status.message, SHOWN);
        let status_text = match (status.code, message.as_str()) {
            (0, message) => message.to_owned(),
            (code, "") => format!("status {code}"),
            (code, message) => format!("{message} (status {code})"),
        };
        Self::Refused { what: what.to_owned(), code: status.code, status: status_text, advice }
    }

    pub(super) fn unreachable(what: &str, reason: &str) -> Self {
        let advice = if reason.contains("UnknownIssuer") || reason.contains("certificate") {
            "is the certificate authority the one of this cluster?"
        } else {
            "is it running, and do --kube-api-url, --kubeconfig-file or the pod's environment name it?"
        };
        Self::Unreachable { what: what.to_owned(), reason: reason.to_owned(), advice }
    }

    /// The HTTP status, if the server answered with one.
    pub(super) fn code(&self) -> Option<u16> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            Self::Unreachable { .. } => None,
        }
    }

    /// Our account has no right to that.
    fn is_forbidden(&self) -> bool {
        self.code() == Some(403)
    }

    /// What was asked for is not there.
    pub(super) fn is_absent(&self) -> bool {
        self.code() == Some(404)
    }

    /// What we know is older than what the server remembers: everything must be read again.
    pub(super) fn is_gone(&self) -> bool {
        self.code() == Some(410)
    }
}

/// An error with its causes, each once.
fn chain(error: &kube::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let more = next.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = next.source();
    }
    text
}

/// All nodes, or those asked for, at one moment.
pub(super) struct Listed {
    pub(super) nodes: Vec<NodeRecord>,
    /// Where a watch goes on.
    pub(super) version: String,
}

#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    metadata: PageMetadata,
    #[serde(default)]
    items: Option<Vec<NodeRecord>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PageMetadata {
    resource_version: String,
    #[serde(rename = "continue")]
    token: String,
}

/// A pod, as far as it says where it runs.
#[derive(Deserialize)]
struct PodRecord {
    #[serde(default)]
    spec: PodSpec,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PodSpec {
    node_name: String,
}

/// How old an answer may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Freshness {
    /// As the server remembers it: costs its store nothing, and is what upstream asks.
    Cached,
    /// As its store has it.
    Latest,
}

/// The API server. Clones share connections.
#[derive(Clone)]
pub(super) struct ApiServer {
    client: Client,
    trouble: Trouble,
    heard: watch::Sender<Heard>,
}

impl ApiServer {
    pub(super) fn new(client: Client) -> Self {
        Self { client, trouble: Trouble::default(), heard: watch::Sender::new(Heard::default()) }
    }

    pub(super) fn client(&self) -> Client {
        self.client.clone()
    }

    /// What does not work.
    pub(super) fn trouble(&self) -> &Trouble {
        &self.trouble
    }

    /// How far the nodes are known that are watched.
    pub(super) fn heard(&self) -> &watch::Sender<Heard> {
        &self.heard
    }

    /// One node. The roles of flannel's manifests let nodes be listed, but until v0.20 not be read one by one: what may
    /// not be read is listed, as the server remembers it.
    pub(super) async fn node(&self, name: &str) -> Result<NodeRecord, ApiError> {
        const WHAT: &str = "read this node";
        let read = self.get(WHAT, &format!("/api/v1/nodes/{name}")).await;
        match read {
            Err(error) if error.is_forbidden() => {}
            read => return read,
        }
        let listed = self.list(WHAT, Some(&by_name(name)), Freshness::Cached).await?;
        let node = listed.nodes.into_iter().find(|node| node.name() == name);
        node.ok_or_else(|| ApiError::Refused {
            what: WHAT.to_owned(),
            code: 404,
            status: format!("nodes \"{name}\" not found"),
            advice: None,
        })
    }

    /// The node a pod runs on; empty while it is not assigned.
    pub(super) async fn node_of_pod(&self, namespace: &str, name: &str) -> Result<String, ApiError> {
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}");
        let pod: PodRecord = self.get("read this pod", &path).await?;
        Ok(pod.spec.node_name)
    }

    /// Merges `patch` into the status of a node, its annotations among it.
    pub(super) async fn patch_node_status(
        &self,
        what: &str,
        name: &str,
        patch: &Value,
    ) -> Result<NodeRecord, ApiError> {
        let request = Request::patch(format!("/api/v1/nodes/{name}/status"))
            .header(CONTENT_TYPE, "application/strategic-merge-patch+json");
        self.ask(what, request.body(patch.to_string().into_bytes())).await
    }

    /// The nodes that `fields` selects, or all.
    pub(super) async fn list(
        &self,
        what: &str,
        fields: Option<&str>,
        freshness: Freshness,
    ) -> Result<Listed, ApiError> {
        let mut nodes = Vec::new();
        let mut token = String::new();
        loop {
            let mut path = format!("/api/v1/nodes?limit={PAGE}");
            match (token.as_str(), freshness) {
                ("", Freshness::Cached) => path.push_str("&resourceVersion=0"),
                ("", Freshness::Latest) => {}
                (token, _) => path = format!("{path}&continue={}", escaped(token)),
            }
            if let Some(fields) = fields {
                path = format!("{path}&fieldSelector={}", escaped(fields));
            }
            let page: Page = self.read(what, &path).await?;
            nodes.extend(page.items.unwrap_or_default());
            if nodes.iter().any(|node| node.name().is_empty()) {
                return Err(ApiError::unreachable(what, "it lists a node without a name"));
            }
            token = page.metadata.token;
            let version = page.metadata.resource_version;
            if token.is_empty() {
                return match version.as_str() {
                    "" => Err(ApiError::unreachable(what, "its answer names no resourceVersion")),
                    _ => Ok(Listed { nodes, version }),
                };
            }
        }
    }

    /// What happens to them after `version`, for `seconds` at most.
    pub(super) async fn watch(
        &self,
        what: &str,
        fields: Option<&str>,
        version: &str,
        seconds: u64,
    ) -> Result<impl Stream<Item = Result<WatchEvent<NodeRecord>, kube::Error>> + use<>, ApiError> {
        let mut path = format!(
            "/api/v1/nodes?allowWatchBookmarks=true&resourceVersion={}&timeoutSeconds={seconds}&watch=true",
            escaped(version)
        );
        if let Some(fields) = fields {
            path = format!("{path}&fieldSelector={}", escaped(fields));
        }
        let request = built(what, Request::get(path).body(Vec::new()))?;
        let opened = timeout(ANSWER, self.client.request_events(request)).await;
        let opened = opened.map_err(|_| late(what))?;
        opened.map_err(|error| ApiError::new(what, error))
    }

    async fn get<T: DeserializeOwned>(&self, what: &str, path: &str) -> Result<T, ApiError> {
        self.ask(what, Request::get(path).body(Vec::new())).await
    }

    /// [`ApiServer::get`] of what may be large.
    async fn read<T: DeserializeOwned + Send + 'static>(
        &self,
        what: &str,
        path: &str,
    ) -> Result<T, ApiError> {
        let request = built(what, Request::get(path).body(Vec::new()))?;
        let answer = async {
            let body =
                self.client.request_stream(request).await.map_err(|error| ApiError::new(what, error))?;
            decode(Box::pin(body)).await.map_err(|error| ApiError::unreachable(what, &error.to_string()))
        };
        timeout(ANSWER, answer).await.map_err(|_| late(what))?
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        what: &str,
        request: http::Result<Request<Vec<u8>>>,
    ) -> Result<T, ApiError> {
        let answer = timeout(ANSWER, self.client.request(built(what, request)?)).await;
        answer.map_err(|_| late(what))?.map_err(|error| ApiError::new(what, error))
    }
}

/// Selects the object of this name.
pub(super) fn by_name(name: &str) -> String {
    format!("metadata.name={name}")
}

fn built(what: &str, request: http::Result<Request<Vec<u8>>>) -> Result<Request<Vec<u8>>, ApiError> {
    request.map_err(|error| ApiError::unreachable(what, &format!("no request can be made of that: {error}")))
}

fn late(what: &str) -> ApiError {
    ApiError::unreachable(what, &format!("no answer within {} s", ANSWER.as_secs()))
}

/// `text` as it may stand in a query (RFC 3986, 2.3: all but unreserved characters as %XX).
fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let escape = |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    text.bytes().map(escape).collect()
}
