//! What an instance learns of itself: the instance metadata service, version 2, and version 1 where there is no other.

use std::time::{Duration, Instant};

use http::{Method, Request, StatusCode};
use http_body_util::Full;
use hyper::body::Bytes;
use tokio::sync::Mutex;
use tracing::info;

use super::super::{
    Variable,
    http::{Answer, Attempts, Http, NoAnswer, may_pass},
};

/// One answer takes milliseconds. Where there is no service at all, packets to it vanish.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a token is good for, and how long one is used.
const TOKEN: (u64, Duration) = (21_600, Duration::from_secs(21_000));

/// Why metadata cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    /// Nobody answers.
    #[error(
        "EC2's instance metadata: {0}: is this an EC2 instance, and is its metadata service on, with a hop limit of 2 for \
         containers? AWS_EC2_METADATA_SERVICE_ENDPOINT names another"
    )]
    NoAnswer(#[from] NoAnswer),
    /// It refuses.
    #[error("EC2's instance metadata: {path}: {status}: {text}")]
    Refused {
        /// What was asked.
        path: String,
        /// What it answered.
        status: StatusCode,
        /// And said.
        text: String,
    },
    /// It must not be asked.
    #[error(
        "AWS_EC2_METADATA_DISABLED is true, and the aws-vpc backend has to know which instance this is: unset it"
    )]
    Disabled,
    /// What it says is of no use.
    #[error("EC2's instance metadata: {path}: {text:?} is not {wanted}")]
    Odd {
        /// What was asked.
        path: &'static str,
        /// What it said.
        text: String,
        /// What was to be.
        wanted: &'static str,
    },
}

impl MetadataError {
    /// Whether it may be read in a while.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::NoAnswer(_) => true,
            Self::Refused { status, .. } => may_pass(*status),
            Self::Disabled | Self::Odd { .. } => false,
        }
    }
}

/// The service. Clones share nothing but connections.
pub(super) struct Metadata {
    http: Http,
    endpoint: String,
    disabled: bool,
    without_v1: bool,
    token: Mutex<Token>,
}

/// What proves to version 2 that a program of this instance asks.
enum Token {
    /// Not asked for yet.
    Unknown,
    /// Got at that time.
    Known(String, Instant),
    /// There is no version 2.
    None,
}

impl Metadata {
    pub(super) fn new(http: Http, variable: &Variable) -> Self {
        let is = |name: &str| variable(name).is_some_and(|value| value.eq_ignore_ascii_case("true"));
        let endpoint = variable("AWS_EC2_METADATA_SERVICE_ENDPOINT").unwrap_or_else(|| {
            match variable("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE") {
                Some(mode) if mode.eq_ignore_ascii_case("ipv6") => "http://[fd00:ec2::254]".to_owned(),
                _ => "http://169.254.169.254".to_owned(),
            }
        });
        Self {
            http,
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            disabled: is("AWS_EC2_METADATA_DISABLED"),
            without_v1: is("AWS_EC2_METADATA_V1_DISABLED"),
            token: Mutex::new(Token::Unknown),
        }
    }

    /// The value at `path` below `latest/meta-data/`.
    pub(super) async fn get(&self, path: &str) -> Result<String, MetadataError> {
        match self.find(path).await? {
            Some(text) => Ok(text),
            None => Err(MetadataError::Refused {
                path: path.to_owned(),
                status: StatusCode::NOT_FOUND,
                text: "there is no such thing".to_owned(),
            }),
        }
    }

    /// The same; `None` if there is none.
    pub(super) async fn find(&self, path: &str) -> Result<Option<String>, MetadataError> {
        if self.disabled {
            return Err(MetadataError::Disabled);
        }
        let mut attempts = Attempts::default();
        let mut renewed = false;
        loop {
            let token = self.token().await?;
            let uri = format!("{}/latest/meta-data/{path}", self.endpoint);
            let header = token.as_deref().map(|token| ("x-aws-ec2-metadata-token", token));
            let answer = match self.ask(Method::GET, &uri, header).await {
                Ok(answer) => answer,
                Err(_) if attempts.again().await => continue,
                Err(error) => return Err(error.into()),
            };
            if answer.status == StatusCode::UNAUTHORIZED && !renewed {
                // The token's time is over, or there is a version 2 by now.
                *self.token.lock().await = Token::Unknown;
                renewed = true;
                continue;
            }
            if answer.may_pass() && attempts.again().await {
                continue;
            }
            return match answer.status {
                status if status.is_success() => {
                    Ok(Some(String::from_utf8_lossy(&answer.body).trim().to_owned()))
                }
                StatusCode::NOT_FOUND => Ok(None),
                status => Err(MetadataError::Refused { path: path.to_owned(), status, text: answer.text() }),
            };
        }
    }

    /// The region, as `eu-central-1`.
    pub(super) async fn region(&self) -> Result<String, MetadataError> {
        if let Some(region) = self.find("placement/region").await?.filter(|region| !region.is_empty()) {
            return Ok(region);
        }
        const PATH: &str = "placement/availability-zone";
        let zone = self.get(PATH).await?;
        let region = zone.trim_end_matches(|letter: char| letter.is_ascii_lowercase());
        match region.ends_with(|digit: char| digit.is_ascii_digit()) {
            true => Ok(region.to_owned()),
            false => Err(MetadataError::Odd { path: PATH, text: zone, wanted: "a zone, as eu-central-1a" }),
        }
    }

    async fn token(&self) -> Result<Option<String>, MetadataError> {
        let mut token = self.token.lock().await;
        match &*token {
            Token::Known(text, since) if since.elapsed() < TOKEN.1 => return Ok(Some(text.clone())),
            Token::None => return Ok(None),
            Token::Known(..) | Token::Unknown => {}
        }
        let uri = format!("{}/latest/api/token", self.endpoint);
        let life = TOKEN.0.to_string();
        let header = ("x-aws-ec2-metadata-token-ttl-seconds", life.as_str());
        let mut attempts = Attempts::default();
        let why = loop {
            match self.ask(Method::PUT, &uri, Some(header)).await {
                Ok(answer) if answer.status.is_success() => {
                    let text = String::from_utf8_lossy(&answer.body).trim().to_owned();
                    *token = Token::Known(text.clone(), Instant::now());
                    return Ok(Some(text));
                }
                Ok(answer) if answer.may_pass() && attempts.again().await => {}
                Ok(answer) => break answer.status.to_string(),
                // With a hop limit of 1 the token does not reach a container: the answers of version 1 do.
                Err(error) if matches!(error, NoAnswer::Late { .. }) && !self.without_v1 => {
                    break error.to_string();
                }
                Err(_) if attempts.again().await => {}
                Err(error) => return Err(error.into()),
            }
        };
        if self.without_v1 {
            let path = "api/token".to_owned();
            return Err(MetadataError::Refused { path, status: StatusCode::FORBIDDEN, text: why });
        }
        info!(why, "no version 2 of EC2's instance metadata: using version 1");
        *token = Token::None;
        Ok(None)
    }

    async fn ask(&self, method: Method, uri: &str, header: Option<(&str, &str)>) -> Result<Answer, NoAnswer> {
        let mut request = Request::builder().method(method).uri(uri);
        if let Some((name, value)) = header {
            request = request.header(name, value);
        }
        let request = request
            .body(Full::<Bytes>::default())
            .map_err(|error| NoAnswer::Failed { host: self.endpoint.clone(), reason: error.to_string() })?;
        self.http.send(request, PATIENCE).await
    }
}
