//! The Compute Engine API, version 1: JSON, and operations that are waited for.

use std::time::Duration;

use http::{Method, Request, StatusCode, header};
use http_body_util::Full;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::time::sleep;

use super::{
    super::{
        Variable,
        http::{Answer, Attempts, Http, NoAnswer},
    },
    TokenError,
    tokens::Tokens,
};

const PATIENCE: Duration = Duration::from_secs(20);
/// How often an operation is looked at, and how many times.
const POLL: (Duration, usize) = (Duration::from_secs(1), 100);
/// gcloud's variable for another endpoint, as for a private one.
const OVERRIDE: &str = "CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE";

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub enum ComputeError {
    /// There is nobody to ask as.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// Nobody answers.
    #[error("GCE does not answer to \"{what}\": {reason}; is {endpoint} reachable?")]
    NoAnswer {
        /// What was asked.
        what: String,
        /// Whom.
        endpoint: String,
        /// What went wrong.
        reason: NoAnswer,
    },
    /// It refuses.
    #[error("GCE refuses to {what}: {status}: {text}; {advice}")]
    Refused {
        /// What was asked.
        what: String,
        /// What it answered.
        status: StatusCode,
        /// And said.
        text: String,
        /// What to do about it.
        advice: &'static str,
        /// It may do it in a while.
        may_pass: bool,
    },
    /// It began, and did not succeed.
    #[error("GCE began to {what} and failed: {text}")]
    Failed {
        /// What was asked.
        what: String,
        /// What it said.
        text: String,
    },
}

impl ComputeError {
    /// Whether the same may be done in a while.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Token(error) => error.may_pass(),
            Self::NoAnswer { .. } => true,
            Self::Refused { may_pass, .. } => *may_pass,
            Self::Failed { .. } => false,
        }
    }
}

/// A network.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Network {
    pub(super) name: String,
    pub(super) self_link: String,
}

/// A machine.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Instance {
    pub(super) self_link: String,
    #[serde(default)]
    pub(super) can_ip_forward: bool,
}

/// A route that is there.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Route {
    #[serde(default)]
    pub(super) dest_range: String,
    #[serde(default)]
    pub(super) network: String,
    pub(super) next_hop_instance: Option<String>,
}

/// A route to be made.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NewRoute<'a> {
    pub(super) name: &'a str,
    pub(super) description: &'a str,
    pub(super) network: &'a str,
    pub(super) dest_range: String,
    pub(super) priority: u32,
    pub(super) next_hop_instance: &'a str,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Operation {
    name: String,
    status: String,
    error: Option<Faults>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Faults {
    message: String,
    errors: Vec<Fault>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Fault {
    code: String,
    reason: String,
    message: String,
}

/// The body of an error.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Refusal {
    error: Faults,
}

/// The API of one project.
pub(super) struct Compute {
    http: Http,
    tokens: Tokens,
    endpoint: String,
    project: String,
}

impl Compute {
    pub(super) fn new(http: Http, tokens: Tokens, project: &str, variable: &Variable) -> Self {
        let given = variable(OVERRIDE).filter(|endpoint| !endpoint.is_empty());
        let endpoint = given.unwrap_or_else(|| "https://compute.googleapis.com/compute/v1/".to_owned());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        Self { http, tokens, endpoint, project: project.to_owned() }
    }

    pub(super) async fn network(&self, name: &str) -> Result<Network, ComputeError> {
        let what = format!("read network {name}");
        self.call(Method::GET, &format!("global/networks/{name}"), None, &what).await
    }

    pub(super) async fn instance(&self, zone: &str, name: &str) -> Result<Instance, ComputeError> {
        let what = format!("read instance {name}");
        self.call(Method::GET, &format!("zones/{zone}/instances/{name}"), None, &what).await
    }

    /// A route, if there is one of that name.
    pub(super) async fn route(&self, name: &str) -> Result<Option<Route>, ComputeError> {
        let what = format!("read route {name}");
        match self.call(Method::GET, &format!("global/routes/{name}"), None, &what).await {
            Err(ComputeError::Refused { status: StatusCode::NOT_FOUND, .. }) => Ok(None),
            found => found.map(Some),
        }
    }

    /// Deletes a route, and waits until it is gone.
    pub(super) async fn delete_route(&self, name: &str) -> Result<(), ComputeError> {
        let what = format!("delete route {name}");
        match self.call(Method::DELETE, &format!("global/routes/{name}"), None, &what).await {
            Err(ComputeError::Refused { status: StatusCode::NOT_FOUND, .. }) => Ok(()),
            begun => self.finished(begun?, &what).await,
        }
    }

    /// Makes a route, and waits until it is there. One of that name that is there already is no error: the answer to an
    /// earlier attempt was lost, and the next look tells what it is.
    pub(super) async fn insert_route(&self, route: &NewRoute<'_>) -> Result<(), ComputeError> {
        let what = format!("insert route {}", route.name);
        // Writing to a string only fails for keys that are not strings, and there are none.
        let body = serde_json::to_string(route).unwrap_or_default();
        match self.call(Method::POST, "global/routes", Some(&body), &what).await {
            Err(ComputeError::Refused { status: StatusCode::CONFLICT, .. }) => Ok(()),
            begun => self.finished(begun?, &what).await,
        }
    }

    async fn finished(&self, mut operation: Operation, what: &str) -> Result<(), ComputeError> {
        for _ in 0..POLL.1 {
            if operation.status == "DONE" {
                let Some(faults) = operation.error else { return Ok(()) };
                let said = faults.errors.iter().map(|fault| format!("{}: {}", fault.code, fault.message));
                let text = said.collect::<Vec<_>>().join(", ");
                return Err(ComputeError::Failed { what: what.to_owned(), text });
            }
            sleep(POLL.0).await;
            let path = format!("global/operations/{}", operation.name);
            operation = self.call(Method::GET, &path, None, what).await?;
        }
        let text = format!("operation {} is not done after {} looks", operation.name, POLL.1);
        Err(ComputeError::Failed { what: what.to_owned(), text })
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&str>,
        what: &str,
    ) -> Result<T, ComputeError> {
        let uri = format!("{}/projects/{}/{path}", self.endpoint, self.project);
        let no_answer = |reason: NoAnswer| ComputeError::NoAnswer {
            what: what.to_owned(),
            endpoint: self.endpoint.clone(),
            reason,
        };
        let mut attempts = Attempts::default();
        let mut renewed = false;
        loop {
            let token = self.tokens.get().await?;
            let mut request = Request::builder()
                .method(method.clone())
                .uri(&uri)
                .header(header::AUTHORIZATION, format!("Bearer {token}"));
            if body.is_some() {
                request = request.header(header::CONTENT_TYPE, "application/json");
            }
            let request = request.body(Full::from(body.unwrap_or_default().to_owned())).map_err(|error| {
                no_answer(NoAnswer::Failed { host: self.endpoint.clone(), reason: error.to_string() })
            })?;
            let answer = match self.http.send(request, PATIENCE).await {
                Ok(answer) => answer,
                Err(_) if attempts.again().await => continue,
                Err(reason) => return Err(no_answer(reason)),
            };
            if answer.status.is_success() {
                return serde_json::from_slice(&answer.body).map_err(|error| ComputeError::Failed {
                    what: what.to_owned(),
                    text: format!("the answer is not the API's ({error}): {}", answer.text()),
                });
            }
            if answer.status == StatusCode::UNAUTHORIZED && !std::mem::replace(&mut renewed, true) {
                self.tokens.drop_kept().await;
                continue;
            }
            let refusal: Refusal = serde_json::from_slice(&answer.body).unwrap_or_default();
            let throttled = refusal.error.errors.iter().any(|fault| fault.reason.contains("LimitExceeded"));
            let may_pass = answer.may_pass() || throttled;
            if may_pass && attempts.again().await {
                continue;
            }
            return Err(refused(what, &answer, refusal, may_pass));
        }
    }
}

fn refused(what: &str, answer: &Answer, refusal: Refusal, may_pass: bool) -> ComputeError {
    let text = if refusal.error.message.is_empty() { answer.text() } else { refusal.error.message };
    let advice = match answer.status {
        _ if may_pass => "it is tried again",
        StatusCode::UNAUTHORIZED => "the token is not valid: has this instance a service account?",
        StatusCode::FORBIDDEN if text.contains("scope") => {
            "give the instance the scope compute-rw: gcloud compute instances set-service-account --scopes compute-rw"
        }
        StatusCode::FORBIDDEN => {
            "grant its service account compute.routes.create, .delete and .get, compute.networks.get and .updatePolicy, \
             compute.instances.get and .use, and compute.globalOperations.get"
        }
        StatusCode::NOT_FOUND => "is this the project and the zone of the instance?",
        _ => "see what it says",
    };
    ComputeError::Refused { what: what.to_owned(), status: answer.status, text, advice, may_pass }
}
