//! Speaking to the API server.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::{ADMIN, ApiServer};
use crate::command::run_with;

/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the API server said, whether or not it is good news.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Text or JSON.
    pub body: String,
}

impl ApiServer {
    /// Asks as admin; `body` is JSON, for PATCH a merge patch.
    pub fn request(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Answer> {
        self.request_as(ADMIN, method, path, body)
    }

    /// Asks as whoever `token` belongs to.
    pub fn request_as(&self, token: &str, method: &str, path: &str, body: Option<&Value>) -> Result<Answer> {
        let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let url = format!("{}{path}", self.url());
        let mut command = self.netns.command("curl");
        command.args(["--silent", "--show-error", "--max-time", "15", "--request", method, "--cacert"]);
        command.arg(self.authority());
        command.args(["--header", &format!("Authorization: Bearer {token}")]);
        command.args(["--header", &format!("Content-Type: {kind}"), "--write-out", "\n%{http_code}"]);
        if body.is_some() {
            command.args(["--data-binary", "@-"]);
        }
        let input = body.map(Value::to_string).unwrap_or_default();
        let said = run_with(command.arg(&url), &input, PATIENCE)?;
        let (body, status) = said.rsplit_once('\n').context("curl told no status")?;
        Ok(Answer { status: status.parse().with_context(|| said.clone())?, body: body.to_owned() })
    }

    /// The object at `path`.
    pub fn get(&self, path: &str) -> Result<Value> {
        self.object("GET", path, None)
    }

    /// Creates `object` in the collection at `path`; as it is then.
    pub fn create(&self, path: &str, object: &Value) -> Result<Value> {
        self.object("POST", path, Some(object))
    }

    /// Makes `objects`, or changes those that are there, as `kubectl apply` does.
    pub fn apply(&self, objects: &[Value]) -> Result<()> {
        for object in objects {
            let kind = object["kind"].as_str().context("an object without a kind")?;
            let version = object["apiVersion"].as_str().context("an object without a version")?;
            let name = object["metadata"]["name"].as_str().context("an object without a name")?;
            let api = if version.contains('/') { "apis" } else { "api" };
            let namespace = object["metadata"]["namespace"].as_str();
            let namespace = namespace.map_or(String::new(), |namespace| format!("/namespaces/{namespace}"));
            // Of all kinds that are applied here it is the plural.
            let all = format!("/{api}/{version}{namespace}/{}s", kind.to_lowercase());
            let one = format!("{all}/{name}");
            match self.request("GET", &one, None)?.status {
                404 => self.create(&all, object)?,
                _ => self.patch(&one, object)?,
            };
        }
        Ok(())
    }

    /// Replaces the object at `path`.
    pub fn replace(&self, path: &str, object: &Value) -> Result<Value> {
        self.object("PUT", path, Some(object))
    }

    /// Changes the object at `path` by a merge patch: null deletes.
    pub fn patch(&self, path: &str, patch: &Value) -> Result<Value> {
        self.object("PATCH", path, Some(patch))
    }

    /// Deletes the object at `path`.
    pub fn delete(&self, path: &str) -> Result<()> {
        self.object("DELETE", path, None).map(drop)
    }

    fn object(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let answer = self.request(method, path, body)?;
        if !(200..300).contains(&answer.status) {
            bail!("{method} {path}: {}: {}", answer.status, answer.body.trim());
        }
        ensure!(!answer.body.is_empty(), "{method} {path}: an empty answer");
        serde_json::from_str(&answer.body).with_context(|| format!("{method} {path}: {}", answer.body))
    }
}
