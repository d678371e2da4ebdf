//! What an instance of GCE learns of itself.

use std::time::Duration;

use http::{Request, StatusCode};
use http_body_util::Full;

use super::super::{
    Variable,
    http::{Attempts, Http, NoAnswer, may_pass},
};

const PATIENCE: Duration = Duration::from_secs(3);

/// Why metadata cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    /// Nobody answers.
    #[error("GCE's metadata: {0}: is this an instance of GCE? GCE_METADATA_HOST names another")]
    NoAnswer(#[from] NoAnswer),
    /// It refuses.
    #[error("GCE's metadata: {path}: {status}: {text}")]
    Refused {
        /// What was asked.
        path: String,
        /// What it answered.
        status: StatusCode,
        /// And said.
        text: String,
    },
    /// Something else answers.
    #[error("GCE's metadata: {host} is something else: its answer lacks Metadata-Flavor: Google")]
    Another {
        /// Who answered.
        host: String,
    },
}

impl MetadataError {
    /// Whether it may be read in a while.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::NoAnswer(_) => true,
            Self::Refused { status, .. } => may_pass(*status),
            Self::Another { .. } => false,
        }
    }
}

/// The metadata server.
pub(super) struct Metadata {
    http: Http,
    host: String,
}

impl Metadata {
    pub(super) fn new(http: Http, variable: &Variable) -> Self {
        let host = variable("GCE_METADATA_HOST").filter(|host| !host.is_empty());
        // By its address: a resolver may not know the name.
        Self { http, host: host.unwrap_or_else(|| "169.254.169.254".to_owned()) }
    }

    /// The value at `path` below `computeMetadata/v1/`.
    pub(super) async fn get(&self, path: &str) -> Result<String, MetadataError> {
        let uri = format!("http://{}/computeMetadata/v1/{path}", self.host);
        let mut attempts = Attempts::default();
        loop {
            let request = Request::get(&uri)
                .header("Metadata-Flavor", "Google")
                .body(Full::default())
                .map_err(|error| NoAnswer::Failed { host: self.host.clone(), reason: error.to_string() })?;
            let answer = match self.http.send(request, PATIENCE).await {
                Ok(answer) => answer,
                Err(_) if attempts.again().await => continue,
                Err(error) => return Err(error.into()),
            };
            if answer.may_pass() && attempts.again().await {
                continue;
            }
            if !answer.status.is_success() {
                let (path, status, text) = (path.to_owned(), answer.status, answer.text());
                return Err(MetadataError::Refused { path, status, text });
            }
            if answer.header("metadata-flavor") != Some("Google") {
                return Err(MetadataError::Another { host: self.host.clone() });
            }
            return Ok(String::from_utf8_lossy(&answer.body).trim().to_owned());
        }
    }
}
