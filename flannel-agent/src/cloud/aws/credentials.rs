//! Who we are to Amazon, in the order in which its tools look: variables, a web identity, the credentials file, a
//! container's endpoint, the instance's role.

use std::{
    path::PathBuf,
    time::{Duration, SystemTime},
};

use http::Request;
use http_body_util::Full;
use hyper::body::Bytes;
use tokio::{fs, sync::Mutex};
use tracing::info;

use super::{
    super::{
        Variable,
        http::{Attempts, Http},
    },
    MetadataError,
    answer::{AssumedRole, Fault, Wire},
    metadata::Metadata,
    region::domain,
};

/// Credentials that end sooner are replaced.
const MARGIN: Duration = Duration::from_secs(300);
const PATIENCE: Duration = Duration::from_secs(10);

/// No credentials.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// Nothing of all that was found.
    #[error(
        "no AWS credentials: attach an IAM role to this instance, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY ({0})"
    )]
    None(String),
    /// What was found cannot be used.
    #[error("AWS credentials by {from}: {reason}")]
    Unusable {
        /// Where they were to be found.
        from: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// Who has them does not answer, or has too much to do.
    #[error("AWS credentials by {from}: {reason}")]
    NoAnswer {
        /// Where they were to be found.
        from: &'static str,
        /// What was said, if anything.
        reason: String,
    },
    /// The metadata service, which has those of the role.
    #[error("AWS credentials of the instance's role: {0}")]
    Metadata(#[from] MetadataError),
}

/// Credentials, and how long they are good for.
#[derive(Clone)]
pub(super) struct Credentials {
    pub(super) key: String,
    pub(super) secret: String,
    pub(super) token: Option<String>,
    expires: Option<SystemTime>,
}

impl Wire {
    fn credentials(self, from: &'static str) -> Result<Credentials, CredentialsError> {
        if let Some(code) = self.code.filter(|code| code != "Success") {
            let reason = format!("{code}: {}", self.message.unwrap_or_default());
            return Err(CredentialsError::Unusable { from, reason });
        }
        if self.access_key_id.is_empty() || self.secret_access_key.is_empty() {
            let reason = "the answer has no AccessKeyId or no SecretAccessKey".to_owned();
            return Err(CredentialsError::Unusable { from, reason });
        }
        let time = |text: &str| text.parse::<jiff::Timestamp>().ok().map(SystemTime::from);
        Ok(Credentials {
            key: self.access_key_id,
            secret: self.secret_access_key,
            token: self.token,
            expires: self.expiration.as_deref().and_then(time),
        })
    }
}

/// Where credentials come from, and those in use.
pub(super) struct Chain {
    http: Http,
    metadata: Metadata,
    variable: Variable,
    region: String,
    kept: Mutex<Option<Credentials>>,
}

impl Chain {
    pub(super) fn new(http: Http, metadata: Metadata, variable: Variable, region: &str) -> Self {
        Self { http, metadata, variable, region: region.to_owned(), kept: Mutex::default() }
    }

    /// Credentials that are good for a while.
    pub(super) async fn get(&self) -> Result<Credentials, CredentialsError> {
        let mut kept = self.kept.lock().await;
        let soon = SystemTime::now() + MARGIN;
        let good = |found: &&Credentials| found.expires.is_none_or(|end| end > soon);
        if let Some(found) = kept.as_ref().filter(good) {
            return Ok(found.clone());
        }
        let (found, from) = self.find().await?;
        info!(from, expires = found.expires.map(crate::values::utc), "AWS credentials");
        *kept = Some(found.clone());
        Ok(found)
    }

    /// Those in use are refused: the next are looked for.
    pub(super) async fn drop_kept(&self) {
        *self.kept.lock().await = None;
    }

    async fn find(&self) -> Result<(Credentials, &'static str), CredentialsError> {
        let set = |name: &str| (self.variable)(name).filter(|value| !value.is_empty());
        if let Some((key, secret)) = set("AWS_ACCESS_KEY_ID").zip(set("AWS_SECRET_ACCESS_KEY")) {
            let found = Credentials { key, secret, token: set("AWS_SESSION_TOKEN"), expires: None };
            return Ok((found, "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"));
        }
        if let Some((file, role)) = set("AWS_WEB_IDENTITY_TOKEN_FILE").zip(set("AWS_ROLE_ARN")) {
            const FROM: &str = "AWS_WEB_IDENTITY_TOKEN_FILE and AWS_ROLE_ARN";
            return Ok((self.web_identity(&file, &role).await?.credentials(FROM)?, FROM));
        }
        if let Some(found) = self.profile().await? {
            return Ok((found, "the credentials file"));
        }
        let full = set("AWS_CONTAINER_CREDENTIALS_FULL_URI");
        let relative = set("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI");
        if let Some(uri) = relative.map(|path| format!("http://169.254.170.2{path}")).or(full) {
            const FROM: &str = "the container's endpoint";
            return Ok((self.container(&uri, FROM).await?.credentials(FROM)?, FROM));
        }
        const FROM: &str = "the instance's role";
        const PATH: &str = "iam/security-credentials/";
        let role = self.metadata.find(PATH).await?.and_then(|text| text.lines().next().map(str::to_owned));
        let Some(role) = role.filter(|role| !role.is_empty()) else {
            return Err(CredentialsError::None("this instance has no role".to_owned()));
        };
        let text = self.metadata.get(&format!("{PATH}{role}")).await?;
        let wire: Wire = serde_json::from_str(&text)
            .map_err(|error| CredentialsError::Unusable { from: FROM, reason: format!("{role}: {error}") })?;
        Ok((wire.credentials(FROM)?, FROM))
    }

    /// Keys of the profile in `~/.aws/credentials`.
    async fn profile(&self) -> Result<Option<Credentials>, CredentialsError> {
        const FROM: &str = "the credentials file";
        let set = |name: &str| (self.variable)(name).filter(|value| !value.is_empty());
        let named = set("AWS_SHARED_CREDENTIALS_FILE");
        let path = named
            .clone()
            .map(PathBuf::from)
            .or_else(|| set("HOME").map(|home| PathBuf::from(home).join(".aws/credentials")));
        let profile = set("AWS_PROFILE");
        let Some(path) = path else { return Ok(None) };
        let text = match fs::read_to_string(&path).await {
            Ok(text) => text,
            Err(error) if named.is_some() || profile.is_some() => {
                let reason = format!("{}: {error}", path.display());
                return Err(CredentialsError::Unusable { from: FROM, reason });
            }
            Err(_) => return Ok(None),
        };
        let name = profile.clone().unwrap_or_else(|| "default".to_owned());
        match keys_of(&text, &name) {
            Some(found) => Ok(Some(found)),
            None if profile.is_none() => Ok(None),
            None => {
                let reason = format!(
                    "{} has no aws_access_key_id and aws_secret_access_key in [{name}]; other ways of a profile are not \
                     supported here",
                    path.display()
                );
                Err(CredentialsError::Unusable { from: FROM, reason })
            }
        }
    }

    async fn container(&self, uri: &str, from: &'static str) -> Result<Wire, CredentialsError> {
        let set = |name: &str| (self.variable)(name).filter(|value| !value.is_empty());
        let unusable = |reason: String| CredentialsError::Unusable { from, reason };
        let token = match set("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE") {
            Some(file) => {
                let text =
                    fs::read_to_string(&file).await.map_err(|error| unusable(format!("{file}: {error}")))?;
                Some(text.trim().to_owned())
            }
            None => set("AWS_CONTAINER_AUTHORIZATION_TOKEN"),
        };
        let mut request = Request::get(uri);
        if let Some(token) = token {
            request = request.header(http::header::AUTHORIZATION, token);
        }
        let request = request.body(Full::default()).map_err(|error| unusable(error.to_string()))?;
        let body = self.ask(request, from).await?;
        serde_json::from_slice(&body).map_err(|error| unusable(error.to_string()))
    }

    async fn web_identity(&self, file: &str, role: &str) -> Result<Wire, CredentialsError> {
        const FROM: &str = "AWS_WEB_IDENTITY_TOKEN_FILE and AWS_ROLE_ARN";
        let set = |name: &str| (self.variable)(name).filter(|value| !value.is_empty());
        let unusable = |reason: String| CredentialsError::Unusable { from: FROM, reason };
        let token = fs::read_to_string(file).await.map_err(|error| unusable(format!("{file}: {error}")))?;
        let session = set("AWS_ROLE_SESSION_NAME").unwrap_or_else(|| "flannel".to_owned());
        let body = form_urlencoded::Serializer::new(String::new())
            .extend_pairs([
                ("Action", "AssumeRoleWithWebIdentity"),
                ("Version", "2011-06-15"),
                ("RoleArn", role),
                ("RoleSessionName", &session),
                ("WebIdentityToken", token.trim()),
            ])
            .finish();
        let endpoint = set("AWS_ENDPOINT_URL_STS")
            .or_else(|| set("AWS_ENDPOINT_URL"))
            .unwrap_or_else(|| format!("https://sts.{}.{}", self.region, domain(&self.region)));
        let request = Request::post(endpoint)
            .header(http::header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(Full::from(body))
            .map_err(|error| unusable(error.to_string()))?;
        let body = self.ask(request, FROM).await?;
        let answer: AssumedRole =
            quick_xml::de::from_reader(&body[..]).map_err(|error| unusable(error.to_string()))?;
        Ok(answer.result.credentials)
    }

    async fn ask(
        &self,
        request: Request<Full<Bytes>>,
        from: &'static str,
    ) -> Result<Bytes, CredentialsError> {
        let mut attempts = Attempts::default();
        loop {
            match self.http.send(request.clone(), PATIENCE).await {
                Ok(answer) if answer.status.is_success() => return Ok(answer.body),
                Ok(answer) if answer.may_pass() && attempts.again().await => {}
                Ok(answer) => {
                    let reason = match Fault::read(&answer.body) {
                        Some(said) => format!("{}: {}", said.code, said.message),
                        None => format!("{}: {}", answer.status, answer.text()),
                    };
                    return Err(match answer.may_pass() {
                        true => CredentialsError::NoAnswer { from, reason },
                        false => CredentialsError::Unusable { from, reason },
                    });
                }
                Err(_) if attempts.again().await => {}
                Err(error) => return Err(CredentialsError::NoAnswer { from, reason: error.to_string() }),
            }
        }
    }
}

/// The keys in the section `[profile]` of an INI file.
fn keys_of(text: &str, profile: &str) -> Option<Credentials> {
    let mut inside = false;
    let (mut key, mut secret, mut token) = (None, None, None);
    for line in text.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            let section = section.trim();
            inside = section == profile
                || section.strip_prefix("profile ").is_some_and(|name| name.trim() == profile);
        } else if inside && !line.starts_with(['#', ';']) {
            let Some((name, value)) = line.split_once('=') else { continue };
            let value = Some(value.trim().to_owned()).filter(|value| !value.is_empty());
            match name.trim() {
                "aws_access_key_id" => key = value,
                "aws_secret_access_key" => secret = value,
                "aws_session_token" => token = value,
                _ => {}
            }
        }
    }
    let (key, secret) = key.zip(secret)?;
    Some(Credentials { key, secret, token, expires: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles() {
        let text = "# mine\n[default]\naws_access_key_id = A\naws_secret_access_key=B\n\n[ other ]\n\
                    aws_access_key_id=C\n;aws_secret_access_key=no\naws_secret_access_key = D=\naws_session_token = E\n\
                    [empty]\n";
        let of = |profile| keys_of(text, profile).map(|found| (found.key, found.secret, found.token));
        assert_eq!(of("default"), Some(("A".to_owned(), "B".to_owned(), None)));
        assert_eq!(of("other"), Some(("C".to_owned(), "D=".to_owned(), Some("E".to_owned()))));
        assert_eq!(of("empty"), None);
        assert_eq!(of("absent"), None);
    }

    #[test]
    fn answers_with_credentials() {
        let good = r#"{"Code":"Success","AccessKeyId":"A","SecretAccessKey":"B","Token":"C","Expiration":"2030-01-01T00:00:00Z"}"#;
        let found = serde_json::from_str::<Wire>(good).unwrap().credentials("x").unwrap();
        assert_eq!((found.key.as_str(), found.token.as_deref()), ("A", Some("C")));
        assert_eq!(found.expires, Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1_893_456_000)));
        let bad = r#"{"Code":"AssumeRoleUnauthorizedAccess","Message":"no trust"}"#;
        let error = serde_json::from_str::<Wire>(bad).unwrap().credentials("x").map(drop).unwrap_err();
        assert!(error.to_string().contains("AssumeRoleUnauthorizedAccess: no trust"), "{error}");
    }
}
