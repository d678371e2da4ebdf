//! A Compute Engine as far as its published API says what routes are: networks, instances, routes, operations.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, TcpListener},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::Result;
use serde_json::{Value, json};

use super::{
    amazon::METADATA,
    http::{Asked, HttpServer, Reply},
};
use crate::Netns;

/// The project, and where its only machine is.
const PROJECT: &str = "flannel-lab";
const API: &str = "https://www.googleapis.com/compute/v1/projects/flannel-lab";

#[derive(Default)]
struct State {
    routes: BTreeMap<String, Value>,
    /// Looks that an operation takes until it is done.
    slow: usize,
    /// Operations under way: looks that are left.
    operations: BTreeMap<String, usize>,
    /// Answers in place of ours, each once: a method, a status, a reason, a message.
    faults: Vec<(String, u16, String, String)>,
    /// Requests, as `GET global/routes/x`.
    asked: Vec<String>,
    /// How many tokens were given.
    tokens: usize,
    /// Only the token of this number is good; 0 for all.
    good: usize,
}

/// A project of Google's, as one instance sees it.
pub struct Google {
    state: Arc<Mutex<State>>,
    server: HttpServer,
}

impl Google {
    /// One on loopback of this namespace.
    pub fn start() -> Result<Self> {
        Self::serve(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?)
    }

    /// One in `netns`, at the address that metadata has everywhere.
    pub fn start_in(netns: &Netns) -> Result<Self> {
        netns.ip(&format!("addr add {METADATA}/32 dev lo"))?;
        netns.inside(|| Self::serve(TcpListener::bind((METADATA, 80))?))
    }

    fn serve(listener: TcpListener) -> Result<Self> {
        let state = Arc::new(Mutex::new(State::default()));
        let ours = state.clone();
        let server = HttpServer::start(listener, move |asked| answer(&mut locked(&ours), asked))?;
        Ok(Self { state, server })
    }

    /// `GCE_METADATA_HOST`.
    pub fn metadata_host(&self) -> String {
        self.server.address().to_string()
    }

    /// Where the API is.
    pub fn url(&self) -> String {
        format!("http://{}/compute/v1/", self.server.address())
    }

    /// The routes there are.
    pub fn routes(&self) -> BTreeMap<String, Value> {
        locked(&self.state).routes.clone()
    }

    /// A route that somebody else made, to an instance.
    pub fn put_route(&self, name: &str, to: &str, instance: &str) {
        let route = json!({
            "name": name, "destRange": to, "priority": 1000, "network": format!("{API}/global/networks/default"),
            "nextHopInstance": format!("{API}/zones/europe-west1-b/instances/{instance}"),
        });
        locked(&self.state).routes.insert(name.to_owned(), route);
    }

    /// Operations are done after so many looks.
    pub fn slow(&self, looks: usize) {
        locked(&self.state).slow = looks;
    }

    /// Answers the next request of that method by an error.
    pub fn fail(&self, method: &str, status: u16, reason: &str, message: &str) {
        locked(&self.state).faults.push((method.into(), status, reason.into(), message.into()));
    }

    /// No token but the next one is good any more.
    pub fn revoke_tokens(&self) {
        let mut state = locked(&self.state);
        state.good = state.tokens + 1;
    }

    /// All that was asked of the API.
    pub fn asked(&self) -> Vec<String> {
        locked(&self.state).asked.clone()
    }
}

fn answer(state: &mut State, asked: &Asked) -> Reply {
    if let Some(path) = asked.path.strip_prefix("/computeMetadata/v1/") {
        return metadata(state, path, asked);
    }
    let start = format!("/compute/v1/projects/{PROJECT}/");
    let Some(path) = asked.path.strip_prefix(&start) else {
        return refuse(404, "notFound", "no such project");
    };
    state.asked.push(format!("{} {path}", asked.method));
    let token = asked.headers.get("authorization").and_then(|text| text.strip_prefix("Bearer token-"));
    let token: Option<usize> = token.and_then(|text| text.parse().ok());
    if token.is_none_or(|token| state.good != 0 && token < state.good) {
        return refuse(401, "authError", "Invalid Credentials");
    }
    if let Some(at) = state.faults.iter().position(|(method, ..)| *method == asked.method) {
        let (_, status, reason, message) = state.faults.remove(at);
        return refuse(status, &reason, &message);
    }
    let route = path.strip_prefix("global/routes/");
    match (asked.method.as_str(), path, route) {
        ("GET", "global/networks/default", _) => {
            json(&json!({ "name": "default", "selfLink": format!("{API}/global/networks/default") }))
        }
        ("GET", "zones/europe-west1-b/instances/node1", _) => json(&json!({
            "name": "node1", "canIpForward": true,
            "selfLink": format!("{API}/zones/europe-west1-b/instances/node1"),
        })),
        ("GET", _, Some(name)) => match state.routes.get(name) {
            Some(route) => json(route),
            None => refuse(404, "notFound", &format!("The resource '{name}' was not found")),
        },
        ("DELETE", _, Some(name)) => match state.routes.remove(name) {
            Some(_) => operation(state),
            None => refuse(404, "notFound", &format!("The resource '{name}' was not found")),
        },
        ("POST", "global/routes", _) => {
            let Ok(route) = serde_json::from_str::<Value>(&asked.body) else {
                return refuse(400, "parseError", "Parse Error");
            };
            let Some(name) = route["name"].as_str().map(str::to_owned) else {
                return refuse(400, "required", "Required field 'resource.name' not specified");
            };
            for field in ["network", "destRange", "priority", "nextHopInstance"] {
                if route[field].is_null() {
                    return refuse(
                        400,
                        "required",
                        &format!("Required field 'resource.{field}' not specified"),
                    );
                }
            }
            if state.routes.contains_key(&name) {
                return refuse(409, "alreadyExists", &format!("The resource '{name}' already exists"));
            }
            state.routes.insert(name, route);
            operation(state)
        }
        ("GET", _, _) => match path.strip_prefix("global/operations/").map(str::to_owned) {
            Some(name) => {
                let left = state.operations.entry(name.clone()).or_default();
                *left = left.saturating_sub(1);
                let status = if *left == 0 { "DONE" } else { "RUNNING" };
                json(&json!({ "name": name, "status": status }))
            }
            None => refuse(404, "notFound", "no such thing"),
        },
        _ => refuse(404, "notFound", "no such thing"),
    }
}

fn operation(state: &mut State) -> Reply {
    let name = format!("operation-{}", state.operations.len());
    state.operations.insert(name.clone(), state.slow);
    let status = if state.slow == 0 { "DONE" } else { "PENDING" };
    json(&json!({ "name": name, "status": status }))
}

fn metadata(state: &mut State, path: &str, asked: &Asked) -> Reply {
    if asked.headers.get("metadata-flavor").map(String::as_str) != Some("Google") {
        return Reply::new(403, "Missing Metadata-Flavor:Google header");
    }
    let text = match path {
        "instance/network-interfaces/0/network" => "projects/123/networks/default".to_owned(),
        "project/project-id" => PROJECT.to_owned(),
        "instance/zone" => "projects/123/zones/europe-west1-b".to_owned(),
        "instance/hostname" => "node1.europe-west1-b.c.flannel-lab.internal".to_owned(),
        "instance/service-accounts/default/token" => {
            state.tokens += 1;
            json!({ "access_token": format!("token-{}", state.tokens), "expires_in": 3600, "token_type": "Bearer" })
                .to_string()
        }
        _ => return Reply::new(404, "no such thing"),
    };
    let headers = vec![("Metadata-Flavor".to_owned(), "Google".to_owned())];
    Reply { status: 200, headers, body: text }
}

fn json(value: &Value) -> Reply {
    Reply::new(200, value.to_string())
}

fn refuse(status: u16, reason: &str, message: &str) -> Reply {
    let error = json!({
        "error": {
            "code": status, "message": message,
            "errors": [{ "domain": "global", "reason": reason, "message": message }],
        },
    });
    Reply::new(status, error.to_string())
}

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
