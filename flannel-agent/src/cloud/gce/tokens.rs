//! What proves to the API who asks: a token of the key file that is named, else of the instance's service account.

use std::time::{Duration, Instant};

use http::{Request, StatusCode, header};
use http_body_util::Full;
use serde::Deserialize;
use tokio::{fs, sync::Mutex};

use super::{
    super::{
        Variable,
        http::{Attempts, Http, NoAnswer},
    },
    MetadataError,
    key::Key,
    metadata::Metadata,
};

const PATIENCE: Duration = Duration::from_secs(10);
/// A token that ends sooner is replaced.
const MARGIN: Duration = Duration::from_secs(120);
/// Names a key file.
const FILE: &str = "GOOGLE_APPLICATION_CREDENTIALS";
/// The token of the instance's service account.
const PATH: &str = "instance/service-accounts/default/token";

/// No token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The metadata server gives none.
    #[error("no token: {0}; has this instance a service account?")]
    Metadata(#[from] MetadataError),
    /// The key file gives none.
    #[error("{FILE} {path}: {reason}")]
    File {
        /// The file.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// Google does not answer.
    #[error("no token: {0}")]
    NoAnswer(#[from] NoAnswer),
}

impl TokenError {
    /// Whether there may be one in a while.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Metadata(error) => error.may_pass(),
            Self::NoAnswer(_) => true,
            Self::File { .. } => false,
        }
    }
}

#[derive(Deserialize)]
struct Wire {
    access_token: String,
    #[serde(default)]
    expires_in: u64,
}

/// Where tokens come from, and the one in use.
pub(super) struct Tokens {
    http: Http,
    metadata: Metadata,
    variable: Variable,
    kept: Mutex<Option<(String, Instant)>>,
}

impl Tokens {
    pub(super) fn new(http: Http, metadata: Metadata, variable: Variable) -> Self {
        Self { http, metadata, variable, kept: Mutex::default() }
    }

    /// A token that is good for a while.
    pub(super) async fn get(&self) -> Result<String, TokenError> {
        let mut kept = self.kept.lock().await;
        if let Some((token, until)) = kept.as_ref()
            && *until > Instant::now()
        {
            return Ok(token.clone());
        }
        let wire = match (self.variable)(FILE).filter(|path| !path.is_empty()) {
            Some(path) => self.by_key(&path).await?,
            None => {
                let text = self.metadata.get(PATH).await?;
                serde_json::from_str(&text).map_err(|error| MetadataError::Refused {
                    path: PATH.to_owned(),
                    status: StatusCode::OK,
                    text: error.to_string(),
                })?
            }
        };
        let life = Duration::from_secs(wire.expires_in).saturating_sub(MARGIN);
        *kept = Some((wire.access_token.clone(), Instant::now() + life));
        Ok(wire.access_token)
    }

    /// The one in use is refused.
    pub(super) async fn drop_kept(&self) {
        *self.kept.lock().await = None;
    }

    async fn by_key(&self, path: &str) -> Result<Wire, TokenError> {
        let refuse = |reason: String| TokenError::File { path: path.to_owned(), reason };
        let text = fs::read_to_string(path).await.map_err(|error| refuse(error.to_string()))?;
        let key = Key::parse(&text).map_err(refuse)?;
        let body = form_urlencoded::Serializer::new(String::new())
            .append_pair("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer")
            .append_pair("assertion", &key.claim().map_err(refuse)?)
            .finish();
        let mut attempts = Attempts::default();
        loop {
            let request = Request::post(&key.token_uri)
                .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(Full::from(body.clone()))
                .map_err(|error| refuse(format!("token_uri: {error}")))?;
            match self.http.send(request, PATIENCE).await {
                Ok(answer) if answer.status.is_success() => {
                    return serde_json::from_slice(&answer.body).map_err(|error| refuse(error.to_string()));
                }
                Ok(answer) if answer.may_pass() && attempts.again().await => {}
                Ok(answer) => return Err(refuse(format!("{}: {}", answer.status, answer.text()))),
                Err(_) if attempts.again().await => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
