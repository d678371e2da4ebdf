//! A proxy before the API server that makes it fail as a real one cannot be made to on demand.

use std::{
    collections::BTreeMap,
    io,
    net::TcpListener,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result, anyhow};
use futures::{StreamExt as _, stream};
use http_body_util::{BodyExt as _, BodyStream, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Request, Response,
    body::{Bytes, Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use kube::{
    Client, Config,
    client::Body,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::json;
use tokio::{
    select,
    sync::{broadcast, oneshot},
};

use super::ApiServer;

/// What becomes of the watches that are under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchFault {
    /// Their connections break.
    Cut,
    /// They say nothing any more, and do not end.
    Silence,
    /// They say something that is no event.
    Garbage,
    /// They say that where they are is forgotten (410).
    Gone,
}

/// Speaks HTTP without TLS, and passes on what it is asked, credentials among it.
#[derive(Debug)]
pub struct FaultyApi {
    faults: Arc<Faults>,
    url: String,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<()>>>,
}

#[derive(Debug)]
struct Faults {
    /// Status of every answer, instead of asking anybody.
    refuse: Mutex<Option<u16>>,
    watches: broadcast::Sender<WatchFault>,
    /// Requests by what they are: `list`, `watch`, `GET` and so on.
    asked: Mutex<BTreeMap<String, usize>>,
}

type Sent = UnsyncBoxBody<Bytes, io::Error>;

impl ApiServer {
    /// A way to this API server that can be made to fail, for [`ApiServer::kubeconfig_for`].
    pub fn faulty(&self) -> Result<FaultyApi> {
        let config = json!({
            "clusters": [{
                "name": "lab",
                "cluster": { "server": self.url(), "certificate-authority": self.authority() },
            }],
            "users": [{ "name": "nobody", "user": {} }],
            "contexts": [{ "name": "lab", "context": { "cluster": "lab", "user": "nobody" } }],
            "current-context": "lab",
        });
        let config = Kubeconfig::from_yaml(&config.to_string()).context("kubeconfig of the proxy")?;
        let faults = Arc::new(Faults {
            refuse: Mutex::default(),
            watches: broadcast::channel(16).0,
            asked: Mutex::default(),
        });
        let (stop, stopped) = oneshot::channel();
        let ours = faults.clone();
        let address = self.address;
        let (thread, url) = self.netns.inside(move || {
            let listener = TcpListener::bind((address, 0)).context("listen")?;
            listener.set_nonblocking(true)?;
            let url = format!("http://{}", listener.local_addr()?);
            // It is in here, as its parent is.
            Ok((thread::spawn(move || serve(listener, config, ours, stopped)), url))
        })?;
        Ok(FaultyApi { faults, url, stop: Some(stop), thread: Some(thread) })
    }
}

impl FaultyApi {
    /// Its URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Answers everything with this status; `None` is to pass on again.
    pub fn refuse(&self, status: Option<u16>) {
        *locked(&self.faults.refuse) = status;
    }

    /// Does this to all watches that are under way; how many those were.
    pub fn to_watches(&self, fault: WatchFault) -> usize {
        self.faults.watches.send(fault).unwrap_or(0)
    }

    /// How many requests of a kind there were: `list`, `watch`, or a method.
    pub fn asked(&self, kind: &str) -> usize {
        locked(&self.faults.asked).get(kind).copied().unwrap_or(0)
    }
}

impl Drop for FaultyApi {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(
    listener: TcpListener,
    config: Kubeconfig,
    faults: Arc<Faults>,
    mut stopped: oneshot::Receiver<()>,
) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
        config.default_retry = false;
        let client = Client::try_from(config)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        loop {
            let stream = select! {
                _ = &mut stopped => return Ok(()),
                accepted = listener.accept() => accepted?.0,
            };
            let (client, faults) = (client.clone(), faults.clone());
            let service = service_fn(move |request| {
                let (client, faults) = (client.clone(), faults.clone());
                async move { answer(&client, &faults, request).await }
            });
            // A connection that a fault breaks ends with an error.
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    })
}

async fn answer(client: &Client, faults: &Faults, request: Request<Incoming>) -> Result<Response<Sent>> {
    let query = request.uri().query().unwrap_or_default();
    let watch = query.contains("watch=true");
    let kind = match (watch, query.contains("limit=")) {
        (true, _) => "watch",
        (false, true) => "list",
        (false, false) => request.method().as_str(),
    };
    *locked(&faults.asked).entry(kind.to_owned()).or_default() += 1;
    if let Some(status) = *locked(&faults.refuse) {
        let body = json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": status, "reason": "Injected",
            "message": format!("refused with {status} by the lab"),
        });
        return Ok(Response::builder().status(status).body(whole(body.to_string()))?);
    }
    let watched = faults.watches.subscribe();
    let (parts, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let path = parts.uri.path_and_query().context("no path")?.as_str().to_owned();
    let mut passed = Request::builder().method(parts.method).uri(path);
    for (name, value) in &parts.headers {
        if !matches!(name.as_str(), "host" | "connection" | "content-length") {
            passed = passed.header(name, value);
        }
    }
    let answer = client.send(passed.body(Body::from(body.to_vec()))?).await?;
    let (parts, body) = answer.into_parts();
    let mut response = Response::builder().status(parts.status);
    for (name, value) in &parts.headers {
        if !matches!(name.as_str(), "connection" | "content-length" | "transfer-encoding") {
            response = response.header(name, value);
        }
    }
    let body = if watch { faulty(body, watched) } else { body.map_err(io::Error::other).boxed_unsync() };
    Ok(response.body(body)?)
}

fn whole(text: String) -> Sent {
    Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync()
}

/// What a watch says, until a fault.
fn faulty(body: Body, faults: broadcast::Receiver<WatchFault>) -> Sent {
    let frame = |text: &'static str| Ok(Frame::data(Bytes::from_static(text.as_bytes())));
    let state = Some((BodyStream::new(body), faults));
    let frames = stream::unfold(state, move |state| async move {
        let (mut frames, mut faults) = state?;
        select! {
            fault = faults.recv() => match fault.ok()? {
                WatchFault::Cut => Some((Err(io::Error::other(anyhow!("cut by the lab"))), None)),
                WatchFault::Silence => std::future::pending().await,
                WatchFault::Garbage => Some((frame("garbage\n"), Some((frames, faults)))),
                WatchFault::Gone => {
                    let gone = "{\"type\":\"ERROR\",\"object\":{\"kind\":\"Status\",\"status\":\"Failure\",\
                                \"code\":410,\"message\":\"too old resource version\",\"reason\":\"Expired\"}}\n";
                    Some((frame(gone), None))
                }
            },
            next = frames.next() => Some((next?.map_err(io::Error::other), Some((frames, faults)))),
        }
    });
    StreamBody::new(frames).boxed_unsync()
}
